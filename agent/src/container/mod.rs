//! One container: its engine, its processes, and the storages that go with it.
//!
//! This is the only place that talks to the container engine. The engine's calls block, so they run on the blocking pool; nothing here
//! holds a lock across an await. What a call made and nobody waits for any more is undone when its value is dropped.

pub mod oom;
pub mod passage;
pub mod process;
pub mod shared_mounts;
pub mod spec;
pub mod stream;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use nacre_jail::{Io, LineEnds, Plan, Status};
use oci_spec::runtime;
use tokio::task::spawn_blocking;

use crate::device::Addresses;
use crate::passthrough::Sockets;
use crate::storage::{self, Prepared};
use process::{Handle, Process};
use stream::Pipes;

/// The most processes of one container that are kept, live and exited.
const MAX_PROCESSES: usize = 512;

/// How many exited processes are remembered after somebody has waited for them, so that a second wait gets the same answer.
const REMEMBERED: usize = 32;

/// How long the end of a killed container is waited for before its cgroup is removed all the same.
const KILL_WITHIN: Duration = Duration::from_secs(10);

/// SIGKILL of signal(7).
const SIGKILL: i32 = 9;

/// An operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification makes no sense.
    #[error("{0}: {1}")]
    Spec(&'static str, &'static str),
    /// The pulled image's root can't be opened.
    #[error("open the root file system {path:?}")]
    Rootfs {
        /// Where it is mounted.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What the image says of its process can't be followed.
    #[error("take the process from the image config")]
    Merge(#[source] nacre_pull::merge::Error),
    /// The engine's word.
    #[error(transparent)]
    Engine(#[from] nacre_jail::Error),
    /// Limits were not changed, or not all.
    #[error("update the container's resources; limits before this one are set")]
    Update(#[source] nacre_jail::Error),
    /// A stream could not be made, read or written.
    #[error("{act}")]
    Stream {
        /// What was tried.
        act: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The stream is closed or was never there.
    #[error("cannot get stream {0}")]
    NoStream(&'static str),
    /// No such process.
    #[error("process not found: container {container} has no process {exec:?}")]
    NoProcess {
        /// The container.
        container: String,
        /// The process.
        exec: String,
    },
    /// The name is taken.
    #[error("exec_id {0:?} already exists")]
    Exists(String),
    /// The container has as many processes as it may.
    #[error("the container has {MAX_PROCESSES} processes already")]
    TooMany,
    /// The process has no terminal.
    #[error("no tty")]
    NoTerminal,
    /// The container has no termination log.
    #[error("the container has no termination log")]
    NoTerminationLog,
    /// The container is being removed.
    #[error("the container is being removed")]
    Gone,
    /// Only what waits or runs can be paused.
    #[error("failed to pause container: current status is: {0}")]
    NotRunning(Status),
    /// Only what is paused can be resumed.
    #[error("container status is: {0}, not paused")]
    NotPaused(Status),
    /// Nothing begins in a container that is paused.
    #[error("the container is paused")]
    Paused,
    /// A storage was not released.
    #[error("release the container's storages")]
    Release(#[source] storage::Error),
    /// A task of ours was ended.
    #[error("a task was ended before it was done")]
    Task,
}

/// The engine's container, until it is deleted.
#[derive(Debug)]
pub struct Engine(RwLock<Option<nacre_jail::Container>>);

impl Engine {
    fn with<T>(&self, act: impl FnOnce(&nacre_jail::Container) -> Result<T, nacre_jail::Error>) -> Result<T, Error> {
        let container = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(act(container.as_ref().ok_or(Error::Gone)?)?)
    }

    /// As [`Engine::with`], without waiting for whoever deletes the container.
    fn try_with<T>(
        &self,
        act: impl FnOnce(&nacre_jail::Container) -> Result<T, nacre_jail::Error>,
    ) -> Result<T, Error> {
        let container = self.0.try_read().map_err(|_| Error::Gone)?;
        Ok(act(container.as_ref().ok_or(Error::Gone)?)?)
    }

    /// A process that begins in a frozen cgroup would keep whoever waits for it, and a thread, until somebody thaws it.
    fn refuse_paused(&self) -> Result<(), Error> {
        match self.with(nacre_jail::Container::status)? {
            Status::Paused => Err(Error::Paused),
            _ => Ok(()),
        }
    }

    /// Waits for calls that are under way.
    fn delete(&self) -> Result<(), Error> {
        let container = self.0.write().unwrap_or_else(PoisonError::into_inner).take();
        Ok(container.map_or(Ok(()), nacre_jail::Container::delete)?)
    }
}

/// The agent's ends of a process's streams.
#[derive(Debug)]
pub enum Ends {
    /// Standard input, output and error.
    Pipes([OwnedFd; 3]),
    /// The master of its terminal.
    Terminal(OwnedFd),
}

/// A container that the engine has made and that is not known to the sandbox yet. Dropping it unmakes it: first the container, then
/// what it stands on.
#[derive(Debug)]
pub struct Made {
    engine: nacre_jail::Container,
    ends: Ends,
    storages: Prepared,
    name: Option<String>,
    termination_log: Option<PathBuf>,
}

impl Made {
    /// Make the container `id`. Blocks.
    pub fn new(
        id: &str,
        mut spec: runtime::Spec,
        namespaces: &spec::Namespaces,
        storages: Prepared,
        bundle: &Path,
        pipe_size: Option<usize>,
    ) -> Result<Made, Error> {
        spec::join(&mut spec, namespaces)?;
        if let (Some(image), Some(rootfs)) = (storages.image(), storages.rootfs()) {
            spec::merge_image(&mut spec, &image.config, rootfs)?;
        }
        let process = spec.process().as_ref().ok_or(Error::Spec("process", "is missing"))?;
        let (io, ours) = streams(process, pipe_size)?;
        let (name, termination_log) = (spec::name(&spec), spec::termination_log(&spec));
        let plan = Plan::new(id, &spec, bundle)?;
        for warning in plan.warnings() {
            tracing::warn!(container = id, "{warning}");
        }
        let engine = nacre_jail::Container::create(plan, io)?;
        let ends = ends(ours, engine.init())?;
        Ok(Made { engine, ends, storages, name, termination_log })
    }

    /// The first process's number in the guest.
    pub fn pid(&self) -> i32 {
        self.engine.init().pid()
    }
}

/// A container.
#[derive(Debug)]
pub struct Container {
    id: String,
    engine: Arc<Engine>,
    init: Arc<Process>,
    addresses: Addresses,
    execs: Mutex<Vec<(String, Slot)>>,
    storages: Mutex<Option<Prepared>>,
    oom: Mutex<Option<oom::Watch>>,
    name: Option<String>,
    termination_log: Option<PathBuf>,
    pipe_size: Option<usize>,
}

#[derive(Debug)]
enum Slot {
    Making,
    Live(Arc<Process>),
}

impl Container {
    /// Take over what was made; `sockets` get the first process's streams.
    pub fn new(
        id: &str,
        made: Made,
        addresses: Addresses,
        sockets: Option<Sockets>,
        pipe_size: Option<usize>,
    ) -> Result<Arc<Container>, Error> {
        let Made { engine, ends, storages, name, termination_log } = made;
        let engine = Arc::new(Engine(RwLock::new(Some(engine))));
        let init = Process::watch(Handle::Init(engine.clone()), ends, sockets)?;
        storages.establish();
        Ok(Arc::new(Container {
            id: id.into(),
            engine,
            init,
            addresses,
            execs: Mutex::default(),
            storages: Mutex::new(Some(storages)),
            oom: Mutex::default(),
            name,
            termination_log,
            pipe_size,
        }))
    }

    /// The first process's number in the guest.
    pub fn pid(&self) -> i32 {
        self.init.pid()
    }

    /// What its PCI devices' addresses on the host are here.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What its pod calls it.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether its first process has.
    pub fn has_ended(&self) -> bool {
        self.engine.try_with(|container| container.init().has_ended()).unwrap_or(true)
    }

    /// The file in the guest to which it says why it ended.
    pub fn termination_log(&self) -> Result<&Path, Error> {
        self.termination_log.as_deref().ok_or(Error::NoTerminationLog)
    }

    /// Let the first process run its program. What the kernel kills in the container for want of memory becomes an event from here on.
    pub async fn start(self: &Arc<Self>, events: &Arc<oom::Events>) -> Result<(), Error> {
        let (container, events) = (self.clone(), events.clone());
        self.blocking(move |engine| {
            engine.refuse_paused()?;
            container.watch(engine, events);
            engine.with(nacre_jail::Container::start)
        })
        .await
    }

    /// A container that can't be watched runs all the same.
    fn watch(&self, engine: &Engine, events: Arc<oom::Events>) {
        if lock(&self.oom).is_some() {
            return;
        }
        let kills = engine.with(nacre_jail::Container::watch_oom_kills);
        match kills.and_then(|kills| oom::Watch::begin(&self.id, kills, self.init.clone(), events)) {
            Ok(watch) => *lock(&self.oom) = Some(watch),
            Err(error) => {
                let error = crate::chain(&error);
                tracing::warn!(container = self.id, error, "out-of-memory kills will not be told");
            }
        }
    }

    /// Stop its processes where they are.
    pub async fn pause(&self) -> Result<(), Error> {
        self.blocking(|engine| match engine.with(nacre_jail::Container::status)? {
            Status::Created | Status::Running => engine.with(nacre_jail::Container::pause),
            status => Err(Error::NotRunning(status)),
        })
        .await
    }

    /// Let its processes go on.
    pub async fn resume(&self) -> Result<(), Error> {
        self.blocking(|engine| match engine.with(nacre_jail::Container::status)? {
            Status::Paused => engine.with(nacre_jail::Container::resume),
            status => Err(Error::NotPaused(status)),
        })
        .await
    }

    /// Change the limits that `resources` name and no other.
    pub async fn update(&self, resources: runtime::LinuxResources) -> Result<(), Error> {
        let updated = self.blocking(move |engine| engine.with(|container| container.update(&resources))).await;
        updated.map_err(|error| match error {
            Error::Engine(error) => Error::Update(error),
            error => error,
        })
    }

    /// The counters of its cgroup.
    pub async fn stats(&self) -> Result<nacre_jail::Stats, Error> {
        self.blocking(|engine| engine.with(nacre_jail::Container::stats)).await
    }

    /// The process that is called `exec`; hosts call the first one nothing, or as its container.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>, Error> {
        if exec.is_empty() || exec == self.id {
            return Ok(self.init.clone());
        }
        match lock(&self.execs).iter().find(|(id, _)| id == exec) {
            Some((_, Slot::Live(process))) => Ok(process.clone()),
            _ => Err(Error::NoProcess { container: self.id.clone(), exec: exec.into() }),
        }
    }

    /// Run one more process; `sockets` get its streams.
    pub async fn exec(
        self: &Arc<Self>,
        exec: &str,
        process: runtime::Process,
        sockets: Option<Sockets>,
    ) -> Result<(), Error> {
        let name = self.reserve(exec)?;
        let pipe_size = self.pipe_size;
        let made = self.blocking(move |engine| {
            engine.refuse_paused()?;
            let (io, ours) = streams(&process, pipe_size)?;
            let stray = Stray(Some(engine.with(|container| container.exec(&process, io, 0))?));
            let ends = stray.0.as_ref().map(|process| ends(ours, process)).ok_or(Error::Task)??;
            Ok((stray, ends))
        });
        let (mut stray, ends) = made.await?;
        let process = stray.0.take().ok_or(Error::Task)?;
        name.fill(Process::watch(Handle::Exec(process), ends, sockets)?);
        Ok(())
    }

    /// Send `signal` as the host asked for it: to one process, or to all when none is named and it is the one that none survives.
    pub async fn signal(&self, exec: &str, signal: i32) -> Result<(), Error> {
        if exec.is_empty() && signal == SIGKILL {
            return self.blocking(move |engine| engine.with(|container| container.signal_all(signal))).await;
        }
        let process = self.process(exec)?;
        let is_init = Arc::ptr_eq(&process, &self.init);
        process.signal(signal, is_init)?;
        if signal != SIGKILL || !is_init || nacre_jail::has_unified_cgroups() {
            return Ok(());
        }
        // On cgroup v1 what is frozen dies only once thawed.
        match self.resume().await {
            Err(Error::NotPaused(_) | Error::Gone) => Ok(()),
            resumed => resumed,
        }
    }

    /// Kill everything, and undo what creating the container made, to the end whatever fails on the way.
    pub async fn remove(&self) -> Result<(), Error> {
        let killed = self.blocking(|engine| engine.with(|container| container.signal_all(SIGKILL))).await;
        if tokio::time::timeout(KILL_WITHIN, self.init.exited()).await.is_err() {
            tracing::warn!(container = self.id, "a killed container has not ended");
        }
        let (storages, watch) = (lock(&self.storages).take(), lock(&self.oom).take());
        if let Some(watch) = watch {
            watch.end(); // the count goes with the cgroup
        }
        let deleted = self.blocking(move |engine| {
            let deleted = engine.delete();
            deleted.and(storages.map_or(Ok(()), Prepared::release).map_err(Error::Release))
        });
        let deleted = deleted.await;
        self.cut(); // whoever waits for output that the host does not take waits no longer
        match (killed, deleted) {
            (Err(Error::Gone), deleted) | (Ok(()), deleted) => deleted,
            (killed, Ok(())) => killed,
            (_, deleted) => deleted,
        }
    }

    fn cut(&self) {
        self.init.cut();
        for (_, slot) in lock(&self.execs).iter() {
            if let Slot::Live(process) = slot {
                process.cut();
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Engine) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let engine = self.engine.clone();
        spawn_blocking(move || act(&engine)).await.map_err(|_| Error::Task)?
    }

    fn reserve(self: &Arc<Self>, exec: &str) -> Result<Name, Error> {
        let mut execs = lock(&self.execs);
        if exec == self.id || execs.iter().any(|(id, _)| id == exec) {
            return Err(Error::Exists(exec.into()));
        }
        forget(&mut execs, REMEMBERED, Process::is_over);
        forget(&mut execs, MAX_PROCESSES / 2, Process::is_waited_for);
        if execs.len() >= MAX_PROCESSES {
            return Err(Error::TooMany);
        }
        execs.push((exec.into(), Slot::Making));
        Ok(Name { container: self.clone(), exec: exec.into(), filled: false })
    }
}

/// Keep at most `keep` of the processes for which `dispensable` holds, the youngest.
fn forget(execs: &mut Vec<(String, Slot)>, keep: usize, dispensable: fn(&Process) -> bool) {
    let is = |slot: &Slot| matches!(slot, Slot::Live(process) if dispensable(process));
    let mut excess = execs.iter().filter(|(_, slot)| is(slot)).count().saturating_sub(keep);
    execs.retain(|(_, slot)| {
        let goes = excess > 0 && is(slot);
        excess -= usize::from(goes);
        !goes
    });
}

/// A process's name while the process is being made. Dropping it gives the name back.
struct Name {
    container: Arc<Container>,
    exec: String,
    filled: bool,
}

impl Name {
    fn fill(mut self, process: Arc<Process>) {
        self.filled = true;
        let mut execs = lock(&self.container.execs);
        if let Some((_, slot)) = execs.iter_mut().find(|(id, _)| *id == self.exec) {
            *slot = Slot::Live(process);
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if !self.filled {
            lock(&self.container.execs).retain(|(id, _)| *id != self.exec);
        }
    }
}

/// A process that nobody holds yet. Dropping it ends the process.
struct Stray(Option<nacre_jail::Process>);

impl Drop for Stray {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            let _ = process.signal(SIGKILL); // it may have ended
            let _ = process.wait();
        }
    }
}

fn streams(process: &runtime::Process, pipe_size: Option<usize>) -> Result<(Io, Option<[OwnedFd; 3]>), Error> {
    if process.terminal().unwrap_or(false) {
        let size = process.console_size().map(|size| (cells(size.width()), cells(size.height())));
        return Ok((Io::Terminal { size, lines: LineEnds::Terminal }, None));
    }
    let pipes = Pipes::new(pipe_size).map_err(|source| Error::Stream { act: "make pipes", source })?;
    let Pipes { theirs: [stdin, stdout, stderr], ours } = pipes;
    Ok((Io::Pipes { stdin, stdout, stderr }, Some(ours)))
}

fn ends(ours: Option<[OwnedFd; 3]>, process: &nacre_jail::Process) -> Result<Ends, Error> {
    match ours {
        Some(pipes) => Ok(Ends::Pipes(pipes)),
        None => Ok(Ends::Terminal(process.take_terminal().ok_or(Error::NoTerminal)?)),
    }
}

fn cells(number: u64) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call, so a holder that panicked left a whole value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
