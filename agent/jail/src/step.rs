//! The steps that a child walks between its birth and its program, one system call or a few each.
//!
//! A step is laid out by the parent and run by the child. In the child nothing may allocate, lock or panic: it is a copy of one thread of
//! a process with many. So every string is a `CString` already, and an error is an errno; the parent, which knows the step by its
//! number, says what it was about. A descriptor that a step has used is closed by it, so that none is open when the program starts or
//! when a path of the container's is followed.

mod detached;
pub(crate) mod home;
mod path;
mod root;
mod task;
mod views;

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nacre_sys::exec::StringArray;
use nacre_sys::mount::MountAttr;
use nacre_sys::process::Scheduling;
use nacre_sys::seccomp::{self, Program};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet, LinkNameSpaceType, ThreadNameSpaceType};

use crate::LineEnds;
use crate::channel::{self, Message, Point};

pub(crate) use detached::{clone_tree, new_mount};
pub(crate) use path::Inside;

/// What a mount brings.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file or directory of the runtime's.
    Bind {
        path: CString,
        recursive: bool,
        /// Whether its owners are shown through other ids.
        ids: Option<IdMap>,
        /// Where it is inside the root, if it is: there it is found when the mounts before it have been made.
        inside: Option<Inside>,
    },
    /// A new file system: its type, and its options in order.
    New {
        kind: CString,
        options: Vec<(CString, Option<CString>)>,
        /// Whether it starts with a copy of what it covers (`tmpcopyup`).
        copy: bool,
        /// Whether it takes the mode of the directory that it covers.
        takes_mode: bool,
    },
}

/// The mappings of an id-mapped mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) from: IdSource,
    pub(crate) recursive: bool,
}

/// The mappings of a user namespace, in the form of `/proc/PID/uid_map` (user_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Maps {
    pub(crate) uids: String,
    pub(crate) gids: String,
}

/// Where mappings come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdSource {
    /// The specification.
    Maps(Maps),
    /// An existing user namespace.
    Namespace(PathBuf),
}

/// One mount.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) target: Inside,
    pub(crate) source: Source,
    /// The options, for error messages.
    pub(crate) options: String,
    /// For this mount.
    pub(crate) attr: MountAttr,
    /// For this mount and those below it.
    pub(crate) recursive_attr: MountAttr,
    /// proc and sysfs are what masks and read-only paths are laid over, so a symbolic link in the image must not lead them astray.
    pub(crate) refuse_symlinks: bool,
    /// The mount, detached, where the parent makes it: sources are found with the runtime's eyes and rights.
    pub(crate) tree: Option<OwnedFd>,
}

/// A device node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) path: Inside,
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) device: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Who a process is.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

/// How a process comes to have the container's root as its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// pivot_root(2), and the old root is gone.
    Pivot,
    /// The root file system is moved over the old root, which stays below it (`--no-pivot`).
    Move,
    /// chroot(2), in a mount namespace that is not the container's own.
    Chroot,
    /// The same, into a mount of the root file system over itself, which goes with all that is mounted in it.
    Attach,
}

/// See the module's description. The order in which they are run is `plan`'s.
#[derive(Debug)]
pub(crate) enum Step {
    Hide,
    EnterCgroup,
    NewNamespaces(u64),
    Sync(Point),
    JoinNamespace { fd: Option<OwnedFd>, kind: LinkNameSpaceType, name: String },
    JoinProcess { pidfd: Option<OwnedFd>, kinds: ThreadNameSpaceType },
    MappedRoot,
    NewCgroupNamespace,
    NewTimeNamespace,
    LoopbackUp,
    NewKeyring,
    Write { path: CString, value: CString },
    Hostname(CString),
    Domainname(CString),
    PrivateMounts(u64),
    TakeSources,
    OpenRoot { path: CString, tree: Option<OwnedFd>, propagation: u64, entry: Entry },
    TakeRoot,
    ChangeRoot(Option<OwnedFd>),
    Mount(Box<Mount>),
    ReadOnly(Inside),
    MakeNode(Box<Node>),
    Symlink { path: Inside, target: CString },
    Mask(Inside),
    Protect(Inside),
    MakeDirectory(Inside),
    OpenTerminal { size: Option<(u16, u16)>, lines: LineEnds },
    Console(Inside),
    ProtectRoot,
    EnterRoot(Entry),
    PropagateRoot { propagation: u64, recursive: bool },
    Session,
    Stdio([Option<OwnedFd>; 3]),
    TerminalStdio,
    Limit { resource: Resource, limit: Rlimit, name: String },
    Umask(u32),
    Schedule(Scheduling),
    IoPriority { class: u8, level: u8 },
    Affinity(CpuSet),
    AllProcessors,
    Personality(u64),
    OpenLabel { file: CString },
    Label { value: CString },
    FindHome(u32),
    ChangeDirectory { path: CString, last_chance: bool },
    OwnStdio(u32),
    BoundCapabilities(CapabilitySet),
    Filter { program: Program, flags: u64 },
    Become(Credentials),
    SetCapabilities { sets: CapabilitySets, ambient: CapabilitySet },
    MayFilter,
    NoNewPrivileges,
    Seal { first: u32 },
    FindProgram,
}

