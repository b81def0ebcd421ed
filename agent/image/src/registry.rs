//! The registry, through containers-image-proxy and skopeo behind it.
//!
//! Debian 12's skopeo speaks version 0.2.3 of the proxy's protocol. It has one thread, so a blob must be read to its declared end before
//! it is finished, or every other request waits; and it does not close the pipe of a blob that ends early, so silence is what tells.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use containers_image_proxy::{ImageProxy, ImageProxyConfig, OpenedImage};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use tokio::io::{AsyncBufRead, AsyncReadExt as _};
use tokio::time::timeout;

use crate::error::{Error, Kind, Result, from_proxy};
use crate::{Request, reference};

/// How long a registry may say nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// How long the proxy may take to say why a blob ended, or to end itself.
const PARTING: Duration = Duration::from_secs(2);

/// The largest manifest and configuration.
const MAX_MANIFEST: usize = 4 << 20;
const MAX_CONFIG: usize = 8 << 20;

/// How much is read from the proxy at once.
const CHUNK: usize = 256 << 10;

/// An open image.
pub(crate) struct Registry {
    proxy: ImageProxy,
    image: OpenedImage,
}

impl Registry {
    /// Opens the image. Secrets go to files in `private`, a directory of the caller's alone, and with it.
    pub(crate) async fn open(request: &Request, private: &Path) -> Result<Registry> {
        let proxy = timeout(SILENCE, ImageProxy::new_with_config(config(request, private)?)).await;
        let proxy = proxy
            .map_err(|_| Error::new(Kind::Internal, "start skopeo: it does not answer"))?
            .map_err(|error| Error::new(Kind::Internal, format!("start skopeo: is it installed? ({error})")))?;
        let act = format!("open {}", request.reference);
        let image = within(&act, proxy.open_image(&format!("docker://{}", request.reference))).await?;
        Ok(Registry { proxy, image })
    }

    /// The manifest for this platform, and its digest.
    pub(crate) async fn manifest(&self) -> Result<(String, ImageManifest)> {
        let (digest, bytes) = within("read the manifest", self.proxy.fetch_manifest_raw_oci(&self.image)).await?;
        bounded("manifest", bytes.len(), MAX_MANIFEST)?;
        reference::sha256(&digest)?;
        let manifest = serde_json::from_slice(&bytes)
            .map_err(|error| Error::new(Kind::BadImage, format!("the manifest {digest}: {error}")))?;
        Ok((digest, manifest))
    }

    /// The image's configuration. skopeo has checked its digest against the manifest's.
    pub(crate) async fn config(&self) -> Result<ImageConfiguration> {
        let bytes = within("read the configuration", self.proxy.fetch_config_raw(&self.image)).await?;
        bounded("configuration", bytes.len(), MAX_CONFIG)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::new(Kind::BadImage, format!("the configuration: {error}")))
    }

    /// Reads a blob to its declared end and hands each piece to `take`; stops when `take` says so. Digests are the caller's to check.
    pub(crate) async fn blob(&self, blob: &Descriptor, mut take: impl AsyncFnMut(Vec<u8>) -> bool) -> Result<()> {
        let act = format!("fetch {}", blob.digest());
        let fail = |error: containers_image_proxy::Error| from_proxy(&act, &error.to_string());
        let (mut reader, driver) = timeout(SILENCE, self.proxy.get_blob(&self.image, blob.digest(), blob.size()))
            .await
            .map_err(|_| stalled(&act))?
            .map_err(fail)?;
        let result = copy(&mut reader, blob.size(), &mut take).await;
        drop(reader);
        let parting = timeout(PARTING, driver).await;
        match (result, parting) {
            (Copied::All | Copied::Stopped, _) => Ok(()),
            (Copied::Failed(_) | Copied::Silent, Ok(Err(error))) => Err(fail(error)),
            (Copied::Failed(error), _) => Err(Error::system(act, error)),
            (Copied::Silent, _) => Err(stalled(&act)),
        }
    }
}

enum Copied {
    All,
    Stopped,
    Silent,
    Failed(std::io::Error),
}

async fn copy(
    reader: &mut (impl AsyncBufRead + Unpin),
    size: u64,
    take: &mut impl AsyncFnMut(Vec<u8>) -> bool,
) -> Copied {
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let mut chunk = Vec::with_capacity(want);
        let mut limited = (&mut *reader).take(want as u64);
        match timeout(SILENCE, limited.read_buf(&mut chunk)).await {
            Err(_) => return Copied::Silent,
            Ok(Err(error)) => return Copied::Failed(error),
            Ok(Ok(0)) => return Copied::Silent,
            Ok(Ok(n)) => left = left.saturating_sub(n as u64),
        }
        if !take(chunk).await {
            return Copied::Stopped;
        }
    }
    Copied::All
}

fn stalled(act: &str) -> Error {
    Error::new(Kind::Stalled, format!("{act}: the registry sent nothing for {} s; try again", SILENCE.as_secs()))
}

async fn within<T>(
    act: &str,
    answer: impl Future<Output = std::result::Result<T, containers_image_proxy::Error>>,
) -> Result<T> {
    match timeout(2 * SILENCE, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(from_proxy(act, &error.to_string())),
        Err(_) => Err(Error::new(Kind::Stalled, format!("{act}: the registry did not answer; try again"))),
    }
}

fn bounded(what: &str, length: usize, limit: usize) -> Result<()> {
    if length <= limit {
        return Ok(());
    }
    Err(Error::new(Kind::BadImage, format!("the {what} has {length} bytes, more than {limit}")))
}

fn config(request: &Request, private: &Path) -> Result<ImageProxyConfig> {
    let authfile = match &request.auth {
        Some(auth) => {
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", auth.username, auth.password));
            let registry = reference::registry(&request.reference);
            let json = serde_json::json!({ "auths": { registry: { "auth": pair } } }).to_string();
            Some(write(&private.join("auth.json"), json.as_bytes())?)
        }
        None => None,
    };
    let certificate_directory = match &request.ca_pem {
        Some(pem) => {
            let dir = private.join("certs");
            fs::create_dir(&dir).map_err(|error| Error::system("make a directory for certificates", error))?;
            write(&dir.join("ca.crt"), pem.as_bytes())?;
            Some(dir)
        }
        None => None,
    };
    let mut skopeo = Command::new("skopeo");
    skopeo.env("HOME", private).env("TMPDIR", private);
    nacre_sys::lifeline::die_with_parent(&mut skopeo);
    let mut config = ImageProxyConfig::default();
    config.auth_anonymous = authfile.is_none();
    config.authfile = authfile;
    config.certificate_directory = certificate_directory;
    config.insecure_skip_tls_verification = request.skip_tls_verification.then_some(true);
    // This version of the proxy enforces no policy either way.
    config.insecure_policy = Some(true);
    config.skopeo_cmd = Some(skopeo);
    Ok(config)
}

fn write(path: &Path, bytes: &[u8]) -> Result<std::path::PathBuf> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|error| Error::system(format!("write {}", path.display()), error))?;
    Ok(path.to_path_buf())
}
