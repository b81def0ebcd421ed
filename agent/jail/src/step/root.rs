//! Steps that lay out the container's root.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nacre_sys::mount::{MountAttr, mount_setattr};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use super::detached::{attach, clone_tree, clone_tree_of, new_mount};
use super::path::{Leaf, ensure, ensure_parent, open as open_inside};
use super::{Entry, Inside, Mount, Node, Source, Walk, errno, views};

const READ_ONLY: MountAttr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0 };

pub(super) fn of<'a>(walk: &'a Walk<'_>) -> Result<BorrowedFd<'a>, Errno> {
    walk.root.as_ref().map(OwnedFd::as_fd).ok_or(Errno::BADF)
}

fn set_attr(dir: BorrowedFd<'_>, path: &CStr, recursive: bool, attr: MountAttr) -> Result<(), Errno> {
    if attr.is_empty() { Ok(()) } else { mount_setattr(dir, path, recursive, &attr).map_err(errno) }
}

pub(super) fn propagate(dir: BorrowedFd<'_>, path: &CStr, recursive: bool, propagation: u64) -> Result<(), Errno> {
    set_attr(dir, path, recursive, MountAttr { propagation, ..MountAttr::default() })
}

/// The root file system as a mount of its own, over itself: pivot_root(2) wants a mount point, and hooks look for it there.
pub(super) fn open(
    walk: &mut Walk<'_>,
    path: &CStr,
    tree: &mut Option<OwnedFd>,
    propagation: u64,
    entry: Entry,
) -> Result<(), Errno> {
    if entry == Entry::Chroot {
        walk.root = Some(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        return Ok(());
    }
    let tree = super::taken(tree)?;
    propagate(tree.as_fd(), c"", true, propagation)?;
    match rustix::mount::move_mount(tree.as_fd(), c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
        // Root of a user namespace may not be let in on the way to the directory; any other place serves to pivot.
        Err(Errno::ACCESS) => {
            rustix::mount::move_mount(tree.as_fd(), c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        result => result?,
    }
    walk.root = Some(tree);
    Ok(())
}

/// Makes `root` the root and the current directory.
pub(super) fn change(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(c".")
}

pub(super) fn take(walk: &mut Walk<'_>) -> Result<(), Errno> {
    walk.root = Some(rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
    Ok(())
}

pub(super) fn make_directory(root: BorrowedFd<'_>, path: &Inside) -> Result<(), Errno> {
    ensure(root, path, Leaf::Directory, ResolveFlags::empty()).map(drop)
}

pub(super) fn mount(root: BorrowedFd<'_>, mount: &mut Mount) -> Result<(), Errno> {
    let resolve = if mount.refuse_symlinks { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
    let tree = match (mount.tree.take(), &mount.source) {
        (Some(tree), _) => tree,
        (None, Source::New { kind, options, takes_mode, .. }) => {
            let covered = open_inside(root, mount.target.path(), OFlags::PATH, resolve).ok().filter(|_| *takes_mode);
            let mode = covered.map(|covered| rustix::fs::fstat(&covered)).transpose()?.map(|stat| stat.st_mode);
            new_mount(kind, options, mode.map(Mode::from_raw_mode))?
        }
        (None, Source::Bind { inside: Some(source), recursive, .. }) => {
            let source = open_inside(root, source.path(), OFlags::PATH, ResolveFlags::empty())?;
            clone_tree_of(source.as_fd(), *recursive)?
        }
        (None, Source::Bind { .. }) => return Err(Errno::BADF),
    };
    let leaf = if file_type(&tree)? == FileType::Directory { Leaf::Directory } else { Leaf::File };
    set_attr(tree.as_fd(), c"", true, mount.recursive_attr)?;
    set_attr(tree.as_fd(), c"", false, mount.attr)?;
    let target = ensure(root, &mount.target, leaf, resolve)?;
    attach(&tree, &target)
}

/// Lays the file `tree` over `path`, which is made if missing and must not be a link (CVE-2025-52565).
pub(super) fn attach_file(root: BorrowedFd<'_>, tree: &OwnedFd, path: &Inside) -> Result<(), Errno> {
    attach(tree, &ensure(root, path, Leaf::File, ResolveFlags::NO_SYMLINKS)?)
}

fn file_type(fd: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// A node that is there already, the image's own or one that a mount brought, must be the device that was asked for: a file in its place
/// would swallow or make up what is written to or read from it.
pub(super) fn make_node(root: BorrowedFd<'_>, node: &Node) -> Result<(), Errno> {
    let (parent, name) = ensure_parent(root, &node.path)?;
    match rustix::fs::mknodat(&parent, name, node.kind, Mode::from_raw_mode(node.mode), node.device) {
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same = FileType::from_raw_mode(there.st_mode) == node.kind
                && (node.kind == FileType::Fifo || there.st_rdev == node.device);
            return if same { Ok(()) } else { Err(Errno::EXIST) };
        }
        result => result?,
    }
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn make_symlink(root: BorrowedFd<'_>, path: &Inside, target: &CStr) -> Result<(), Errno> {
    let (parent, name) = ensure_parent(root, path)?;
    match rustix::fs::symlinkat(target, &parent, name) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// What is not there needs no mask.
fn open_if_there(root: BorrowedFd<'_>, path: &Inside) -> Result<Option<OwnedFd>, Errno> {
    match open_inside(root, path.path(), OFlags::PATH, ResolveFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        result => result.map(Some),
    }
}

pub(super) fn mask(walk: &mut Walk<'_>, path: &Inside) -> Result<(), Errno> {
    let Some(target) = open_if_there(of(walk)?, path)? else { return Ok(()) };
    if file_type(&target)? != FileType::Directory {
        return attach(&clone_tree(c"/dev/null", false)?, &target);
    }
    // One for all. A mount that is nowhere yet can't be copied before Linux 6.15, so the first is laid out before it is.
    if let Some(nothing) = &walk.nothing {
        return attach(&clone_tree_of(nothing.as_fd(), false)?, &target);
    }
    let nothing = new_mount(c"tmpfs", &[], None)?;
    set_attr(nothing.as_fd(), c"", false, READ_ONLY)?;
    attach(&nothing, &target)?;
    walk.nothing = Some(nothing);
    Ok(())
}

pub(super) fn protect(root: BorrowedFd<'_>, path: &Inside) -> Result<(), Errno> {
    let Some(target) = open_if_there(root, path)? else { return Ok(()) };
    let tree = clone_tree_of(target.as_fd(), true)?;
    set_attr(tree.as_fd(), c"", true, READ_ONLY)?;
    attach(&tree, &target)
}

/// The mount whose root `path` is.
pub(super) fn read_only(root: BorrowedFd<'_>, path: &Inside) -> Result<(), Errno> {
    let target = open_inside(root, path.path(), OFlags::PATH, ResolveFlags::empty())?;
    set_attr(target.as_fd(), c"", false, READ_ONLY)
}

pub(super) fn protect_root(root: BorrowedFd<'_>) -> Result<(), Errno> {
    set_attr(root, c"", false, READ_ONLY)
}

/// pivot_root(2) with one directory for both: the old root comes to lie over the new one and is taken off. From the first root of the kernel, whose
/// mount is on no other (an initramfs), there is no pivoting.
pub(super) fn enter(walk: &mut Walk<'_>, entry: Entry) -> Result<(), Errno> {
    let root = walk.root.take().ok_or(Errno::BADF)?;
    walk.nothing = None;
    match entry {
        Entry::Pivot => {
            rustix::process::fchdir(&root)?;
            match rustix::process::pivot_root(c".", c".") {
                Err(Errno::INVAL) => move_into_place(root.as_fd())?,
                result => {
                    result?;
                    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
                }
            }
        }
        Entry::Move => move_into_place(root.as_fd())?,
        Entry::Chroot | Entry::Attach => change(root.as_fd())?,
    }
    rustix::process::chdir(c"/")
}

fn move_into_place(root: BorrowedFd<'_>) -> Result<(), Errno> {
    views::take_off_others(root)?;
    match rustix::mount::move_mount(root, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
        Err(Errno::LOOP) => {} // it is there since it was opened
        result => result?,
    }
    change(root)
}
