//! A pod: its VM, its containers, and what containerd asks of them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim_protos::protobuf::MessageField;
use nacre_protocol::agent::{CreateContainerRequest, Storage};
use nacre_protocol::{convert, oci};
use oci_spec::runtime::{LinuxResources, Spec};

use super::bundle::Bundle;
use super::config::Config;
use super::containerd::Containerd;
use super::error::{Error, Result, invalid};
use super::events::timestamp;
use super::group;
use super::log::Log;
use super::process::{KILLED, Process, Status};
use super::sandbox::Sandbox;
use super::stdio::Stdio;
use super::task::{Exec, Task};
use super::{registry, translate, volumes};
use crate::guest::{Guest, ProcessId};
use crate::reference::Reference;

/// How long creation may take beside the pull.
const CREATE_WITHIN: Duration = Duration::from_secs(60);

/// How many containers a pod may have.
const MAX_TASKS: usize = 256;

/// How long a guest that does not answer may take to be found dead.
const DEATH_WITHIN: Duration = Duration::from_secs(5);

/// What is said of a process whose end nobody saw.
const UNKNOWN: u32 = 255;

/// SIGKILL.
const KILL: u32 = 9;

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its name: its sandbox's.
    pub id: String,
    /// Its VM.
    pub sandbox: Sandbox,
    config: Arc<Config>,
    spec: Spec,
    containerd: Containerd,
    log: Log,
    /// Those that are being made have nothing yet.
    tasks: Mutex<HashMap<String, Option<Arc<Task>>>>,
}

/// A request to make a container.
#[derive(Debug)]
pub struct Create {
    /// Its name.
    pub id: String,
    /// Its bundle, read.
    pub bundle: Bundle,
    /// Its first process's streams.
    pub stdio: Stdio,
}

/// Holds a container's name while it is made.
struct Name<'a> {
    pod: &'a Pod,
    id: String,
}

impl Drop for Name<'_> {
    fn drop(&mut self) {
        let mut tasks = self.pod.tasks();
        if tasks.get(&self.id).is_some_and(Option::is_none) {
            tasks.remove(&self.id);
        }
    }
}

impl Pod {
    /// A pod whose VM boots.
    pub fn new(
        id: &str,
        sandbox: Sandbox,
        config: Arc<Config>,
        spec: Spec,
        containerd: Containerd,
        log: Log,
    ) -> Arc<Pod> {
        let pod = Pod { id: id.into(), sandbox, config, spec, containerd, log, tasks: Mutex::default() };
        let pod = Arc::new(pod);
        tokio::spawn(pod.clone().tell_of_memory());
        pod
    }

