//! Starting a worker and hearing from it.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::{Event, Image, Kind, Request};

/// The longest line of a worker: a configuration is at most 8 MiB, escaped.
const MAX_LINE: u64 = 64 << 20;

/// How much of a worker's last words is kept.
const MAX_WORDS: u64 = 4 << 10;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The worker gave up.
    #[error("{message}")]
    Failed {
        /// Whose fault it was.
        kind: Kind,
        /// What failed, and what to do.
        message: String,
    },
    /// The worker could not be started or heard.
    #[error("{act}: {source}")]
    Io {
        /// What was to be done.
        act: &'static str,
        /// Why it was not.
        source: std::io::Error,
    },
    /// The worker ended without a result.
    #[error("the image puller ended without a result ({status}){words}")]
    Died {
        /// How it ended.
        status: String,
        /// Its last words.
        words: String,
    },
}

impl Error {
    /// Whose fault it was.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Failed { kind, .. } => *kind,
            Error::Io { .. } | Error::Died { .. } => Kind::Internal,
        }
    }
}

/// Has a worker, started by `command`, pull what `request` says; `on_event` hears how far it is. Dropping the future ends the worker.
///
/// # Errors
/// Why there is no image.
pub async fn pull(mut command: Command, request: Request, mut on_event: impl FnMut(&Event)) -> Result<Image, Error> {
    let io = |act| move |source| Error::Io { act, source };
    let text = serde_json::to_vec(&request).map_err(|error| io("write the request")(error.into()))?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(io("start the image puller"))?;
    let (Some(mut stdin), Some(stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io("start the image puller")(std::io::ErrorKind::BrokenPipe.into()));
    };
    // Its last words must not fill the pipe while we listen to its events.
    let words = tokio::spawn(async move {
        let mut words = Vec::new();
        let _ = (&mut stderr).take(MAX_WORDS).read_to_end(&mut words).await; // what came, came
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        String::from_utf8_lossy(&words).trim().to_string()
    });
    // A worker that ends before it has read all says why itself.
    let _ = stdin.write_all(&text).await;
    drop(stdin);
    let mut lines = BufReader::new(stdout);
    let result = loop {
        let mut line = Vec::new();
        let n = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await.map_err(io("hear the image puller"))?;
        if n == 0 {
            break None;
        }
        let event: Event =
            serde_json::from_slice(&line).map_err(|error| io("understand the image puller")(error.into()))?;
        on_event(&event);
        match event {
            Event::Done(image) => break Some(Ok(*image)),
            Event::Failed { kind, message } => break Some(Err(Error::Failed { kind, message })),
            _ => {}
        }
    };
    let status = child.wait().await.map_err(io("wait for the image puller"))?;
    match result {
        Some(result) => result,
        None => {
            let words = words.await.unwrap_or_default();
            let words = if words.is_empty() { words } else { format!(": {words}") };
            Err(Error::Died { status: status.to_string(), words })
        }
    }
}
