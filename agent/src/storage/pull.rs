//! Images, pulled inside the guest by a process of their own, and how far each pull is.
//!
//! This is the only place that talks to the image engine. A pull belongs to one container; its state can be watched before it begins,
//! as the host asks for both at once. Dropping the future of a pull ends the worker.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nacre_protocol::nacre::pull_status::Phase;
use nacre_protocol::nacre::{PullStatus, SetRegistryAccessRequest};
use nacre_pull::{Auth, Event, Image, Request};
use tokio::process::Command;
use tokio::sync::watch;

use super::rules::Rules;

/// The longest image reference.
const MAX_REFERENCE: usize = 1024;

/// The longest registry name: a DNS name and a port.
const MAX_REGISTRY: usize = 262;

/// The most registries, and the most text for each of the fields, that are kept.
const MAX_REGISTRIES: usize = 64;
const MAX_PEM: usize = 256 << 10;
const MAX_CREDENTIAL: usize = 64 << 10;

/// The most containers whose pulls are watched or remembered.
const MAX_WATCHED: usize = 4096;

/// Where programs are, for a worker whose agent was started without being told.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What references without a registry mean.
const DEFAULT_REGISTRY: &str = "docker.io";

/// An image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No image is named.
    #[error("pull image {0:?}: the reference is empty, too long, or no registry's")]
    Reference(String),
    /// It took too long.
    #[error("pull image {reference}: not done after {} s", timeout.as_secs())]
    Deadline {
        /// The image.
        reference: String,
        /// The limit.
        timeout: Duration,
    },
    /// The engine gave up.
    #[error("pull image {reference}")]
    Engine {
        /// The image.
        reference: String,
        /// Its reason.
        source: nacre_pull::client::Error,
    },
}

/// What was said about a registry makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("access to registry {registry:?}: {reason}")]
pub struct AccessError {
    registry: String,
    reason: &'static str,
}

/// How the worker is started.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl WorkerCommand {
    /// This binary in its role as puller.
    pub fn own_role() -> WorkerCommand {
        WorkerCommand { program: "/proc/self/exe".into(), args: vec!["pull".into()] }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        if std::env::var_os("PATH").is_none() {
            command.env("PATH", PATH);
        }
        // Spawned by the runtime's only thread, which lives as long as the agent.
        nacre_sys::lifeline::die_with_parent(command.as_std_mut());
        command
    }
}

/// What holds for every pull.
#[derive(Debug)]
pub struct Settings {
    /// Where unpacked layers are kept.
    pub store: PathBuf,
    /// How long one pull may take.
    pub timeout: Duration,
    /// How the worker is started.
    pub worker: WorkerCommand,
    /// What the guest's image says of images.
    pub rules: Rules,
}

/// The pulls of the whole agent.
#[derive(Debug)]
pub struct Pulls {
    settings: Settings,
    watched: Mutex<HashMap<String, watch::Sender<PullStatus>>>,
    registries: Mutex<HashMap<String, Access>>,
    bytes: AtomicU64,
}

#[derive(Clone, Default)]
struct Access {
    auth: Option<Auth>,
    ca_pem: Option<String>,
    skip_tls_verification: bool,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("skip_tls_verification", &self.skip_tls_verification).finish_non_exhaustive()
    }
}

impl Pulls {
    /// No pull yet.
    pub fn new(settings: Settings) -> Arc<Pulls> {
        let bytes = AtomicU64::new(0);
        Arc::new(Pulls { settings, watched: Mutex::default(), registries: Mutex::default(), bytes })
    }

    /// From now on reach a registry as `request` says.
    pub fn set_registry_access(&self, request: &SetRegistryAccessRequest) -> Result<(), AccessError> {
        let wrong = |reason| AccessError { registry: request.registry.chars().take(MAX_REGISTRY).collect(), reason };
        check_access(request).map_err(wrong)?;
        let auth = Auth { username: request.username.clone(), password: request.password.clone() };
        let access = Access {
            auth: (!request.username.is_empty() || !request.password.is_empty()).then_some(auth),
            ca_pem: (!request.ca_pem.is_empty()).then(|| request.ca_pem.clone()),
            skip_tls_verification: request.skip_tls_verification,
        };
        let mut registries = lock(&self.registries);
        if registries.len() >= MAX_REGISTRIES && !registries.contains_key(&request.registry) {
            return Err(wrong("there are too many registries already"));
        }
        registries.insert(request.registry.clone(), access);
        Ok(())
    }

