//! fork(2) for a process that has one thread.

// UNSAFETY: a copy of one thread of many may find locks held for ever; the check below rules that out.
#![expect(unsafe_code, reason = "fork has no safe form")]

use std::io;

/// Who one is after [`fork_alone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The process that called, and its child's number.
    Parent(i32),
    /// The new process.
    Child,
}

/// fork(2). Refused with `EBUSY` when the process has more than one thread: then the child could not be trusted with any lock.
///
/// # Errors
/// Those of fork(2), and of reading `/proc/self/task`.
pub fn fork_alone() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the only thread is this one, which holds no lock while it is here; nobody else can start another meanwhile.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}
