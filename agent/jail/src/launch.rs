//! The fork, and the child between it and its program.
//!
//! The child says `Ready` and waits at its start gate; somebody says go; then the socket either closes, because the program was executed,
//! or brings the failure. The gate is the socket to the parent or, for a container that outlives its maker, a listening socket with a
//! name: who opens the gate connects to it, and that connection is the socket from then on.

// UNSAFETY: what runs in the child must be async-signal-safe, which the compiler can't know.
#![expect(unsafe_code, reason = "clone3 runs the child's code")]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nacre_sys::clone::{Cloned, clone3};
use nacre_sys::exec::{StringArray, close_range, end_on_signals, execve, reset_signals};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, socketpair};
use rustix::thread::LinkNameSpaceType;

use crate::channel::{self, Heard, MOST_HANDED_OVER, Message, Point, retry};
use crate::error::Error;
use crate::step::home::Home;
use crate::step::{Step, Walk, errno};

/// How long one stretch of the set-up of a process may take: steps are system calls, and only a sick file system makes one wait.
const SETUP_WITHIN: Duration = Duration::from_secs(60);

/// Everything a child needs.
#[derive(Debug)]
pub(crate) struct Launch {
    /// `CLONE_NEW…` flags.
    pub(crate) namespaces: u64,
    /// Existing namespaces to be in before a user namespace is made or joined: who is in it has no rights over them any more.
    pub(crate) joined_before: Vec<Step>,
    /// An existing user namespace in which the others are made.
    pub(crate) user_namespace: Option<OwnedFd>,
    /// An existing PID namespace to be born in.
    pub(crate) pid_namespace: Option<OwnedFd>,
    /// A cgroup v2 directory to be born in.
    pub(crate) cgroup: Option<OwnedFd>,
    /// What to do before the start gate.
    pub(crate) steps: Vec<Step>,
    /// What to do behind it.
    pub(crate) last_steps: Vec<Step>,
    /// When the child goes on to its program.
    pub(crate) start: Start,
    /// How many descriptors after 2 are the program's (`--preserve-fds`).
    pub(crate) kept: u32,
    /// The places where the program may be.
    pub(crate) candidates: StringArray,
    pub(crate) argv: StringArray,
    pub(crate) envp: StringArray,
}

/// When a child that is set up goes on to its program.
#[derive(Debug)]
pub(crate) enum Start {
    /// At once: there is no gate.
    AtOnce,
    /// When the parent says so.
    WhenTold,
    /// When somebody says so at this socket, which has this name.
    AtGate(OwnedFd, PathBuf),
}

/// What a parent is asked for.
#[derive(Debug)]
pub(crate) enum Event {
    /// The child has been born, and goes its way beside what the parent does now. Descriptors that this answers are handed over to it.
    Born,
    /// It waits.
    At(Point),
    /// It hands its listener on.
    Listener(OwnedFd),
}

/// Who serves a child's events.
pub(crate) type Serve<'a> = &'a mut dyn FnMut(Event, &Cloned) -> Result<Vec<OwnedFd>, Error>;

/// A child that is set up, and its start gate, if it waits there.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) cloned: Cloned,
    pub(crate) gate: Option<Gate>,
    pub(crate) master: Option<OwnedFd>,
}

/// The way to a child that waits.
#[derive(Debug)]
pub(crate) struct Gate {
    way: Way,
    steps: Names,
}

#[derive(Debug)]
enum Way {
    /// The socket to our own child.
    Socket(OwnedFd),
    /// The name at which somebody else's child listens.
    Name(PathBuf),
}

/// What the steps were about, for whoever hears that one failed.
#[derive(Debug)]
enum Names {
    Launch(Box<Launch>),
    Text(Vec<String>),
}

/// A failure's step number for execve itself.
const EXECVE: u32 = u32::MAX;

/// From here on a failure's step number is that of a namespace to be joined before.
const JOINED_BEFORE: u32 = 1 << 31;

impl Launch {
    /// Has `program` executed, whatever the first argument says.
    pub(crate) fn program(mut self, program: CString) -> Launch {
        self.candidates = StringArray::new(vec![program]);
        self
    }

