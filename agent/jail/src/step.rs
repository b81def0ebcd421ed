//! The steps that a child walks between its birth and its program, one system call or a few each.
//!
//! A step is laid out by the parent and run by the child. In the child nothing may allocate, lock or panic: it is a copy of one thread of
//! a process with many. So every string is a `CString` already, and an error is an errno; the parent, which knows the step by its
//! number, says what it was about.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nacre_sys::exec::StringArray;
use nacre_sys::mount::{MountAttr, mount_setattr};
use nacre_sys::seccomp::{self, Program};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};

/// An absolute path inside the container, with each of its prefixes: `/a`, `/a/b`, `/a/b/c`.
#[derive(Debug)]
pub(crate) struct Inside {
    prefixes: Vec<Prefix>,
}

/// One prefix of a path and its last name.
#[derive(Debug)]
struct Prefix {
    path: CString,
    name: CString,
}

impl Inside {
    /// `None` when the path holds a NUL.
    pub(crate) fn new(path: &std::path::Path) -> Option<Inside> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut prefixes = Vec::new();
        let mut whole = Vec::new();
        for component in path.components() {
            let std::path::Component::Normal(name) = component else { continue };
            whole.push(b'/');
            whole.extend(name.as_bytes());
            prefixes
                .push(Prefix { path: CString::new(whole.as_slice()).ok()?, name: CString::new(name.as_bytes()).ok()? });
        }
        Some(Inside { prefixes })
    }

    fn path(&self) -> &CStr {
        self.prefixes.last().map_or(c"/", |prefix| &prefix.path)
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path().to_string_lossy())
    }
}

/// What a mount brings.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file or directory of the guest.
    Bind { path: CString, recursive: bool },
    /// A new file system: its type, and its options in order.
    New { kind: CString, options: Vec<(CString, Option<CString>)> },
}

/// One mount.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) target: Inside,
    pub(crate) source: Source,
    /// For this mount.
    pub(crate) attr: MountAttr,
    /// For this mount and those below it.
    pub(crate) recursive_attr: MountAttr,
    /// proc and sysfs are what masks and read-only paths are laid over, so a symbolic link in the image must not lead them astray.
    pub(crate) refuse_symlinks: bool,
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

/// A process's capabilities.
#[derive(Debug)]
pub(crate) struct Capabilities {
    pub(crate) sets: CapabilitySets,
    pub(crate) ambient: CapabilitySet,
}

/// See the module's description. The order in which they are run is `plan`'s.
#[derive(Debug)]
pub(crate) enum Step {
    EnterCgroups(Vec<OwnedFd>),
    JoinNamespace { fd: OwnedFd, kind: LinkNameSpaceType, name: String },
    JoinProcess { pidfd: OwnedFd, kinds: ThreadNameSpaceType },
    NewCgroupNamespace,
    Write { path: CString, value: CString },
    Hostname(CString),
    Domainname(CString),
    PrivateMounts(u64),
    OpenRoot { path: CString },
    TakeRoot,
    Mount(Box<Mount>),
    MakeNode(Box<Node>),
    Symlink { path: Inside, target: CString },
    Mask(Inside),
    Protect(Inside),
    MakeDirectory(Inside),
    OpenTerminal { size: Option<(u16, u16)> },
    Console(Inside),
    ProtectRoot,
    EnterRoot,
    PropagateRoot(u64),
    Session,
    Stdio([OwnedFd; 3]),
    TerminalStdio,
    Limit { resource: Resource, limit: Rlimit, name: String },
    Umask(u32),
    ChangeDirectory(CString),
    OwnStdio(u32),
    BoundCapabilities(CapabilitySet),
    Filter { program: Program, flags: u64 },
    Become(Credentials),
    SetCapabilities(Capabilities),
    NoNewPrivileges,
    Seal,
    FindProgram,
}

