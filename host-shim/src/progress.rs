//! One line that says how far a run is: redrawn on a terminal, written at each change elsewhere, on standard error.

use std::io::{IsTerminal as _, Write as _};

use nacre_protocol::nacre::PullStatus;

use crate::size::Size;

/// The width of the bar.
const BAR: usize = 24;

/// Where progress is shown.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    terminal: bool,
    drawn: bool,
}

impl Progress {
    /// On standard error, unless nothing is to be said.
    pub fn new(quiet: bool) -> Progress {
        Progress { shown: !quiet, terminal: std::io::stderr().is_terminal(), drawn: false }
    }

    /// A stage is done, or begins.
    pub fn say(&mut self, text: &str) {
        if self.shown {
            self.clear();
            eprintln!("nacre: {text}");
        }
    }

    /// What goes on just now; replaced by the next. Only on a terminal.
    pub fn now(&mut self, text: &str) {
        if self.shown && self.terminal {
            eprint!("\r\x1b[Knacre: {text}");
            let _ = std::io::stderr().flush(); // a terminal that is gone shows nothing
            self.drawn = true;
        }
    }

    /// How far a pull is.
    pub fn pull(&mut self, status: &PullStatus) {
        self.now(&pull_line(status));
    }

    /// Takes the passing line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            eprint!("\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn pull_line(status: &PullStatus) -> String {
    if status.layers_total == 0 {
        return "pull: asks the registry".into();
    }
    let (done, total) = (status.bytes_done.min(status.bytes_total), status.bytes_total.max(1));
    let filled = usize::try_from(u128::from(done) * BAR as u128 / u128::from(total)).unwrap_or(0).min(BAR);
    let size = |bytes: u64| bytes.to_string().parse::<Size>().map_or_else(|_| "0 B".into(), |size| size.to_string());
    format!(
        "pull: [{}{}] {} of {}, layer {} of {}",
        "#".repeat(filled),
        " ".repeat(BAR - filled),
        size(done),
        size(total),
        status.layers_done,
        status.layers_total
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_shown_by_bytes_and_layers() {
        let status = PullStatus {
            layers_total: 3,
            layers_done: 1,
            bytes_total: 4 << 20,
            bytes_done: 2 << 20,
            ..PullStatus::new()
        };
        let bar = format!("{}{}", "#".repeat(12), " ".repeat(12));
        assert_eq!(pull_line(&status), format!("pull: [{bar}] 2.0 MiB of 4.0 MiB, layer 1 of 3"));
        // A guest is not trusted to count.
        let odd = PullStatus { layers_total: 1, bytes_total: 0, bytes_done: u64::MAX, ..PullStatus::new() };
        assert!(pull_line(&odd).starts_with("pull: ["));
    }
}