    /// Forks. Returns once the child waits at its gate or, if it has none, once its program runs; or with the reason why not.
    pub(crate) fn spawn(mut self, serve: Serve<'_>) -> Result<Spawned, Error> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| Error::system("make a socket pair", error))?;
        let cloned = self.fork(&ours, &theirs)?;
        drop(theirs);
        // The child has its own copies of all descriptors; ours would keep its pipes and mounts alive.
        self.steps.iter_mut().chain(&mut self.joined_before).for_each(Step::release);
        let start = std::mem::replace(&mut self.start, Start::WhenTold);
        let steps = Names::Launch(Box::new(self));
        let born = serve(Event::Born, &cloned).map(|entrances| hand_over(&ours, &entrances));
        let ready = born.and_then(|()| steps.until_ready(&ours, &cloned, serve)).and_then(|master| {
            let gate = match start {
                Start::AtOnce => {
                    steps.until_executed(&ours, &cloned, serve)?;
                    None
                }
                Start::WhenTold => Some(Gate { way: Way::Socket(ours), steps }),
                Start::AtGate(_, name) => Some(Gate { way: Way::Name(name), steps }),
            };
            Ok((gate, master))
        });
        match ready {
            Ok((gate, master)) => Ok(Spawned { cloned, gate, master }),
            Err(error) => {
                end(&cloned);
                Err(error)
            }
        }
    }

    fn fork(&mut self, ours: &OwnedFd, theirs: &OwnedFd) -> Result<Cloned, Error> {
        let own_program = program_of_this_process();
        let pid_namespace = self.pid_namespace.take();
        let user_namespace = self.user_namespace.take();
        let mut keep: Vec<u32> = self.steps.iter().chain(&self.last_steps).flat_map(Step::descriptors).collect();
        if let Start::AtGate(gate, _) = &self.start {
            keep.push(gate.as_raw_fd() as u32);
        }
        keep.push(theirs.as_raw_fd() as u32);
        keep.extend(3..3 + self.kept);
        keep.sort_unstable();
        keep.dedup();
        let (namespaces, cgroup) = (self.namespaces, self.cgroup.take());
        let cgroup = cgroup.as_ref().map(AsFd::as_fd);
        let socket = theirs.as_fd();
        in_pid_namespace(pid_namespace.as_ref(), || {
            if user_namespace.is_none() && self.joined_before.is_empty() {
                // SAFETY: `child` makes system calls only: its steps hold ready-made C strings, its state is on the stack, and
                // what it drops is descriptors, which are closed by a system call.
                return unsafe { clone3(namespaces, cgroup, || self.child(socket, &keep, own_program)) }
                    .map_err(|error| Error::system("clone3", error));
            }
            let user_namespace = user_namespace.as_ref().map(AsFd::as_fd);
            // SAFETY: as above; what runs between is a few system calls.
            let between =
                unsafe { clone3(0, cgroup, || self.child_in(user_namespace, namespaces, socket, &keep, own_program)) }
                    .map_err(|error| Error::system("clone3", error))?;
            let born = self.await_birth(ours);
            end(&between);
            let born = born?;
            if let Err(error) = channel::go(ours) {
                end(&born);
                return Err(Error::system("let a process begin", error));
            }
            Ok(born)
        })
    }

    /// A go-between. Namespaces that exist are joined with the runtime's rights, before a user namespace takes them away; new ones belong to a user
    /// namespace only if they are made by one who is in it already. The child proper is its sibling, and so the parent's own.
    fn child_in(
        &mut self,
        user_namespace: Option<BorrowedFd<'_>>,
        namespaces: u64,
        socket: BorrowedFd<'_>,
        keep: &[u32],
        own_program: (u64, u64),
    ) -> i32 {
        for (i, step) in (JOINED_BEFORE..).zip(&mut self.joined_before) {
            if let Step::JoinNamespace { fd: Some(fd), kind, .. } = step
                && let Err(error) = rustix::thread::move_into_link_name_space(fd.as_fd(), Some(*kind))
            {
                return fail(socket, i, error);
            }
        }
        if let Some(user_namespace) = user_namespace {
            let kind = LinkNameSpaceType::User;
            if let Err(error) = rustix::thread::move_into_link_name_space(user_namespace, Some(kind)) {
                return fail(socket, EXECVE, error);
            }
        }
        let flags = namespaces | libc::CLONE_PARENT as u64;
        // What the child says is heard after what the go-between says of its birth.
        let child = || if channel::told_to_go(socket) { self.child(socket, keep, own_program) } else { 1 };
        // SAFETY: as in `fork`.
        match unsafe { clone3(flags, None, child) } {
            Ok(born) => i32::from(channel::send(socket, Message::Born, Some(born.pidfd.as_fd())).is_err()),
            Err(error) => fail(socket, EXECVE, errno(error)),
        }
    }

