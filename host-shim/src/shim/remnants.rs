//! What a pod has left is removed, in the reverse order of its making. Everything may be gone already.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::journal::{self, Held, Journal, Proc};
use crate::network;

/// How long a process may take to be gone once it was killed.
const GONE_WITHIN: Duration = Duration::from_secs(3);

/// Removes all that the pod `id` has, its shim included unless this is it. Nothing where there is none.
///
/// # Errors
/// What stands against it; the rest is gone, and it can be tried again.
pub fn clear(id: &str) -> Result<()> {
    let dir = journal::dir_of(id);
    let held = Journal::read(&dir)?.unwrap_or_default();
    if let Some(shim) = held.shim
        && shim.pid != std::process::id()
    {
        end(shim)?;
    }
    undo(&dir, &held)
}

/// Removes what is `held`, and the pod's directory.
///
/// # Errors
/// As [`clear`].
pub fn undo(dir: &Path, held: &Held) -> Result<()> {
    if let Some(netns) = &held.netns {
        network::detach(netns)?;
    }
    for group in &held.cgroups {
        empty(group)?;
        absent(fs::remove_dir(group)).with_context(|| format!("remove {}", group.display()))?;
    }
    absent(fs::remove_dir_all(dir)).with_context(|| format!("remove {}", dir.display()))
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Ends what is in a control group: the VM of a shim that was killed may be about to go.
fn empty(group: &Path) -> Result<()> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let text = match fs::read_to_string(group.join("cgroup.procs")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            text => text.with_context(|| format!("look into {}", group.display()))?,
        };
        let processes: Vec<_> = text.lines().filter_map(|line| Proc::of(line.parse().ok()?)).collect();
        if processes.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{}: processes don't end", group.display());
        for process in processes {
            end(process)?;
        }
    }
}

/// Kills a process, and waits until it is gone.
fn end(process: Proc) -> Result<()> {
    let act = || format!("end process {}", process.pid);
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) }; // it is gone
    // Only now is the number sure to be this process's.
    if !process.is_alive() {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error).with_context(act),
    }
    let limit = Timespec { tv_sec: GONE_WITHIN.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).with_context(act)?;
    Ok(())
}
