//! The caller's terminal: raw while a container has it, and as it was whatever happens.

use std::io::{IsTerminal as _, stdin, stdout};

use anyhow::{Context as _, Result, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal in raw mode. Dropping it restores it.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// Makes standard input raw.
    ///
    /// # Errors
    /// Standard input that is no terminal.
    pub fn enter() -> Result<Raw> {
        if !stdin().is_terminal() {
            bail!("-t wants a terminal, and standard input is none: leave -t out");
        }
        let before = tcgetattr(stdin()).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("set the terminal's mode")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0); // a terminal that is gone needs no mode
    }
}

/// Columns and rows, where there is a terminal.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
