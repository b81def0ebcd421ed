//! The registry, through containers-image-proxy and skopeo behind it.
//!
//! Debian 12's skopeo speaks version 0.2.3 of the proxy's protocol, which sets the rules here. It has one thread, and
//! to finish a blob that is still coming stops everything else: so a blob is read to its declared end first. It does
//! not close the pipe of a blob that ended early: so a blob that is silent for a while is finished all the same, and
//! then the proxy says what is wrong. And it enforces no policy.json, so none is promised.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containers_image_proxy::{ImageProxy, ImageProxyConfig, OpenedImage};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest, MediaType};
use rustix::fs::MemfdFlags;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncBufRead, AsyncReadExt as _};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{Error, Kind, Result, from_proxy};
use crate::{Auth, Request, reference};

/// After how much silence of a blob the proxy is asked what became of it.
const DOUBT: Duration = Duration::from_secs(3);

/// How long the proxy may take over a blob that has come.
const PARTING: Duration = Duration::from_secs(2);

/// The largest manifest and configuration.
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_CONFIG: u64 = 8 << 20;

/// How much is read from the proxy at once.
const CHUNK: u64 = 256 << 10;

type Answer<T> = std::result::Result<T, containers_image_proxy::Error>;

/// An open image.
pub(crate) struct Registry {
    proxy: ImageProxy,
    image: OpenedImage,
    patience: Patience,
}

/// What the registry has of the image for this machine.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) manifest_digest: String,
    pub(crate) manifest: ImageManifest,
    pub(crate) config: ImageConfiguration,
}

impl Registry {
    /// Opens the image. The registry may be silent for `silence`.
    pub(crate) async fn open(request: &Request, silence: Duration) -> Result<Registry> {
        let access = Access::prepare(request)?;
        let patience = Patience { silence, heard: Cell::new(Instant::now()) };
        let proxy = patience.wait("start skopeo", ImageProxy::new_with_config(access.config())).await?;
        let proxy =
            proxy.map_err(|error| Error::new(Kind::Internal, format!("start skopeo: is it installed? [{error}]")))?;
        patience.hear();
        let act = format!("open {}", request.reference);
        let image = patience.wait(&act, proxy.open_image(&reference::transport(&request.reference))).await?;
        let image = image.map_err(|error| from_proxy(&act, &error.to_string()))?;
        // skopeo has read credentials and certificates by now; they go here.
        drop(access);
        patience.hear();
        Ok(Registry { proxy, image, patience })
    }

    /// The manifest and the configuration, each checked against its digest.
    ///
    /// skopeo chooses the manifest for this machine from an index, whose digest it has checked when the reference has
    /// one; the index itself does not reach us. Nor do the bytes of a manifest in Docker's format, which it converts.
    pub(crate) async fn find(&self, reference: &str) -> Result<Found> {
        let (digest, bytes) = self.ask("read the manifest", self.proxy.fetch_manifest_raw_oci(&self.image)).await?;
        bounded("manifest", bytes.len() as u64, MAX_MANIFEST)?;
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| Error::bad_image(format!("the manifest {digest} makes no sense: {error}")))?;
        let as_served = matches(&bytes, &digest)?;
        let kind = manifest.config().media_type();
        if *kind != MediaType::ImageConfig {
            return Err(Error::bad_image(format!("{reference} is no container image: its configuration is {kind}")));
        }
        let config = if as_served { self.small(manifest.config()).await? } else { self.converted(&manifest).await? };
        let config = serde_json::from_slice(&config)
            .map_err(|error| Error::bad_image(format!("the image's configuration makes no sense: {error}")))?;
        Ok(Found { manifest_digest: digest, manifest, config })
    }

    /// A blob that fits into memory, checked.
    async fn small(&self, blob: &Descriptor) -> Result<Vec<u8>> {
        bounded("configuration", blob.size(), MAX_CONFIG)?;
        let mut bytes = Vec::new();
        self.blob(blob, async |piece: Vec<u8>| {
            bytes.extend(piece);
            true
        })
        .await?;
        if matches(&bytes, blob.digest().as_ref())? {
            Ok(bytes)
        } else {
            Err(corrupt("the configuration", blob.digest()))
        }
    }

    /// The configuration of a converted manifest, which is in no registry.
    async fn converted(&self, manifest: &ImageManifest) -> Result<Vec<u8>> {
        let bytes = self.ask("read the configuration", self.proxy.fetch_config_raw(&self.image)).await?;
        bounded("configuration", bytes.len() as u64, MAX_CONFIG)?;
        let digest = manifest.config().digest();
        if matches(&bytes, digest.as_ref())? { Ok(bytes) } else { Err(corrupt("the configuration", digest)) }
    }

    /// Reads a blob to its declared end and hands each piece to `take`; stops when `take` says so. The digest is the
    /// caller's to check.
    pub(crate) async fn blob(&self, blob: &Descriptor, mut take: impl AsyncFnMut(Vec<u8>) -> bool) -> Result<()> {
        let act = format!("fetch {}", blob.digest());
        let (mut reader, driver) = self.ask(&act, self.proxy.get_blob(&self.image, blob.digest(), blob.size())).await?;
        tokio::pin!(driver);
        let why = |error: containers_image_proxy::Error| from_proxy(&act, &error.to_string());
        let mut left = blob.size();
        let mut stage = Stage::Coming;
        while left > 0 {
            let (doubt, mut piece) = (Instant::now() + DOUBT.min(self.patience.silence / 2), Vec::new());
            let n = {
                let read = next_piece(&mut reader, &mut piece, left);
                tokio::pin!(read);
                loop {
                    tokio::select! {
                        n = &mut read => break n.map_err(|error| Error::system(&act, error))?,
                        () = self.patience.end() => return Err(self.patience.stalled(&act)),
                        () = sleep_until(doubt), if stage == Stage::Coming => stage = Stage::Asked,
                        ended = &mut driver, if stage == Stage::Asked => {
                            ended.map_err(why)?;
                            stage = Stage::Sent;
                        }
                    }
                }
            };
            if n == 0 {
                if stage != Stage::Sent {
                    self.patience.wait(&act, driver).await?.map_err(why)?;
                }
                return Err(Error::new(Kind::Stalled, format!("{act}: {left} bytes are missing: try again")));
            }
            self.patience.hear();
            left = left.saturating_sub(n);
            if !take(piece).await {
                break;
            }
            self.patience.hear(); // slow unpacking is not the registry's silence
        }
        drop(reader);
        if stage != Stage::Sent {
            let _ = timeout(PARTING, driver).await; // all that was declared has come, and the caller checks it
        }
        Ok(())
    }

    async fn ask<T>(&self, act: &str, answer: impl Future<Output = Answer<T>>) -> Result<T> {
        let answer = self.patience.wait(act, answer).await?;
        self.patience.hear();
        answer.map_err(|error| from_proxy(act, &error.to_string()))
    }
}

