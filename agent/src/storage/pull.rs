//! Images, pulled inside the guest by a process of their own, and how far each pull is.
//!
//! This is the only place that talks to the image engine. Containers that want the same image share a pull ([`flight`](super::flight));
//! each has a state of its own, which can be watched before the pull begins, as the host asks for both at once.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::nacre::{PullStatus, SetRegistryAccessRequest};
use nacre_pull::{Auth, Request};
use tokio::process::Command;
use tokio::sync::watch;

use super::flight::{self, Flights, State};
use super::group::Group;
use super::layers::Pulled;
use super::place::{self, Place};
use super::ready::{Disks, InUse};
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

/// The puller, and where the guest's image has it: compressed in /usr, as it is used now and then.
const PULLER: &str = "nacre-pull";
const HELPERS: &str = "/usr/libexec/nacre";

/// Where programs are, for a worker whose agent was started without being told.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image was not pulled. All who waited for it get the same.
#[derive(Debug, Clone, thiserror::Error)]
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
        source: Arc<nacre_pull::client::Error>,
    },
    /// There is no room for one more.
    #[error(
        "pull image {reference}: {} images are being pulled and {} wait in line already",
        flight::AT_ONCE,
        flight::IN_LINE
    )]
    TooMany {
        /// The image.
        reference: String,
    },
    /// There is no place for it.
    #[error("pull image {reference}")]
    Place {
        /// The image.
        reference: String,
        /// Why not.
        source: Arc<place::Error>,
    },
    /// The agent is about to end.
    #[error("pull image {reference}: ended before it was done")]
    Ended {
        /// The image.
        reference: String,
    },
}

