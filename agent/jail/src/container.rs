//! A container: its cgroup, its first process, and those that joined it.

use std::fmt;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use nacre_sys::clone::Cloned;
use oci_spec::runtime::{self, ContainerState, LinuxDevice, LinuxResources};
use rustix::process::Pid;
use rustix::thread::ThreadNameSpaceType;

use crate::Io;
use crate::cgroup::{self, Cgroup, OomKills};
use crate::channel::Point;
use crate::error::Error;
use crate::hook::{self, Place};
use crate::launch::{self, Event, Gate, Start};
use crate::plan::{self, Confinement, Hooks, Interior, Plan, Stewardship, Target};
use crate::prepare;
use crate::process::{Process, Strays, start_time_of};
use crate::record::{FilterRecord, Note, Record};
use crate::shared_root::SharedRoot;
use crate::stats::Stats;
use crate::step::Step;

/// A container. Dropping it kills what runs in it and removes its cgroup; [`Container::leave`] lets it live on.
#[derive(Debug)]
pub struct Container {
    init: Process,
    cgroup: Owned,
    interior: Interior,
    hooks: Hooks,
    gate: Option<PathBuf>,
    process: runtime::Process,
    devices: Vec<LinuxDevice>,
    shared_root: SharedRoot,
    strays: Strays,
}

/// What a container is up to (runtime.md, "State"; paused is the freezer's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its first process waits at the start gate.
    Created,
    /// Its program runs.
    Running,
    /// Its first process is frozen, at the start gate or in its program.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// A cgroup that goes with its owner.
#[derive(Debug)]
struct Owned(Option<Cgroup>);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0.take() {
            let _ = cgroup.remove(); // `Container::delete` is the way to hear of it
        }
    }
}

impl Owned {
    fn get(&self) -> Result<&Cgroup, Error> {
        self.0.as_ref().ok_or(Error::State("deleted"))
    }
}

impl Container {
    /// Makes the container; its first process is set up completely and waits at its start gate. A program that is missing is
    /// reported here. Hooks: `prestart`, `createRuntime`, `createContainer`; if it fails from there on, `poststop`.
    ///
    /// # Errors
    /// The step that failed, and why. Nothing is left behind.
    pub fn create(plan: Plan, io: Io) -> Result<Container, Error> {
        let start = plan.gate.as_deref().map_or(Ok(Start::WhenTold), launch::listen)?;
        Container::make(plan, io, start)
    }

    /// Makes the container and lets it run its program at once, without a start gate. Hooks: all of [`Container::create`] and
    /// [`Container::start`].
    ///
    /// # Errors
    /// The step that failed, and why. Nothing is left behind.
    pub fn run(plan: Plan, io: Io) -> Result<Container, Error> {
        let container = Container::make(plan, io, Start::AtOnce)?;
        if let Err(error) = container.tell_of_start() {
            let _ = container.delete(); // the first error is worth more
            return Err(error);
        }
        Ok(container)
    }

