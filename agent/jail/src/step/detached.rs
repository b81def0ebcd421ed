//! Mounts that are nowhere yet, and where they go (open_tree(2), fsopen(2), move_mount(2)).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

/// A copy of the mount at `path`, detached.
pub(crate) fn clone_tree(path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let below = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    rustix::mount::open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | below)
}

/// A copy of the mount that a directory or file is in, from there on, detached.
pub(super) fn clone_tree_of(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let below = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(fd, c"", flags | below)
}

/// A new file system, detached; with a mode, if it has that option and it is not among `options`.
pub(crate) fn new_mount(
    kind: &CStr,
    options: &[(CString, Option<CString>)],
    mode: Option<Mode>,
) -> Result<OwnedFd, Errno> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(fs.as_fd(), key.as_c_str(), value.as_c_str())?;
            }
            None => rustix::mount::fsconfig_set_flag(fs.as_fd(), key.as_c_str())?,
        }
    }
    if let Some(mode) = mode {
        let digits = [9, 6, 3, 0].map(|shift| b'0' + ((mode.as_raw_mode() >> shift) & 7) as u8);
        let [a, b, c, d] = digits;
        let text = [a, b, c, d, 0];
        let text = CStr::from_bytes_with_nul(&text).map_err(|_| Errno::INVAL)?;
        rustix::mount::fsconfig_set_string(fs.as_fd(), c"mode", text)?;
    }
    rustix::mount::fsconfig_create(fs.as_fd())?;
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Lays it over what `target` stands for.
pub(super) fn attach(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), c"", target.as_fd(), c"", flags)
}
