//! Signals: by name, and those of the caller's that go on to a program in the foreground.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Names of signal(7), in the order of x86's numbers from 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The number of the signal `text`: a number, or a name with or without SIG, in any case; real-time ones as RTMIN+n.
pub fn parse(text: &str) -> Result<i32> {
    let unknown = || format!("{text:?} is no signal");
    if let Ok(number) = text.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number).with_context(unknown); // 0 asks whether one could be sent
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return Ok(index as i32 + 1);
    }
    let real_time = |sign: char, base: i32| {
        let (edge, offset) = name.split_once(sign).unwrap_or((name, "0"));
        let offset: i32 = offset.parse().ok()?;
        let number = if sign == '+' { base + offset } else { base - offset };
        (edge == if sign == '+' { "RTMIN" } else { "RTMAX" } && (34..=64).contains(&number)).then_some(number)
    };
    real_time('+', 34).or_else(|| real_time('-', 64)).with_context(unknown)
}

/// What a program in the foreground is to hear of.
const FORWARDED: [Signal; 12] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCONT,
    Signal::SIGURG,
    Signal::SIGXCPU,
    Signal::SIGWINCH,
    Signal::SIGIO,
];

/// The window of the caller's terminal has changed.
pub const WINDOW_CHANGED: i32 = Signal::SIGWINCH as i32;

/// The caller's signals, from its creation on. They are blocked, and read from a descriptor.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Listens from now on.
    pub fn listen() -> Result<Signals> {
        let set: SigSet = FORWARDED.into_iter().collect();
        set.thread_block().context("block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        fd.map(Signals).context("listen for signals")
    }

    /// Readable when there is one.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Those that came.
    pub fn pending(&mut self) -> Vec<i32> {
        std::iter::from_fn(|| self.0.read_signal().ok()?).map(|signal| signal.ssi_signo as i32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("0", 0),
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sighup", 1),
            ("SYS", 31),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-2", 62),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for wrong in ["", "65", "-9", "SIG", "KILLL", "RTMIN+40", "RTMAX+1"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