    fn make(mut plan: Plan, io: Io, start: Start) -> Result<Container, Error> {
        let journal = plan.journal.take();
        let note = |note: Note| match &journal {
            None => Ok(()),
            Some(file) => note.write(file).map_err(|error| Error::system("remember what has been made", error)),
        };
        let (path, resources, devices) = (plan.cgroup.clone(), plan.resources.clone(), plan.devices.clone());
        let interior = plan.interior();
        let (hooks, gate, process) = (plan.hooks.clone(), plan.gate.clone(), plan.process.clone());
        let stewardship = plan.stewardship()?;
        let mut cgroup = Owned(None);
        let make_cgroup = |born| {
            let cgroup = Owned(Some(Cgroup::create(&path, born, resources.as_ref(), &devices)?));
            note(Note::Cgroup)?;
            Ok::<_, Error>(cgroup)
        };
        // cgroup v2 must be there when the child is born in it. v1 is made while the child makes its namespaces, unless it is to be seen there.
        let first = cgroup::is_unified() || plan.shows_cgroup;
        if first {
            cgroup = make_cgroup(false)?;
        }
        let (mut made_for_birth, birthplace) = match first {
            true => (None, cgroup.get()?.birthplace()?),
            false => cgroup::Birthplace::of(&path).map(|(place, fd)| (Some(place), fd))?,
        };
        let mut launch = plan.launch(birthplace, io, start)?;
        let room = resources.as_ref().and_then(|resources| resources.memory().as_ref()?.limit());
        let wanted = prepare::prepare(&mut launch.steps, room.and_then(|bytes| u64::try_from(bytes).ok()))?;
        let shared_root = SharedRoot::of(&launch.steps)?;
        if let Some(mounted) = shared_root.mounted() {
            note(Note::Root(mounted.clone()))?;
        }
        let serve = &mut |event, child: &Cloned| {
            match event {
                Event::Born => {
                    if let Some(place) = &mut made_for_birth {
                        cgroup = make_cgroup(true)?;
                        place.keep();
                    }
                    return cgroup.get()?.entrances();
                }
                Event::At(Point::Devices) => {
                    let rules = resources.as_ref().and_then(|resources| resources.devices().as_deref());
                    cgroup.get()?.allow_devices(rules.unwrap_or_default(), &devices)
                }
                Event::At(Point::Sources) => return prepare::find_inside(child.pid, &wanted),
                Event::At(Point::BeforeRoot) => before_root(&hooks, child, &interior),
                Event::At(Point::BeforeProgram) => {
                    before_program(&hooks, &process, &target(child, &interior), cgroup.get()?)
                }
                Event::At(point) => serve_user_namespace(point, &stewardship, child.pid),
                Event::Listener(fd) => hand_on(&interior.confinement, &hooks, ContainerState::Creating, child.pid, &fd),
            }
            .map(|()| Vec::new())
        };
        let init = match launch.spawn(serve) {
            Ok(spawned) => Process::new(spawned),
            Err(error) => {
                if let Some(gate) = &gate {
                    let _ = std::fs::remove_file(gate); // it may not have been made yet
                }
                drop((cgroup, shared_root));
                let _ = tell_of_end(&hooks); // the first error is worth more
                return Err(error);
            }
        };
        let strays = Strays::default();
        Ok(Container { init, cgroup, interior, hooks, gate, process, devices, shared_root, strays })
    }

    /// Takes up a container that another process made and left. Its first process may have ended meanwhile.
    ///
    /// # Errors
    /// A specification that can't be the container's, or a record that can't be.
    pub fn open(id: &str, record: Record, spec: &runtime::Spec, bundle: &Path) -> Result<Container, Error> {
        let process = spec.process().clone().ok_or_else(|| Error::spec("process", "is missing"))?;
        let gate = match &record.gate {
            Some(path) if path.exists() => Some(Gate::named(path.clone(), record.steps.clone())),
            _ => None,
        };
        Ok(Container {
            init: Process::open(record.pid, record.start_time, gate)?,
            cgroup: Owned(Some(Cgroup::at(&record.cgroup))),
            interior: record.interior()?,
            shared_root: SharedRoot::recorded(record.shared_root.clone()),
            hooks: Hooks::new(id, spec, bundle)?,
            gate: record.gate,
            process,
            devices: spec.linux().as_ref().and_then(|linux| linux.devices().clone()).unwrap_or_default(),
            strays: Strays::default(),
        })
    }

    /// Removes what a maker that was killed in the middle has left of the container `id`, as its `notes` say: its processes, its cgroup, its mount.
    ///
    /// # Errors
    /// A specification that names no cgroup of a container's, or a cgroup that can't be removed.
    pub fn remove_remains(id: &str, spec: &runtime::Spec, notes: &[Note]) -> Result<(), Error> {
        let cgroups_path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
        let cgroup = Cgroup::at(&cgroup::path_of(id, cgroups_path)?);
        let mut is_ours = false;
        for note in notes {
            match note {
                Note::Cgroup | Note::Whole(_) => is_ours = true,
                Note::Root(mounted) => drop(SharedRoot::recorded(Some(mounted.clone()))),
            }
        }
        if is_ours {
            return cgroup.remove();
        }
        cgroup.remove_if_empty();
        Ok(())
    }

