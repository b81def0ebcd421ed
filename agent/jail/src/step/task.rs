//! Steps that change the process itself: namespaces, streams, privileges, program.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::termios::{OptionalActions, OutputModes};
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet};

use super::{Credentials, Inside, Walk, detached, errno, path, root, taken};
use crate::LineEnds;
use crate::channel;

/// User 0 of a new user namespace; where it has none, whoever one is there has every capability all the same.
pub(super) fn mapped_root() -> Result<(), Errno> {
    let unmapped = |result: Result<(), Errno>| match result {
        Err(Errno::INVAL) => Ok(()),
        result => result,
    };
    rustix::thread::set_keep_capabilities(true)?;
    unmapped(rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))?;
    match rustix::thread::set_thread_groups(&[]) {
        Ok(()) | Err(Errno::PERM) => {} // the namespace's maker may have forbidden it (user_namespaces(7))
        Err(error) => return Err(error),
    }
    unmapped(rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))?;
    nacre_sys::process::hide().map_err(errno) // a change of user makes a process visible again
}

/// cgroup v1. A thread that moves itself (`0`) need not wait, as one process that moves another does, until no processor is in the middle of a
/// fork or an exit.
pub(super) fn enter_cgroup(walk: &Walk<'_>) -> Result<(), Errno> {
    channel::for_each_handed_over(walk.socket, |entrance| rustix::io::write(&entrance, b"0").map(drop))
}

pub(super) fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    nacre_sys::loopback::bring_up(socket.as_fd()).map_err(errno)
}

/// A kernel without keys has none to hide.
pub(super) fn new_keyring() -> Result<(), Errno> {
    match nacre_sys::process::new_session_keyring().map_err(errno) {
        Err(Errno::NOSYS) => Ok(()),
        result => result,
    }
}

/// A pair of the container's own devpts, so that `tty` and job control find it where they look.
pub(super) fn open_terminal(walk: &mut Walk<'_>, size: Option<(u16, u16)>, lines: LineEnds) -> Result<(), Errno> {
    let root = root::of(walk)?;
    let master = path::open(root, c"/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY, ResolveFlags::empty())?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
    )?;
    if let Some((columns, rows)) = size {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&slave, size)?;
    }
    if lines == LineEnds::Plain {
        let mut modes = rustix::termios::tcgetattr(&slave)?;
        modes.output_modes -= OutputModes::ONLCR;
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &modes)?;
    }
    walk.master = Some(master);
    walk.slave = Some(slave);
    Ok(())
}

pub(super) fn console(walk: &mut Walk<'_>, path: &Inside) -> Result<(), Errno> {
    let slave = walk.slave.as_ref().ok_or(Errno::BADF)?;
    let tree = detached::clone_tree_of(slave.as_fd(), false)?;
    root::attach_file(root::of(walk)?, &tree, path)
}

/// Makes three descriptors the numbers 0, 1 and 2.
pub(super) fn stdio(fds: &mut [Option<OwnedFd>; 3]) -> Result<(), Errno> {
    let [stdin, stdout, stderr] = fds;
    let (stdin, stdout, stderr) = (taken(stdin)?, taken(stdout)?, taken(stderr)?);
    connect(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())
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

pub(super) fn terminal_stdio(walk: &mut Walk<'_>) -> Result<(), Errno> {
    let slave = walk.slave.take().ok_or(Errno::BADF)?;
    rustix::process::ioctl_tiocsctty(&slave)?;
    connect(slave.as_fd(), slave.as_fd(), slave.as_fd())
}

/// The label under which the program will run. The file was opened in the runtime's /proc: the container's could be anything.
pub(super) fn label(walk: &mut Walk<'_>, value: &CStr) -> Result<(), Errno> {
    rustix::io::write(walk.label.take().ok_or(Errno::BADF)?, value.to_bytes()).map(drop)
}

/// Tried before the user changes and, where root is not let in (NFS), after. The place must be inside the root: a link in /proc may lead
/// out of it.
pub(super) fn change_directory(walk: &mut Walk<'_>, path: &CStr, last_chance: bool) -> Result<(), Errno> {
    if walk.in_place {
        return Ok(());
    }
    walk.root = None; // which is a directory that /proc/self/fd would lead to
    match rustix::process::chdir(path) {
        Err(Errno::ACCESS) if !last_chance => return Ok(()),
        result => result?,
    }
    walk.in_place = true;
    if nacre_sys::process::current_directory_is_inside_root() { Ok(()) } else { Err(Errno::XDEV) }
}

/// So that `/dev/stdout` can be opened again by a user that is not root. What can't be given away (a socket of another user, /dev/null) is
/// left.
pub(super) fn own_stdio(uid: u32) -> Result<(), Errno> {
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

pub(super) fn bound_capabilities(keep: CapabilitySet) -> Result<(), Errno> {
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

pub(super) fn become_user(who: &Credentials) -> Result<(), Errno> {
    rustix::thread::set_keep_capabilities(true)?;
    match rustix::thread::set_thread_groups(&who.groups) {
        // A user namespace whose maker forbade setgroups(2) has no supplementary groups to drop either.
        Err(Errno::PERM) if who.groups.is_empty() => {}
        result => result?,
    }
    rustix::thread::set_thread_res_gid(who.gid, who.gid, who.gid)?;
    rustix::thread::set_thread_res_uid(who.uid, who.uid, who.uid)?;
    nacre_sys::process::hide().map_err(errno) // a change of user makes a process visible again
}

/// Where its runtime may run is the runtime's affair. What is left is what the cgroup allows; a policy that leaves no choice stays.
pub(super) fn all_processors() -> Result<(), Errno> {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|processor| all.set(processor));
    let _ = rustix::thread::sched_setaffinity(None, &all); // see above
    Ok(())
}

/// Without no_new_privs it takes CAP_SYS_ADMIN to load a filter: it is made effective for just that.
pub(super) fn may_filter() -> Result<(), Errno> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective |= CapabilitySet::SYS_ADMIN;
    rustix::thread::set_capabilities(None, sets)
}

pub(super) fn set_capabilities(sets: CapabilitySets, ambient: CapabilitySet) -> Result<(), Errno> {
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::clear_ambient_capability_set()?;
    for capability in ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// The first candidate that can be executed, else the most telling error: a file that is there but not executable beats none at all.
pub(super) fn find_program(walk: &mut Walk<'_>) -> Result<(), Errno> {
    let mut worst = Errno::NOENT;
    for (i, candidate) in walk.candidates.strings().iter().enumerate() {
        match rustix::fs::accessat(CWD, candidate.as_c_str(), rustix::fs::Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) if is_program(candidate, walk.own_program) => {
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

/// A file that is not the engine's own: `/proc/self/exe` leads to it (CVE-2019-5736).
fn is_program(path: &CString, own: (u64, u64)) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && (stat.st_dev, stat.st_ino) != own
    })
}
