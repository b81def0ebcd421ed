//! The registry, through containers-image-proxy and the server behind it: our own, or skopeo.
//!
//! Blobs come as raw descriptors (`GetRawBlob`, version 0.2.8 of the protocol). The older `GetBlob` serialises its callers and hangs when a
//! registry lies about a size, and older servers enforce no policy, so they are refused.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containers_image_proxy::{GetBlobError, ImageProxy, ImageProxyConfig, OpenedImage};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest, MediaType};
use rustix::fs::MemfdFlags;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::cache::{Cache, Offered};
use crate::error::{Error, Kind, Result, from_proxy};
use crate::store::{Partial, Store};
use crate::stream::{LEAST, Patience, Watched};
use crate::{Auth, Request, Server, reference};

/// How much longer than the registry its server may be silent: it tries again, waits between, and says itself that the registry is silent.
const GRACE: Duration = Duration::from_secs(10);

/// The largest manifest and configuration.
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_CONFIG: u64 = 8 << 20;

/// How many silences an answer may take: a mirror's, and two of the image's own place.
const MOST_TRIES: u32 = 3;

/// The user of our server, who owns nothing.
const NOBODY: &str = "65534";

type Answer<T> = std::result::Result<T, containers_image_proxy::Error>;

/// An open image.
pub(crate) struct Registry {
    proxy: ImageProxy,
    image: OpenedImage,
    silence: Duration,
    server: Server,
    /// What skopeo has unpacked goes with it.
    _scratch: Option<Partial>,
}

/// What the registry has of the image for this machine.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) manifest_digest: String,
    /// The manifest as the digest has it, or as skopeo has converted it.
    pub(crate) bytes: Vec<u8>,
    /// Whether the digest is that of the bytes.
    pub(crate) as_served: bool,
    pub(crate) manifest: ImageManifest,
    pub(crate) config: ImageConfiguration,
}

impl Registry {
    /// Opens the image. The registry may be silent for `silence`.
    pub(crate) async fn open(request: &Request, store: &Store, silence: Duration) -> Result<Registry> {
        let mut access = Access::prepare(request)?;
        if request.server == Server::Skopeo && request.reference.starts_with("oci-archive:") {
            access.scratch = Some(store.begin()?);
        }
        let proxy = ImageProxy::new_with_config(access.config(request.server, silence)).await.map_err(|error| {
            Error::new(Kind::Internal, format!("start the registry client: is it installed? [{error}]"))
        })?;
        if !proxy.supports_get_raw_blob() {
            return Err(Error::new(
                Kind::Internal,
                format!(
                    "this skopeo speaks version {} of its protocol and is not safe: it takes 0.2.8 (skopeo 1.19), or Nacre's own client",
                    proxy.protocol_version()
                ),
            ));
        }
        let act = format!("open {}", request.reference);
        let image = patiently(silence, &act, proxy.open_image(&reference::transport(&request.reference))).await?;
        // The server has read credentials and certificates by now; they go here.
        let Access { scratch, .. } = access;
        Ok(Registry { proxy, image, silence, server: request.server, _scratch: scratch })
    }