    /// What another process needs for [`Container::open`].
    ///
    /// # Errors
    /// [`Error::State`] once deleted.
    pub fn record(&self) -> Result<Record, Error> {
        Ok(Record {
            pid: self.init.pid(),
            start_time: start_time_of(self.init.pid()).unwrap_or(0), // of one that is gone already, never found again
            cgroup: self.cgroup.get()?.path().to_path_buf(),
            namespaces: self.interior.namespaces.bits(),
            own_pid_namespace: self.interior.own_pid_namespace,
            leads_pid_namespace: self.interior.leads_pid_namespace,
            own_mount_namespace: self.interior.own_mount_namespace,
            gate: self.gate.clone(),
            steps: self.init.gate_names(),
            shared_root: self.shared_root.mounted().cloned(),
            personality: self.interior.confinement.personality,
            filter: self.interior.confinement.filter.as_ref().map(FilterRecord::new),
        })
    }

    /// Lets go of the container without ending it.
    pub fn leave(mut self) {
        self.init.let_go();
        self.shared_root.leave();
        if let Some(cgroup) = self.cgroup.0.take() {
            drop(cgroup);
        }
    }

    /// Opens the start gate. Returns once the program runs. Hooks: `startContainer`, `poststart`; if one fails, the container is stopped.
    ///
    /// # Errors
    /// [`Error::State`] on a second call, [`Error::Program`] when the program can't be executed after all, [`Error::Hook`].
    pub fn start(&self) -> Result<(), Error> {
        let serve = &mut |event, child: &Cloned| {
            match event {
                Event::Listener(fd) => {
                    hand_on(&self.interior.confinement, &self.hooks, ContainerState::Created, child.pid, &fd)
                }
                _ => before_program(&self.hooks, &self.process, &target(child, &self.interior), self.cgroup.get()?),
            }
            .map(|()| Vec::new())
        };
        let started = self.init.start(serve);
        if let Some(gate) = self.gate.as_ref().filter(|_| !self.init.is_waiting()) {
            let _ = std::fs::remove_file(gate); // it may be gone with the container
        }
        let running = started.and_then(|()| self.tell_of_start());
        if matches!(running, Err(Error::Hook { .. })) {
            let _ = self.signal_all(libc::SIGKILL); // it may have ended by itself
        }
        running
    }

    fn tell_of_start(&self) -> Result<(), Error> {
        let (hooks, pid) = (&self.hooks, self.init.pid());
        hook::run("poststart", &hooks.poststart, hooks, ContainerState::Running, pid, Place::Runtime)
    }

    /// The first process.
    pub fn init(&self) -> &Process {
        &self.init
    }

    /// What the container is up to.
    ///
    /// # Errors
    /// [`Error::State`] once deleted.
    pub fn status(&self) -> Result<Status, Error> {
        if self.init.has_ended()? {
            return Ok(Status::Stopped);
        }
        if self.cgroup.get()?.is_frozen() {
            return Ok(Status::Paused);
        }
        Ok(if self.init.is_waiting() { Status::Created } else { Status::Running })
    }

    /// Runs one more process in the container; `descriptors` of the caller's, from 3 on, reach it. Returns once its program runs.
    ///
    /// # Errors
    /// The step that failed, and why; [`Error::Ended`] when the container's first process has ended.
    pub fn exec(&self, process: &runtime::Process, io: Io, descriptors: u32) -> Result<Process, Error> {
        if self.init.has_ended()? {
            return Err(Error::Ended);
        }
        let target = Target { pidfd: self.init.pidfd(), pid: self.init.pid(), interior: &self.interior };
        let launch = plan::exec(process, &target, self.cgroup.get()?.birthplace()?, io, descriptors)?;
        let serve = &mut |event, child: &Cloned| {
            match event {
                Event::Born => return self.cgroup.get()?.entrances(),
                Event::At(_) => Ok(()), // a process that is not the first waits for nothing
                Event::Listener(fd) => {
                    hand_on(&self.interior.confinement, &self.hooks, ContainerState::Running, child.pid, &fd)
                }
            }
            .map(|()| Vec::new())
        };
        Ok(Process::new(launch.spawn(serve)?).stray_to(&self.strays))
    }

