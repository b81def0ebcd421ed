//! Files below a directory that containers write to as well: they may plant links there at any time, so the kernel resolves the path.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::storage::directory;

/// A file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The path makes no sense.
    #[error("{path:?} {reason}")]
    Invalid {
        /// As requested, cut.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The path is none below the root.
    #[error("{path:?} is not below {root:?}")]
    Elsewhere {
        /// As requested.
        path: PathBuf,
        /// Where it should be.
        root: PathBuf,
    },
    /// The kernel refused.
    #[error("open {path:?}")]
    Open {
        /// As requested.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl PathError {
    /// Whether the request itself is at fault.
    pub fn is_invalid(&self) -> bool {
        !matches!(self, PathError::Open { .. })
    }

    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, PathError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Where `path` leads, which is below `root`: a place in the tree, not a way to read it.
pub fn find(root: &Path, path: &str) -> Result<OwnedFd, PathError> {
    let invalid = |reason| PathError::Invalid { path: path.chars().take(64).collect(), reason };
    let path = directory::parse(path).map_err(invalid)?;
    let elsewhere = |_| PathError::Elsewhere { path: path.clone(), root: root.into() };
    let below = Path::new(".").join(path.strip_prefix(root).map_err(elsewhere)?); // which may be the root itself
    let failed = |e: Errno| PathError::Open { path: path.clone(), source: e.into() };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = open(root, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
    directory::open_beneath(&root, &below, flags).map_err(failed)
}

/// Open for reading what was found and is known to be a regular file or a directory: opening anything else may do something.
pub fn read(found: &OwnedFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}