impl PullError {
    /// Whose fault it was, if the engine says so.
    pub(super) fn kind(&self) -> Option<nacre_pull::Kind> {
        match self {
            PullError::Engine { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// Whether the worker was ended, and did not end by itself: that leaves nothing.
    pub(super) fn leaves_remains(&self) -> bool {
        use nacre_pull::client::Error;
        match self {
            PullError::Deadline { .. } => true,
            PullError::Engine { source, .. } => !matches!(**source, Error::Failed { .. }),
            _ => false,
        }
    }
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
    /// Whether it gets nothing of this process's environment, which in a guest is the host's.
    pub alone: bool,
}

impl WorkerCommand {
    /// The puller, where a guest's image has it, or beside this program.
    pub fn find() -> WorkerCommand {
        let beside = std::env::current_exe().ok().map(|own| own.with_file_name(PULLER));
        let beside = beside.filter(|path| path.is_file());
        let program = beside.unwrap_or_else(|| Path::new(HELPERS).join(PULLER));
        WorkerCommand { program, args: vec!["worker".into()], alone: false }
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        if self.alone {
            command.env_clear();
        }
        if self.alone || std::env::var_os("PATH").is_none() {
            command.env("PATH", PATH);
        }
        // Spawned by the runtime's only thread, which lives as long as the agent.
        nacre_sys::lifeline::be_killable(nacre_sys::lifeline::die_with_parent(command.as_std_mut()));
        command
    }
}

/// What holds for every pull.
#[derive(Debug)]
pub struct Settings {
    /// Where unpacked layers are kept.
    pub store: PathBuf,
    /// What that is on.
    pub place: Place,
    /// How long one pull may take.
    pub timeout: Duration,
    /// How the worker is started.
    pub worker: WorkerCommand,
    /// And where.
    pub group: Group,
    /// What the guest's image says of images.
    pub rules: Rules,
}

/// The pulls of the whole agent.
#[derive(Debug)]
pub struct Pulls {
    settings: Arc<Settings>,
    flights: Arc<Flights>,
    disks: Arc<Disks>,
    watched: Mutex<HashMap<String, watch::Sender<PullStatus>>>,
    registries: Mutex<HashMap<String, Access>>,
    /// Images that are wanted early and that no container has had yet.
    early: Mutex<HashMap<String, Option<Arc<Pulled>>>>,
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
        let settings = Arc::new(settings);
        let flights = Flights::new(settings.clone());
        let (watched, registries, early) = (Mutex::default(), Mutex::default(), Mutex::default());
        let disks = Arc::default();
        Arc::new(Pulls { settings, flights, disks, watched, registries, early })
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

    /// Pull `reference` for `container`. Dropping the future does not end the pull: whoever asks again joins it.
    pub async fn pull(&self, container: &str, reference: &str) -> Result<Arc<Pulled>, PullError> {
        check_reference(reference)?;
        let mut flight = self.flights.join(self.request(reference));
        loop {
            let State { status, result } = flight.borrow_and_update().clone();
            self.tell(container, status);
            if let Some(result) = result {
                if result.is_ok() {
                    lock(&self.early).remove(reference);
                }
                return result;
            }
            if flight.changed().await.is_err() {
                return Err(PullError::Ended { reference: reference.into() }); // each flight tells its end, but the type can't say so
            }
        }
    }

    /// As [`Pulls::pull`], with the layers mounted that come ready-made. One that is not what it should be is told in the log, and pulled.
    pub(super) async fn pull_mounted(
        &self,
        container: &str,
        reference: &str,
    ) -> Result<(Arc<Pulled>, InUse), PullError> {
        loop {
            let pulled = self.pull(container, reference).await?;
            let (disks, ready) = (self.disks.clone(), pulled.image.ready.clone());
            // A host that does not answer must not stop us.
            match tokio::task::spawn_blocking(move || disks.mount(&ready)).await {
                Ok(Ok(in_use)) => return Ok((pulled, in_use)),
                // It is not named again, so this ends.
                Ok(Err(error)) => tracing::warn!(image = reference, error = crate::chain(&error), "a layer is pulled"),
                Err(_) => return Err(PullError::Ended { reference: reference.into() }), // the agent is about to end
            }
        }
    }

    /// Begin to pull the images that are wanted early. One that fails is told in the log; a container that wants it asks anew.
    pub fn prefetch(self: &Arc<Self>) {
        for reference in &self.settings.rules.prefetch {
            if let Err(error) = check_reference(reference) {
                tracing::warn!(error = crate::chain(&error), "not pulled early");
                continue;
            }
            lock(&self.early).insert(reference.clone(), None);
            let (pulls, mut flight) = (self.clone(), self.flights.join(self.request(reference)));
            tokio::spawn(async move {
                // No end comes only when the agent itself ends.
                let Ok(state) = flight.wait_for(|state| state.result.is_some()).await else { return };
                pulls.has_come_early(&state);
            });
        }
    }

    /// The image stays until a container has had it, unless one has it already.
    fn has_come_early(&self, State { status, result }: &State) {
        match result {
            Some(Ok(pulled)) => {
                tracing::info!(image = status.reference, "pulled early");
                if let Some(early) = lock(&self.early).get_mut(&status.reference) {
                    *early = Some(pulled.clone());
                }
            }
            Some(Err(error)) => tracing::warn!(error = crate::chain(error), "not pulled early"),
            None => {}
        }
    }

    fn request(&self, reference: &str) -> Request {
        let access = lock(&self.registries).get(nacre_pull::registry_of(reference)).cloned().unwrap_or_default();
        let attached = self.disks.attached();
        let known = self.settings.rules.layers.iter().filter(|known| attached.contains(&known.verity.serial()));
        let is_the_hosts = access.skip_tls_verification || access.ca_pem.is_some();
        Request {
            reference: reference.into(),
            store: self.settings.store.clone(),
            auth: access.auth,
            ca_pem: access.ca_pem,
            skip_tls_verification: access.skip_tls_verification,
            // The guest's own credentials go only where the guest's own trust says.
            auth_file: if is_the_hosts { None } else { self.settings.rules.auth_file.clone() },
            registries: self.settings.rules.registries.clone(),
            policy: self.settings.rules.policy.clone(),
            lookaside: self.settings.rules.lookaside.clone(),
            require_digest: self.settings.rules.require_digest,
            decryption_keys: Vec::new(),
            key_providers: self.settings.rules.key_providers.clone(),
            server: nacre_pull::Server::Own,
            known: known.copied().collect(),
            attached,
            blob_cache: self.settings.rules.blob_cache.clone(),
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
        self.flights.bytes_total()
    }

    /// A container's pull is so far.
    fn tell(&self, container: &str, now: PullStatus) {
        let Some(sender) = self.sender(container) else { return };
        sender.send_modify(|status| *status = PullStatus { revision: status.revision + 1, ..now });
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

    #[cfg(test)]
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Pulls whose worker fails at once.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Arc<Pulls> {
        let worker = WorkerCommand { program: "/bin/false".into(), args: Vec::new(), alone: false };
        Pulls::new(Settings {
            store: "/nonexistent".into(),
            place: Place::default(),
            timeout: Duration::from_secs(5),
            worker,
            group: Group::default(),
            rules: Rules::default(),
        })
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change to the maps is one call, so a holder that panicked left them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_reference(reference: &str) -> Result<(), PullError> {
    // Of this machine's files, a host has none to name.
    let is_local = ["oci:", "oci-archive:", "dir:/"].iter().any(|start| reference.starts_with(start));
    if reference.is_empty() || reference.len() > MAX_REFERENCE || is_local {
        return Err(PullError::Reference(reference.chars().take(MAX_REFERENCE).collect()));
    }
    Ok(())
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
#[path = "pull_tests.rs"]
mod tests;