    /// Pull `reference` for `container`.
    pub async fn pull(&self, container: &str, reference: &str) -> Result<Image, PullError> {
        // Of this machine's files, a host has none to name.
        let is_local = reference.starts_with("oci:") || reference.starts_with("oci-archive:");
        if reference.is_empty() || reference.len() > MAX_REFERENCE || is_local {
            return Err(PullError::Reference(reference.chars().take(MAX_REFERENCE).collect()));
        }
        let progress = Progress { pulls: self, container, reference, begun: Instant::now() };
        progress.update(|status| {
            *status = PullStatus { revision: status.revision, reference: reference.into(), ..PullStatus::new() };
            status.phase = Phase::RESOLVING.into();
        });
        let mut worker = self.settings.worker.command();
        worker.envs(self.settings.rules.environment.iter().map(|(name, value)| (name, value)));
        let engine = nacre_pull::client::pull(worker, self.request(reference), |event| {
            progress.event(event);
        });
        let result = match tokio::time::timeout(self.settings.timeout, engine).await {
            Ok(Ok(image)) => Ok(image),
            Ok(Err(source)) => Err(PullError::Engine { reference: reference.into(), source }),
            Err(_) => Err(PullError::Deadline { reference: reference.into(), timeout: self.settings.timeout }),
        };
        progress.update(|status| match &result {
            Ok(image) => {
                status.phase = Phase::DONE.into();
                status.manifest_digest = image.manifest_digest.clone();
                status.layers_done = status.layers_total;
                status.bytes_done = status.bytes_total;
                self.bytes.fetch_add(status.bytes_total, Relaxed);
            }
            Err(error) => {
                status.phase = Phase::FAILED.into();
                status.error = crate::chain(error);
            }
        });
        result
    }

    fn request(&self, reference: &str) -> Request {
        let access = lock(&self.registries).get(registry_of(reference)).cloned().unwrap_or_default();
        Request {
            reference: reference.into(),
            store: self.settings.store.clone(),
            auth: access.auth,
            ca_pem: access.ca_pem,
            skip_tls_verification: access.skip_tls_verification,
            auth_file: self.settings.rules.auth_file.clone(),
            registries: self.settings.rules.registries.clone(),
            policy: self.settings.rules.policy.clone(),
            require_digest: self.settings.rules.require_digest,
            decryption_keys: Vec::new(),
            key_providers: None,
            server: nacre_pull::Server::Own,
        }
    }

    /// The state of a container's pull as soon as it is newer than `seen_revision`.
    pub async fn watch(&self, container: &str, seen_revision: u64) -> PullStatus {
        let Some(mut status) = self.sender(container).map(|sender| sender.subscribe()) else {
            return PullStatus::new();
        };
        match status.wait_for(|status| status.revision > seen_revision).await {
            Ok(status) => status.clone(),
            Err(_) => PullStatus::new(), // forgotten: the container is gone
        }
    }

    /// The container is gone.
    pub fn forget(&self, container: &str) {
        lock(&self.watched).remove(container);
    }

    /// Compressed bytes of all images pulled so far.
    pub fn bytes_total(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    fn sender(&self, container: &str) -> Option<watch::Sender<PullStatus>> {
        let mut watched = lock(&self.watched);
        if watched.len() >= MAX_WATCHED {
            watched.retain(|_, sender| sender.receiver_count() > 0 || sender.borrow().revision > 0);
        }
        if watched.len() >= MAX_WATCHED && !watched.contains_key(container) {
            return None;
        }
        Some(watched.entry(container.into()).or_default().clone())
    }

    /// Pulls whose worker fails at once.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Arc<Pulls> {
        let worker = WorkerCommand { program: "/bin/false".into(), args: Vec::new() };
        Pulls::new(Settings {
            store: "/nonexistent".into(),
            timeout: Duration::from_secs(5),
            worker,
            rules: Rules::default(),
        })
    }
}

/// Where a pull's events go.
struct Progress<'a> {
    pulls: &'a Pulls,
    container: &'a str,
    reference: &'a str,
    begun: Instant,
}