/// What the specification calls the namespaces into which a process need not be born.
const NAMESPACES: [(u64, &str); 4] = [
    (libc::CLONE_NEWNET as u64, "network"),
    (libc::CLONE_NEWIPC as u64, "ipc"),
    (libc::CLONE_NEWUTS as u64, "uts"),
    (libc::CLONE_NEWNS as u64, "mount"),
];

/// What steps hand on to later ones.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    /// The socket to the parent.
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) root: Option<OwnedFd>,
    pub(crate) master: Option<OwnedFd>,
    pub(crate) slave: Option<OwnedFd>,
    pub(crate) label: Option<OwnedFd>,
    /// The empty directory that lies over masked ones.
    pub(crate) nothing: Option<OwnedFd>,
    /// The user's home.
    pub(crate) home: home::Home,
    /// Whether the process is in its working directory.
    pub(crate) in_place: bool,
    /// The places where the program may be.
    pub(crate) candidates: &'a StringArray,
    /// The engine's own program file, device and inode: it must not become a container's program.
    pub(crate) own_program: (u64, u64),
    /// The place where the program is.
    pub(crate) program: usize,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |c: &CString| c.to_string_lossy().into_owned();
        match self {
            Step::Hide => f.write_str("hide from other processes"),
            Step::EnterCgroup => f.write_str("enter the cgroup"),
            Step::NewNamespaces(kinds) => {
                let named = NAMESPACES.iter().filter(|(flag, _)| kinds & flag != 0).map(|(_, name)| *name);
                write!(f, "make namespaces ({})", named.collect::<Vec<_>>().join(", "))
            }
            Step::Sync(point) => write!(f, "wait for the runtime ({point:?})"),
            Step::JoinNamespace { name, .. } => write!(f, "join the {name}"),
            Step::JoinProcess { .. } => f.write_str("join the container's namespaces"),
            Step::MappedRoot => f.write_str("become root of the user namespace"),
            Step::NewCgroupNamespace => f.write_str("make a cgroup namespace"),
            Step::NewTimeNamespace => f.write_str("make a time namespace"),
            Step::LoopbackUp => f.write_str("bring up the loopback device"),
            Step::NewKeyring => f.write_str("make a session keyring"),
            Step::Write { path, value } => write!(f, "write {:?} to {}", text(value), text(path)),
            Step::Hostname(name) => write!(f, "set the host name {:?}", text(name)),
            Step::Domainname(name) => write!(f, "set the domain name {:?}", text(name)),
            Step::PrivateMounts(_) => f.write_str("part the mounts from the runtime's"),
            Step::TakeSources => f.write_str("take what is to be mounted from the runtime"),
            Step::OpenRoot { path, .. } => write!(f, "open the root file system {}", text(path)),
            Step::TakeRoot => f.write_str("open the container's root"),
            Step::ChangeRoot(_) => f.write_str("change to the container's root"),
            Step::Mount(mount) => {
                match &mount.source {
                    Source::Bind { path, .. } => write!(f, "bind {} to {}", text(path), mount.target)?,
                    Source::New { kind, .. } => write!(f, "mount {} on {}", text(kind), mount.target)?,
                }
                if mount.options.is_empty() { Ok(()) } else { write!(f, " ({})", mount.options) }
            }
            Step::ReadOnly(path) => write!(f, "make the mount {path} read-only"),
            Step::MakeNode(node) => write!(f, "make the device {}", node.path),
            Step::Symlink { path, .. } => write!(f, "make the symbolic link {path}"),
            Step::Mask(path) => write!(f, "mask {path}"),
            Step::Protect(path) => write!(f, "make {path} read-only"),
            Step::MakeDirectory(path) => write!(f, "make the directory {path}"),
            Step::OpenTerminal { .. } => f.write_str("open a terminal at /dev/pts/ptmx"),
            Step::Console(path) => write!(f, "bind the terminal to {path}"),
            Step::ProtectRoot => f.write_str("make the root file system read-only"),
            Step::EnterRoot(Entry::Pivot) => f.write_str("pivot into the root file system"),
            Step::EnterRoot(Entry::Move) => f.write_str("move the root file system to /"),
            Step::EnterRoot(Entry::Chroot | Entry::Attach) => f.write_str("change to the root file system"),
            Step::PropagateRoot { .. } => f.write_str("set the propagation of the root file system"),
            Step::Session => f.write_str("start a session"),
            Step::Stdio(_) => f.write_str("connect standard input, output and error"),
            Step::TerminalStdio => f.write_str("connect the terminal"),
            Step::Limit { name, limit, .. } => {
                let value = |n: Option<u64>| n.map_or("unlimited".into(), |n| n.to_string());
                write!(f, "set {name} to {} (hard: {})", value(limit.current), value(limit.maximum))
            }
            Step::Umask(mask) => write!(f, "set the umask {mask:o}"),
            Step::Schedule(_) => f.write_str("set the scheduler (process.scheduler)"),
            Step::IoPriority { .. } => f.write_str("set the I/O priority (process.ioPriority)"),
            Step::Affinity(_) => f.write_str("set the CPU affinity (process.execCPUAffinity)"),
            Step::AllProcessors => f.write_str("run on all processors"),
            Step::Personality(_) => f.write_str("set the personality (linux.personality)"),
            Step::OpenLabel { file } => write!(f, "open {} (is the security module active?)", text(file)),
            Step::Label { value } => write!(f, "set the security label {:?}", text(value)),
            Step::FindHome(uid) => write!(f, "find the home of user {uid}"),
            Step::ChangeDirectory { path, .. } => write!(f, "change to the directory {}", text(path)),
            Step::OwnStdio(uid) => write!(f, "give standard input, output and error to user {uid}"),
            Step::BoundCapabilities(_) => f.write_str("bound the capabilities"),
            Step::Filter { .. } => f.write_str("load the seccomp filter"),
            Step::Become(who) => write!(f, "become user {} and group {}", who.uid.as_raw(), who.gid.as_raw()),
            Step::SetCapabilities { .. } => f.write_str("set the capabilities"),
            Step::MayFilter => f.write_str("take the capability to load a filter"),
            Step::NoNewPrivileges => f.write_str("renounce new privileges"),
            Step::Seal { .. } => f.write_str("mark descriptors close-on-exec"),
            Step::FindProgram => f.write_str("find the program"),
        }
    }
}

