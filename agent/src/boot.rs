//! When the guest's stages were reached, on the clock that starts with the kernel.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nacre_protocol::nacre::BootTimes;
use rustix::time::{ClockId, clock_gettime};

/// The stages, each of which is set once and read at any time, and what came before.
#[derive(Debug)]
pub struct Boot {
    init: u64,
    listening: AtomicU64,
    ready: AtomicU64,
    /// How many agents have ended out of order before this one.
    pub restarts: u32,
    /// What the last of them said.
    pub last_words: String,
}

impl Boot {
    /// The agent's first instruction is now.
    pub fn begin() -> Boot {
        let (listening, ready) = (AtomicU64::new(0), AtomicU64::new(0));
        Boot { init: now(), listening, ready, restarts: 0, last_words: String::new() }
    }

    /// The socket accepts connections from now on.
    pub fn listening(&self) {
        self.listening.store(now(), Relaxed);
    }

    /// Initialisation is done now.
    pub fn ready(&self) {
        self.ready.store(now(), Relaxed);
    }

    /// The stages so far; those to come are 0.
    pub fn times(&self) -> BootTimes {
        BootTimes {
            init_ns: self.init,
            listening_ns: self.listening.load(Relaxed),
            ready_ns: self.ready.load(Relaxed),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            restarts: self.restarts,
            last_words: self.last_words.clone(),
            ..BootTimes::new()
        }
    }
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
