//! `tmpcopyup`: a tmpfs that starts with a copy of the directory that it covers. The directory is the image's, so nothing is followed and
//! no device is copied.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

/// The deepest directory that is copied.
const MAX_DEPTH: u32 = 128;

/// How often a path is resolved that changes underfoot.
const MOST_TRIES: usize = 64;

/// Copies what is at `path` of the root file system `root` into the new file system `to`. Its own mode is left alone if it `has_mode`.
///
/// The runtime's is the memory that it takes, so no more than `left` bytes are copied, and holes stay holes.
pub(crate) fn copy_up(
    root: BorrowedFd<'_>,
    path: &CStr,
    to: BorrowedFd<'_>,
    has_mode: bool,
    left: &mut Option<u64>,
) -> Result<(), Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // EAGAIN: something above was moved meanwhile.
    let open = || rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
    let tried = std::iter::repeat_with(open).take(MOST_TRIES).find(|result| !matches!(result, Err(Errno::AGAIN)));
    let from = match tried.unwrap_or(Err(Errno::AGAIN)) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    let stat = rustix::fs::fstat(&from)?;
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::chownat(to, c"", owner.0, owner.1, AtFlags::EMPTY_PATH)?;
    if !has_mode {
        rustix::fs::chmodat(to, c".", Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    copy_directory(&from, to, 0, left)
}

fn copy_directory(from: &OwnedFd, to: BorrowedFd<'_>, depth: u32, left: &mut Option<u64>) -> Result<(), Errno> {
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
                copy_directory(&below, copy.as_fd(), depth + 1, left)?;
            }
            FileType::RegularFile => copy_file(from, to, name, left)?,
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

fn copy_file(from: impl AsFd, to: impl AsFd, name: &CStr, left: &mut Option<u64>) -> Result<(), Errno> {
    // The image may change underfoot: what is opened now must still be a file, and must not make us wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::STALE);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let (from, to) = (File::from(from), File::from(to));
    to.set_len(stat.st_size.unsigned_abs()).map_err(crate::step::errno)?;
    let mut at = 0;
    while let Some((start, length)) = next_data(&from, at)? {
        if let Some(left) = left {
            *left = left.checked_sub(length).ok_or(Errno::NOSPC)?;
        }
        (&from).seek(SeekFrom::Start(start)).map_err(crate::step::errno)?;
        (&to).seek(SeekFrom::Start(start)).map_err(crate::step::errno)?;
        std::io::copy(&mut (&from).take(length), &mut &to).map_err(crate::step::errno)?;
        at = start + length;
    }
    Ok(())
}

/// Where the next bytes are that are no hole, and how many.
fn next_data(file: &File, at: u64) -> Result<Option<(u64, u64)>, Errno> {
    let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Err(Errno::NXIO) => return Ok(None),
        start => start?,
    };
    let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?;
    Ok((end > start).then(|| (start, end - start)))
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