/// What steps hand on to later ones.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    pub(crate) root: Option<OwnedFd>,
    pub(crate) master: Option<OwnedFd>,
    pub(crate) slave: Option<OwnedFd>,
    /// The places where the program may be.
    pub(crate) candidates: &'a StringArray,
    /// The one where it is.
    pub(crate) program: usize,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |c: &CString| c.to_string_lossy().into_owned();
        match self {
            Step::EnterCgroups(_) => f.write_str("enter the cgroup"),
            Step::JoinNamespace { name, .. } => write!(f, "join the {name}"),
            Step::JoinProcess { .. } => f.write_str("join the container's namespaces"),
            Step::NewCgroupNamespace => f.write_str("make a cgroup namespace"),
            Step::Write { path, value } => write!(f, "write {:?} to {}", text(value), text(path)),
            Step::Hostname(name) => write!(f, "set the host name {:?}", text(name)),
            Step::Domainname(name) => write!(f, "set the domain name {:?}", text(name)),
            Step::PrivateMounts(_) => f.write_str("part the mounts from the guest's"),
            Step::OpenRoot { path } => write!(f, "open the root file system {}", text(path)),
            Step::TakeRoot => f.write_str("open the container's root"),
            Step::Mount(mount) => match &mount.source {
                Source::Bind { path, .. } => write!(f, "bind {} to {}", text(path), mount.target),
                Source::New { kind, .. } => write!(f, "mount {} on {}", text(kind), mount.target),
            },
            Step::MakeNode(node) => write!(f, "make the device {}", node.path),
            Step::Symlink { path, .. } => write!(f, "make the symbolic link {path}"),
            Step::Mask(path) => write!(f, "mask {path}"),
            Step::Protect(path) => write!(f, "make {path} read-only"),
            Step::MakeDirectory(path) => write!(f, "make the directory {path}"),
            Step::OpenTerminal { .. } => f.write_str("open a terminal at /dev/pts/ptmx"),
            Step::Console(path) => write!(f, "bind the terminal to {path}"),
            Step::ProtectRoot => f.write_str("make the root file system read-only"),
            Step::EnterRoot => f.write_str("pivot into the root file system"),
            Step::PropagateRoot(_) => f.write_str("set the propagation of the root file system"),
            Step::Session => f.write_str("start a session"),
            Step::Stdio(_) => f.write_str("connect standard input, output and error"),
            Step::TerminalStdio => f.write_str("connect the terminal"),
            Step::Limit { name, .. } => write!(f, "set {name}"),
            Step::Umask(mask) => write!(f, "set the umask {mask:o}"),
            Step::ChangeDirectory(path) => write!(f, "change to the directory {}", text(path)),
            Step::OwnStdio(uid) => write!(f, "give standard input, output and error to user {uid}"),
            Step::BoundCapabilities(_) => f.write_str("bound the capabilities"),
            Step::Filter { .. } => f.write_str("load the seccomp filter"),
            Step::Become(who) => write!(f, "become user {} and group {}", who.uid.as_raw(), who.gid.as_raw()),
            Step::SetCapabilities(_) => f.write_str("set the capabilities"),
            Step::NoNewPrivileges => f.write_str("renounce new privileges"),
            Step::Seal => f.write_str("mark descriptors close-on-exec"),
            Step::FindProgram => f.write_str("find the program"),
        }
    }
}

impl Step {
    /// The descriptors that it needs.
    pub(crate) fn descriptors(&self) -> Vec<u32> {
        let fds: Vec<&OwnedFd> = match self {
            Step::EnterCgroups(fds) => fds.iter().collect(),
            Step::JoinNamespace { fd, .. } | Step::JoinProcess { pidfd: fd, .. } => vec![fd],
            Step::Stdio(fds) => fds.iter().collect(),
            _ => Vec::new(),
        };
        fds.into_iter().map(|fd| fd.as_raw_fd() as u32).collect()
    }

