//! A process, held by its pidfd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nacre_sys::clone::Cloned;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitIdOptions, pidfd_open};

use crate::error::Error;
use crate::exit::{self, ExitStatus};
use crate::launch::{Gate, Serve, Spawned};

/// How long a process may take to end once it was killed, in seconds.
const DIES_WITHIN_S: i64 = 10;

/// A process of a container. The first one waits at its start gate until [`crate::Container::start`].
#[derive(Debug)]
pub struct Process {
    child: Cloned,
    /// Whether it is this process's child, which alone can have its status.
    ours: bool,
    /// Where its pidfd goes if nobody has waited for it.
    strays: Option<Strays>,
    state: Mutex<State>,
}

/// Processes that were dropped before they had ended. A zombie of ours keeps its PID namespace, and so its container, from ending.
pub(crate) type Strays = Arc<Mutex<Vec<OwnedFd>>>;

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ours || self.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        if let (Some(strays), Ok(pidfd)) = (&self.strays, self.child.pidfd.try_clone()) {
            strays.lock().unwrap_or_else(PoisonError::into_inner).push(pidfd);
        }
    }
}

#[derive(Debug)]
struct State {
    gate: Option<Gate>,
    master: Option<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn new(spawned: Spawned) -> Process {
        let Spawned { cloned, gate, master } = spawned;
        let state = State { gate, master, status: None };
        Process { child: cloned, ours: true, strays: None, state: Mutex::new(state) }
    }

    /// Leaves it to `strays` should it be dropped before it has ended.
    pub(crate) fn stray_to(mut self, strays: &Strays) -> Process {
        self.strays = Some(strays.clone());
        self
    }

    /// The process `pid` that started at `start_time`, which somebody else made. It may have ended.
    pub(crate) fn open(pid: i32, start_time: u64, gate: Option<Gate>) -> Result<Process, Error> {
        let fail = |error: Errno| Error::system(format!("open process {pid}"), error);
        let number = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(|| fail(Errno::INVAL))?;
        let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) if start_time_of(pid) == Some(start_time) => pidfd,
            Ok(_) | Err(Errno::SRCH) => ended_process().map_err(fail)?,
            Err(error) => return Err(fail(error)),
        };
        let state = State { gate, master: None, status: None };
        Ok(Process { child: Cloned { pid, pidfd }, ours: false, strays: None, state: Mutex::new(state) })
    }

    /// Lets go of it without taking its status, which is its next parent's to take.
    pub fn leave(mut self) {
        self.let_go();
    }

    pub(crate) fn let_go(&mut self) {
        self.ours = false;
    }

    /// Opens the start gate.
    pub(crate) fn start(&self, serve: Serve<'_>) -> Result<(), Error> {
        let gate = self.with(|state| state.gate.take());
        gate.ok_or(Error::State("started already"))?.open(&self.child, serve)
    }

    /// What the start gate knows of the steps.
    pub(crate) fn gate_names(&self) -> Vec<String> {
        self.with(|state| state.gate.as_ref().map(Gate::names).unwrap_or_default())
    }

    /// Its number in the PID namespace of the caller.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
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
        nacre_sys::pidfd::send_signal(self.child.pidfd.as_fd(), signal).map_err(|error| match error.raw_os_error() {
            // EBADF: what stands for a process that had ended before it was taken up.
            Some(libc::ESRCH | libc::EBADF) => Error::Ended,
            _ => Error::system(format!("send signal {signal} to process {}", self.child.pid), error),
        })
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Those of waitid(2).
    pub fn try_wait(&self) -> Result<Option<ExitStatus>, Error> {
        self.with(|state| {
            if state.status.is_none() {
                state.status = exit::ask(self.child.pidfd.as_fd(), WaitIdOptions::NOHANG)?;
            }
            Ok(state.status)
        })
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn has_ended(&self) -> Result<bool, Error> {
        let known = self.with(|state| state.status.is_some());
        Ok(known || self.poll(Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))?)
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// Those of waitid(2): a process that somebody else made has no status for us.
    pub fn wait(&self) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            self.poll(None)?;
        }
    }

    /// As [`Process::wait`], for any process, after it was killed.
    ///
    /// # Errors
    /// [`Error::State`] when it does not end: somebody does not reap a process of its PID namespace, or a device does not answer.
    pub(crate) fn wait_for_death(&self) -> Result<(), Error> {
        let limit = rustix::time::Timespec { tv_sec: DIES_WITHIN_S, tv_nsec: 0 };
        if !self.has_ended()? && !self.poll(Some(&limit))? && !self.has_ended()? {
            return Err(Error::State("not ended by SIGKILL: a process of its PID namespace is not reaped, or hangs"));
        }
        if self.ours { self.wait().map(drop) } else { Ok(()) }
    }

    /// Whether it has ended once `limit` is over.
    fn poll(&self, limit: Option<&rustix::time::Timespec>) -> Result<bool, Error> {
        let ended = rustix::event::PollFd::new(&self.child.pidfd, rustix::event::PollFlags::IN);
        match rustix::event::poll(&mut [ended], limit) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(Error::system(format!("wait for process {}", self.child.pid), error)),
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

/// Something that looks to poll(2) like the pidfd of a process that has ended, and to signals like nothing.
fn ended_process() -> Result<OwnedFd, Errno> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::write(&write, b".")?;
    Ok(read)
}

/// When the process `pid` started, if there is one: the 22nd field of `/proc/PID/stat` (proc(5)).
pub(crate) fn start_time_of(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name in brackets, may hold anything.
    text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().nth(19)?.parse().ok()
}
