//! The log port: whoever connects gets the log from then on, line by line.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Arc, SystemTime, missed, subscribe};
use crate::listener::Listener;

/// How many may read. One more takes the place of the first, who may be gone without a word.
const MAX_READERS: usize = 8;

/// How long the readers may take for the last lines.
const LAST_LINES: Duration = Duration::from_millis(100);

/// One for each reader there is.
static READING: Semaphore = Semaphore::const_new(MAX_READERS);

/// Closed when there will be no more lines.
static LINES: Semaphore = Semaphore::const_new(0);

/// Serve whoever connects, for as long as the agent runs.
pub async fn serve(listener: Listener) {
    let mut readers: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let caller = listener.next().await;
        readers.retain(|reader| !reader.is_finished());
        if readers.len() == MAX_READERS
            && let Some(first) = readers.pop_front()
        {
            first.abort();
        }
        let lines = subscribe();
        readers.push_back(tokio::spawn(async {
            let _one = READING.acquire().await;
            tell(caller.stream, lines).await;
        }));
    }
}

/// The agent ends: have the readers get what was logged until now.
pub async fn end() {
    LINES.close();
    let all = u32::try_from(MAX_READERS).unwrap_or(u32::MAX);
    let _ = timeout(LAST_LINES, READING.acquire_many(all)).await; // who is too slow misses them
}

/// Tell `reader` all `lines`. One that is too slow misses some, and is told how many.
async fn tell(mut reader: impl AsyncWrite + Unpin, mut lines: Receiver<Arc<str>>) {
    loop {
        let line = tokio::select! {
            biased; // what was logged before the end comes before it
            line = lines.recv() => line,
            _ = LINES.acquire() => return,
        };
        let line = match line {
            Ok(line) => line,
            Err(RecvError::Lagged(count)) => missed(count, SystemTime::now()).into(),
            Err(RecvError::Closed) => return,
        };
        if reader.write_all(line.as_bytes()).await.is_err() {
            return; // it has hung up
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    use tokio::net::UnixStream;
    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_told_how_many_lines_it_has_missed() {
        let (sender, lines) = broadcast::channel::<Arc<str>>(4);
        let (agent, host) = UnixStream::pair().unwrap();
        for number in 0..10 {
            sender.send(format!("{number}\n").into()).unwrap();
        }
        tokio::spawn(tell(agent, lines));
        drop(sender);
        let mut read = BufReader::new(host).lines();
        let first = read.next_line().await.unwrap().unwrap();
        let first: serde_json::Value = serde_json::from_str(&first).unwrap();
        assert_eq!((&first["missing"], &first["level"]), (&"6".into(), &"WARN".into()));
        for number in 6..10 {
            assert_eq!(read.next_line().await.unwrap().unwrap(), number.to_string());
        }
        assert!(read.next_line().await.unwrap().is_none());
    }
}
