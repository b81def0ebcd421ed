//! Network devices whose other end is a descriptor (tun(4), Documentation/networking/tuntap.rst).

// UNSAFETY: the ioctl takes a struct with a union by address.
#![expect(unsafe_code, reason = "TUNSETIFF has no safe form")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

/// Makes the tap `name` in the network namespace of the calling thread: frames come and go with virtio's header and no other. It goes with
/// its last descriptor.
///
/// # Errors
/// Those of open(2) and of the ioctl; a name that is too long.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq is plain numbers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request is an ifreq, as the ioctl wants, and outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result == 0 { Ok(file.into()) } else { Err(io::Error::last_os_error()) }
}