    fn await_birth(&self, socket: &OwnedFd) -> Result<Cloned, Error> {
        match channel::receive(socket, Some(SETUP_WITHIN)) {
            Ok(Heard::Message(Message::Born, Some(pidfd))) => {
                let pid = pid_of(&pidfd).ok_or(Error::Setup("it was gone at once"))?;
                Ok(Cloned { pid, pidfd })
            }
            Ok(Heard::Message(Message::Failed(step, errno), _)) => {
                let source = std::io::Error::from_raw_os_error(errno);
                match step.checked_sub(JOINED_BEFORE).and_then(|step| self.joined_before.get(step as usize)) {
                    Some(step) => Err(Error::Step { step: step.to_string(), source }),
                    None => Err(Error::system("clone3 in the user namespace", source)),
                }
            }
            _ => Err(Error::Setup("it could not be made in the user namespace")),
        }
    }

    /// The child. Returns its exit code, should it come to that.
    fn child(&mut self, socket: BorrowedFd<'_>, keep: &[u32], own_program: (u64, u64)) -> i32 {
        // While it waits at its gate, a child must hold no end of another container's pipe, nor the parent's of its own socket.
        let mut first = 3;
        for fd in keep.iter().copied().filter(|fd| *fd >= 3).chain([u32::MAX]) {
            if first < fd {
                // SAFETY: this copy of the descriptor table is the child's own, and what it still uses is in `keep`.
                let _ = unsafe { close_range(first, fd - 1) }; // a kernel without the call would only keep more open
            }
            first = fd.saturating_add(1);
        }
        reset_signals();
        rustix::process::umask(Mode::empty());
        let count = self.steps.len() as u32;
        let mut walk = Walk {
            socket,
            root: None,
            master: None,
            slave: None,
            label: None,
            nothing: None,
            home: Home::nowhere(),
            in_place: false,
            candidates: &self.candidates,
            own_program,
            program: 0,
        };
        let mut rest = self.steps.as_mut_slice();
        for i in 0.. {
            let Some((step, later)) = rest.split_first_mut() else { break };
            if let Err(error) = step.run(&mut walk).and_then(|()| step.furnish(socket, later)) {
                return fail(socket, i, error);
            }
            rest = later;
        }
        if !matches!(self.start, Start::AtOnce) {
            end_on_signals(); // who waits can be asked to end
        }
        if channel::send(socket, Message::Ready, walk.master.as_ref().map(AsFd::as_fd)).is_err() {
            return 1;
        }
        walk.master = None;
        let connection = match &self.start {
            Start::AtOnce => None,
            Start::WhenTold if channel::told_to_go(socket) => None,
            Start::WhenTold => return 1,
            Start::AtGate(gate, _) => match accept_go(gate) {
                Some(connection) => Some(connection),
                None => return 1,
            },
        };
        let socket = connection.as_ref().map_or(socket, AsFd::as_fd);
        walk.socket = socket;
        for (i, step) in (count..).zip(&mut self.last_steps) {
            if let Err(error) = step.run(&mut walk) {
                return fail(socket, i, error);
            }
        }
        let Some(program) = self.candidates.strings().get(walk.program) else {
            return fail(socket, EXECVE, Errno::NOENT);
        };
        self.envp.fill_in(&[b"HOME=", walk.home.path()]);
        let error = execve(program, &self.argv, &self.envp);
        fail(socket, EXECVE, errno(error))
    }

