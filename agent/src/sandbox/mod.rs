//! The pod: what its containers share, and which containers there are.
//!
//! [`Sandbox`] is the one owner of that state, held under short locks that no await sees. A container's name is taken before anything
//! else is done for it and given back when that fails, so that two requests for one name can't meet half-way.

mod id;
mod names;
mod namespaces;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::agent::{
    CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest, UpdateContainerRequest,
    UpdateEphemeralMountsRequest,
};
use nacre_protocol::convert::{self, ConvertError};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::container::oom;
use crate::container::process::Process;
use crate::container::shared_mounts;
use crate::container::spec::Namespaces;
use crate::container::{self, Container, Made};
use crate::device::cdi;
use crate::device::{self, Devices};
use crate::passthrough::{self, Connections, Sockets};
use crate::storage::pull::Pulls;
use crate::storage::{self, Mounts, Prepared};

pub use id::ContainerId;

/// The most containers of one pod.
const MAX_CONTAINERS: usize = 256;

/// The longest name of a process.
const MAX_EXEC_ID: usize = 255;

/// Where hosts expect what belongs to the pod.
pub const RUN: &str = "/run/kata-containers";

/// What the pod's own storages belong to; no container can have that name.
const OWNER: &str = ".sandbox";

/// A request to the pod failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// What is asked for is not offered.
    #[error("{0} are not supported by this agent")]
    Unsupported(&'static str),
    /// A message does not convert.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// No such container.
    #[error("Invalid container id: container {0:?} not found")]
    NoContainer(String),
    /// The name is taken.
    #[error("container {0:?} already exists")]
    Exists(String),
    /// There are as many containers as there may be.
    #[error("there are {MAX_CONTAINERS} containers already")]
    TooMany,
    /// The removal goes on behind the caller's back.
    #[error("remove container {container:?}: not done after {seconds} s (ETIME); it goes on")]
    RemovalTakesLong {
        /// The container.
        container: String,
        /// The caller's limit.
        seconds: u32,
    },
    /// There are no containers any more.
    #[error("the sandbox is destroyed")]
    Destroyed,
    /// A container's own errors.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// Streams that are to be passed through.
    #[error(transparent)]
    Passthrough(#[from] passthrough::Error),
    /// A device's own errors.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// What another container has mounted.
    #[error(transparent)]
    SharedMounts(#[from] shared_mounts::Error),
    /// A storage's own errors.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The pod's namespaces or names could not be set up.
    #[error("{act}")]
    System {
        /// What was tried.
        act: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A task of ours was ended.
    #[error("a task was ended before it was done")]
    Task,
}

impl Error {
    fn system(act: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::System { act: act.into(), source }
    }
}

/// What holds for every container.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The size of output pipes.
    pub pipe_size: Option<usize>,
    /// A directory on tmpfs for what containers write to their images.
    pub scratch: PathBuf,
    /// The connections to which processes' streams can be passed through.
    pub connections: Option<Arc<Connections>>,
    /// The guest's devices.
    pub devices: Arc<Devices>,
}

/// The pod.
#[derive(Debug)]
pub struct Sandbox {
    settings: Settings,
    mounts: Arc<Mounts>,
    pulls: Arc<Pulls>,
    containers: Mutex<BTreeMap<String, Slot>>,
    shared: Mutex<Shared>,
    oom: Arc<oom::Events>,
    stopped: watch::Sender<bool>,
}

#[derive(Debug)]
enum Slot {
    Making,
    Live(Arc<Container>),
    Removing,
}

/// What the containers share.
#[derive(Debug, Default)]
struct Shared {
    namespaces: Option<namespaces::Pod>,
    pid: Option<namespaces::Pids>,
    storages: Vec<Prepared>,
}

impl Sandbox {
    /// A pod without containers.
    pub fn new(settings: Settings, pulls: Arc<Pulls>) -> Arc<Sandbox> {
        Arc::new(Sandbox {
            settings,
            mounts: Mounts::new(),
            pulls,
            containers: Mutex::default(),
            shared: Mutex::default(),
            oom: Arc::default(),
            stopped: watch::channel(false).0,
        })
    }

    /// The pulls of all containers.
    pub fn pulls(&self) -> &Arc<Pulls> {
        &self.pulls
    }

    /// How many containers there are.
    pub fn count(&self) -> usize {
        lock(&self.containers).len()
    }

    /// Waits until the pod has been destroyed.
    pub async fn stopped(&self) {
        // The sender is `self`'s.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await.map(drop);
    }

    /// Set up what the containers are to share. A second call changes the host name and adds storages.
    pub async fn create(&self, request: CreateSandboxRequest) -> Result<(), Error> {
        if !request.kernel_modules.is_empty() {
            return Err(Error::Unsupported("kernel modules"));
        }
        names::check_hostname(&request.hostname).map_err(Error::Invalid)?;
        let resolv_conf = names::resolv_conf(&request.dns).map_err(Error::Invalid)?;
        fs::create_dir_all(RUN).map_err(Error::system(format!("make directory {RUN}")))?;
        let storages = storage::prepare(&request.storages, &self.context(OWNER)).await?;
        let (hostname, is_new) = (request.hostname.clone(), lock(&self.shared).namespaces.is_none());
        let namespaces = spawn_blocking(move || {
            if let Some(text) = resolv_conf {
                names::set_resolv_conf(&text).map_err(Error::system("set /etc/resolv.conf"))?;
            }
            match is_new || !hostname.is_empty() {
                true => namespaces::Pod::new(&hostname).map(Some).map_err(Error::system("make the pod's namespaces")),
                false => Ok(None),
            }
        });
        let namespaces = namespaces.await.map_err(|_| Error::Task)??;
        let mut shared = lock(&self.shared);
        shared.storages.push(storages);
        if namespaces.is_some() {
            shared.namespaces = namespaces;
        }
        drop(shared);
        tracing::info!(sandbox = request.sandbox_id, hostname = request.hostname, "sandbox created");
        if is_new {
            self.pulls.prefetch(); // hosts set up the network before the sandbox
        }
        Ok(())
    }

    /// Remove every container and what they shared. The agent's end follows.
    pub async fn destroy(self: &Arc<Self>) -> Result<(), Error> {
        let ids: Vec<String> = lock(&self.containers).keys().cloned().collect();
        let mut removals = tokio::task::JoinSet::new();
        for id in ids {
            match self.take(&id) {
                Ok(removal) => drop(removals.spawn(removal.run())),
                Err(error) => tracing::debug!(error = crate::chain(&error), "not removed twice"),
            }
        }
        let mut result = Ok(());
        while let Some(removed) = removals.join_next().await {
            result = result.and(removed.unwrap_or(Err(Error::Task)));
        }
        let (shared, mounts) = (std::mem::take(&mut *lock(&self.shared)), self.mounts.clone());
        let released = spawn_blocking(move || {
            let mut result = Ok(());
            for storages in shared.storages.into_iter().rev() {
                result = result.and(storages.release()); // all of them, also after an error
            }
            result.and(mounts.end())
        });
        result = result.and(released.await.map_err(|_| Error::Task)?.map_err(Error::from));
        tracing::info!("sandbox destroyed");
        self.stopped.send_replace(true);
        result
    }

    /// Make a container, up to its start gate. Dropping the future unmakes it.
    pub async fn create_container(self: &Arc<Self>, request: CreateContainerRequest) -> Result<(), Error> {
        // First, so that the host finds them closed whatever fails.
        let sockets = self.claim([request.stdin_port, request.stdout_port, request.stderr_port]).await?;
        let id = ContainerId::parse(&request.container_id).map_err(Error::Invalid)?;
        let spec = request.OCI.as_ref().ok_or_else(|| Error::Invalid("OCI: is missing".into()))?;
        let mut spec = convert::spec_to_oci(spec)?;
        let name = self.reserve(&id)?;
        let shared = shared_mounts::judge(&request.shared_mounts, |name| self.container_named(name))?;
        shared_mounts::wait(&shared).await?;
        let addresses = self.settings.devices.give(&request.devices, &mut spec).await?;
        self.settings.devices.inject(&mut spec).await?;
        let storages = storage::prepare(&request.storages, &self.context(id.as_str())).await?;
        // Where a host has a container for the pod itself, that one's processes begin the pod's.
        let begins = request.sandbox_pidns
            && spec.annotations().as_ref().is_some_and(cdi::is_pod)
            && lock(&self.shared).pid.is_none();
        let namespaces = self.namespaces(request.sandbox_pidns && !begins).await?;
        let (bundle, pipe_size) = (Path::new(RUN).join(id.as_str()), self.settings.pipe_size);
        // The name goes along: it must not be free before what was made is gone, should nobody wait for it any more.
        let made = spawn_blocking(move || {
            fs::create_dir_all(RUN).map_err(Error::system(format!("make directory {RUN}")))?;
            let made = Made::new(name.id.as_str(), spec, &namespaces, storages, &bundle, pipe_size)?;
            shared_mounts::give(&shared, made.pid())?;
            Ok::<_, Error>((made, name))
        });
        let (made, name) = made.await.map_err(|_| Error::Task)??;
        let container = Container::new(id.as_str(), made, addresses, sockets, pipe_size)?;
        if begins {
            let pids = namespaces::Pids::of(container.pid()).map_err(Error::system("open a PID namespace"))?;
            lock(&self.shared).pid.get_or_insert(pids);
        }
        name.fill(container);
        tracing::info!(container = id.as_str(), "container created");
        Ok(())
    }

    /// Run a container's program.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        self.container(id)?.start(&self.oom).await?;
        tracing::info!(container = id, "container started");
        Ok(())
    }

    /// Change what a container may use. Without resources there is nothing to change.
    pub async fn update_container(&self, request: &UpdateContainerRequest) -> Result<(), Error> {
        let container = self.container(&request.container_id)?;
        let Some(resources) = request.resources.as_ref() else { return Ok(()) };
        container.update(convert::resources_to_oci(resources)?).await?;
        tracing::info!(container = request.container_id, "container updated");
        Ok(())
    }

    /// Unmount what the host has removed from its share.
    pub async fn remove_stale_mounts(&self, share: &'static Path) -> Result<(), Error> {
        let removed = storage::stale::sweep(&self.mounts, share).await?;
        tracing::info!(removed, "stale mounts removed");
        Ok(())
    }

    /// Mount ephemeral storages anew, with other options.
    pub async fn update_ephemeral_mounts(&self, request: UpdateEphemeralMountsRequest) -> Result<(), Error> {
        let mounts = self.mounts.clone();
        let updated = spawn_blocking(move || storage::update(&request.storages, &mounts));
        Ok(updated.await.map_err(|_| Error::Task)??)
    }

    /// The container of the next process that the kernel kills for want of memory. Waits for one as long as there is a pod.
    pub async fn oom_event(&self) -> Result<String, Error> {
        tokio::select! {
            biased;
            container = self.oom.next() => Ok(container),
            () = self.stopped() => Err(Error::Destroyed),
        }
    }

    /// Remove a container; `timeout` seconds are waited for it, or as long as it takes when that is 0.
    pub async fn remove_container(self: &Arc<Self>, id: &str, timeout: u32) -> Result<(), Error> {
        // A task of its own, so that it comes to its end whatever becomes of the caller.
        let removal = tokio::spawn(self.take(id)?.run());
        let limit = if timeout == 0 { Duration::MAX } else { Duration::from_secs(timeout.into()) };
        match tokio::time::timeout(limit, removal).await {
            Ok(removed) => removed.unwrap_or(Err(Error::Task)),
            Err(_) => Err(Error::RemovalTakesLong { container: id.into(), seconds: timeout }),
        }
    }

    /// Run one more process in a container.
    pub async fn exec(&self, request: ExecProcessRequest) -> Result<(), Error> {
        let sockets = self.claim([request.stdin_port, request.stdout_port, request.stderr_port]).await?;
        let exec = request.exec_id.as_str();
        if exec.is_empty() || exec.len() > MAX_EXEC_ID || exec.contains(char::is_control) {
            return Err(Error::Invalid(format!("exec_id: 1 to {MAX_EXEC_ID} characters are expected")));
        }
        let process = request.process.as_ref().ok_or_else(|| Error::Invalid("process: is missing".into()))?;
        let mut process = convert::process_to_oci(process)?;
        let container = self.container(&request.container_id)?;
        container.addresses().translate(&mut process)?;
        container.exec(exec, process, sockets).await?;
        tracing::info!(container = request.container_id, exec, "process started");
        Ok(())
    }

    /// A process of a container.
    pub fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>, Error> {
        Ok(self.container(id)?.process(exec)?)
    }

    /// A container.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        match lock(&self.containers).get(id) {
            Some(Slot::Live(container)) => Ok(container.clone()),
            _ => Err(Error::NoContainer(id.chars().take(id::MAX_LENGTH).collect())),
        }
    }

    /// The container that its pod calls by this name.
    fn container_named(&self, name: &str) -> Option<Arc<Container>> {
        let containers = lock(&self.containers);
        let mut live = containers.values().filter_map(|slot| match slot {
            Slot::Live(container) => Some(container),
            Slot::Making | Slot::Removing => None,
        });
        live.find(|container| container.name() == Some(name)).cloned()
    }

    /// The connections that the host calls by these ports; `None` when it names none and will ask for the streams.
    async fn claim(&self, ports: [u32; 3]) -> Result<Option<Sockets>, Error> {
        if ports == [0; 3] {
            return Ok(None);
        }
        let connections = self.settings.connections.as_ref().ok_or(passthrough::Error::Off)?;
        Ok(Some(connections.claim(ports).await?))
    }

    fn reserve(self: &Arc<Self>, id: &ContainerId) -> Result<Name, Error> {
        let mut containers = lock(&self.containers);
        if containers.contains_key(id.as_str()) {
            return Err(Error::Exists(id.as_str().into()));
        }
        if containers.len() >= MAX_CONTAINERS {
            return Err(Error::TooMany);
        }
        containers.insert(id.as_str().into(), Slot::Making);
        Ok(Name { sandbox: self.clone(), id: id.clone(), filled: false })
    }

    /// Take a live container out; its name stays taken until it is gone.
    fn take(self: &Arc<Self>, id: &str) -> Result<Removal, Error> {
        let mut containers = lock(&self.containers);
        match containers.get_mut(id) {
            Some(slot @ Slot::Live(_)) => match std::mem::replace(slot, Slot::Removing) {
                Slot::Live(container) => Ok(Removal { sandbox: self.clone(), id: id.into(), container }),
                Slot::Making | Slot::Removing => Err(Error::NoContainer(id.into())),
            },
            _ => Err(Error::NoContainer(id.chars().take(id::MAX_LENGTH).collect())),
        }
    }

    /// What a container shares with others; the PID namespace is made for the first that shares it, unless that begins one.
    async fn namespaces(self: &Arc<Self>, shares_pid: bool) -> Result<Namespaces, Error> {
        let sandbox = self.clone();
        let namespaces = spawn_blocking(move || {
            let mut shared = lock(&sandbox.shared);
            if shares_pid && shared.pid.is_none() {
                shared.pid = Some(namespaces::Pids::new().map_err(Error::system("make the pod's PID namespace"))?);
            }
            let pid = shared.pid.as_ref().filter(|_| shares_pid).map(namespaces::Pids::path);
            let (ipc, uts) = shared.namespaces.as_ref().map(|pod| (pod.ipc.path(), pod.uts.path())).unzip();
            Ok(Namespaces { ipc, uts, pid })
        });
        namespaces.await.map_err(|_| Error::Task)?
    }

    fn context<'a>(&'a self, owner: &'a str) -> storage::Context<'a> {
        let Settings { scratch, devices, .. } = &self.settings;
        storage::Context { owner, root: Path::new(RUN), scratch, mounts: &self.mounts, pulls: &self.pulls, devices }
    }
}

/// A container's name while the container is being made. Dropping it gives the name back.
#[derive(Debug)]
struct Name {
    sandbox: Arc<Sandbox>,
    id: ContainerId,
    filled: bool,
}

impl Name {
    fn fill(mut self, container: Arc<Container>) {
        self.filled = true;
        lock(&self.sandbox.containers).insert(self.id.as_str().into(), Slot::Live(container));
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if !self.filled {
            lock(&self.sandbox.containers).remove(self.id.as_str());
            // Its pull is not forgotten: whoever watches it is to hear how it failed. The next of that name begins anew.
        }
    }
}

/// A container on its way out.
struct Removal {
    sandbox: Arc<Sandbox>,
    id: String,
    container: Arc<Container>,
}

impl Removal {
    async fn run(self) -> Result<(), Error> {
        let removed = self.container.remove().await;
        self.sandbox.pulls.forget(&self.id);
        lock(&self.sandbox.containers).remove(&self.id);
        match &removed {
            Ok(()) => tracing::info!(container = self.id, "container removed"),
            Err(error) => tracing::error!(container = self.id, error = crate::chain(error), "container removed badly"),
        }
        Ok(removed?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call, so a holder that panicked left a whole value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
