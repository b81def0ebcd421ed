//! `tmpcopyup`: a tmpfs that starts with a copy of the directory that it covers. The directory is the image's, so nothing is followed and
//! no device is copied.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

/// The deepest directory that is copied.
const MAX_DEPTH: u32 = 128;

/// Copies what is at `path` of the root file system `root` into the new file system `to`. Its own mode is left alone if it `has_mode`.
pub(crate) fn copy_up(root: BorrowedFd<'_>, path: &CStr, to: BorrowedFd<'_>, has_mode: bool) -> Result<(), Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    let stat = rustix::fs::fstat(&from)?;
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::chownat(to, c"", owner.0, owner.1, AtFlags::EMPTY_PATH)?;
    if !has_mode {
        rustix::fs::chmodat(to, c".", Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    copy_directory(&from, to, 0)
}

fn copy_directory(from: &OwnedFd, to: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(from, name, flags, Mode::empty())?;
                let copy = rustix::fs::openat(to, name, flags, Mode::empty())?;
                copy_directory(&below, copy.as_fd(), depth + 1)?;
            }
            FileType::RegularFile => copy_file(from, to, name)?,
            FileType::Symlink => {
                let target: CString = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&target, to, name)?;
            }
            FileType::Fifo => rustix::fs::mknodat(to, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?,
            _ => continue, // a socket nobody listens at, or a device
        }
        dress(to, name, &stat)?;
    }
    Ok(())
}

fn copy_file(from: impl AsFd, to: impl AsFd, name: &CStr) -> Result<(), Errno> {
    // The image may change underfoot: what is opened now must still be a file, and must not make us wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&from)?.st_mode) != FileType::RegularFile {
        return Err(Errno::STALE);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let copied = std::io::copy(&mut File::from(from), &mut File::from(to));
    copied.map(drop).map_err(crate::step::errno)
}

/// Owner first: a change of owner takes set-user-id bits away.
fn dress(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Ok(());
    }
    rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())
}
