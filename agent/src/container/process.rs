//! One process of a container: its streams, its signals, its end.
//!
//! A task of its own watches the pidfd, so that any number of callers can wait, and a process is reaped whether or not anybody does.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::passage::{Ours, Passage};
use super::stream::{self, Input, Output, Pipe};
use super::{Ends, Engine, Error};
use crate::passthrough::Sockets;

/// SIGTERM and SIGKILL of signal(7).
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// The highest signal there is.
const MAX_SIGNAL: i32 = 64;

/// The status of a process that was killed while nobody could tell how it ended.
const KILLED: i32 = 128 + SIGKILL;

/// Who holds the engine's process.
#[derive(Debug)]
pub enum Handle {
    /// The container does.
    Init(Arc<Engine>),
    /// We do.
    Exec(nacre_jail::Process),
}

impl Handle {
    fn with<T>(&self, act: impl FnOnce(&nacre_jail::Process) -> Result<T, nacre_jail::Error>) -> Result<T, Error> {
        match self {
            Handle::Init(engine) => engine.try_with(|container| act(container.init())),
            Handle::Exec(process) => Ok(act(process)?),
        }
    }
}

/// A process.
#[derive(Debug)]
pub struct Process {
    handle: Handle,
    pid: i32,
    exit: watch::Receiver<Option<i32>>,
    waited_for: AtomicBool,
    streams: Streams,
    terminal: Option<Weak<Pipe>>,
}

/// How the host has a process's streams.
#[derive(Debug)]
enum Streams {
    Asked(Asked),
    Passed(Passage),
}

/// Streams that the host asks for, piece by piece.
#[derive(Debug)]
struct Asked {
    input: Input,
    output: Output,
    /// Absent on a terminal, where both go the same way.
    errors: Option<Output>,
}

impl Streams {
    fn new(ours: Ours, sockets: Option<Sockets>, exit: watch::Receiver<Option<i32>>) -> io::Result<Streams> {
        if let Some(sockets) = sockets {
            return Ok(Streams::Passed(Passage::new(ours, sockets, exit)?));
        }
        let Ours { input, output, errors, is_terminal } = ours;
        let input = Input::new(input, is_terminal);
        Ok(Streams::Asked(Asked { input, output: Output::new(output), errors: errors.map(Output::new) }))
    }

    fn asked(&self) -> Result<&Asked, Error> {
        match self {
            Streams::Asked(asked) => Ok(asked),
            Streams::Passed(_) => Err(Error::NoStream("reader or writer: the process's streams are passed through")),
        }
    }

    fn is_drained(&self) -> bool {
        match self {
            Streams::Asked(asked) => asked.output.is_drained() && asked.errors.as_ref().is_none_or(Output::is_drained),
            Streams::Passed(passage) => passage.is_carried(),
        }
    }
}

impl Process {
    /// Hold the process of `handle`, whose streams end in `ends` and, where there are any, are carried to `sockets`.
    pub fn watch(handle: Handle, ends: Ends, sockets: Option<Sockets>) -> Result<Arc<Process>, Error> {
        let failed = |source| Error::Stream { act: "watch a process", source };
        let (pid, pidfd) = handle.with(|process| Ok((process.pid(), process.pidfd().try_clone_to_owned())))?;
        let pidfd = stream::watch_fd(pidfd.map_err(failed)?, Interest::READABLE).map_err(failed)?;
        let (sender, exit) = watch::channel(None);
        let (ours, terminal) = register(ends).map_err(failed)?;
        let streams = Streams::new(ours, sockets, exit.clone()).map_err(failed)?;
        let waited_for = AtomicBool::new(false);
        let process = Arc::new(Process { handle, pid, exit, waited_for, streams, terminal });
        tokio::spawn(reap(process.clone(), pidfd, sender));
        Ok(process)
    }

    /// Its number in the guest.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended: its exit code, or 128 and the signal. Waits until it has.
    pub async fn exited(&self) -> i32 {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        status.unwrap_or(KILLED)
    }

    /// As [`Process::exited`], for the host. It has all output that is passed through by then.
    pub async fn wait(&self) -> i32 {
        let status = self.exited().await;
        if let Streams::Passed(passage) = &self.streams {
            passage.carried().await;
        }
        self.waited_for.store(true, Relaxed);
        status
    }

    /// Whether it has exited and the host knows.
    pub fn is_waited_for(&self) -> bool {
        self.waited_for.load(Relaxed)
    }

    /// Whether nothing of it is left that the host might still want.
    pub fn is_over(&self) -> bool {
        self.is_waited_for() && self.streams.is_drained()
    }