    fn error(&self, step: u32, errno: i32) -> Error {
        let source = std::io::Error::from_raw_os_error(errno);
        match self.steps.iter().chain(&self.last_steps).nth(step as usize) {
            None | Some(Step::FindProgram) => {
                let program = self.argv.strings().first().map(|arg| arg.to_string_lossy().into_owned());
                Error::Program { program: program.unwrap_or_default(), source }
            }
            Some(step) => Error::Step { step: step.to_string(), source },
        }
    }

    /// The steps' names, and at last the program's.
    fn names(&self) -> Vec<String> {
        let program = self.argv.strings().first().map(|arg| arg.to_string_lossy().into_owned());
        let steps = self.steps.iter().chain(&self.last_steps).map(ToString::to_string);
        steps.chain([program.unwrap_or_default()]).collect()
    }
}

/// The device and inode of the program that this process runs.
fn program_of_this_process() -> (u64, u64) {
    static OWN: std::sync::OnceLock<(u64, u64)> = std::sync::OnceLock::new();
    *OWN.get_or_init(|| rustix::fs::stat(c"/proc/self/exe").map_or((0, 0), |stat| (stat.st_dev, stat.st_ino)))
}

/// Runs `make` so that a child which it makes is born in `namespace`. A child is born in another PID namespace when its parent's thread
/// says so beforehand; the thread says so for its own again after.
fn in_pid_namespace<T>(namespace: Option<&OwnedFd>, make: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let Some(namespace) = namespace else { return make() };
    let enter = |fd: BorrowedFd<'_>| {
        rustix::thread::move_into_link_name_space(fd, Some(LinkNameSpaceType::ProcessID))
            .map_err(|error| Error::system("choose the PID namespace of a child", error))
    };
    let own = std::fs::File::open("/proc/thread-self/ns/pid")
        .map_err(|error| Error::system("open /proc/thread-self/ns/pid", error))?;
    enter(namespace.as_fd())?;
    let made = make();
    enter(own.as_fd())?;
    made
}

/// The number, in this process's PID namespace, of the process that `pidfd` stands for.
fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// A child that is gone has said why.
fn hand_over(socket: &OwnedFd, entrances: &[OwnedFd]) {
    if !entrances.is_empty() {
        let entrances: Vec<BorrowedFd<'_>> = entrances.iter().map(AsFd::as_fd).collect();
        let _ = channel::hand_over(socket, &entrances);
    }
}

/// Kills and reaps a child that came to nothing.
fn end(child: &Cloned) {
    let _ = nacre_sys::pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL); // it may have exited by itself
    let _ = crate::exit::reap(child.pidfd.as_fd());
}

/// Waits for the one who opens the gate. Who connects and hangs up was not the one.
fn accept_go(gate: &OwnedFd) -> Option<OwnedFd> {
    loop {
        let connection = retry(|| rustix::net::accept_with(gate, SocketFlags::CLOEXEC)).ok()?;
        if channel::told_to_go(connection.as_fd()) {
            return Some(connection);
        }
    }
}

fn fail(socket: BorrowedFd<'_>, step: u32, error: Errno) -> i32 {
    let _ = channel::send(socket, Message::Failed(step, error.raw_os_error()), None); // a parent that is gone needs no reason
    1
}

/// A start gate with the name `path`.
pub(crate) fn listen(path: &Path) -> Result<Start, Error> {
    let fail = |error: Errno| Error::system(format!("make the start gate {}", path.display()), error);
    let socket = gate_socket(path, |socket, address| {
        rustix::net::bind(socket, address)?;
        rustix::net::listen(socket, 1)
    });
    Ok(Start::AtGate(socket.map_err(fail)?, path.into()))
}

/// A socket's name may be 107 bytes long, a path 4095: so the name is said from its directory.
fn gate_socket(
    path: &Path,
    act: impl FnOnce(&OwnedFd, &SocketAddrUnix) -> Result<(), Errno>,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path.parent().unwrap_or(Path::new(".")), flags, Mode::empty())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    act(&socket, &address).map(|()| socket)
}

