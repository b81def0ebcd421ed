//! How processes end, and hearing of it from their pidfds.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::error::Error;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl ExitStatus {
    /// The code as a shell has it: the exit code, or 128 and the signal.
    pub fn code(self) -> i32 {
        match self {
            ExitStatus::Exited(code) => code,
            ExitStatus::Signaled(signal) => 128 + signal,
        }
    }
}

/// Waits for the end of a child and takes its status.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<ExitStatus>, Error> {
    ask(pidfd, WaitIdOptions::empty())
}

/// How a child has ended, if it has.
pub(crate) fn ask(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> Result<Option<ExitStatus>, Error> {
    loop {
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | options) {
            Ok(status) => return Ok(status.map(status_of)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("wait for a process", error)),
        }
    }
}

fn status_of(status: WaitIdStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Exited(code),
        (None, signal) => ExitStatus::Signaled(signal.unwrap_or(libc::SIGKILL)),
    }
}
