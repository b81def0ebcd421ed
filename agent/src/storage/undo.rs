//! What was done, and how it is undone: in reverse order, and to the end.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, openat, openat2, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use super::mounts::Mounts;
use super::{Error, directory};

/// What was done so far. Dropping it undoes it.
#[derive(Debug, Default)]
pub struct Steps(Vec<Undo>);

/// One step back.
#[derive(Debug)]
pub enum Undo {
    /// One user of a mount point less.
    Shared {
        /// Who counts.
        mounts: Arc<Mounts>,
        /// The mount point.
        mount_point: PathBuf,
        /// Whether it outlives its users once the first of them is there.
        keep: bool,
    },
    /// A mount.
    Mount(PathBuf),
    /// A directory with all that is in it.
    Tree(PathBuf),
    /// A directory that was made to be mounted on, empty again.
    Empty(PathBuf),
    /// A file that was made to be mounted on, empty again.
    EmptyFile(PathBuf),
    /// A value whose drop undoes it.
    Value(Box<dyn fmt::Debug + Send + Sync>),
}

impl Steps {
    /// Whether there is nothing to undo.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more step.
    pub fn push(&mut self, undo: Undo) {
        self.0.push(undo);
    }

    /// All of `others`, after these.
    pub fn append(&mut self, mut others: Steps) {
        self.0.append(&mut others.0);
    }

    /// Who asked for it is there: what is to outlive it does from now on.
    pub fn establish(&self) {
        for undo in &self.0 {
            if let Undo::Shared { mounts, mount_point, keep: true } = undo {
                mounts.keep(mount_point);
            }
        }
    }

    /// Leave what was done as it is, for as long as the guest lives.
    pub fn keep(mut self) {
        self.0.clear();
    }

    /// Undo everything; the first error is told. Blocks.
    pub fn release(mut self) -> Result<(), Error> {
        self.undo_all()
    }

    fn undo_all(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        while let Some(undo) = self.0.pop() {
            result = result.and(undo.run());
        }
        result
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Err(error) = self.undo_all() {
            tracing::warn!(error = crate::chain(&error), "a storage was not released");
        }
    }
}

/// The directory above `path`, and the name in it. What leads there may be the host's, which could put a link in its place: none is followed.
fn above(path: &Path) -> Result<(OwnedFd, &OsStr), Errno> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::BUSY) };
    Ok((directory::find(above)?, name))
}

/// Unmount what is mounted on `path`, and nothing elsewhere.
pub fn detach(path: &Path) -> Result<(), Errno> {
    let (above, name) = above(path)?;
    let path = Path::new(&directory::proc_path(&above)).join(name);
    unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Remove `path` with all that is in it; what is mounted below it is somebody else's.
fn remove_tree(path: &Path) -> Result<(), Errno> {
    let (above, name) = above(path)?;
    let within = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let tree = openat2(&above, name, DIRECTORY | OFlags::PATH, Mode::empty(), within)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    // A mount of its own, on which nothing is mounted.
    let alone = open_tree(&tree, "", flags)?;
    empty(&openat(alone, ".", DIRECTORY, Mode::empty())?)?;
    unlinkat(above, name, AtFlags::REMOVEDIR)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Remove all that is in `top`. However deep it is, two directories are open and nothing recurses: what is in a directory's directories is moved up to
/// the top, and its turn comes there.
fn empty(top: &OwnedFd) -> Result<(), Errno> {
    let mut moved: u64 = 0;
    let mut left = true;
    while left {
        left = false;
        for entry in entries(top)? {
            let (name, is_directory) = entry?;
            if !is_directory {
                unlinkat(top, &name, AtFlags::empty())?;
                continue;
            }
            left = true;
            let directory = openat(top, &name, DIRECTORY, Mode::empty())?;
            for entry in entries(&directory)? {
                let (inner, is_directory) = entry?;
                if is_directory {
                    move_up(&directory, &inner, top, &mut moved)?;
                } else {
                    unlinkat(&directory, &inner, AtFlags::empty())?;
                }
            }
            unlinkat(top, &name, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

/// Under a name that nothing has there.
fn move_up(from: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match renameat_with(from, name, top, format!(".moved-{moved}"), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

/// The names in a directory, and which are directories'.
fn entries(directory: &OwnedFd) -> Result<impl Iterator<Item = Result<(CString, bool), Errno>>, Errno> {
    let own = directory.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let entries = Dir::read_from(directory)?.filter_map(move |entry| {
        let named = entry.and_then(|entry| {
            let name = entry.file_name().to_owned();
            let kind = match entry.file_type() {
                FileType::Unknown => FileType::from_raw_mode(statat(&own, &name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode),
                kind => kind,
            };
            Ok((name, kind == FileType::Directory))
        });
        match named {
            Ok((name, _)) if [c".", c".."].contains(&&*name) => None,
            named => Some(named),
        }
    });
    Ok(entries)
}

impl Undo {
    fn run(self) -> Result<(), Error> {
        match self {
            Undo::Shared { mounts, mount_point, .. } => mounts.release(&mount_point),
            Undo::Value(value) => {
                drop(value);
                Ok(())
            }
            Undo::Mount(path) => match detach(&path) {
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
                Err(error) => Err(Error::system("unmount", path, error)),
            },
            // The host may have put something else there; then it stays.
            Undo::Empty(path) => {
                let _ = above(&path).and_then(|(above, name)| unlinkat(above, name, AtFlags::REMOVEDIR));
                Ok(())
            }
            Undo::EmptyFile(path) => {
                let _ = above(&path).and_then(|(above, name)| {
                    let file = statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    let is_empty = FileType::from_raw_mode(file.st_mode) == FileType::RegularFile && file.st_size == 0;
                    if is_empty { unlinkat(above, name, AtFlags::empty()) } else { Ok(()) }
                });
                Ok(())
            }
            Undo::Tree(path) => match remove_tree(&path) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(Error::system("remove", path, error)),
            },
        }
    }
}
