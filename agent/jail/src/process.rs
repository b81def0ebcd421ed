//! A process, held by its pidfd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::error::Error;
use crate::launch::{Gate, Waiting};

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

/// A process of a container. The first one waits at its start gate until [`crate::Container::start`].
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    gate: Option<Gate>,
    master: Option<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn new(waiting: Waiting) -> Process {
        let Waiting { cloned, gate, master } = waiting;
        let state = State { gate: Some(gate), master, status: None };
        Process { pid: cloned.pid, pidfd: cloned.pidfd, state: Mutex::new(state) }
    }

    /// Opens the start gate.
    pub(crate) fn start(&self) -> Result<(), Error> {
        let gate = self.with(|state| state.gate.take());
        gate.ok_or(Error::State("started already"))?.open()
    }

    /// Its number in the PID namespace of the caller.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it still waits at its start gate.
    pub fn is_waiting(&self) -> bool {
        self.with(|state| state.gate.is_some())
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// [`Error::Ended`], or a number that is no signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        nacre_sys::pidfd::send_signal(self.pidfd.as_fd(), signal).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => Error::Ended,
            _ => Error::system(format!("send signal {signal} to process {}", self.pid), error),
        })
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Those of waitid(2).
    pub fn try_wait(&self) -> Result<Option<ExitStatus>, Error> {
        self.with(|state| {
            if state.status.is_none() {
                state.status = poll(self.pidfd.as_fd(), WaitIdOptions::NOHANG)?;
            }
            Ok(state.status)
        })
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// Those of waitid(2).
    pub fn wait(&self) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            let ended = rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN);
            match rustix::event::poll(&mut [ended], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::system(format!("wait for process {}", self.pid), error)),
            }
        }
    }

    /// The master of its terminal, once.
    pub fn take_terminal(&self) -> Option<OwnedFd> {
        self.with(|state| state.master.take())
    }

    /// A state whose holder panicked is still a state: each change to it is one assignment.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Waits for the end of a child and takes its status.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<ExitStatus>, Error> {
    poll(pidfd, WaitIdOptions::empty())
}

fn poll(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> Result<Option<ExitStatus>, Error> {
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
