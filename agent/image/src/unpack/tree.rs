//! The directory that a layer is unpacked into, written through descriptors only.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::MAX_DEPTH;
use crate::archive::{Map, Meta, Mtime, What};
use crate::error::{Error, Result};

/// The most memory for the paths of directories whose times are to be set.
const MAX_TIMES: usize = 64 << 20;

/// The largest value of an extended attribute (xattr(7)).
const MAX_XATTR: usize = 64 << 10;

/// The time of directories of which the archive says nothing: not now, for a layer is the same whenever it is unpacked.
const UNSAID: Mtime = Mtime(0, 0);

/// The layer's root, and what is to be done at its end.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// How deep the root itself is.
    depth: usize,
    /// The directory of the last entry: archives go directory by directory.
    last: Option<(Vec<Vec<u8>>, OwnedFd)>,
    /// Times of directories, set when nothing in them changes any more.
    times: Vec<(Vec<u8>, Mtime)>,
    times_bytes: usize,
}

fn bad(reason: &str) -> Error {
    Error::bad_image(reason)
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
        let depth = depth(&root)?;
        let times = vec![(b".".to_vec(), UNSAID)];
        Ok(Tree { root, depth, last: None, times, times_bytes: 0 })
    }

    /// Opens a directory of the layer; what is missing of the way is made. Links are followed as a container would
    /// follow them.
    fn parent(&mut self, names: &[Vec<u8>]) -> Result<BorrowedFd<'_>> {
        let known = self.last.as_ref().is_some_and(|(path, _)| path == names);
        if !known {
            let fd = match self.open_inside(names) {
                Err(Errno::NOENT) => self.make_way(names)?,
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(bad("a part of its path is no directory")),
                other => other.map_err(fail("open its directory"))?,
            };
            // Through links, paths that are short each can add up.
            if depth(&fd)? > self.depth + MAX_DEPTH {
                return Err(bad("the path is too deep"));
            }
            self.last = Some((names.to_vec(), fd));
        }
        match &self.last {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Ok(self.root.as_fd()),
        }
    }

    fn open_inside(&self, names: &[Vec<u8>]) -> std::result::Result<OwnedFd, Errno> {
        self.open_path(&if names.is_empty() { b".".to_vec() } else { names.join(&b'/') })
    }

    fn open_path(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&self.root, os(path), flags, Mode::empty(), resolve)
    }

    fn make_way(&mut self, names: &[Vec<u8>]) -> Result<OwnedFd> {
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
                    let mode = Mode::from_raw_mode(0o755); // whatever the umask
                    rustix::fs::chmodat(&at, os(name), mode, AtFlags::empty()).map_err(fail("make its directory"))?;
                    self.keep_time(way.join(&b'/'), UNSAID)?;
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

    pub(super) fn directory(&mut self, parent: &[Vec<u8>], name: &[u8], meta: &Meta) -> Result<()> {
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
        apply(&made, meta)?;
        if hidden {
            mark_opaque(&made)?;
        }
        let path = parent.iter().map(Vec::as_slice).chain([name]).collect::<Vec<_>>().join(&b'/');
        self.keep_time(path, meta.mtime)
    }

    /// Remembers a time to be set when nothing changes any more.
    fn keep_time(&mut self, path: Vec<u8>, mtime: Mtime) -> Result<()> {
        self.times_bytes = self.times_bytes.saturating_add(path.len() + size_of::<(Vec<u8>, Mtime)>());
        if self.times_bytes > MAX_TIMES {
            return Err(bad("the layer has too many directories"));
        }
        self.times.push((path, mtime));
        Ok(())
    }

    /// Makes a file of what `content` holds: all of it, or the pieces that `map` names.
    pub(super) fn file(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        map: Option<&Map>,
        content: &mut impl BufRead,
        meta: &Meta,
    ) -> Result<()> {
        // Hardly ever anything stands there.
        let made = match self.make(parent, name)? {
            Err(Errno::EXIST) => {
                self.clear(parent, name)?;
                self.make(parent, name)?
            }
            made => made,
        };
        let mut file = File::from(made.map_err(fail("make the file"))?);
        match map {
            Some(map) => copy_pieces(content, &mut file, map)?,
            None => copy(content, &mut file)?,
        }
        let fd = OwnedFd::from(file);
        apply(&fd, meta)?;
        rustix::fs::futimens(&fd, &times(meta.mtime)).map_err(fail("set its time"))
    }

    fn make(&mut self, parent: &[Vec<u8>], name: &[u8]) -> Result<std::result::Result<OwnedFd, Errno>> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.parent(parent)?, os(name), flags, Mode::from_raw_mode(0o600)))
    }

    pub(super) fn symlink(&mut self, parent: &[Vec<u8>], name: &[u8], target: &[u8], meta: &Meta) -> Result<()> {
        if target.is_empty() || target.len() > super::MAX_PATH || target.contains(&0) {
            return Err(bad("its target is no path"));
        }
        self.clear(parent, name)?;
        let dir = self.parent(parent)?;
        rustix::fs::symlinkat(os(target), dir, os(name)).map_err(fail("make the symbolic link"))?;
        own(dir, name, meta)?;
        set_time(dir, name, meta.mtime)
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

    pub(super) fn node(&mut self, parent: &[Vec<u8>], name: &[u8], node: &What, meta: &Meta) -> Result<()> {
        self.clear(parent, name)?;
        let (kind, device) = match *node {
            What::Char(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            What::Block(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        let dir = self.parent(parent)?;
        rustix::fs::mknodat(dir, os(name), kind, Mode::from_raw_mode(0o600), device).map_err(fail("make the node"))?;
        own(dir, name, meta)?;
        rustix::fs::chmodat(dir, os(name), Mode::from_raw_mode(meta.mode), AtFlags::empty())
            .map_err(fail("set its mode"))?;
        set_time(dir, name, meta.mtime)
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

    pub(super) fn root_attributes(&mut self, meta: &Meta) -> Result<()> {
        apply(&self.root, meta)?;
        self.keep_time(b".".to_vec(), meta.mtime)
    }

    pub(super) fn finish(self) -> Result<()> {
        // Of a directory's several times the last one counts, as of all else that is said of it.
        for (path, time) in &self.times {
            // A later entry may have replaced it.
            let Ok(dir) = self.open_path(path) else { continue };
            let dir = rustix::fs::openat(&dir, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let dir = dir.map_err(fail("open a directory"))?;
            rustix::fs::futimens(&dir, &times(*time)).map_err(fail("set a directory's time"))?;
        }
        Ok(())
    }
}

/// How many directories lead to one, as the kernel sees it.
fn depth(dir: &OwnedFd) -> Result<usize> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    Ok(path.map_err(|error| Error::system("look where a directory is", error))?.components().count())
}

/// The archive's errors are the image's fault, the file's are ours.
fn copy(from: &mut impl BufRead, to: &mut File) -> Result<()> {
    loop {
        let bytes = from.fill_buf().map_err(|error| Error::reading("read the layer", error))?;
        if bytes.is_empty() {
            return Ok(());
        }
        io::Write::write_all(to, bytes).map_err(|error| Error::system("write the file", error))?;
        let length = bytes.len();
        from.consume(length);
    }
}

/// What lies between the pieces stays a hole, and so does what follows the last.
fn copy_pieces(from: &mut impl BufRead, to: &mut File, map: &Map) -> Result<()> {
    let fail = |error| Error::system("write the file", error);
    for piece in map.pieces() {
        to.seek(SeekFrom::Start(piece.offset)).map_err(fail)?;
        copy(&mut from.by_ref().take(piece.length), to)?;
    }
    to.set_len(map.size()).map_err(fail)
}

/// Owner first: changing it takes away set-user-id bits and capabilities.
fn apply(fd: &OwnedFd, meta: &Meta) -> Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
        .map_err(fail("set its owner"))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode)).map_err(fail("set its mode"))?;
    for (name, value) in &meta.xattrs {
        if value.len() > MAX_XATTR {
            return Err(bad("an extended attribute is too large"));
        }
        match rustix::fs::fsetxattr(fd, os(name), value, XattrFlags::empty()) {
            // Not every file system has these; programs cope. Without its capabilities a program does not work.
            Err(Errno::OPNOTSUPP) if name != b"security.capability" => {}
            Err(Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
                return Err(bad("an extended attribute makes no sense"));
            }
            other => other.map_err(fail("set an extended attribute"))?,
        }
    }
    Ok(())
}

fn mark_opaque(dir: &OwnedFd) -> Result<()> {
    rustix::fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(fail("mark it opaque"))
}

fn own(dir: BorrowedFd<'_>, name: &[u8], meta: &Meta) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    rustix::fs::chownat(dir, os(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(fail("set its owner"))
}

fn set_time(dir: BorrowedFd<'_>, name: &[u8], mtime: Mtime) -> Result<()> {
    rustix::fs::utimensat(dir, os(name), &times(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(fail("set its time"))
}

fn times(Mtime(seconds, nanoseconds): Mtime) -> Timestamps {
    let mtime = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: mtime, last_modification: mtime }
}

/// Removes a directory of this layer that a later entry replaces.
fn remove(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(bad("directories are nested too deep"));
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
