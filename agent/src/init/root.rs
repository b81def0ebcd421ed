//! The root of an initramfs, made such that containers can leave it.
//!
//! pivot_root(2) refuses the kernel's first mount, and an initramfs is just that. A second mount of the same files on top of it is a
//! root like any other.

use std::io;

use rustix::fs::{CWD, StatFs, statfs};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// `f_type` of the two file systems that an initramfs can be: ramfs and tmpfs (linux/magic.h).
const INITRAMFS: [u64; 2] = [0x8584_58f6, 0x0102_1994];

/// The root was not made pivotable.
#[derive(Debug, thiserror::Error)]
#[error("{act} of the initramfs")]
pub struct Error {
    act: &'static str,
    source: io::Error,
}

/// Put a mount of `/` over `/` and make it this process's root, if `/` is an initramfs.
pub fn make_pivotable() -> Result<(), Error> {
    let failed = |act| move |source: rustix::io::Errno| Error { act, source: source.into() };
    if !is_initramfs(&statfs("/").map_err(failed("tell the kind"))?) {
        return Ok(());
    }
    let copy = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(failed("clone the mount"))?;
    move_mount(&copy, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed("move the clone over"))?;
    rustix::process::fchdir(&copy).map_err(failed("enter the clone"))?;
    rustix::process::chroot(".").map_err(failed("change the root to the clone"))
}

fn is_initramfs(root: &StatFs) -> bool {
    u64::try_from(root.f_type).is_ok_and(|kind| INITRAMFS.contains(&kind))
}
