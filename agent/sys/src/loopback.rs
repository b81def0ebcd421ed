//! The loopback device of a network namespace.

// UNSAFETY: the ioctls take a struct with a union by address.
#![expect(unsafe_code, reason = "SIOCSIFFLAGS has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// SIOCSIFFLAGS (netdevice(7)): brings up `lo` of the network namespace in which the caller is, through `socket`, any socket made in it.
/// Async-signal-safe.
///
/// # Errors
/// Those of the ioctl.
pub fn bring_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: ifreq is plain numbers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is an ifreq, as the ioctl wants, and outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
