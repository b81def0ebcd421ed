//! Growing a mounted ext4.

// UNSAFETY: the ioctl takes its argument by address.
#![expect(unsafe_code, reason = "the ioctl has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOW('f', 16, __u64)` of linux/ext4.h.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;

/// Has the ext4 on which `directory` is use `blocks` of its blocks.
///
/// # Errors
/// Those of the ioctl; EINVAL where the device is smaller, or the file system larger already.
pub fn resize(directory: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one number at the address, which outlives the call, and the descriptor is open.
    let result = unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