    /// Send `signal`. A process that has exited takes any.
    pub fn signal(&self, signal: i32, is_init: bool) -> Result<(), Error> {
        if !(0..=MAX_SIGNAL).contains(&signal) {
            return Err(Error::Spec("signal", "is none"));
        }
        if self.exit.borrow().is_some() {
            return Ok(());
        }
        // The first process of a PID namespace does not even hear of a signal that it does not handle.
        let signal = if is_init && signal == SIGTERM && !self.heeds(SIGTERM) { SIGKILL } else { signal };
        match self.handle.with(|process| process.signal(signal)) {
            Err(Error::Gone | Error::Engine(nacre_jail::Error::Ended)) => Ok(()),
            other => other,
        }
    }

    fn heeds(&self, signal: i32) -> bool {
        fs::read_to_string(format!("/proc/{}/status", self.pid)).is_ok_and(|status| heeds(&status, signal))
    }

    /// Write all of `data` to its standard input.
    pub async fn write(&self, data: &[u8]) -> Result<(), Error> {
        let written =
            self.streams.asked()?.input.write(data).await.ok_or(Error::NoStream("writer: standard input is closed"))?;
        written.map_err(|source| Error::Stream { act: "write to standard input", source })
    }

    /// Its standard input ends. One that is passed through ends when the host hangs up.
    pub async fn close_input(&self) {
        if let Streams::Asked(asked) = &self.streams {
            asked.input.close().await;
        }
    }

    /// The host gets nothing more of what is passed through.
    pub fn cut(&self) {
        if let Streams::Passed(passage) = &self.streams {
            passage.cut();
        }
    }

    /// Read from its standard output, or from its terminal.
    pub async fn read_output(&self, length: usize) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Stream { act: "read standard output", source };
        self.streams.asked()?.output.read(length, self.exit.clone()).await.map_err(failed)
    }

    /// Read from its standard error. On a terminal that is at its end from the beginning.
    pub async fn read_errors(&self, length: usize) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Stream { act: "read standard error", source };
        match &self.streams.asked()?.errors {
            Some(errors) => errors.read(length, self.exit.clone()).await.map_err(failed),
            None => Ok(Vec::new()),
        }
    }

    /// Tell its terminal how large it is.
    pub fn resize(&self, columns: u32, rows: u32) -> Result<(), Error> {
        let terminal = self.terminal.as_ref().ok_or(Error::NoTerminal)?;
        let cells = |number: u32| u16::try_from(number).map_err(|_| Error::Spec("terminal size", "is too large"));
        let (columns, rows) = (cells(columns)?, cells(rows)?);
        let Some(terminal) = terminal.upgrade() else { return Ok(()) }; // read to its end
        stream::resize(&terminal, columns, rows).map_err(|source| Error::Stream { act: "resize the terminal", source })
    }
}

/// Have the runtime watch the ends of a process's streams. Its terminal is there until it has been read to its end.
fn register(ends: Ends) -> io::Result<(Ours, Option<Weak<Pipe>>)> {
    match ends {
        Ends::Pipes([stdin, stdout, stderr]) => {
            let (input, output) = (stream::register(stdin)?, stream::register(stdout)?);
            let errors = Some(stream::register(stderr)?);
            Ok((Ours { input, output, errors, is_terminal: false }, None))
        }
        Ends::Terminal(master) => {
            let output = stream::register(master)?;
            let terminal = Arc::downgrade(&output);
            Ok((Ours { input: output.clone(), output, errors: None, is_terminal: true }, Some(terminal)))
        }
    }
}

/// Wait for the end of `process`, and tell.
async fn reap(process: Arc<Process>, pidfd: AsyncFd<OwnedFd>, exit: watch::Sender<Option<i32>>) {
    let status = loop {
        let Ok(mut ready) = pidfd.readable().await else { break KILLED };
        match process.handle.with(nacre_jail::Process::try_wait) {
            Ok(Some(status)) => break status.code(),
            Ok(None) => ready.clear_ready(),
            // Whoever deletes the container has killed and reaped it.
            Err(Error::Gone) => break KILLED,
            Err(error) => {
                tracing::error!(pid = process.pid, error = crate::chain(&error), "a process was not reaped");
                break KILLED;
            }
        }
    };
    if let Streams::Asked(asked) = &process.streams {
        asked.input.abandon();
    }
    exit.send_replace(Some(status));
}

/// Whether the process of this `/proc/PID/status` blocks, ignores or handles `signal`.
fn heeds(status: &str, signal: i32) -> bool {
    let mask = |line: &str| {
        let mask = ["SigBlk:", "SigIgn:", "SigCgt:"].iter().find_map(|key| line.strip_prefix(key))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    let bit = u32::try_from(signal - 1).ok().and_then(|shift| 1_u64.checked_shl(shift)).unwrap_or(0);
    status.lines().filter_map(mask).any(|mask| mask & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_heeded_when_any_of_the_masks_has_it() {
        let status = "Name:\tsh\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000004002\n";
        assert!(heeds(status, 15));
        assert!(heeds(status, 2));
        assert!(!heeds(status, 1));
        assert!(!heeds("", 15));
    }
}
