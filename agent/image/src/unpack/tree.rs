//! The directory that a layer is unpacked into, written through descriptors only.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::EntryType;

use super::bad;
use crate::error::{Error, Kind, Result};

/// The deepest directory that is removed when a later entry replaces it.
const MAX_DEPTH: usize = 1024;

/// What an entry says of itself beside its content.
#[derive(Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    pub(super) xattrs: HashMap<Vec<u8>, Vec<u8>>,
}

/// The layer's root, and what is to be done at its end.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory of the last entry: archives go directory by directory.
    last: Option<(Vec<Vec<u8>>, OwnedFd)>,
    /// Times of directories, set when nothing in them changes any more.
    times: Vec<(Vec<Vec<u8>>, Timespec)>,
    buffer: Vec<u8>,
}

fn fail(act: &str) -> impl Fn(Errno) -> Error {
    move |error| Error::system(act, error)
}

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Tree> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = rustix::fs::open(root, flags, Mode::empty()).map_err(fail("open the layer's directory"))?;
        Ok(Tree { root, last: None, times: Vec::new(), buffer: vec![0; 128 << 10] })
    }

    /// Opens a directory of the layer; what is missing of the way is made. Links are followed as a container would follow them.
    fn parent(&mut self, names: &[Vec<u8>]) -> Result<BorrowedFd<'_>> {
        let known = self.last.as_ref().is_some_and(|(path, _)| path == names);
        if !known {
            let fd = match self.open_inside(names) {
                Err(Errno::NOENT) => self.make_way(names)?,
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(bad("a part of its path is no directory")),
                other => other.map_err(fail("open its directory"))?,
            };
            self.last = Some((names.to_vec(), fd));
        }
        match &self.last {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Ok(self.root.as_fd()),
        }
    }

    fn open_inside(&self, names: &[Vec<u8>]) -> std::result::Result<OwnedFd, Errno> {
        let path = if names.is_empty() { b".".to_vec() } else { names.join(&b'/') };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&self.root, os(&path), flags, Mode::empty(), resolve)
    }

    fn make_way(&self, names: &[Vec<u8>]) -> Result<OwnedFd> {
        let mut at = self.open_inside(&[]).map_err(fail("open the layer's directory"))?;
        for end in 1..=names.len() {
            let way = names.get(..end).unwrap_or_default();
            at = match self.open_inside(way) {
                Err(Errno::NOENT) => {
                    let name = way.last().map_or(&b""[..], Vec::as_slice);
                    match rustix::fs::mkdirat(&at, os(name), Mode::from_raw_mode(0o755)) {
                        Err(Errno::EXIST) => return Err(bad("a part of its path is a link to nowhere")),
                        other => other.map_err(fail("make its directory"))?,
                    }
                    self.open_inside(way).map_err(fail("open its directory"))?
                }
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(bad("a part of its path is no directory")),
                other => other.map_err(fail("open its directory"))?,
            };
        }
        Ok(at)
    }

    /// Makes room for a new `name`. `true` when a whiteout stood there.
    fn clear(&mut self, parent: &[Vec<u8>], name: &[u8]) -> Result<bool> {
        let dir = self.parent(parent)?;
        let stat = match rustix::fs::statat(dir, os(name), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            other => other.map_err(fail("look at what stands there"))?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            remove(dir, name, 0)?;
        } else {
            rustix::fs::unlinkat(dir, os(name), AtFlags::empty()).map_err(fail("remove what stands there"))?;
        }
        self.last = None; // it may have been a part of that way
        Ok(kind == FileType::CharacterDevice && stat.st_rdev == 0)
    }

    pub(super) fn directory(&mut self, parent: &[Vec<u8>], name: &[u8], attributes: &Attributes) -> Result<()> {
        let dir = self.parent(parent)?;
        let exists = match rustix::fs::statat(dir, os(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            Err(_) => false,
        };
        let mut hidden = false;
        if !exists {
            hidden = self.clear(parent, name)?;
            let dir = self.parent(parent)?;
            rustix::fs::mkdirat(dir, os(name), Mode::from_raw_mode(0o700)).map_err(fail("make the directory"))?;
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(self.parent(parent)?, os(name), flags, Mode::empty());
        let made = made.map_err(fail("open the directory"))?;
        apply(&made, attributes)?;
        if hidden {
            mark_opaque(&made)?;
        }
        let mut path = parent.to_vec();
        path.push(name.to_vec());
        self.times.push((path, attributes.mtime));
        Ok(())
    }

    pub(super) fn file(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        content: &mut impl Read,
        attributes: &Attributes,
    ) -> Result<()> {
        self.clear(parent, name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(self.parent(parent)?, os(name), flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(made.map_err(fail("make the file"))?);
        copy(content, &mut file, &mut self.buffer)?;
        let fd = OwnedFd::from(file);
        apply(&fd, attributes)?;
        rustix::fs::futimens(&fd, &times(attributes.mtime)).map_err(fail("set its time"))
    }

    pub(super) fn symlink(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        target: &[u8],
        attributes: &Attributes,
    ) -> Result<()> {
        if target.is_empty() || target.len() > super::MAX_PATH || target.contains(&0) {
            return Err(bad("its target is no path"));
        }
        self.clear(parent, name)?;
        let dir = self.parent(parent)?;
        rustix::fs::symlinkat(os(target), dir, os(name)).map_err(fail("make the symbolic link"))?;
        own(dir, name, attributes)?;
        set_time(dir, name, attributes.mtime)
    }

    pub(super) fn hard_link(&mut self, parent: &[Vec<u8>], name: &[u8], target: &[Vec<u8>]) -> Result<()> {
        let Some((last, above)) = target.split_last() else { return Err(bad("a hard link to the root")) };
        let (mut same, mut path) = (target.len() == parent.len() + 1, parent.to_vec());
        path.push(name.to_vec());
        same = same && path == target;
        if same {
            return Err(bad("a hard link to itself"));
        }
        self.clear(parent, name)?;
        let from = match self.open_inside(above) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(bad("its target is not in this layer")),
            other => other.map_err(fail("open its target's directory"))?,
        };
        let to = self.parent(parent)?;
        match rustix::fs::linkat(&from, os(last), to, os(name), AtFlags::empty()) {
            Err(Errno::NOENT | Errno::PERM) => Err(bad("its target is not a file of this layer")),
            other => other.map_err(fail("make the hard link")),
        }
    }

    pub(super) fn node(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        kind: EntryType,
        (major, minor): (u32, u32),
        attributes: &Attributes,
    ) -> Result<()> {
        self.clear(parent, name)?;
        let kind = match kind {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let dir = self.parent(parent)?;
        let device = if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(major, minor) };
        rustix::fs::mknodat(dir, os(name), kind, Mode::from_raw_mode(0o600), device).map_err(fail("make the node"))?;
        own(dir, name, attributes)?;
        rustix::fs::chmodat(dir, os(name), Mode::from_raw_mode(attributes.mode), AtFlags::empty())
            .map_err(fail("set its mode"))?;
        set_time(dir, name, attributes.mtime)
    }

    /// Hides `name` of the layers below. What this layer itself has under that name stays, but hides what is below it.
    pub(super) fn whiteout(&mut self, parent: &[Vec<u8>], name: &[u8]) -> Result<()> {
        let dir = self.parent(parent)?;
        match rustix::fs::mknodat(dir, os(name), FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(fail("make the whiteout")),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, os(name), flags, Mode::empty()) {
            Ok(own) => mark_opaque(&own),
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(Error::system("open what stands there", error)),
        }
    }

    /// Hides everything that lower layers have in a directory.
    pub(super) fn opaque(&mut self, names: &[Vec<u8>]) -> Result<()> {
        let dir = self.parent(names)?;
        let dir = rustix::fs::openat(dir, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        mark_opaque(&dir.map_err(fail("open the directory"))?)
    }

    pub(super) fn root_attributes(&mut self, attributes: &Attributes) -> Result<()> {
        apply(&self.root, attributes)?;
        self.times.push((Vec::new(), attributes.mtime));
        Ok(())
    }

    pub(super) fn finish(self) -> Result<()> {
        for (path, time) in self.times.iter().rev() {
            // A later entry may have replaced it.
            let Ok(dir) = self.open_inside(path) else { continue };
            let dir = rustix::fs::openat(&dir, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let dir = dir.map_err(fail("open a directory"))?;
            rustix::fs::futimens(&dir, &times(*time)).map_err(fail("set a directory's time"))?;
        }
        Ok(())
    }
}

/// The archive's errors are the image's fault, the file's are ours.
fn copy(from: &mut impl Read, to: &mut File, buffer: &mut [u8]) -> Result<()> {
    loop {
        let n = from.read(buffer).map_err(|error| super::broken(&error))?;
        if n == 0 {
            return Ok(());
        }
        io::Write::write_all(to, buffer.get(..n).unwrap_or_default())
            .map_err(|error| Error::system("write the file", error))?;
    }
}

/// Owner first: changing it takes away set-user-id bits and capabilities.
fn apply(fd: &OwnedFd, attributes: &Attributes) -> Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
        .map_err(fail("set its owner"))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode)).map_err(fail("set its mode"))?;
    for (name, value) in &attributes.xattrs {
        match rustix::fs::fsetxattr(fd, os(name), value, XattrFlags::empty()) {
            // tmpfs before 6.6 has no user attributes; a program that wants them copes with their absence on such systems.
            Err(Errno::OPNOTSUPP) if name.starts_with(b"user.") => {}
            other => other.map_err(fail("set an extended attribute"))?,
        }
    }
    Ok(())
}

fn mark_opaque(dir: &OwnedFd) -> Result<()> {
    rustix::fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(fail("mark it opaque"))
}

fn own(dir: BorrowedFd<'_>, name: &[u8], attributes: &Attributes) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::chownat(dir, os(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(fail("set its owner"))
}

fn set_time(dir: BorrowedFd<'_>, name: &[u8], mtime: Timespec) -> Result<()> {
    rustix::fs::utimensat(dir, os(name), &times(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(fail("set its time"))
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

/// Removes a directory of this layer that a later entry replaces.
fn remove(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::new(Kind::BadImage, "directories are nested too deep"));
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, os(name), flags, Mode::empty()).map_err(fail("open the old directory"))?;
    let mut buffer = Vec::with_capacity(8 << 10);
    let mut found = Vec::new();
    let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(fail("list the old directory"))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push((entry.file_name().to_bytes().to_vec(), entry.file_type()));
        }
    }
    for (inner, kind) in found {
        if kind == FileType::Directory {
            remove(dir.as_fd(), &inner, depth + 1)?;
        } else {
            rustix::fs::unlinkat(&dir, os(&inner), AtFlags::empty()).map_err(fail("remove an old file"))?;
        }
    }
    rustix::fs::unlinkat(parent, os(name), AtFlags::REMOVEDIR).map_err(fail("remove the old directory"))
}