    /// Makes the sandbox's own task: it lives as long as the VM.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn create_sandbox(self: &Arc<Self>, create: &Create) -> Result<()> {
        let name = self.reserve(&create.id)?;
        let init = Process::new(process_id(&create.id, ""), "", create.stdio.clone());
        self.insert(name, Task::new(&create.id, create.bundle.dir.clone(), false, init));
        self.tell_created(create);
        Ok(())
    }

    /// Makes a container: its image is pulled in the guest.
    ///
    /// # Errors
    /// Whatever stands against it; then nothing of it is left.
    pub async fn create(self: &Arc<Self>, create: &Create) -> Result<()> {
        let id = &create.id;
        let name = self.reserve(id)?;
        let annotations = create.bundle.annotations();
        let image = match group::image(&annotations) {
            Some(image) => image.to_string(),
            None => self.containerd.image_of(id).await?,
        };
        let image: Reference = image.parse().map_err(|error| invalid("image", error))?;
        let init = Process::new(process_id(id, ""), "", create.stdio.clone());
        init.open()?;
        let translated = translate::container(id, &create.bundle, &self.spec, self.config.confidential)?;
        let guest = self.sandbox.guest().await?;
        if let Some(access) = registry::access(&self.config.images, &image)? {
            guest.set_registry_access(&access).await?;
        }
        let watch = volumes::follow(&guest, &translated.copies, &self.log)?;
        let mut task = Task::new(id, create.bundle.dir.clone(), true, init);
        *task.watch.get_mut().unwrap_or_else(PoisonError::into_inner) = watch;
        task.termination_log = translated.termination_log.clone();
        volumes::copy(&guest, &translated.copies).await?;
        let request = request(id, &image, translated)?;
        guest.create_container(&request, self.config.pull_within() + CREATE_WITHIN).await?;
        self.insert(name, task);
        self.tell_created(create);
        self.log.info(&format!("container {id}: made of {image}"));
        Ok(())
    }

    fn reserve(&self, id: &str) -> Result<Name<'_>> {
        let mut tasks = self.tasks();
        if tasks.contains_key(id) {
            return Err(Error::AlreadyExists(format!("container {id}")));
        }
        if tasks.len() >= MAX_TASKS {
            return Err(Error::State(format!("container {id}: the pod has {MAX_TASKS} already")));
        }
        tasks.insert(id.into(), None);
        Ok(Name { pod: self, id: id.into() })
    }

    fn insert(&self, name: Name<'_>, task: Task) {
        self.tasks().insert(name.id.clone(), Some(Arc::new(task)));
    }

    fn tell_created(&self, create: &Create) {
        let io = TaskIO {
            stdin: create.stdio.stdin.clone(),
            stdout: create.stdio.stdout.clone(),
            stderr: create.stdio.stderr.clone(),
            terminal: create.stdio.terminal,
            ..TaskIO::default()
        };
        let event = TaskCreate {
            container_id: create.id.clone(),
            bundle: create.bundle.dir.display().to_string(),
            io: MessageField::some(io),
            pid: std::process::id(),
            ..TaskCreate::default()
        };
        self.containerd.events.tell("/tasks/create", &event);
    }

    /// Starts a process: a container's first for "".
    ///
    /// # Errors
    /// Why its program does not run.
    pub async fn start(self: &Arc<Self>, id: &str, exec: &str) -> Result<()> {
        let task = self.task(id)?;
        let process = task.process(exec)?;
        process.begin()?;
        if let Err(error) = self.run(&task, &process).await {
            // containerd deletes what did not start.
            process.stop(UNKNOWN);
            return Err(error);
        }
        process.runs();
        let pid = std::process::id();
        let container_id = task.id.clone();
        if exec.is_empty() {
            self.containerd.events.tell("/tasks/start", &TaskStart { container_id, pid, ..TaskStart::default() });
        } else {
            let exec_id = exec.into();
            self.containerd.events.tell(
                "/tasks/exec-started",
                &TaskExecStarted { container_id, exec_id, pid, ..TaskExecStarted::default() },
            );
        }
        tokio::spawn(self.clone().watch(task, process));
        Ok(())
    }

    async fn run(&self, task: &Task, process: &Process) -> Result<()> {
        if !task.in_guest {
            return Ok(()); // the guest may still boot: whoever asks it for something waits for that
        }
        let guest = self.sandbox.guest().await?;
        process.open()?;
        if process.exec.is_empty() {
            guest.start(&task.id).await?;
        } else {
            guest.exec(&process.id, &task.exec(&process.exec)?.spec).await?;
        }
        if let Some(open) = process.take_open() {
            open.relay(&guest, &process.id, &process.relays);
        }
        if let Some(size) = process.size() {
            let _ = guest.resize(&process.id, size).await; // it may have ended
        }
        Ok(())
    }

    /// Sees a process to its end, and tells of it.
    async fn watch(self: Arc<Self>, task: Arc<Task>, process: Arc<Process>) {
        let code = if task.in_guest { self.code(&task, &process).await } else { self.code_of_sandbox().await };
        self.stopped(&task, &process, code);
    }

    async fn code(&self, task: &Task, process: &Process) -> u32 {
        let Some(guest) = self.sandbox.guest_now() else { return KILLED };
        let waited = guest.wait(&process.id).await;
        match waited {
            Ok(code) => {
                if process.exec.is_empty() {
                    self.bring_back(&guest, task).await;
                }
                code.cast_unsigned() & 0xff
            }
            // A guest that does not answer is dead, or will be.
            Err(error) => match tokio::time::timeout(DEATH_WITHIN, self.sandbox.ended()).await {
                Ok(_) => KILLED,
                Err(_) => {
                    self.log.warn(&format!("{}: its end was not seen: {error:#}", process.id.exec));
                    UNKNOWN
                }
            },
        }
    }

    async fn code_of_sandbox(&self) -> u32 {
        let how = self.sandbox.ended().await;
        self.log.info(&format!("pod {}: {how}", self.id));
        KILLED
    }

    async fn bring_back(&self, guest: &Guest, task: &Task) {
        let Some(to) = &task.termination_log else { return };
        if let Err(error) = volumes::bring_back(guest, &task.id, to).await {
            self.log.debug(&format!("container {}: {error:#}", task.id));
        }
    }

    fn stopped(&self, task: &Task, process: &Process, code: u32) {
        if !process.stop(code) {
            return;
        }
        let Status::Stopped { at, .. } = process.status() else { return };
        let id = if process.exec.is_empty() { task.id.clone() } else { process.exec.clone() };
        let event = TaskExit {
            container_id: task.id.clone(),
            id,
            pid: std::process::id(),
            exit_status: code,
            exited_at: MessageField::some(timestamp(at)),
            ..TaskExit::default()
        };
        self.containerd.events.tell("/tasks/exit", &event);
    }

    /// Adds a process to a container, to be started later.
    ///
    /// # Errors
    /// A container that does not run, or a process that is there.
    pub fn exec(&self, id: &str, exec: &str, stdio: Stdio, spec: oci::Process) -> Result<()> {
        let task = self.task(id)?;
        if !task.in_guest {
            return Err(Error::Unimplemented(format!("{id}: a sandbox has no process to add others to")));
        }
        if task.init.status() != Status::Running {
            return Err(Error::State(format!("container {id}: it does not run")));
        }
        let process = Arc::new(Process::new(process_id(id, exec), exec, stdio));
        task.add(Exec { process, spec })?;
        let event = TaskExecAdded { container_id: id.into(), exec_id: exec.into(), ..TaskExecAdded::default() };
        self.containerd.events.tell("/tasks/exec-added", &event);
        Ok(())
    }

    /// Sends a signal to a process, or to all of a container. A sandbox is ended by any.
    ///
    /// # Errors
    /// A process that has ended.
    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let task = self.task(id)?;
        let process = task.process(exec)?;
        if let Status::Stopped { .. } = process.status() {
            return Err(Error::NotFound(format!("process {} of container {id}: it has ended", process.id.exec)));
        }
        if !task.in_guest {
            self.sandbox.stop().await;
            self.stopped(&task, &process, 128 + signal);
            return Ok(());
        }
        let Some(guest) = self.sandbox.guest_now() else {
            return Err(Error::NotFound(format!("container {id}: its VM is gone")));
        };
        let whole = ProcessId { container: id.into(), exec: String::new() };
        let target = if all && exec.is_empty() && signal == KILL { &whole } else { &process.id };
        Ok(guest.signal(target, signal.cast_signed()).await?)
    }

    /// Removes a container or an added process that has ended, or was never started. The code, and when it ended.
    ///
    /// # Errors
    /// One that runs.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<(u32, SystemTime)> {
        let task = self.task(id)?;
        let process = task.process(exec)?;
        let ended = match process.status() {
            Status::Stopped { code, at } => (code, at),
            Status::Created => (0, SystemTime::now()),
            Status::Starting | Status::Running => {
                return Err(Error::State(format!("{}: it runs", process.id.exec)));
            }
        };
        process.relays.finish().await;
        if exec.is_empty() {
            if task.in_guest
                && let Some(guest) = self.sandbox.guest_now()
            {
                guest.remove_container(id).await?;
            }
            self.tasks().remove(id);
        } else {
            task.remove(exec);
        }
        let event = TaskDelete {
            container_id: id.into(),
            pid: std::process::id(),
            exit_status: ended.0,
            exited_at: MessageField::some(timestamp(ended.1)),
            id: exec.into(),
            ..TaskDelete::default()
        };
        self.containerd.events.tell("/tasks/delete", &event);
        Ok(ended)
    }

    /// Stops a container's processes where they are.
    ///
    /// # Errors
    /// One that does not run.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let task = self.in_guest(id)?;
        self.guest(id)?.pause(id).await?;
        task.paused.store(true, Ordering::Relaxed);
        self.containerd.events.tell("/tasks/paused", &TaskPaused { container_id: id.into(), ..TaskPaused::default() });
        Ok(())
    }

    /// Lets a container's processes go on.
    ///
    /// # Errors
    /// One that does not run.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let task = self.in_guest(id)?;
        self.guest(id)?.resume(id).await?;
        task.paused.store(false, Ordering::Relaxed);
        self.containerd
            .events
            .tell("/tasks/resumed", &TaskResumed { container_id: id.into(), ..TaskResumed::default() });
        Ok(())
    }

    /// Changes what a container may use.
    ///
    /// # Errors
    /// What the guest refuses.
    pub async fn update(&self, id: &str, mut resources: LinuxResources) -> Result<()> {
        let task = self.task(id)?;
        if !task.in_guest {
            return Ok(()); // the pod's own limits are the host's control group's
        }
        if let Some(cpu) = resources.cpu().clone() {
            let mut cpu = cpu;
            cpu.set_cpus(None).set_mems(None); // their numbers are the host's
            resources.set_cpu(Some(cpu));
        }
        let resources = convert::resources_from_oci(&resources).map_err(|error| invalid("resources", error))?;
        Ok(self.guest(id)?.update_container(id, resources).await?)
    }

    /// The guest, for a container in it.
    ///
    /// # Errors
    /// A VM that is gone.
    pub fn guest(&self, id: &str) -> Result<Guest> {
        self.sandbox.guest_now().ok_or_else(|| Error::NotFound(format!("container {id}: its VM is gone")))
    }

    /// The container `id`, which the guest has.
    fn in_guest(&self, id: &str) -> Result<Arc<Task>> {
        let task = self.task(id)?;
        if task.in_guest { Ok(task) } else { Err(Error::Unimplemented(format!("{id}: a sandbox has no processes"))) }
    }

    /// The task `id`.
    ///
    /// # Errors
    /// One that is not there, or is still being made.
    pub fn task(&self, id: &str) -> Result<Arc<Task>> {
        let found = self.tasks().get(id).cloned().flatten();
        found.ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    /// Whether no container is left, nor is one being made.
    pub fn is_empty(&self) -> bool {
        self.tasks().is_empty()
    }

    async fn tell_of_memory(self: Arc<Self>) {
        let Ok(guest) = self.sandbox.guest().await else { return };
        while let Ok(container_id) = guest.oom_event().await {
            if self.task(&container_id).is_ok() {
                self.containerd.events.tell("/tasks/oom", &TaskOOM { container_id, ..TaskOOM::default() });
            }
        }
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Task>>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container's first process has the container's name in the guest.
fn process_id(id: &str, exec: &str) -> ProcessId {
    ProcessId { container: id.into(), exec: if exec.is_empty() { id.into() } else { exec.into() } }
}

fn request(id: &str, image: &Reference, container: translate::Translated) -> Result<CreateContainerRequest> {
    let rootfs = Storage {
        driver: "image_guest_pull".into(),
        source: image.to_string(),
        fstype: "overlay".into(),
        mount_point: translate::rootfs(id),
        ..Storage::new()
    };
    let spec = convert::spec_from_oci(&container.spec).map_err(|error| invalid("config.json", error))?;
    Ok(CreateContainerRequest {
        container_id: id.into(),
        exec_id: id.into(),
        storages: [rootfs].into_iter().chain(container.storages).collect(),
        OCI: Some(spec).into(),
        sandbox_pidns: container.shares_pids,
        ..Default::default()
    })
}
