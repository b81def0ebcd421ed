//! Signals of the caller's: before the container runs they end the run, then they are the container's.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is handed on, by number.
const FORWARDED: [i32; 6] =
    [libc_sig::HUP, libc_sig::INT, libc_sig::QUIT, libc_sig::USR1, libc_sig::USR2, libc_sig::TERM];

/// Numbers of signal(7) on x86.
mod libc_sig {
    pub(super) const HUP: i32 = 1;
    pub(super) const INT: i32 = 2;
    pub(super) const QUIT: i32 = 3;
    pub(super) const USR1: i32 = 10;
    pub(super) const USR2: i32 = 12;
    pub(super) const TERM: i32 = 15;
}

/// The signals that a run listens to.
#[derive(Debug)]
pub struct Signals {
    forwarded: Vec<(i32, Signal)>,
    resized: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub fn listen() -> Result<Signals> {
        let mut forwarded = Vec::new();
        for number in FORWARDED {
            forwarded.push((number, signal(SignalKind::from_raw(number)).context("listen for signals")?));
        }
        Ok(Signals { forwarded, resized: signal(SignalKind::window_change()).context("listen for signals")? })
    }

    /// The next one that is to be handed on.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, signal) in &mut self.forwarded {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// The next signal, or the next change of the terminal's size.
    pub async fn next_or_resize(&mut self) -> Option<i32> {
        let Signals { forwarded, resized } = self;
        std::future::poll_fn(|cx| {
            for (number, signal) in forwarded.iter_mut() {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(Some(*number));
                }
            }
            resized.poll_recv(cx).map(|_| None)
        })
        .await
    }

    /// The next one that asks to stop, while nothing runs yet that could take it.
    pub async fn stop(&mut self) -> i32 {
        loop {
            let number = self.next().await;
            if matches!(number, libc_sig::HUP | libc_sig::INT | libc_sig::QUIT | libc_sig::TERM) {
                return number;
            }
        }
    }
}
