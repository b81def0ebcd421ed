//! Directories that the host names, made and opened without following a link.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, chmodat, chownat, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::Error;
use super::options::Options;

/// PATH_MAX.
const MAX_PATH: usize = 4096;

/// How deep a path may go.
const MAX_DEPTH: usize = 64;

/// How often a path is resolved again because something below the root was renamed meanwhile.
const MAX_RACES: usize = 64;

/// The set-group-id bit, which hands a directory's group on to what is made in it.
const SETGID: u32 = 0o2000;

/// An absolute path of plain names that is not the root.
pub fn parse(text: &str) -> Result<PathBuf, &'static str> {
    if text.len() > MAX_PATH || text.contains('\0') {
        return Err("is no path");
    }
    let mut components = Path::new(text).components();
    if components.next() != Some(Component::RootDir) {
        return Err("is not absolute");
    }
    let names: Vec<_> = components.collect();
    if names.is_empty() || names.len() > MAX_DEPTH || names.iter().any(|c| !matches!(c, Component::Normal(_))) {
        return Err("has no name, too many, or one that is none");
    }
    Ok(Path::new("/").join(names.iter().collect::<PathBuf>()))
}

/// Open what is below `root`, where containers may plant links at any time: the kernel resolves the path.
pub fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..MAX_RACES {
        match openat2(&root, path, flags, Mode::empty(), resolve) {
            // A rename elsewhere raced with the resolution of a "..".
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Open what is at `path`, an absolute one, following no link: a place in the tree, not a way to read it.
pub fn find(path: &Path) -> Result<OwnedFd, Errno> {
    openat2(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// A path that leads to `file` as long as it is open.
pub fn proc_path(file: impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// A place in the tree, not a way to read it.
const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open directory.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Directory> for OwnedFd {
    fn from(directory: Directory) -> OwnedFd {
        directory.0
    }
}

impl Directory {
    /// Open `path`, an absolute one, and make what of it is missing.
    pub fn make(path: &Path) -> Result<Directory, Error> {
        let failed = |act| move |error: Errno| Error::system(act, path, error);
        let mut directory = openat(CWD, "/", FLAGS, Mode::empty()).map_err(failed("open the root of"))?;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            match mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("make directory")(error)),
            }
            directory = openat(&directory, name, FLAGS, Mode::empty()).map_err(failed("open directory"))?;
        }
        Ok(Directory(directory))
    }

    /// Open `path`, which is there and ours: what leads to it is not looked at.
    pub fn open(path: &Path) -> Result<Directory, Errno> {
        openat(CWD, path, FLAGS, Mode::empty()).map(Directory)
    }

    /// Open `path`, an absolute one, which is there.
    pub fn find(path: &Path) -> Result<Directory, Error> {
        let found = find(path).and_then(|found| openat(found, ".", FLAGS, Mode::empty()));
        found.map(Directory).map_err(|error| Error::system("open directory", path, error))
    }

    /// The same, to be read.
    pub fn readable(&self) -> Result<OwnedFd, Errno> {
        openat(&self.0, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    /// A path that leads here as long as the directory is open.
    pub fn path(&self) -> String {
        proc_path(&self.0)
    }

    /// Give it the mode and the group that `options` ask for.
    pub fn own(&self, options: &Options, path: &Path) -> Result<(), Error> {
        let here = self.path();
        if let Some(mode) = options.mode {
            chmodat(CWD, &here, Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty())
                .map_err(|error| Error::system("set mode of", path, error))?;
        }
        let Some(group) = options.group else { return Ok(()) };
        chownat(CWD, &here, None, Some(Gid::from_raw(group)), rustix::fs::AtFlags::empty())
            .map_err(|error| Error::system("set group of", path, error))?;
        let mode = fstat(&self.0).map_err(|error| Error::system("stat", path, error))?.st_mode & 0o7777;
        // Group members write, and what they make stays the group's.
        chmodat(CWD, &here, Mode::from_raw_mode(mode | SETGID | 0o070), rustix::fs::AtFlags::empty())
            .map_err(|error| Error::system("set mode of", path, error))
    }
}
