//! Signals by pidfd, of any number.

// UNSAFETY: the raw system call; rustix knows no real-time signals here.
#![expect(unsafe_code, reason = "pidfd_send_signal with an arbitrary number has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// pidfd_send_signal(2).
///
/// # Errors
/// `ESRCH` when the process has ended, `EINVAL` for a number that is no signal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
