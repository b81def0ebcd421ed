//! The shim's log: lines in the bundle's FIFO `log`, which containerd copies into its own.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;

/// The longest line: what a pipe takes at once (pipe(7), `PIPE_BUF`).
const MAX_LINE: usize = 4096;

/// Where lines go; nowhere, where nobody listens. A reader that is slow or gone loses lines and holds nobody up.
#[derive(Debug, Clone, Default)]
pub struct Log {
    to: Option<Arc<Mutex<File>>>,
    debug: bool,
}

impl Log {
    /// The log of the bundle in `dir`.
    pub fn open(dir: &Path, debug: bool) -> Log {
        let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(dir.join("log"));
        Log { to: file.ok().map(|file| Arc::new(Mutex::new(file))), debug }
    }

    /// What people need only when they look for something.
    pub fn debug(&self, message: &str) {
        if self.debug {
            self.line("debug", message);
        }
    }

    /// What happens.
    pub fn info(&self, message: &str) {
        self.line("info", message);
    }

    /// What goes wrong and is lived with.
    pub fn warn(&self, message: &str) {
        self.line("warning", message);
    }

    fn line(&self, level: &str, message: &str) {
        let Some(to) = &self.to else { return };
        // As logrus writes them, which is what containerd's own lines look like.
        let mut line = format!("level={level} msg={message:?} runtime=nacre");
        let end = line.floor_char_boundary(MAX_LINE - 1);
        line.truncate(end);
        line.push('\n');
        let _ = to.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}