impl Step {
    /// The descriptors that it needs.
    pub(crate) fn descriptors(&self) -> Vec<u32> {
        let fds: Vec<&OwnedFd> = match self {
            Step::JoinNamespace { fd, .. } | Step::JoinProcess { pidfd: fd, .. } | Step::ChangeRoot(fd) => {
                fd.iter().collect()
            }
            Step::OpenRoot { tree, .. } => tree.iter().collect(),
            Step::Mount(mount) => mount.tree.iter().collect(),
            Step::Stdio(fds) => fds.iter().flatten().collect(),
            _ => Vec::new(),
        };
        fds.into_iter().map(|fd| fd.as_raw_fd() as u32).collect()
    }

    /// Closes the descriptors that it needs.
    pub(crate) fn release(&mut self) {
        match self {
            Step::JoinNamespace { fd, .. } | Step::JoinProcess { pidfd: fd, .. } | Step::ChangeRoot(fd) => *fd = None,
            Step::OpenRoot { tree, .. } => *tree = None,
            Step::Mount(mount) => mount.tree = None,
            Step::Stdio(fds) => *fds = [None, None, None],
            _ => {}
        }
    }

    /// Where its source goes that is found in the runtime's view of the file systems, if it has one.
    pub(crate) fn source(&mut self) -> Option<&mut Option<OwnedFd>> {
        match self {
            Step::OpenRoot { entry: Entry::Chroot, .. } => None,
            Step::OpenRoot { tree, .. } => Some(tree),
            Step::Mount(mount) => match mount.source {
                Source::Bind { inside: None, .. } => Some(&mut mount.tree),
                _ => None,
            },
            _ => None,
        }
    }

