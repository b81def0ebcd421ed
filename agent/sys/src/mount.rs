//! mount_setattr(2), which rustix does not have.

// UNSAFETY: the raw system call takes its attributes by address.
#![expect(unsafe_code, reason = "mount_setattr has no safe form")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

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
    set(dir, path, recursive, &raw)
}

/// mount_setattr(2) with `MOUNT_ATTR_IDMAP`: the detached mount `tree` shows its owners through the mappings of `user_namespace`.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn map_ids(tree: BorrowedFd<'_>, recursive: bool, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let raw = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    set(tree, c"", recursive, &raw)
}

fn set(dir: BorrowedFd<'_>, path: &CStr, recursive: bool, raw: &libc::mount_attr) -> io::Result<()> {
    let empty: c_int = if path.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let recursive: c_int = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `raw` and `path` outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            empty | recursive,
            std::ptr::from_ref(raw),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
