//! The guest's console: its last words, for the error of a guest that does not come up.
//!
//! A guest may write without end, so both what is kept in memory and what goes to the file are bounded.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What is kept in memory.
const KEPT: usize = 16 << 10;

/// What goes to the file.
const MAX_FILE: usize = 4 << 20;

/// The lines that an error shows.
const LAST_LINES: usize = 12;

/// The last of what a guest wrote.
#[derive(Debug, Clone, Default)]
pub struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    /// Reads `from` until it ends, into memory and the file at `path`.
    ///
    /// # Errors
    /// A file that can't be made.
    pub fn follow(from: impl AsyncRead + Unpin + Send + 'static, path: &Path) -> Result<Console> {
        let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let console = Console::default();
        let kept = console.clone();
        tokio::spawn(async move {
            let mut from = from;
            let mut buffer = vec![0; 4096];
            let mut room = MAX_FILE;
            while let Ok(n @ 1..) = from.read(&mut buffer).await {
                let bytes = &buffer[..n];
                let part = &bytes[..n.min(room)];
                room -= part.len();
                let _ = file.write_all(part); // a full disk must not stop the guest
                kept.keep(bytes);
            }
        });
        Ok(console)
    }

    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }

    /// The last lines, without control characters: a guest must not drive the reader's terminal.
    pub fn last_lines(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text: Vec<u8> = kept.iter().copied().collect();
        drop(kept);
        let text: String = String::from_utf8_lossy(&text).chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_few_and_harmless() {
        let console = Console::default();
        for i in 0..10_000 {
            console.keep(format!("line {i}\x1b[31m\r\n").as_bytes());
        }
        let text = console.last_lines();
        assert_eq!(text.lines().count(), LAST_LINES);
        assert!(text.ends_with("line 9999[31m") && !text.contains('\x1b'), "{text}");
    }
}
