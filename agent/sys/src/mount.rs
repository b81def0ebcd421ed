//! mount_setattr(2), which rustix does not have.

// UNSAFETY: the raw system call takes its attributes by address.
#![expect(unsafe_code, reason = "mount_setattr has no safe form")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `MOUNT_ATTR_…` bits to set and to clear, and a propagation (`MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`) or 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear, before.
    pub clear: u64,
    /// The new propagation, or 0 for the old.
    pub propagation: u64,
}

impl MountAttr {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        *self == MountAttr::default()
    }
}

/// mount_setattr(2) on `path` below `dir`, or on `dir` itself when `path` is empty. Async-signal-safe.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn mount_setattr(dir: BorrowedFd<'_>, path: &CStr, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let raw =
        libc::mount_attr { attr_set: attr.set, attr_clr: attr.clear, propagation: attr.propagation, userns_fd: 0 };
    let empty = if path.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `raw` and `path` outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            empty | recursive,
            &raw const raw,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