    /// What a step brings for those after it.
    pub(crate) fn furnish(&self, socket: BorrowedFd<'_>, later: &mut [Step]) -> Result<(), Errno> {
        if !matches!(self, Step::TakeSources) {
            return Ok(());
        }
        let mut wanting = later.iter_mut().filter_map(Step::source);
        let mut next = wanting.next();
        while next.is_some() {
            channel::for_each_handed_over(socket, |fd| {
                *next.take().ok_or(Errno::BADF)? = Some(fd);
                next = wanting.next();
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Runs the step. Async-signal-safe: what it drops is a descriptor, never memory.
    pub(crate) fn run(&mut self, walk: &mut Walk<'_>) -> Result<(), Errno> {
        match self {
            Step::Hide => nacre_sys::process::hide().map_err(errno),
            Step::EnterCgroup => task::enter_cgroup(walk),
            Step::NewNamespaces(kinds) => nacre_sys::clone::unshare(*kinds).map_err(errno),
            Step::TakeSources => channel::send(walk.socket, Message::Sync(Point::Sources), None),
            Step::Sync(point) => channel::sync(walk.socket, *point),
            Step::JoinNamespace { fd, kind, .. } => {
                rustix::thread::move_into_link_name_space(taken(fd)?.as_fd(), Some(*kind))
            }
            Step::JoinProcess { pidfd, kinds } => {
                rustix::thread::move_into_thread_name_spaces(taken(pidfd)?.as_fd(), *kinds)
            }
            Step::MappedRoot => task::mapped_root(),
            Step::NewCgroupNamespace => nacre_sys::clone::unshare(libc::CLONE_NEWCGROUP as u64).map_err(errno),
            // The process itself enters it with its program (time_namespaces(7), Linux 6.1).
            Step::NewTimeNamespace => nacre_sys::clone::unshare(libc::CLONE_NEWTIME as u64).map_err(errno),
            Step::LoopbackUp => task::loopback_up(),
            Step::NewKeyring => task::new_keyring(),
            Step::Write { path, value } => write_file(path, value),
            Step::Hostname(name) => rustix::system::sethostname(name.to_bytes()),
            Step::Domainname(name) => rustix::system::setdomainname(name.to_bytes()),
            Step::PrivateMounts(propagation) => root::propagate(CWD, c"/", true, *propagation),
            Step::OpenRoot { path, tree, propagation, entry } => root::open(walk, path, tree, *propagation, *entry),
            Step::TakeRoot => root::take(walk),
            Step::ChangeRoot(fd) => root::change(taken(fd)?.as_fd()),
            Step::Mount(mount) => root::mount(root::of(walk)?, mount),
            Step::ReadOnly(path) => root::read_only(root::of(walk)?, path),
            Step::MakeNode(node) => root::make_node(root::of(walk)?, node),
            Step::Symlink { path, target } => root::make_symlink(root::of(walk)?, path, target),
            Step::Mask(path) => root::mask(walk, path),
            Step::Protect(path) => root::protect(root::of(walk)?, path),
            Step::MakeDirectory(path) => root::make_directory(root::of(walk)?, path),
            Step::OpenTerminal { size, lines } => task::open_terminal(walk, *size, *lines),
            Step::Console(path) => task::console(walk, path),
            Step::ProtectRoot => root::protect_root(root::of(walk)?),
            Step::EnterRoot(entry) => root::enter(walk, *entry),
            Step::PropagateRoot { propagation, recursive } => root::propagate(CWD, c"/", *recursive, *propagation),
            Step::Session => rustix::process::setsid().map(drop),
            Step::Stdio(fds) => task::stdio(fds),
            Step::TerminalStdio => task::terminal_stdio(walk),
            Step::Limit { resource, limit, .. } => rustix::process::setrlimit(*resource, *limit),
            Step::Umask(mask) => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                Ok(())
            }
            Step::Schedule(scheduling) => nacre_sys::process::set_scheduling(scheduling).map_err(errno),
            Step::IoPriority { class, level } => nacre_sys::process::set_io_priority(*class, *level).map_err(errno),
            Step::Affinity(cpus) => rustix::thread::sched_setaffinity(None, cpus),
            Step::AllProcessors => task::all_processors(),
            Step::Personality(persona) => nacre_sys::process::set_personality(*persona).map_err(errno),
            Step::OpenLabel { file } => {
                walk.label = Some(rustix::fs::open(file.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?);
                Ok(())
            }
            Step::Label { value } => task::label(walk, value),
            Step::FindHome(uid) => {
                walk.home = home::find(*uid);
                Ok(())
            }
            Step::ChangeDirectory { path, last_chance } => task::change_directory(walk, path, *last_chance),
            Step::OwnStdio(uid) => task::own_stdio(*uid),
            Step::BoundCapabilities(keep) => task::bound_capabilities(*keep),
            Step::Filter { program, flags } => match seccomp::load(program, *flags).map_err(errno)? {
                Some(listener) => channel::send(walk.socket, Message::Listener, Some(listener.as_fd())),
                None => Ok(()),
            },
            Step::Become(who) => task::become_user(who),
            Step::SetCapabilities { sets, ambient } => task::set_capabilities(*sets, *ambient),
            Step::MayFilter => task::may_filter(),
            Step::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
            Step::Seal { first } => nacre_sys::exec::close_on_exec_from(*first).map_err(errno),
            Step::FindProgram => task::find_program(walk),
        }
    }
}

pub(crate) fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// A descriptor that its step is done with afterwards.
fn taken(fd: &mut Option<OwnedFd>) -> Result<OwnedFd, Errno> {
    fd.take().ok_or(Errno::BADF)
}

fn write_file(path: &CStr, value: &CStr) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.to_bytes()).map(drop)
}