    /// The manifest and the configuration, each checked against its digest.
    ///
    /// The server chooses the manifest for this machine from an index, whose digest it has checked when the reference has one. skopeo converts a
    /// manifest in Docker's format, so that only skopeo can check it; our own server does not.
    pub(crate) async fn find(&self, reference: &str, cache: &Cache) -> Result<Found> {
        let act = "read the manifest";
        let (digest, bytes) = patiently(self.silence, act, self.proxy.fetch_manifest_raw_oci(&self.image)).await?;
        bounded("manifest", bytes.len() as u64, MAX_MANIFEST)?;
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| Error::bad_image(format!("the manifest {digest} makes no sense: {error}")))?;
        let as_served = matches(&bytes, &digest)?;
        if !as_served && self.server == Server::Own {
            return Err(corrupt("the manifest", &digest));
        }
        let kind = manifest.config().media_type();
        if !is_config(kind) {
            return Err(Error::bad_image(format!("{reference} is no container image: its configuration is {kind}")));
        }
        let config = match as_served {
            true => self.config(manifest.config(), cache).await?,
            false => self.converted(&manifest).await?,
        };
        let config = serde_json::from_slice(&config)
            .map_err(|error| Error::bad_image(format!("the image's configuration makes no sense: {error}")))?;
        Ok(Found { manifest_digest: digest, bytes, as_served, manifest, config })
    }

    /// The configuration, checked: from the cache, or from the registry.
    async fn config(&self, blob: &Descriptor, cache: &Cache) -> Result<Vec<u8>> {
        bounded("configuration", blob.size(), MAX_CONFIG)?;
        let cached = cache.attempt(blob, false, async |bytes| checked(read(bytes).await?, blob)).await?;
        let wanted = match cached {
            ControlFlow::Break(bytes) => return Ok(bytes),
            ControlFlow::Continue(wanted) => wanted,
        };
        let (reader, ended) = self.blob(blob).await.map_err(|error| error.context("the configuration"))?;
        let bytes = read(reader).await?;
        ended.await?;
        let bytes = checked(bytes, blob)?;
        if wanted.is_some() {
            let mut offered = Offered::new(io::Cursor::new(bytes.clone()), wanted);
            let send = move || io::copy(&mut offered, &mut io::sink()).and_then(|_| offered.finish(true));
            cache.offered(blob, tokio::task::spawn_blocking(send).await.map_err(io::Error::from).flatten());
        }
        Ok(bytes)
    }

    /// The configuration of a converted manifest: skopeo makes a new one, which is in no registry.
    async fn converted(&self, manifest: &ImageManifest) -> Result<Vec<u8>> {
        let bytes = patiently(self.silence, "read the configuration", self.proxy.fetch_config_raw(&self.image)).await?;
        bounded("configuration", bytes.len() as u64, MAX_CONFIG)?;
        let digest = manifest.config().digest();
        if matches(&bytes, digest.as_ref())? { Ok(bytes) } else { Err(corrupt("the configuration", digest)) }
    }

    /// A blob: its bytes, as many as it is declared to have, for a thread that may wait for them; and why there were no more, to be asked once
    /// they have been read. The digest is the caller's to check.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
    ) -> Result<(io::Take<Watched>, impl Future<Output = Result<()>> + use<'_>)> {
        let act = "fetch it";
        let (_, file, ended) =
            patiently(self.silence, act, self.proxy.get_raw_blob(&self.image, blob.digest())).await?;
        let pipe = Watched::new(file.into_std().await, Patience::new(self.silence * MOST_TRIES + GRACE, LEAST));
        let ended = async move { ended.await.map_err(|error: GetBlobError| from_proxy(act, &error.to_string())) };
        Ok((io::Read::take(pipe, blob.size()), ended))
    }
}

/// A blob that fits into memory.
async fn read(mut reader: impl io::Read + Send + 'static) -> Result<Vec<u8>> {
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes)
    });
    let broken = |error: io::Error| Error::new(Kind::Stalled, format!("read the configuration: {error}: try again"));
    let internal = |error: tokio::task::JoinError| Error::new(Kind::Internal, format!("read a blob: {error}"));
    read.await.map_err(internal)?.map_err(|error| error.downcast::<Error>().unwrap_or_else(broken))
}

fn checked(bytes: Vec<u8>, blob: &Descriptor) -> Result<Vec<u8>> {
    if matches(&bytes, blob.digest().as_ref())? {
        return Ok(bytes);
    }
    if (bytes.len() as u64) < blob.size() {
        return Err(Error::new(Kind::Stalled, "the configuration ended early: try again"));
    }
    Err(corrupt("the configuration", blob.digest()))
}

/// Whether it is a container image's configuration, in OCI's words or Docker's.
pub(crate) fn is_config(kind: &MediaType) -> bool {
    *kind == MediaType::ImageConfig || kind.as_ref() == "application/vnd.docker.container.image.v1+json"
}