/// How far a blob is.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Coming,
    /// It was silent, so the proxy was asked to finish it. It answers when all is sent, or why that will not be; if it
    /// was the network that is slow, other blobs wait for this one's end.
    Asked,
    /// All of it is in the pipe.
    Sent,
}

async fn next_piece(reader: &mut (impl AsyncBufRead + Unpin), piece: &mut Vec<u8>, left: u64) -> std::io::Result<u64> {
    let want = left.min(CHUNK);
    piece.reserve(usize::try_from(want).unwrap_or(0));
    Ok(reader.take(want).read_buf(piece).await? as u64)
}

/// When the registry was last heard, whatever it said: while one blob comes, others may wait for their turn.
struct Patience {
    silence: Duration,
    heard: Cell<Instant>,
}

impl Patience {
    fn hear(&self) {
        self.heard.set(Instant::now());
    }

    /// Returns when nothing has been heard for too long.
    async fn end(&self) {
        while self.heard.get() + self.silence > Instant::now() {
            sleep_until(self.heard.get() + self.silence).await;
        }
    }

    async fn wait<T>(&self, act: &str, answer: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            answer = answer => Ok(answer),
            () = self.end() => Err(self.stalled(act)),
        }
    }

    fn stalled(&self, act: &str) -> Error {
        let seconds = self.silence.as_secs();
        Error::new(Kind::Stalled, format!("{act}: the registry has sent nothing for {seconds} s: try again"))
    }
}

fn matches(bytes: &[u8], digest: &str) -> Result<bool> {
    Ok(<[u8; 32]>::from(Sha256::digest(bytes)) == reference::sha256(digest)?)
}

fn corrupt(what: &str, digest: impl std::fmt::Display) -> Error {
    Error::new(Kind::Corrupt, format!("{what} {digest}: the registry serves something else: push the image again"))
}

fn bounded(what: &str, length: u64, limit: u64) -> Result<()> {
    if length <= limit {
        return Ok(());
    }
    Err(Error::bad_image(format!("the image's {what} has {length} bytes, more than {limit}")))
}

/// What skopeo is to read: credentials in memory that no directory names, certificates in a directory of their own.
struct Access<'a> {
    request: &'a Request,
    auth: Option<File>,
    certificates: Option<TempDir>,
}

impl Access<'_> {
    fn prepare(request: &Request) -> Result<Access<'_>> {
        let auth = request.auth.as_ref().map(|auth| auth_file(&request.reference, auth)).transpose();
        let certificates = request.ca_pem.as_deref().map(certificate_directory).transpose();
        Ok(Access {
            request,
            auth: auth.map_err(|error| Error::system("keep the credentials", error))?,
            certificates: certificates.map_err(|error| Error::system("write the certificates", error))?,
        })
    }

    fn config(&self) -> ImageProxyConfig {
        let mut skopeo = Command::new("skopeo");
        // Whatever the user's home holds, it is not asked.
        skopeo.env("HOME", "/nonexistent");
        nacre_sys::lifeline::die_with_parent(&mut skopeo);
        let mut config = ImageProxyConfig::default();
        config.authfile = self.auth.as_ref().map(path_of);
        config.auth_anonymous = self.auth.is_none();
        config.certificate_directory = self.certificates.as_ref().map(|dir| dir.path().to_path_buf());
        config.insecure_skip_tls_verification = self.request.skip_tls_verification.then_some(true);
        config.skopeo_cmd = Some(skopeo);
        config
    }
}

fn auth_file(reference: &str, auth: &Auth) -> std::io::Result<File> {
    let pair = STANDARD.encode(format!("{}:{}", auth.username, auth.password));
    let json = serde_json::json!({ "auths": { reference::registry(reference): { "auth": pair } } });
    let mut file = File::from(rustix::fs::memfd_create("auth.json", MemfdFlags::CLOEXEC)?);
    file.write_all(json.to_string().as_bytes())?;
    Ok(file)
}

fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

fn certificate_directory(pem: &str) -> std::io::Result<TempDir> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("ca.crt"), pem)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_for_the_images_registry_and_in_no_directory() {
        let auth = Auth { username: "u".into(), password: "p:w".into() };
        let file = auth_file("registry.example:5000/a", &auth).unwrap();
        let text = fs::read_to_string(path_of(&file)).unwrap();
        assert_eq!(text, r#"{"auths":{"registry.example:5000":{"auth":"dTpwOnc="}}}"#);
        assert!(!format!("{auth:?}").contains("p:w"));
    }
}
