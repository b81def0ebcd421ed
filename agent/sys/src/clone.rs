//! Making a process: clone3(2), with a pidfd and straight into its cgroup.

// UNSAFETY: the raw system call and its arguments by address; what runs in the child is the caller's promise.
#![expect(unsafe_code, reason = "clone3 has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// linux/sched.h; libc's constant has too narrow a type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child and the descriptor that stands for it.
#[derive(Debug)]
pub struct Cloned {
    /// Its number in the caller's PID namespace.
    pub pid: i32,
    /// Readable once it has ended; survives the reuse of the number.
    pub pidfd: OwnedFd,
}

/// clone3(2): a child in the namespaces of `flags` (`CLONE_NEW…`; with `CLONE_PARENT` a sibling) and, where the hierarchy is cgroup v2, in `cgroup` from its first
/// instruction. The child runs `child` and exits with its value; it never returns from here.
///
/// # Errors
/// Those of clone3(2).
///
/// # Safety
/// The child is a copy of one thread of a process that may have many: a lock that another thread held is held for ever. `child` must
/// call async-signal-safe functions only, and must not allocate or free.
pub unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce() -> i32) -> io::Result<Cloned> {
    let mut pidfd: i32 = -1;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    // SAFETY: clone_args is plain numbers, for which zero is "not asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64 | into_cgroup;
    args.pidfd = &raw mut pidfd as u64;
    // A sibling takes over its creator's signal (clone3 refuses another).
    args.exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    args.cgroup = cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: `args` and `pidfd` outlive the call; without CLONE_VM the child has its own copy of everything.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: _exit runs no handler of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => {
            // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned { pid: pid as i32, pidfd })
        }
    }
}

/// unshare(2) of the calling thread: `namespaces` are `CLONE_NEW…`. Async-signal-safe.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(namespaces: u64) -> io::Result<()> {
    // SAFETY: no memory is passed; only CLONE_FILES would endanger descriptors, and it is left out.
    let result = unsafe { libc::unshare(namespaces as i32 & !libc::CLONE_FILES) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
