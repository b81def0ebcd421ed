//! The ends of a process's streams that the agent holds: pipes and terminals, without blocking a thread.
//!
//! A stream outlives its process: what was written before the exit stays readable until it has been read. Nobody waits for ever for the
//! end of a pipe whose other end a stray grandchild keeps: once the process has exited, a pipe that stays empty for [`GRACE`] is at
//! its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, watch};

/// How long an empty pipe of an exited process is listened to.
const GRACE: Duration = Duration::from_millis(500);

/// The most that one read returns, whatever is asked for.
pub const MAX_READ: usize = 1 << 20;

/// The most that is allocated before it is known how much there is: a pipe's default size.
pub(super) const FIRST_READ: usize = 64 << 10;

/// A descriptor that does not block.
pub type Pipe = AsyncFd<OwnedFd>;

/// Register `fd`, which is made non-blocking.
pub fn register(fd: OwnedFd) -> io::Result<Arc<Pipe>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Arc::new(watch_fd(fd, Interest::READABLE | Interest::WRITABLE)?))
}

/// Have the runtime watch `fd`.
#[expect(deprecated, reason = "the other way is unsafe, for types whose descriptor may change; an OwnedFd's does not")]
pub fn watch_fd(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// Both ends of three pipes.
#[derive(Debug)]
pub struct Pipes {
    /// The process's ends: standard input, output and error.
    pub theirs: [OwnedFd; 3],
    /// The agent's.
    pub ours: [OwnedFd; 3],
}

impl Pipes {
    /// Three pipes; those of output are of `size` bytes, where one is given.
    pub fn new(size: Option<usize>) -> io::Result<Pipes> {
        let (stdin, to_stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from_stderr, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        if let Some(size) = size {
            rustix::pipe::fcntl_setpipe_size(&stdout, size)?;
            rustix::pipe::fcntl_setpipe_size(&stderr, size)?;
        }
        Ok(Pipes { theirs: [stdin, stdout, stderr], ours: [to_stdin, from_stdout, from_stderr] })
    }
}

/// Where a process reads from.
#[derive(Debug)]
pub struct Input {
    /// Whose turn it is to write: writers are served in the order in which they came.
    turn: Semaphore,
    pipe: Mutex<Option<Arc<Pipe>>>,
    is_terminal: bool,
}

impl Input {
    /// Write to `pipe`.
    pub fn new(pipe: Arc<Pipe>, is_terminal: bool) -> Input {
        Input { turn: Semaphore::new(1), pipe: Mutex::new(Some(pipe)), is_terminal }
    }

    /// Write all of `data`, as the process takes it. `None` when the input is closed.
    pub async fn write(&self, data: &[u8]) -> Option<io::Result<()>> {
        let _turn = self.turn.acquire().await.ok()?;
        let pipe = self.pipe()?;
        Some(write_all(&pipe, data).await)
    }

    /// The process is at the end of its input, once it has read what was written. On a terminal that is what its end-of-file
    /// character does; the terminal stays, as the output comes from it too.
    pub async fn close(&self) {
        let _turn = self.turn.acquire().await;
        let pipe = lock(&self.pipe).take();
        if let Some(pipe) = pipe.filter(|_| self.is_terminal)
            && let Ok(settings) = tcgetattr(pipe.get_ref())
            && settings.local_modes.contains(LocalModes::ICANON)
        {
            let end = [settings.special_codes[SpecialCodeIndex::VEOF]];
            let _ = rustix::io::write(pipe.get_ref(), &end); // a terminal that is gone or full takes no more input
        }
    }

    /// What is written to; `None` when the input is closed.
    pub fn pipe(&self) -> Option<Arc<Pipe>> {
        lock(&self.pipe).clone()
    }

    /// Nobody reads any more.
    pub fn abandon(&self) {
        lock(&self.pipe).take();
    }
}

/// Write all of `data`, as it is taken.
pub async fn write_all(pipe: &Pipe, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = pipe.writable().await?;
        match ready.try_io(|pipe| Ok(rustix::io::write(pipe, data)?)) {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(written)) => data = data.get(written..).unwrap_or_default(),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// Where a process writes to.
#[derive(Debug)]
pub struct Output {
    pipe: Mutex<Option<Arc<Pipe>>>,
}

impl Output {
    /// Read from `pipe`.
    pub fn new(pipe: Arc<Pipe>) -> Output {
        Output { pipe: Mutex::new(Some(pipe)) }
    }

    /// At least one byte and at most `length`; nothing at the end. `exit` tells when the process has exited.
    pub async fn read(&self, length: usize, mut exit: watch::Receiver<Option<i32>>) -> io::Result<Vec<u8>> {
        let Some(pipe) = lock(&self.pipe).clone() else { return Ok(Vec::new()) };
        let length = length.clamp(1, MAX_READ);
        let read = read_some(&pipe, length);
        tokio::pin!(read);
        let data = tokio::select! {
            biased;
            data = &mut read => data?,
            () = exited_for_a_while(&mut exit) => Vec::new(),
        };
        if data.is_empty() {
            lock(&self.pipe).take(); // at its end for good: the descriptor goes
        }
        Ok(data)
    }

    /// Whether everything has been read.
    pub fn is_drained(&self) -> bool {
        lock(&self.pipe).is_none()
    }
}

pub(super) async fn exited_for_a_while(exit: &mut watch::Receiver<Option<i32>>) {
    // The sender is gone only with the process.
    let _ = exit.wait_for(Option::is_some).await.map(drop);
    tokio::time::sleep(GRACE).await;
}

/// What there is, up to `length`; nothing at the end.
pub async fn read_some(pipe: &Pipe, length: usize) -> io::Result<Vec<u8>> {
    loop {
        let mut ready = pipe.readable().await?;
        let mut data = vec![0; length.min(FIRST_READ)];
        match ready.try_io(|pipe| read(pipe, &mut data)) {
            Ok(Ok(read)) => {
                data.truncate(read);
                return Ok(data);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

fn read(pipe: impl AsFd, data: &mut [u8]) -> io::Result<usize> {
    match rustix::io::read(pipe, data) {
        // That is how a terminal says that its last process has closed it.
        Err(Errno::IO) => Ok(0),
        other => Ok(other?),
    }
}

/// Tell a terminal its size.
pub fn resize(terminal: &Pipe, columns: u16, rows: u16) -> io::Result<()> {
    Ok(tcsetwinsize(terminal.get_ref(), Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one assignment, so a holder that panicked left a whole value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Ends = (Output, OwnedFd, watch::Sender<Option<i32>>, watch::Receiver<Option<i32>>);

    fn output() -> Ends {
        let Pipes { theirs: [_, stdout, _], ours: [_, from_stdout, _] } = Pipes::new(None).unwrap();
        let (sender, receiver) = watch::channel(None);
        (Output::new(register(from_stdout).unwrap()), stdout, sender, receiver)
    }

    #[tokio::test]
    async fn what_was_written_before_the_exit_is_read_after_it_to_the_end() {
        let (output, stdout, exit, exited) = output();
        rustix::io::write(&stdout, b"hello").unwrap();
        drop(stdout);
        exit.send_replace(Some(0));
        assert_eq!(output.read(2, exited.clone()).await.unwrap(), b"he");
        assert_eq!(output.read(usize::MAX, exited.clone()).await.unwrap(), b"llo");
        assert!(!output.is_drained());
        assert_eq!(output.read(9, exited.clone()).await.unwrap(), b"");
        assert!(output.is_drained());
        assert_eq!(output.read(9, exited).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_read_waits_for_the_first_byte() {
        let (output, stdout, _exit, exited) = output();
        let (data, ()) = tokio::join!(output.read(9, exited), async {
            tokio::task::yield_now().await;
            rustix::io::write(&stdout, b"x").unwrap();
        });
        assert_eq!(data.unwrap(), b"x");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipe_that_a_stray_process_keeps_open_comes_to_its_end_after_the_exit() {
        let (output, _stdout, exit, exited) = output();
        exit.send_replace(Some(0));
        assert_eq!(output.read(9, exited).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_large_write_waits_for_its_reader_and_closed_input_takes_no_more() {
        let Pipes { theirs: [stdin, ..], ours: [to_stdin, ..] } = Pipes::new(None).unwrap();
        let input = Input::new(register(to_stdin).unwrap(), false);
        let data = vec![7; 1 << 20];
        let reader = tokio::task::spawn_blocking(move || {
            let mut read = Vec::new();
            io::Read::read_to_end(&mut std::fs::File::from(stdin), &mut read).unwrap();
            read.len()
        });
        input.write(&data).await.unwrap().unwrap();
        input.close().await;
        assert_eq!(reader.await.unwrap(), data.len());
        assert!(input.write(b"x").await.is_none());
    }

    #[tokio::test]
    async fn writing_to_a_process_that_reads_no_more_is_an_error() {
        let Pipes { theirs, ours: [to_stdin, ..] } = Pipes::new(None).unwrap();
        let input = Input::new(register(to_stdin).unwrap(), false);
        drop(theirs);
        assert_eq!(input.write(b"x").await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
