//! A process's output to where it belongs: our own streams, and the pod's log.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::guest::{Guest, ProcessId};

/// The most that is kept of a container's output.
const MAX_LOG: u64 = 64 << 20;

/// The pod's log: both streams as they came.
#[derive(Debug, Clone)]
pub struct Log(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    file: File,
    room: u64,
}

impl Log {
    /// Makes the log in a pod's directory.
    ///
    /// # Errors
    /// A file that can't be made.
    pub fn create(dir: &Path) -> Result<Log> {
        let file = OpenOptions::new().append(true).create_new(true).open(path(dir)).context("make the pod's log")?;
        Ok(Log(Arc::new(Mutex::new(Kept { file, room: MAX_LOG }))))
    }

    fn write(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = bytes.len().min(usize::try_from(kept.room).unwrap_or(usize::MAX));
        kept.room -= fits as u64;
        let _ = kept.file.write_all(&bytes[..fits]); // a full disk must not stop the container
    }
}

/// Where a pod's log lies.
pub fn path(dir: &Path) -> std::path::PathBuf {
    dir.join("log")
}

/// Copies one stream of a process to its end. A reader of ours that is gone does not end the process: what it writes is still logged.
pub async fn copy_out(guest: Guest, id: ProcessId, stderr: bool, mut to: impl AsyncWrite + Unpin, log: Option<Log>) {
    let mut open = true;
    while let Ok(bytes) = guest.read(&id, stderr).await {
        if bytes.is_empty() {
            return;
        }
        if let Some(log) = &log {
            log.write(&bytes);
        }
        open = open && to.write_all(&bytes).await.is_ok() && to.flush().await.is_ok();
    }
}

/// Copies our standard input to a process's. It ends with our input, or with the process.
pub async fn copy_in(guest: Guest, id: ProcessId) {
    use tokio::io::AsyncReadExt as _;
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; 16 << 10];
    loop {
        match input.read(&mut buffer).await {
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