    /// What of `process` is left out when it is executed, because it can't be granted: a line each.
    pub fn warnings(&self, process: &runtime::Process) -> Vec<String> {
        plan::warnings(process, self.interior.namespaces.contains(ThreadNameSpaceType::USER))
    }

    /// Sends `signal` to every process of the container.
    ///
    /// # Errors
    /// A number that is no signal.
    pub fn signal_all(&self, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            self.cgroup.get()?.kill();
            return Ok(());
        }
        for pid in self.pids()? {
            let Some(pid) = Pid::from_raw(pid) else { continue };
            let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { continue };
            match nacre_sys::pidfd::send_signal(pidfd.as_fd(), signal) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(Error::system(format!("send signal {signal}"), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether all its processes end with the first one, which leads their PID namespace.
    pub fn ends_with_its_first_process(&self) -> bool {
        self.interior.leads_pid_namespace
    }

    /// Every process of the container, as the caller numbers them.
    ///
    /// # Errors
    /// [`Error::State`] once deleted.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        Ok(self.cgroup.get()?.pids())
    }

    /// Stops the processes where they are.
    ///
    /// # Errors
    /// A system without a freezer.
    pub fn pause(&self) -> Result<(), Error> {
        self.cgroup.get()?.freeze(true)
    }

    /// Lets paused processes go on.
    ///
    /// # Errors
    /// A system without a freezer.
    pub fn resume(&self) -> Result<(), Error> {
        self.cgroup.get()?.freeze(false)
    }

    /// Changes the limits that `resources` name and no other.
    ///
    /// # Errors
    /// A controller that the system does not have, or a value that the kernel refuses.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        let cgroup = self.cgroup.get()?;
        cgroup.update(resources)?;
        match resources.devices().as_deref() {
            None | Some([]) => Ok(()),
            Some(rules) => cgroup.allow_devices(rules, &self.devices),
        }
    }

    /// What the container has used so far.
    ///
    /// # Errors
    /// A cgroup that can't be read.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.cgroup.get()?.stats()
    }

    /// The count of what the kernel kills in it for want of memory, from now on told as it happens.
    ///
    /// # Errors
    /// A system without a controller of memory.
    pub fn watch_oom_kills(&self) -> Result<OomKills, Error> {
        self.cgroup.get()?.watch_oom_kills()
    }

    /// Those that were killed with the container.
    fn reap_strays(&self) {
        for pidfd in self.strays.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = crate::exit::reap(pidfd.as_fd()); // its status interests nobody
        }
    }

    /// Kills what still runs, reaps the first process, and removes the cgroup. Hooks: `poststop`, each of them, whatever the others do.
    ///
    /// # Errors
    /// A cgroup that can't be removed; [`Error::Hook`], after the container is gone.
    pub fn delete(mut self) -> Result<(), Error> {
        let Some(cgroup) = self.cgroup.0.take() else { return Ok(()) };
        if !(self.interior.leads_pid_namespace && self.init.has_ended()?) {
            let _ = self.init.signal(libc::SIGKILL); // it may have ended
            cgroup.kill();
        }
        self.reap_strays();
        self.init.wait_for_death()?;
        cgroup.remove()?;
        self.shared_root = SharedRoot::recorded(None);
        if let Some(gate) = &self.gate {
            let _ = std::fs::remove_file(gate); // gone since the start, if there was one
        }
        tell_of_end(&self.hooks)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.cgroup.0.is_some() {
            let _ = self.init.signal(libc::SIGKILL); // as in delete
            if let Ok(cgroup) = self.cgroup.get() {
                cgroup.kill();
            }
            self.reap_strays();
            let _ = self.init.wait_for_death();
        }
    }
}

