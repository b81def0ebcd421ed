//! What a directory of the store says of each of its entries, read without following a link.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, fstat, lgetxattr, llistxattr, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// The most bytes of the names of a file's extended attributes, and of a value (xattr(7)).
const MAX_XATTRS: usize = 64 << 10;

/// As many as a file usually has.
const USUAL_NAMES: usize = 512;

fn fail(act: &str) -> impl Fn(Errno) -> Error {
    move |error| Error::system(act, error)
}

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// A file of any type.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: FileType,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) size: u64,
    /// Major and minor number, of a device.
    pub(super) device: (u32, u32),
    /// What all its names have in common, if it has several.
    pub(super) linked: Option<(u64, u64)>,
    /// Sorted.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The entry `name` of a directory.
    pub(super) fn of(dir: &OwnedFd, name: &[u8]) -> Result<Entry> {
        let stat = statat(dir, os(name), AtFlags::SYMLINK_NOFOLLOW).map_err(fail("look at it"))?;
        Entry::new(&stat, xattrs(&format!("/proc/self/fd/{}/", dir.as_raw_fd()), name)?)
    }

    /// A directory that is open.
    pub(super) fn root(dir: &OwnedFd) -> Result<Entry> {
        let stat = fstat(dir).map_err(fail("look at it"))?;
        Entry::new(&stat, xattrs(&format!("/proc/self/fd/{}/", dir.as_raw_fd()), b".")?)
    }

    fn new(stat: &rustix::fs::Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Entry> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let linked = (stat.st_nlink > 1 && kind != FileType::Directory).then_some((stat.st_dev, stat.st_ino));
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default());
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let entry =
            Entry { kind, mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid, mtime, size, device, linked, xattrs };
        if kind == FileType::CharacterDevice && device == (0, 0) {
            // A whiteout's time is that of its unpacking, and nobody sees it.
            let mode = kind.as_raw_mode();
            return Ok(Entry { mode, uid: 0, gid: 0, mtime: (0, 0), ..entry });
        }
        Ok(entry)
    }
}

/// Opens an entry to read it.
pub(super) fn open(dir: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, os(name), flags, Mode::empty()).map_err(fail("open it"))
}

/// Opens a regular file to read it.
pub(super) fn file(dir: impl AsFd, name: &[u8]) -> Result<File> {
    open(dir, name, OFlags::NONBLOCK).map(File::from)
}

/// Where a symbolic link leads.
pub(super) fn target(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    readlinkat(dir, os(name), Vec::new()).map(|target| target.into_bytes()).map_err(fail("read it"))
}

/// The names in a directory, at most `limit` of them.
pub(super) fn names(dir: &OwnedFd, limit: usize) -> Result<Vec<Vec<u8>>> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut names = Vec::new();
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(fail("list it"))?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            _ if names.len() == limit => return Err(Error::bad_image("the layer has too many entries")),
            name => names.push(name.to_vec()),
        }
    }
    Ok(names)
}

/// The attributes that are the layer's: those that its archive may set, and what an overlay takes for orders. Labels belong to the system that
/// unpacked it.
fn is_the_layers(name: &[u8]) -> bool {
    name == b"security.capability"
        || name.starts_with(b"user.")
        || name.starts_with(b"system.posix_acl_")
        || name.starts_with(b"trusted.overlay.")
}

fn xattrs(dir: &str, name: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = [dir.as_bytes(), name].concat();
    let (path, act) = (os(&path), "read its attributes");
    let mut buffer = vec![0; USUAL_NAMES];
    let length = match llistxattr(path, &mut buffer[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {
            buffer = vec![0; MAX_XATTRS];
            llistxattr(path, &mut buffer[..])
        }
        other => other,
    };
    let length = length.map_err(fail(act))?;
    let names = buffer.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| is_the_layers(name));
    let mut found = Vec::new();
    for name in names {
        let mut value = vec![0; MAX_XATTRS];
        let length = lgetxattr(path, os(name), &mut value[..]).map_err(fail(act))?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort_unstable();
    Ok(found)
}