/// Waits for an answer of the server, which tries again by itself, but not for ever.
async fn patiently<T>(silence: Duration, act: &str, answer: impl Future<Output = Answer<T>>) -> Result<T> {
    match timeout(silence * MOST_TRIES + GRACE, answer).await {
        Ok(answer) => answer.map_err(|error| from_proxy(act, &error.to_string())),
        Err(_) => {
            Err(Error::new(Kind::Stalled, format!("{act}: the registry has sent nothing for too long: try again")))
        }
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

/// What the server is to read: credentials in memory that no directory names, certificates in a directory of their own.
pub(crate) struct Access<'a> {
    request: &'a Request,
    auth: Option<File>,
    registries: Option<File>,
    certificates: Option<TempDir>,
    /// Where skopeo unpacks an archive.
    scratch: Option<Partial>,
}

impl Access<'_> {
    pub(crate) fn prepare(request: &Request) -> Result<Access<'_>> {
        let auth = match (&request.auth, &request.auth_file) {
            (Some(auth), _) => Some(auth_file(&request.reference, auth)),
            (None, text) => text.as_ref().map(|text| in_memory("auth.json", text)),
        };
        let registries = request.registries.as_ref().map(|text| in_memory("registries.conf", text)).transpose();
        let certificates = request.ca_pem.as_deref().map(certificate_directory).transpose();
        Ok(Access {
            request,
            registries: registries.map_err(|error| Error::system("keep the registries", error))?,
            auth: auth.transpose().map_err(|error| Error::system("keep the credentials", error))?,
            certificates: certificates.map_err(|error| Error::system("write the certificates", error))?,
            scratch: None,
        })
    }

    /// Our own server's command, as the library starts it, for a question that the protocol has no word for.
    pub(crate) fn server(&self, silence: Duration) -> Result<Command> {
        let command = Command::try_from(self.config(Server::Own, silence));
        command.map_err(|error| Error::new(Kind::Internal, format!("start the registry client: {error}")))
    }

    /// skopeo's command, by way of the process that confines it.
    fn skopeo(&self) -> Command {
        let mut command = role("skopeo", self.request);
        if let Some(scratch) = &self.scratch {
            command.arg("--scratch").arg(scratch.root());
        }
        command
    }

    fn config(&self, server: Server, silence: Duration) -> ImageProxyConfig {
        let mut command = match server {
            Server::Skopeo => self.skopeo(),
            Server::Own => own_server(self.request, silence),
        };
        if let Some(file) = &self.registries {
            command.arg("--registries-conf").arg(path_of(file));
        }
        let mut config = ImageProxyConfig::default();
        // We judge. skopeo's rules would be this machine's and not the request's, and it does not know all signatures that ours may demand.
        config.insecure_policy = Some(true);
        config.authfile = self.auth.as_ref().map(path_of);
        config.auth_anonymous = self.auth.is_none();
        config.certificate_directory = self.certificates.as_ref().map(|dir| dir.path().to_path_buf());
        config.insecure_skip_tls_verification = self.request.skip_tls_verification.then_some(true);
        config.skopeo_cmd = Some(command);
        config
    }
}

fn own_server(request: &Request, silence: Duration) -> Command {
    let mut command = role("proxy", request);
    command.args(["--silence", &silence.as_secs().max(1).to_string()]);
    command
}

/// Another role of this program, for a server. It ends with us, and whatever the user's home holds, it is not asked.
fn role(name: &str, request: &Request) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(name).env("HOME", "/nonexistent");
    // A layout's files may be root's alone.
    if rustix::process::geteuid().is_root() && !reference::is_local(&request.reference) {
        command.args(["--user", NOBODY]);
    }
    nacre_sys::lifeline::die_with_parent(&mut command);
    command
}

fn auth_file(reference: &str, auth: &Auth) -> io::Result<File> {
    let pair = STANDARD.encode(format!("{}:{}", auth.username, auth.password));
    let json = serde_json::json!({ "auths": { reference::registry(reference): { "auth": pair } } });
    in_memory("auth.json", &json.to_string())
}

fn in_memory(name: &str, text: &str) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    Ok(file)
}

fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

fn certificate_directory(pem: &str) -> io::Result<TempDir> {
    // They are no secret, and the server is another user by the time it reads them.
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir()?;
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