/// What root of a user namespace can't do for itself.
fn serve_user_namespace(point: Point, stewardship: &Stewardship, pid: i32) -> Result<(), Error> {
    match (point, &stewardship.maps) {
        (Point::Mapped, Some(maps)) => prepare::write_maps(pid, maps)
            .map_err(|error| Error::system("write the id mappings (linux.uidMappings, linux.gidMappings)", error)),
        (Point::Clocks, _) => {
            let path = format!("/proc/{pid}/timens_offsets");
            let offsets = stewardship.offsets.as_ref().map(|offsets| offsets.to_bytes()).unwrap_or_default();
            std::fs::write(&path, offsets).map_err(|error| {
                Error::system(
                    format!("write {:?} to {path} (linux.timeOffsets)", String::from_utf8_lossy(offsets)),
                    error,
                )
            })
        }
        (Point::Limits, _) => {
            if let Some(score) = stewardship.oom_score {
                let path = format!("/proc/{pid}/oom_score_adj");
                std::fs::write(&path, score.to_string())
                    .map_err(|error| Error::system(format!("write {score} to {path}"), error))?;
            }
            stewardship.limits.iter().try_for_each(|limit| set_limit(limit, pid))
        }
        _ => Ok(()),
    }
}

fn set_limit(step: &Step, pid: i32) -> Result<(), Error> {
    let Step::Limit { resource, limit, .. } = step else { return Ok(()) };
    rustix::process::prlimit(Pid::from_raw(pid), *resource, *limit)
        .map(drop)
        .map_err(|error| Error::Step { step: step.to_string(), source: error.into() })
}

/// Each `poststop` hook, whatever the others do.
fn tell_of_end(hooks: &Hooks) -> Result<(), Error> {
    let mut result = Ok(());
    for one in &hooks.poststop {
        let one = std::slice::from_ref(one);
        let ran = hook::run("poststop", one, hooks, ContainerState::Stopped, 0, Place::Runtime);
        result = result.and(ran);
    }
    result
}

fn target<'a>(child: &'a Cloned, interior: &'a Interior) -> Target<'a> {
    Target { pidfd: child.pidfd.as_fd(), pid: child.pid, interior }
}

/// The hooks that come out of the container's image run as its own program would.
fn before_program(
    hooks: &Hooks,
    program: &runtime::Process,
    target: &Target<'_>,
    cgroup: &Cgroup,
) -> Result<(), Error> {
    for hook in &hooks.start_container {
        let text = |strings: &[std::ffi::CString]| -> Vec<String> {
            strings.iter().map(|string| string.to_string_lossy().into_owned()).collect()
        };
        let mut process = program.clone();
        process.set_args(Some(text(&hook.args))).set_cwd(PathBuf::from("/")).set_terminal(None);
        if let Some(env) = &hook.env {
            process.set_env(Some(text(env)));
        }
        let launch = |[stdin, stdout, stderr]: [std::os::fd::OwnedFd; 3]| {
            let io = Io::Pipes { stdin, stdout, stderr };
            let launch = plan::exec(&process, target, cgroup.birthplace()?, io, 0)?;
            // The program is the hook's path, whatever its first argument says.
            Ok(launch.program(hook.path.clone()))
        };
        let told = hook::told(&hooks.state, ContainerState::Created, target.pid)?;
        let serve = &mut |event, _: &Cloned| match event {
            Event::Born => cgroup.entrances(),
            _ => Ok(Vec::new()),
        };
        hook::run_one("startContainer", hook, launch, serve, &told)?;
    }
    Ok(())
}

fn before_root(hooks: &Hooks, child: &Cloned, interior: &Interior) -> Result<(), Error> {
    let creating = ContainerState::Creating;
    let run = |point, list, place| hook::run(point, list, hooks, creating, child.pid, place);
    run("prestart", &hooks.prestart, Place::Runtime)?;
    run("createRuntime", &hooks.create_runtime, Place::Runtime)?;
    run("createContainer", &hooks.create_container, Place::Namespaces(child.pidfd.as_fd(), interior.namespaces))
}

fn hand_on(
    confinement: &Confinement,
    hooks: &Hooks,
    status: ContainerState,
    pid: i32,
    fd: &std::os::fd::OwnedFd,
) -> Result<(), Error> {
    let listener = confinement.filter.as_ref().and_then(|filter| filter.listener.as_ref());
    let Some(listener) = listener else { return Ok(()) };
    crate::listener::hand_on(listener, fd.as_fd(), &hooks.state, status, pid)
}
