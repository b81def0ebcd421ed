//! A process's streams on the host: FIFOs of containerd's, or files (containerd, `cio`).

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::{Error, Result};
use crate::guest::{Guest, ProcessId};

/// The most that is read of an input at once.
const READ: usize = 64 << 10;

/// How long output may still come after the end of a process: a child of it may hold the stream open, or nobody may read the FIFO.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Where a process's streams are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Its input; "" for none.
    pub stdin: String,
    /// Its output; "" to throw it away.
    pub stdout: String,
    /// Its errors, which a terminal does not tell from output.
    pub stderr: String,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// The streams, open. They are held from before the process begins, so that whoever reads sees no end before there is one.
#[derive(Debug)]
pub struct Open {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    terminal: bool,
}

#[derive(Debug)]
struct Input {
    from: pipe::Receiver,
    /// As long as we hold it, an end of the input is none: containerd says when it is closed.
    held: pipe::Sender,
}

#[derive(Debug)]
enum Output {
    Fifo(pipe::Sender),
    File(tokio::fs::File),
}

/// The streams of a process that runs.
#[derive(Debug, Default)]
pub struct Relays {
    held: Mutex<Option<pipe::Sender>>,
    input: Mutex<Option<JoinHandle<()>>>,
    outputs: Mutex<Vec<JoinHandle<()>>>,
}

impl Stdio {
    /// Opens them.
    ///
    /// # Errors
    /// A stream that is neither a FIFO nor a file, or is not there.
    pub fn open(&self) -> Result<Open> {
        let stderr = if self.terminal { "" } else { &self.stderr };
        Ok(Open {
            stdin: path(&self.stdin)?.map(input).transpose()?,
            stdout: path(&self.stdout)?.map(output).transpose()?,
            stderr: path(stderr)?.map(output).transpose()?,
            terminal: self.terminal,
        })
    }
}

enum Where {
    Fifo(PathBuf),
    File(PathBuf),
}

fn path(uri: &str) -> Result<Option<Where>> {
    match uri.split_once("://") {
        _ if uri.is_empty() => Ok(None),
        None => Ok(Some(Where::Fifo(uri.into()))),
        Some(("fifo", path)) => Ok(Some(Where::Fifo(path.into()))),
        Some(("file", path)) => Ok(Some(Where::File(path.into()))),
        Some((scheme, _)) => {
            let scheme: String = scheme.chars().take(16).collect();
            Err(Error::Unimplemented(format!("stdio: {scheme}://: this shim knows FIFOs and files")))
        }
    }
}

fn input(from: Where) -> Result<Input> {
    let (Where::Fifo(path) | Where::File(path)) = from;
    let open = || {
        let from = pipe::OpenOptions::new().open_receiver(&path)?;
        Ok(Input { from, held: pipe::OpenOptions::new().open_sender(&path)? })
    };
    open().map_err(|error: io::Error| Error::Failed(format!("open {} for input: {error}", path.display())))
}

fn output(to: Where) -> Result<Output> {
    let (path, opened) = match to {
        // With a reading end of our own: then a reader that comes late, or again, misses nothing, and one that is gone is no error.
        Where::Fifo(path) => {
            let fifo = pipe::OpenOptions::new().read_write(true).open_sender(&path);
            (path, fifo.map(Output::Fifo))
        }
        Where::File(path) => {
            let file = OpenOptions::new().append(true).create(true).open(&path);
            (path, file.map(|file| Output::File(tokio::fs::File::from_std(file))))
        }
    };
    opened.map_err(|error| Error::Failed(format!("open {} for output: {error}", path.display())))
}

impl Output {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Output::Fifo(to) => to.write_all(bytes).await,
            Output::File(to) => {
                to.write_all(bytes).await?;
                to.flush().await
            }
        }
    }
}

impl Open {
    /// Joins them to the process `id`, which has begun.
    pub fn relay(self, guest: &Guest, id: &ProcessId, relays: &Relays) {
        let mut outputs = vec![tokio::spawn(copy_out(guest.clone(), id.clone(), false, self.stdout))];
        if !self.terminal {
            outputs.push(tokio::spawn(copy_out(guest.clone(), id.clone(), true, self.stderr)));
        }
        lock(&relays.outputs).extend(outputs);
        let input = match self.stdin {
            Some(Input { from, held }) => {
                *lock(&relays.held) = Some(held);
                tokio::spawn(copy_in(guest.clone(), id.clone(), from))
            }
            // A terminal's end is its input's, too.
            None if self.terminal => return,
            None => {
                let (guest, id) = (guest.clone(), id.clone());
                tokio::spawn(async move { drop(guest.close_stdin(&id).await) }) // it may have ended
            }
        };
        *lock(&relays.input) = Some(input);
    }
}

impl Relays {
    /// There is no more input than what is in the FIFO.
    pub fn close_input(&self) {
        lock(&self.held).take();
    }

    /// Waits for the output of a process that has ended, and lets go of the streams.
    pub async fn finish(&self) {
        if let Some(input) = lock(&self.input).take() {
            input.abort();
        }
        self.close_input();
        let outputs = std::mem::take(&mut *lock(&self.outputs));
        let aborts: Vec<_> = outputs.iter().map(JoinHandle::abort_handle).collect();
        let all = async {
            for output in outputs {
                let _ = output.await; // one that panicked has no more to write
            }
        };
        if timeout(LAST_WORDS, all).await.is_err() {
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies an output to its end, also where nobody wants it: the process must not stop for that.
async fn copy_out(guest: Guest, id: ProcessId, stderr: bool, mut to: Option<Output>) {
    while let Ok(bytes) = guest.read(&id, stderr).await {
        if bytes.is_empty() {
            return;
        }
        if let Some(open) = &mut to
            && open.write(&bytes).await.is_err()
        {
            to = None;
        }
    }
}

async fn copy_in(guest: Guest, id: ProcessId, mut from: pipe::Receiver) {
    let mut buffer = vec![0; READ];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if guest.write(&id, buffer[..n].to_vec()).await.is_err() {
                    return; // it no longer reads
                }
            }
        }
    }
    let _ = guest.close_stdin(&id).await; // it may have ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fifos_and_files_are_streams() {
        let stdio = |stdout: &str| Stdio { stdout: stdout.into(), ..Stdio::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        assert!(matches!(stdio("binary:///bin/x").open(), Err(Error::Unimplemented(_))));
        assert!(matches!(stdio("/nowhere/x").open(), Err(Error::Failed(_))));
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        assert!(stdio(plain.to_str().unwrap()).open().is_err(), "a file is no FIFO");
        assert!(stdio(&format!("file://{}", plain.display())).open().is_ok());
        assert!(Stdio::default().open().is_ok());
    }
}