impl Gate {
    /// The gate with the name `path`, of a child that another process made, and what its steps are about.
    pub(crate) fn named(path: PathBuf, steps: Vec<String>) -> Gate {
        Gate { way: Way::Name(path), steps: Names::Text(steps) }
    }

    /// What [`Gate::named`] needs to know of the steps.
    pub(crate) fn names(&self) -> Vec<String> {
        match &self.steps {
            Names::Launch(launch) => launch.names(),
            Names::Text(names) => names.clone(),
        }
    }

    /// Lets the child go, and returns once its program runs.
    pub(crate) fn open(self, child: &Cloned, serve: Serve<'_>) -> Result<(), Error> {
        let socket = match self.way {
            Way::Socket(socket) => socket,
            Way::Name(name) => connect(&name)?,
        };
        channel::go(&socket).map_err(|_| Error::Ended)?;
        self.steps.until_executed(&socket, child, serve)
    }
}

fn connect(name: &Path) -> Result<OwnedFd, Error> {
    gate_socket(name, |socket, address| rustix::net::connect(socket, address)).map_err(|error| match error {
        Errno::CONNREFUSED | Errno::NOENT => Error::Ended,
        error => Error::system(format!("open the start gate {}", name.display()), error),
    })
}

impl Names {
    /// Serves the child until it waits at its start gate; returns its terminal's master.
    fn until_ready(&self, socket: &OwnedFd, child: &Cloned, serve: Serve<'_>) -> Result<Option<OwnedFd>, Error> {
        match self.next(socket, Some(SETUP_WITHIN), child, serve)? {
            Some((Message::Ready, master)) => Ok(master),
            Some(_) => Err(Error::Setup("it said something else than expected")),
            None => Err(Error::Setup("it ended before it said why")),
        }
    }

    /// Serves the child until its program runs.
    fn until_executed(&self, socket: &OwnedFd, child: &Cloned, serve: Serve<'_>) -> Result<(), Error> {
        match self.next(socket, None, child, serve)? {
            None => Ok(()),
            Some(_) => Err(Error::Setup("it said something else than expected")),
        }
    }

    /// The next message that is no event; `None` when the child hangs up.
    fn next(
        &self,
        socket: &OwnedFd,
        patience: Option<Duration>,
        child: &Cloned,
        serve: Serve<'_>,
    ) -> Result<Option<(Message, Option<OwnedFd>)>, Error> {
        loop {
            let heard = channel::receive(socket, patience)
                .map_err(|error| Error::system("hear from a process that is being set up", error))?;
            match heard {
                Heard::Message(Message::Sync(point), _) => {
                    let handed = serve(Event::At(point), child)?;
                    for fds in handed.chunks(MOST_HANDED_OVER) {
                        hand_over(socket, fds);
                    }
                    if handed.is_empty() {
                        channel::go(socket).map_err(|_| Error::Ended)?;
                    }
                }
                Heard::Message(Message::Listener, Some(listener)) => {
                    serve(Event::Listener(listener), child)?;
                }
                Heard::Message(Message::Failed(step, errno), _) => return Err(self.error(step, errno)),
                Heard::Message(message, fd) => return Ok(Some((message, fd))),
                Heard::Closed => return Ok(None),
                Heard::Noise => return Err(Error::Setup("it said something else than expected")),
                Heard::Silence => return Err(Error::Setup("it was not done within a minute")),
            }
        }
    }

    fn error(&self, step: u32, errno: i32) -> Error {
        let names = match self {
            Names::Launch(launch) => return launch.error(step, errno),
            Names::Text(names) => names,
        };
        let source = std::io::Error::from_raw_os_error(errno);
        let program = names.last().cloned().unwrap_or_default();
        match names.get(step as usize) {
            Some(name) if step as usize + 1 < names.len() => Error::Step { step: name.clone(), source },
            _ => Error::Program { program, source },
        }
    }
}

/// A child in new namespaces that does nothing but `act`, in which only a system call or two may be.
pub(crate) fn bare_child(namespaces: u64, act: impl FnOnce() -> i32) -> std::io::Result<Cloned> {
    // SAFETY: the callers pass closures that make system calls only.
    unsafe { clone3(namespaces, None, act) }
}
