//! What can go wrong, by whose fault it is.

use std::io;
use std::path::PathBuf;

/// Why a container could not be planned, made or driven.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification contradicts itself or its rules.
    #[error("{property}: {reason}")]
    Spec {
        /// The property, as a path into `config.json`.
        property: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The specification asks for what this engine does not do.
    #[error("{property}: not supported")]
    Unsupported {
        /// The property, as a path into `config.json`, with its value.
        property: String,
    },
    /// The program to run is not there, or can't be run.
    #[error("run {program:?}: {source}")]
    Program {
        /// The first argument.
        program: String,
        /// `ENOENT` and `EACCES` are the usual two.
        source: io::Error,
    },
    /// A step of the child failed.
    #[error("{step}: {name}{source}", name = name_of(source))]
    Step {
        /// What was to be done, and to what.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A hook failed.
    #[error("{point} hook {path}: {reason}")]
    Hook {
        /// `prestart`, `createRuntime`, `createContainer`, `startContainer`, `poststart` or `poststop`.
        point: &'static str,
        /// Its program.
        path: String,
        /// How it ended, and the first of what it wrote to standard error.
        reason: String,
    },
    /// The child ended, or said nothing in time, before it was set up.
    #[error("set up the process: {0}")]
    Setup(&'static str),
    /// A system call of ours failed.
    #[error("{act}: {source}")]
    System {
        /// The act and its object.
        act: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A cgroup could not be made, limited, read or removed.
    #[error("cgroup {path}: {act}: {reason}")]
    Cgroup {
        /// The cgroup, below the hierarchy's root.
        path: PathBuf,
        /// What was to be done.
        act: &'static str,
        /// Why it was not.
        reason: String,
    },
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// The container is in another state than the operation needs.
    #[error("the container is {0}")]
    State(&'static str),
}

impl Error {
    /// Whether the caller's specification is at fault, and not the system.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Error::Spec { .. } | Error::Unsupported { .. } | Error::Program { .. })
    }

    pub(crate) fn spec(property: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Spec { property: property.into(), reason: reason.into() }
    }

    pub(crate) fn system(act: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::System { act: act.into(), source: source.into() }
    }
}

/// What errno(3) calls an error, for those that set-up runs into.
fn name_of(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM: ",
        Some(libc::ENOENT) => "ENOENT: ",
        Some(libc::EIO) => "EIO: ",
        Some(libc::EBADF) => "EBADF: ",
        Some(libc::ENOMEM) => "ENOMEM: ",
        Some(libc::EACCES) => "EACCES: ",
        Some(libc::EBUSY) => "EBUSY: ",
        Some(libc::EEXIST) => "EEXIST: ",
        Some(libc::EXDEV) => "EXDEV: ",
        Some(libc::ENODEV) => "ENODEV: ",
        Some(libc::ENOTDIR) => "ENOTDIR: ",
        Some(libc::EISDIR) => "EISDIR: ",
        Some(libc::EINVAL) => "EINVAL: ",
        Some(libc::EMFILE) => "EMFILE: ",
        Some(libc::ENOSPC) => "ENOSPC: ",
        Some(libc::EROFS) => "EROFS: ",
        Some(libc::ELOOP) => "ELOOP: ",
        Some(libc::ENAMETOOLONG) => "ENAMETOOLONG: ",
        Some(libc::ENOSYS) => "ENOSYS: ",
        Some(libc::EOPNOTSUPP) => "EOPNOTSUPP: ",
        _ => "",
    }
}
