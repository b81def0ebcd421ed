//! Waiting for a program in front of the caller: signals go to it, a terminal's bytes both ways, and its end comes back as a code.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nacre_jail::Process;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::console::{self, Raw};
use super::signals::{Signals, WINDOW_CHANGED};

/// How much is copied at a time.
const CHUNK: usize = 16 << 10;

/// Waits for `process`; `master` is its terminal, which is shown on the caller's. Returns the code that a shell would.
pub fn wait(process: &Process, master: Option<OwnedFd>, mut signals: Signals) -> Result<u8> {
    let raw = master.as_ref().map(|_| Raw::enter()).transpose()?;
    master.iter().for_each(console::resize);
    let (mut shown, mut typing) = (master.is_some(), master.is_some());
    loop {
        let (stdin, pidfd) = (std::io::stdin(), process.pidfd());
        let mut fds = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        // The terminal's last words come before the end of the process counts.
        match master.as_ref().filter(|_| shown) {
            Some(master) => fds.push(PollFd::new(master, PollFlags::IN)),
            None => fds.push(PollFd::new(&pidfd, PollFlags::IN)),
        }
        if typing {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the process"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready.first() == Some(&true) {
            forward(&mut signals, process, master.as_ref());
        }
        if let Some(master) = &master {
            if shown && ready.get(1) == Some(&true) {
                shown = copy(master, rustix::stdio::stdout());
            }
            if typing && ready.get(2) == Some(&true) {
                typing = copy(stdin.as_fd(), master);
            }
        }
        if !shown && let Some(status) = process.try_wait()? {
            drop(raw);
            return Ok(u8::try_from(status.code()).unwrap_or(u8::MAX));
        }
    }
}

fn forward(signals: &mut Signals, process: &Process, master: Option<&OwnedFd>) {
    for signal in signals.pending() {
        match master {
            Some(master) if signal == WINDOW_CHANGED => console::resize(master),
            _ => {
                let _ = process.signal(signal); // it may just have ended
            }
        }
    }
}

/// One chunk; false at the end of either side (a terminal whose last user is gone answers EIO).
fn copy(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd) -> bool {
    let mut buffer = [0; CHUNK];
    let Ok(length @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(&from, &mut buffer)) else { return false };
    let mut rest = buffer.get(..length).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::write(&to, rest)) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(_) => return false,
        }
    }
    true
}
