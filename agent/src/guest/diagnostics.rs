//! What a container left for those who ask why it ended.

use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, fstat};

use super::beneath::{self, PathError};

/// The only kind of data there is.
const TERMINATION_LOG: &str = "termination_log";

/// As much of a termination log is told as Kubernetes takes.
const MAX_LOG: u64 = 4096;

/// No diagnostic data was read.
#[derive(Debug, thiserror::Error)]
pub enum DiagnosticsError {
    /// No such kind of data.
    #[error("log_type {0:?}: only {TERMINATION_LOG:?} is known")]
    Kind(String),
    /// The file is none that containers share with the host.
    #[error("termination log: {0}")]
    Path(#[source] PathError),
    /// The file can't be read.
    #[error("read termination log {path:?}")]
    Read {
        /// Its path.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Whether `kind` is a kind of data that a container may have.
pub fn check_kind(kind: &str) -> Result<(), DiagnosticsError> {
    if kind == TERMINATION_LOG { Ok(()) } else { Err(DiagnosticsError::Kind(kind.chars().take(64).collect())) }
}

/// The begin of the termination log `path`, below `root`; nothing if there is none. The container may have put anything there.
pub fn termination_log(root: &Path, path: &str) -> Result<String, DiagnosticsError> {
    let found = match beneath::find(root, path) {
        Err(error) if error.is_missing() => return Ok(String::new()),
        found => found.map_err(DiagnosticsError::Path)?,
    };
    let failed = |source| DiagnosticsError::Read { path: path.into(), source };
    let stat = fstat(&found).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed(io::Error::other("is no regular file")));
    }
    let mut log = Vec::new();
    let read = beneath::read(&found).and_then(|file| file.take(MAX_LOG).read_to_end(&mut log));
    read.map_err(failed)?;
    Ok(String::from_utf8_lossy(&log).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, Mode, mknodat};

    use super::*;

    #[test]
    fn a_logs_begin_is_told_whatever_is_in_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let told = || termination_log(root.path(), path.to_str().unwrap()).unwrap();
        assert_eq!(told(), "");
        fs::write(&path, b"bad \xff news").unwrap();
        assert_eq!(told(), "bad \u{fffd} news");
        fs::write(&path, "x".repeat(5000)).unwrap();
        assert_eq!(told().len(), 4096);
    }

    #[test]
    fn only_regular_files_below_the_root_are_read() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
        symlink("/etc/passwd", path("link")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        for name in ["link", "directory", "fifo"] {
            assert!(termination_log(root.path(), &path(name)).is_err(), "{name}");
        }
        let error = termination_log(root.path(), "/etc/passwd").unwrap_err();
        assert!(matches!(&error, DiagnosticsError::Path(path) if path.is_invalid()), "{error}");
        assert!(check_kind("termination_log").is_ok() && check_kind("dmesg").is_err());
    }
}
