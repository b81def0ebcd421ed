//! A process's streams that are carried between its pipes, or its terminal, and sockets of the host's.
//!
//! The kernel moves the bytes where one end is a pipe (splice(2)); elsewhere they go through a buffer. A task of its own does so for each
//! process and holds nothing else, so that it can be ended whatever it waits for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use tokio::sync::watch;
use tokio::task::{AbortHandle, yield_now};

use super::stream::{self, FIRST_READ, Input, MAX_READ, Pipe};
use crate::passthrough::Sockets;

/// How many pieces are moved before others get their turn.
const TURN: u32 = 16;

type Exit = watch::Receiver<Option<i32>>;

/// A process's ends in the agent.
#[derive(Debug)]
pub struct Ours {
    /// Where its standard input is written.
    pub input: Arc<Pipe>,
    /// Where its standard output is read.
    pub output: Arc<Pipe>,
    /// Where its standard error is read; absent on a terminal.
    pub errors: Option<Arc<Pipe>>,
    /// Whether it is a terminal.
    pub is_terminal: bool,
}

/// Streams that are being carried. Dropping it ends that.
#[derive(Debug)]
pub struct Passage {
    task: AbortHandle,
    /// Its sender goes with the task.
    carried: watch::Receiver<()>,
}

impl Passage {
    /// Carry between `ours` and `sockets`, until the process's output ends. `exit` tells when the process has exited.
    pub fn new(ours: Ours, sockets: Sockets, exit: Exit) -> io::Result<Passage> {
        let register = |socket: Option<OwnedFd>| socket.map(stream::register).transpose();
        let [stdin, stdout, stderr] = sockets.map(register);
        let (stdin, stdout, stderr) = (stdin?, stdout?, stderr?);
        let Ours { input, output, errors, is_terminal } = ours;
        let (sender, carried) = watch::channel(());
        let task = tokio::spawn(async move {
            tokio::join!(
                feed(stdin, Input::new(input, is_terminal), exit.clone()),
                drain(Some(output), stdout, exit.clone()),
                drain(errors, stderr, exit),
            );
            drop(sender);
        });
        Ok(Passage { task: task.abort_handle(), carried })
    }

    /// Waits until all output has been carried.
    pub async fn carried(&self) {
        // Nothing is ever sent.
        let _ = self.carried.clone().changed().await;
    }

    /// Whether all output has been carried.
    pub fn is_carried(&self) -> bool {
        self.carried.has_changed().is_err()
    }

    /// Carry no more.
    pub fn cut(&self) {
        self.task.abort();
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Carry from `socket` to a process. Without a socket its input is at its end.
async fn feed(socket: Option<Arc<Pipe>>, input: Input, mut exit: Exit) {
    if let (Some(socket), Some(pipe)) = (socket, input.pipe()) {
        let exited = exit.clone();
        let fed = tokio::select! {
            fed = carry(&socket, &pipe, exited) => fed,
            _ = exit.wait_for(Option::is_some) => return,
        };
        if let Err(error) = fed {
            tracing::debug!("carry standard input: {error}"); // one of them has hung up
        }
    }
    input.close().await;
}

/// Carry from a process to `socket`. Without a socket what it writes is lost.
async fn drain(pipe: Option<Arc<Pipe>>, socket: Option<Arc<Pipe>>, mut exit: Exit) {
    let Some(pipe) = pipe else { return };
    let drained = match socket {
        Some(socket) => carry(&pipe, &socket, exit).await,
        None => loop {
            match read_until(&pipe, &mut exit).await {
                Ok(data) if data.is_empty() => break Ok(()),
                Ok(_) => yield_now().await,
                Err(error) => break Err(error),
            }
        },
    };
    if let Err(error) = drained {
        tracing::debug!("carry output: {error}"); // the host has hung up
    }
}

/// Carry everything, until `from` is at its end.
async fn carry(from: &Pipe, to: &Pipe, mut exit: Exit) -> io::Result<()> {
    let mut pieces = 0;
    loop {
        pieces = (pieces + 1) % TURN;
        if pieces == 0 {
            yield_now().await;
        }
        let mut readable = tokio::select! {
            biased;
            readable = from.readable() => readable?,
            () = stream::exited_for_a_while(&mut exit) => return Ok(()),
        };
        let mut writable = to.writable().await?;
        match splice(from.get_ref(), None, to.get_ref(), None, MAX_READ, SpliceFlags::NONBLOCK) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // It doesn't say for which of the two.
                if !is_ready(from.get_ref(), PollFlags::IN)? {
                    readable.clear_ready();
                }
                if !is_ready(to.get_ref(), PollFlags::OUT)? {
                    writable.clear_ready();
                }
            }
            // Neither is a pipe, or one is of a kind that the kernel can't splice.
            Err(Errno::INVAL) => return copy(from, to, exit).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// As [`carry`], through a buffer.
async fn copy(from: &Pipe, to: &Pipe, mut exit: Exit) -> io::Result<()> {
    loop {
        let data = read_until(from, &mut exit).await?;
        if data.is_empty() {
            return Ok(());
        }
        stream::write_all(to, &data).await?;
        yield_now().await;
    }
}

/// What there is to read; nothing at the end, and when the process has exited and nothing comes any more.
async fn read_until(pipe: &Pipe, exit: &mut Exit) -> io::Result<Vec<u8>> {
    tokio::select! {
        biased;
        data = stream::read_some(pipe, FIRST_READ) => data,
        () = stream::exited_for_a_while(exit) => Ok(Vec::new()),
    }
}

fn is_ready(fd: impl AsFd, what: PollFlags) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(&fd, what)], Some(&now))? > 0)
}
