//! What was done, and how it is undone: in reverse order, and to the end.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::Error;
use super::mounts::Mounts;

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
    /// One more step.
    pub fn push(&mut self, undo: Undo) {
        self.0.push(undo);
    }

    /// All of `others`, after these.
    pub fn append(&mut self, mut others: Steps) {
        self.0.append(&mut others.0);
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

impl Undo {
    fn run(self) -> Result<(), Error> {
        match self {
            Undo::Shared { mounts, mount_point } => mounts.release(&mount_point),
            Undo::Value(value) => {
                drop(value);
                Ok(())
            }
            Undo::Mount(path) => match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
                Err(error) => Err(Error::system("unmount", path, error)),
            },
            Undo::Empty(path) => {
                let _ = fs::remove_dir(&path); // the host may have put something else there; then it stays
                Ok(())
            }
            Undo::EmptyFile(path) => {
                if fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && file.len() == 0) {
                    let _ = fs::remove_file(&path);
                }
                Ok(())
            }
            Undo::Tree(path) => match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::system("remove", path, error)),
                _ => Ok(()),
            },
        }
    }
}