    /// Runs the step. Async-signal-safe.
    pub(crate) fn run(&self, walk: &mut Walk<'_>) -> Result<(), Errno> {
        match self {
            Step::EnterCgroups(entrances) => entrances.iter().try_for_each(|fd| rustix::io::write(fd, b"0").map(drop)),
            Step::JoinNamespace { fd, kind, .. } => rustix::thread::move_into_link_name_space(fd.as_fd(), Some(*kind)),
            Step::JoinProcess { pidfd, kinds } => rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), *kinds),
            Step::NewCgroupNamespace => unshare_cgroup(),
            Step::Write { path, value } => write_file(path, value),
            Step::Hostname(name) => rustix::system::sethostname(name.to_bytes()),
            Step::Domainname(name) => rustix::system::setdomainname(name.to_bytes()),
            Step::PrivateMounts(propagation) => {
                set_attr(CWD, c"/", true, MountAttr { propagation: *propagation, ..MountAttr::default() })
            }
            Step::OpenRoot { path } => open_root(walk, path),
            Step::TakeRoot => take_root(walk),
            Step::Mount(mount) => run_mount(root(walk)?, mount),
            Step::MakeNode(node) => make_node(root(walk)?, node),
            Step::Symlink { path, target } => make_symlink(root(walk)?, path, target),
            Step::Mask(path) => mask(root(walk)?, path),
            Step::Protect(path) => protect(root(walk)?, path),
            Step::MakeDirectory(path) => ensure(root(walk)?, path, Leaf::Directory, ResolveFlags::empty()).map(drop),
            Step::OpenTerminal { size } => open_terminal(walk, *size),
            Step::Console(path) => console(walk, path),
            Step::ProtectRoot => {
                let read_only = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
                set_attr(root(walk)?, c"", false, read_only)
            }
            Step::EnterRoot => enter_root(walk),
            Step::PropagateRoot(propagation) => {
                set_attr(CWD, c"/", true, MountAttr { propagation: *propagation, ..MountAttr::default() })
            }
            Step::Session => rustix::process::setsid().map(drop),
            Step::Stdio([stdin, stdout, stderr]) => connect(stdin.as_fd(), stdout.as_fd(), stderr.as_fd()),
            Step::TerminalStdio => terminal_stdio(walk),
            Step::Limit { resource, limit, .. } => rustix::process::setrlimit(*resource, *limit),
            Step::Umask(mask) => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                Ok(())
            }
            Step::ChangeDirectory(path) => rustix::process::chdir(path.as_c_str()),
            Step::OwnStdio(uid) => own_stdio(*uid),
            Step::BoundCapabilities(keep) => bound_capabilities(*keep),
            Step::Filter { program, flags } => seccomp::load(program, *flags).map_err(errno),
            Step::Become(who) => become_user(who),
            Step::SetCapabilities(capabilities) => set_capabilities(capabilities),
            Step::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
            Step::Seal => nacre_sys::exec::close_on_exec_from(3).map_err(errno),
            Step::FindProgram => find_program(walk),
        }
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn root<'a>(walk: &'a Walk<'_>) -> Result<BorrowedFd<'a>, Errno> {
    walk.root.as_ref().map(AsFd::as_fd).ok_or(Errno::BADF)
}

fn set_attr(dir: BorrowedFd<'_>, path: &CStr, recursive: bool, attr: MountAttr) -> Result<(), Errno> {
    if attr.is_empty() { Ok(()) } else { mount_setattr(dir, path, recursive, &attr).map_err(errno) }
}

fn unshare_cgroup() -> Result<(), Errno> {
    nacre_sys::clone::unshare(UnshareFlags::NEWCGROUP.bits()).map_err(errno)
}

fn write_file(path: &CStr, value: &CStr) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.to_bytes()).map(drop)
}

/// The root file system as a mount of its own, over itself: pivot_root(2) wants a mount point.
fn open_root(walk: &mut Walk<'_>, path: &CStr) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    rustix::mount::move_mount(tree.as_fd(), c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    walk.root = Some(tree);
    Ok(())
}

