//! A process of a pod's, from its making to its end.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use super::error::{Error, Result};
use super::stdio::{Open, Relays, Stdio};
use crate::guest::ProcessId;

/// What is said of a process that died with its VM: as if by SIGKILL.
pub const KILLED: u32 = 128 + 9;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is made, and waits to be started.
    Created,
    /// Somebody is starting it.
    Starting,
    /// It runs.
    Running,
    /// It has ended.
    Stopped {
        /// Its exit code, or 128 and the signal.
        code: u32,
        /// When.
        at: SystemTime,
    },
}

/// A process: a container's first, or one that was added.
#[derive(Debug)]
pub struct Process {
    /// What the guest calls it.
    pub id: ProcessId,
    /// What containerd calls it: "" for a container's first.
    pub exec: String,
    /// Its streams.
    pub stdio: Stdio,
    /// What joins them.
    pub relays: Relays,
    open: Mutex<Option<Open>>,
    size: Mutex<Option<(u16, u16)>>,
    status: watch::Sender<Status>,
}

impl Process {
    /// A process that is made.
    pub fn new(id: ProcessId, exec: &str, stdio: Stdio) -> Process {
        let (status, _) = watch::channel(Status::Created);
        let (open, size) = (Mutex::new(None), Mutex::new(None));
        Process { id, exec: exec.into(), stdio, relays: Relays::default(), open, size, status }
    }

    /// Where it is.
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Opens its streams, once.
    ///
    /// # Errors
    /// As [`Stdio::open`].
    pub fn open(&self) -> Result<()> {
        let mut open = lock(&self.open);
        if open.is_none() {
            *open = Some(self.stdio.open()?);
        }
        Ok(())
    }

    /// Its streams, to be joined.
    pub fn take_open(&self) -> Option<Open> {
        lock(&self.open).take()
    }

    /// Takes the right to start it.
    ///
    /// # Errors
    /// One that was started.
    pub fn begin(&self) -> Result<()> {
        let begun = self.status.send_if_modified(|status| {
            let may = *status == Status::Created;
            if may {
                *status = Status::Starting;
            }
            may
        });
        if begun { Ok(()) } else { Err(Error::State(format!("{}: it was started before", self.id.exec))) }
    }

    /// It runs now.
    pub fn runs(&self) {
        self.status.send_if_modified(|status| {
            let starting = *status == Status::Starting;
            if starting {
                *status = Status::Running;
            }
            starting
        });
    }

    /// It has ended. Whether this is news.
    pub fn stop(&self, code: u32) -> bool {
        self.status.send_if_modified(|status| {
            let news = !matches!(status, Status::Stopped { .. });
            if news {
                *status = Status::Stopped { code, at: SystemTime::now() };
            }
            news
        })
    }

    /// Waits for its end: the code, and when.
    pub async fn ended(&self) -> (u32, SystemTime) {
        let mut status = self.status.subscribe();
        loop {
            if let Status::Stopped { code, at } = *status.borrow_and_update() {
                return (code, at);
            }
            if status.changed().await.is_err() {
                return (KILLED, SystemTime::now()); // can't be: the sender is ours
            }
        }
    }

    /// Keeps the size of its terminal, which may be told before it runs.
    pub fn set_size(&self, size: (u16, u16)) {
        *lock(&self.size) = Some(size);
    }

    /// The size of its terminal.
    pub fn size(&self) -> Option<(u16, u16)> {
        *lock(&self.size)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process::new(ProcessId { container: "a".into(), exec: "a".into() }, "", Stdio::default())
    }

    #[test]
    fn a_process_is_started_and_ends_once() {
        let process = process();
        process.begin().unwrap();
        assert!(process.begin().is_err());
        process.runs();
        assert_eq!(process.status(), Status::Running);
        assert!(process.stop(3));
        assert!(!process.stop(4));
        assert!(matches!(process.status(), Status::Stopped { code: 3, .. }));
        process.runs();
        assert!(matches!(process.status(), Status::Stopped { .. }), "what has ended runs no more");
    }
}