impl Progress<'_> {
    fn event(&self, event: &Event) {
        self.update(|status| match event {
            Event::Resolving => status.phase = Phase::RESOLVING.into(),
            Event::Resolved { manifest_digest, layers, bytes } => {
                status.phase = Phase::FETCHING.into();
                status.manifest_digest = manifest_digest.clone();
                status.layers_total = u32::try_from(*layers).unwrap_or(u32::MAX);
                status.bytes_total = *bytes;
                tracing::info!(
                    container = self.container,
                    image = self.reference,
                    digest = manifest_digest,
                    "image resolved"
                );
            }
            Event::Progress { layers_done, bytes_done } => {
                status.layers_done = u32::try_from(*layers_done).unwrap_or(u32::MAX);
                status.bytes_done = *bytes_done;
            }
            // The end is told by the worker's result.
            Event::Done(_) | Event::Failed { .. } => {}
        });
    }

    fn update(&self, change: impl FnOnce(&mut PullStatus)) {
        let Some(sender) = self.pulls.sender(self.container) else { return };
        sender.send_modify(|status| {
            change(status);
            status.revision += 1;
            status.elapsed_ns = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change to the maps is one call, so a holder that panicked left them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The registry of a reference: what stands before the first slash, if it looks like a host.
fn registry_of(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => DEFAULT_REGISTRY,
    }
}

fn check_access(request: &SetRegistryAccessRequest) -> Result<(), &'static str> {
    let host = &request.registry;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if host.is_empty() || host.len() > MAX_REGISTRY || !host.chars().all(plain) {
        return Err("is not a host, or a host and a port");
    }
    if request.username.len() > MAX_CREDENTIAL || request.password.len() > MAX_CREDENTIAL {
        return Err("the credentials are too long");
    }
    if request.ca_pem.len() > MAX_PEM {
        return Err("the certificates are too long");
    }
    if !request.ca_pem.is_empty() && !is_pem(&request.ca_pem) {
        return Err("the certificates are not PEM");
    }
    Ok(())
}

/// Whether `text` holds at least one whole certificate and no broken one. What is in it, the TLS library judges.
fn is_pem(text: &str) -> bool {
    let mut whole = 0;
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        match (line, inside) {
            ("-----BEGIN CERTIFICATE-----", false) => inside = true,
            ("-----END CERTIFICATE-----", true) => {
                inside = false;
                whole += 1;
            }
            (line, true) if !line.chars().all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c)) => return false,
            _ => {}
        }
    }
    whole > 0 && !inside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_a_reference_is_a_host() {
        for (reference, registry) in [
            ("alpine", "docker.io"),
            ("library/alpine:3", "docker.io"),
            ("localhost/x", "localhost"),
            ("10.0.2.2:5000/demo:1", "10.0.2.2:5000"),
            ("ghcr.io/a/b@sha256:00", "ghcr.io"),
        ] {
            assert_eq!(registry_of(reference), registry);
        }
    }

    #[test]
    fn access_that_makes_no_sense_is_refused() {
        let pulls = Pulls::for_tests();
        let set = |registry: &str, ca_pem: &str| {
            let request = SetRegistryAccessRequest {
                registry: registry.into(),
                ca_pem: ca_pem.into(),
                ..SetRegistryAccessRequest::new()
            };
            pulls.set_registry_access(&request)
        };
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(set("10.0.2.2:5000", "").is_ok());
        assert!(set("registry.example", pem).is_ok());
        for (registry, ca) in
            [("", ""), ("a/b", ""), ("a b", ""), ("a", "garbage"), ("a", "-----BEGIN CERTIFICATE-----\n")]
        {
            assert!(set(registry, ca).is_err(), "{registry:?} {ca:?}");
        }
        assert!(pulls.request("registry.example/a").ca_pem.is_some());
        assert!(pulls.request("other.example/a").ca_pem.is_none());
    }

    #[tokio::test]
    async fn a_pull_can_be_watched_before_it_begins_and_its_failure_is_seen() {
        let pulls = Pulls::for_tests();
        let watcher = tokio::spawn({
            let pulls = pulls.clone();
            async move { pulls.watch("c", 0).await }
        });
        tokio::task::yield_now().await;
        assert!(pulls.pull("c", "registry.example/a").await.is_err());
        let seen = watcher.await.unwrap();
        assert!(seen.revision > 0);
        assert_eq!(seen.reference, "registry.example/a");
        let last = pulls.watch("c", 0).await;
        assert_eq!(last.phase.enum_value(), Ok(Phase::FAILED));
        assert!(last.error.contains("registry.example/a"), "{}", last.error);
    }

    #[tokio::test]
    async fn an_image_without_a_name_is_refused() {
        assert!(matches!(Pulls::for_tests().pull("c", "").await, Err(PullError::Reference(_))));
    }
}