fn take_root(walk: &mut Walk<'_>) -> Result<(), Errno> {
    walk.root = Some(rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
    Ok(())
}

/// Opens a path of the container as the container would see it: links stay inside the root, and none of the magic ones is followed.
fn open_inside(root: BorrowedFd<'_>, path: &CStr, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// What to make where a path leads nowhere yet.
#[derive(Clone, Copy, PartialEq)]
enum Leaf {
    Directory,
    File,
}

/// Opens a path of the container; what is missing of it is made.
fn ensure(root: BorrowedFd<'_>, path: &Inside, leaf: Leaf, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    match open_inside(root, path.path(), OFlags::PATH, resolve) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let mut parent = open_inside(root, c"/", OFlags::PATH | OFlags::DIRECTORY, resolve)?;
    let last = path.prefixes.len().saturating_sub(1);
    for (i, prefix) in path.prefixes.iter().enumerate() {
        let found = match open_inside(root, &prefix.path, OFlags::PATH, resolve) {
            Err(Errno::NOENT) => {
                if i == last && leaf == Leaf::File {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(&parent, prefix.name.as_c_str(), flags, Mode::from_raw_mode(0o644))?;
                } else {
                    rustix::fs::mkdirat(&parent, prefix.name.as_c_str(), Mode::from_raw_mode(0o755))?;
                }
                open_inside(root, &prefix.path, OFlags::PATH, resolve)?
            }
            result => result?,
        };
        parent = found;
    }
    Ok(parent)
}

/// The directory that holds the last name of `path`, made if missing.
fn ensure_parent<'a>(root: BorrowedFd<'_>, path: &'a Inside) -> Result<(OwnedFd, &'a CStr), Errno> {
    let (leaf, above) = path.prefixes.split_last().ok_or(Errno::EXIST)?;
    let mut parent = open_inside(root, c"/", OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty())?;
    for prefix in above {
        parent = match open_inside(root, &prefix.path, OFlags::PATH, ResolveFlags::empty()) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&parent, prefix.name.as_c_str(), Mode::from_raw_mode(0o755))?;
                open_inside(root, &prefix.path, OFlags::PATH, ResolveFlags::empty())?
            }
            result => result?,
        };
    }
    Ok((parent, &leaf.name))
}

fn run_mount(root: BorrowedFd<'_>, mount: &Mount) -> Result<(), Errno> {
    let (tree, leaf) = match &mount.source {
        Source::Bind { path, recursive } => {
            let tree = clone_tree(path, *recursive)?;
            let directory = file_type(&tree)? == FileType::Directory;
            (tree, if directory { Leaf::Directory } else { Leaf::File })
        }
        Source::New { kind, options } => (new_mount(kind, options)?, Leaf::Directory),
    };
    set_attr(tree.as_fd(), c"", true, mount.recursive_attr)?;
    set_attr(tree.as_fd(), c"", false, mount.attr)?;
    let resolve = if mount.refuse_symlinks { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
    let target = ensure(root, &mount.target, leaf, resolve)?;
    attach(&tree, &target)
}

fn clone_tree(path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let below = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    rustix::mount::open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | below)
}

fn new_mount(kind: &CStr, options: &[(CString, Option<CString>)]) -> Result<OwnedFd, Errno> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(fs.as_fd(), key.as_c_str(), value.as_c_str())?;
            }
            None => rustix::mount::fsconfig_set_flag(fs.as_fd(), key.as_c_str())?,
        }
    }
    rustix::mount::fsconfig_create(fs.as_fd())?;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn attach(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), c"", target.as_fd(), c"", flags)
}

