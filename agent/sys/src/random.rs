//! The kernel's random number generator, as random(4) offers it through `/dev/random`.

// UNSAFETY: neither nix nor rustix has a safe form of these ioctls.
#![expect(unsafe_code, reason = "the ioctl has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IO('R', 0x07)` of linux/random.h.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Draw a new key for the generator from the input pool now, where `random` is `/dev/random`. ENODATA says that the
/// pool is not initialised yet: then the first key is still to be drawn and nothing is lost.
pub fn reseed(random: impl AsFd) -> io::Result<()> {
    // SAFETY: the request takes no argument, and the descriptor is open for as long as it is borrowed.
    match unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDRESEEDCRNG) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
