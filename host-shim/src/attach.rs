//! Joins our terminal or streams to a process in the guest until it ends.

use std::time::Duration;

use anyhow::Result;
use tokio::time::timeout;

use crate::guest::{Guest, ProcessId};
use crate::signals::Signals;
use crate::streams::{self, Log};
use crate::terminal::{self, Raw};

/// How long output may still come after the end of a process: a child of it may hold the stream open.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// SIGINT, and how often it may be sent in vain: the first process of a container ignores it unless it says otherwise.
const INTERRUPT: i32 = 2;
const PATIENCE: u32 = 3;
const KILL: i32 = 9;

/// How a process is joined.
#[derive(Debug)]
pub struct Attachment {
    /// Hand on our standard input.
    pub interactive: bool,
    /// The process has a terminal.
    pub terminal: bool,
    /// Keep its output.
    pub log: Option<Log>,
}

/// Runs until the process has ended and its output is written. Returns its exit code.
///
/// # Errors
/// A guest that is gone.
pub async fn attach(guest: &Guest, id: &ProcessId, attachment: Attachment, signals: &mut Signals) -> Result<i32> {
    let Attachment { interactive, terminal, log } = attachment;
    let _raw = if terminal { Some(Raw::enter()?) } else { None };
    let stdout = tokio::spawn(streams::copy_out(guest.clone(), id.clone(), false, tokio::io::stdout(), log.clone()));
    let stderr =
        (!terminal).then(|| tokio::spawn(streams::copy_out(guest.clone(), id.clone(), true, tokio::io::stderr(), log)));
    if interactive {
        tokio::spawn(streams::copy_in(guest.clone(), id.clone()));
    } else if !terminal {
        let _ = guest.close_stdin(id).await; // it may have ended
    }
    let code = wait(guest, id, terminal, signals).await?;
    let drained = async {
        let _ = stdout.await; // a task that panicked has no more to write
        if let Some(stderr) = stderr {
            let _ = stderr.await;
        }
    };
    let _ = timeout(LAST_WORDS, drained).await;
    Ok(code)
}

async fn wait(guest: &Guest, id: &ProcessId, terminal: bool, signals: &mut Signals) -> Result<i32> {
    let ended = guest.wait(id);
    tokio::pin!(ended);
    let mut interrupts = 0;
    loop {
        tokio::select! {
            code = &mut ended => return code,
            signal = signals.next_or_resize() => match signal {
                Some(signal) => {
                    interrupts += u32::from(signal == INTERRUPT);
                    let signal = if interrupts >= PATIENCE { KILL } else { signal };
                    let _ = guest.signal(id, signal).await; // it may have just ended
                }
                None => if let Some(size) = terminal.then(terminal::size).flatten() {
                    let _ = guest.resize(id, size).await;
                },
            },
        }
    }
}