fn file_type(fd: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

fn make_node(root: BorrowedFd<'_>, node: &Node) -> Result<(), Errno> {
    let (parent, name) = ensure_parent(root, &node.path)?;
    match rustix::fs::mknodat(&parent, name, node.kind, Mode::from_raw_mode(node.mode), node.device) {
        Err(Errno::EXIST) => return Ok(()), // the image's own, or one that a mount brought
        result => result?,
    }
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn make_symlink(root: BorrowedFd<'_>, path: &Inside, target: &CStr) -> Result<(), Errno> {
    let (parent, name) = ensure_parent(root, path)?;
    match rustix::fs::symlinkat(target, &parent, name) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

fn mask(root: BorrowedFd<'_>, path: &Inside) -> Result<(), Errno> {
    let target = match open_inside(root, path.path(), OFlags::PATH, ResolveFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        result => result?,
    };
    if file_type(&target)? != FileType::Directory {
        return attach(&clone_tree(c"/dev/null", false)?, &target);
    }
    let tree = new_mount(c"tmpfs", &[])?;
    let read_only = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    set_attr(tree.as_fd(), c"", false, read_only)?;
    attach(&tree, &target)
}

fn protect(root: BorrowedFd<'_>, path: &Inside) -> Result<(), Errno> {
    let target = match open_inside(root, path.path(), OFlags::PATH, ResolveFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        result => result?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(target.as_fd(), c"", flags)?;
    let read_only = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    set_attr(tree.as_fd(), c"", true, read_only)?;
    attach(&tree, &target)
}

/// A pair of the container's own devpts, so that `tty` and job control find it where they look.
fn open_terminal(walk: &mut Walk<'_>, size: Option<(u16, u16)>) -> Result<(), Errno> {
    let master = open_inside(root(walk)?, c"/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY, ResolveFlags::empty())?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
    )?;
    if let Some((columns, rows)) = size {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&slave, size)?;
    }
    walk.master = Some(master);
    walk.slave = Some(slave);
    Ok(())
}

fn console(walk: &mut Walk<'_>, path: &Inside) -> Result<(), Errno> {
    let slave = walk.slave.as_ref().ok_or(Errno::BADF)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(slave.as_fd(), c"", flags)?;
    let target = ensure(root(walk)?, path, Leaf::File, ResolveFlags::empty())?;
    attach(&tree, &target)
}

/// pivot_root(2) with one directory for both: the old root comes to lie over the new one and is taken off.
fn enter_root(walk: &mut Walk<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root(walk)?)?;
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", rustix::mount::UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    walk.root = None;
    Ok(())
}

fn connect(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>, stderr: BorrowedFd<'_>) -> Result<(), Errno> {
    // A source may itself be one of the numbers 0 to 2: move all out of the way first.
    let stdin = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
    let stdout = rustix::io::fcntl_dupfd_cloexec(stdout, 3)?;
    let stderr = rustix::io::fcntl_dupfd_cloexec(stderr, 3)?;
    rustix::stdio::dup2_stdin(&stdin)?;
    rustix::stdio::dup2_stdout(&stdout)?;
    rustix::stdio::dup2_stderr(&stderr)
}

fn terminal_stdio(walk: &mut Walk<'_>) -> Result<(), Errno> {
    let slave = walk.slave.as_ref().ok_or(Errno::BADF)?;
    rustix::process::ioctl_tiocsctty(slave)?;
    connect(slave.as_fd(), slave.as_fd(), slave.as_fd())
}

/// So that `/dev/stdout` can be opened again by a user that is not root. What can't be given away (a socket of another user, /dev/null) is
/// left.
fn own_stdio(uid: u32) -> Result<(), Errno> {
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let stat = rustix::fs::fstat(fd)?;
        let null =
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && rustix::fs::major(stat.st_rdev) == 1;
        if stat.st_uid != uid && !null {
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None); // see above
        }
    }
    Ok(())
}

fn bound_capabilities(keep: CapabilitySet) -> Result<(), Errno> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => return Ok(()), // past the kernel's last
            result => result?,
        }
    }
    Ok(())
}

fn become_user(who: &Credentials) -> Result<(), Errno> {
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&who.groups)?;
    rustix::thread::set_thread_res_gid(who.gid, who.gid, who.gid)?;
    rustix::thread::set_thread_res_uid(who.uid, who.uid, who.uid)
}

fn set_capabilities(capabilities: &Capabilities) -> Result<(), Errno> {
    rustix::thread::set_capabilities(None, capabilities.sets)?;
    rustix::thread::clear_ambient_capability_set()?;
    for capability in capabilities.ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// The first candidate that can be executed, else the most telling error: a file that is there but not executable beats none at all.
fn find_program(walk: &mut Walk<'_>) -> Result<(), Errno> {
    let mut worst = Errno::NOENT;
    for (i, candidate) in walk.candidates.strings().iter().enumerate() {
        match rustix::fs::accessat(CWD, candidate.as_c_str(), rustix::fs::Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) if !is_directory(candidate) => {
                walk.program = i;
                return Ok(());
            }
            Ok(()) | Err(Errno::ACCESS) => worst = Errno::ACCESS,
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => worst = error,
        }
    }
    Err(worst)
}

fn is_directory(path: &CStr) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}
