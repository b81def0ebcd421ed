//! Process 1: brings up what every process needs, starts the agent, and from then on only waits.
//!
//! The agent is a child that holds its own children by pidfd, and it is no subreaper: whatever loses its parent comes here and is
//! reaped here, so neither a zombie stays nor a status is stolen. When the agent ends, for whatever reason, so does the guest.

mod mounts;
mod root;
mod usr;

use std::ffi::OsStr;
use std::fs;

use nacre_sys::fork::{Fork, fork_alone};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use rustix::system::RebootCommand;

pub use usr::mount_usr;

use crate::last_words;

/// How readily the kernel kills the agent for want of memory: what Kubernetes gives its own.
const SCORE: &str = "-997";

/// Bring up the guest. Returns in the child, which is the agent, with what went wrong on the way; process 1 itself never returns.
pub fn run() -> Vec<String> {
    let mut complaints = Vec::new();
    root::make_pivotable().unwrap_or_else(|e| complaints.push(e.to_string()));
    mounts::early(&mut complaints);
    mounts::console().unwrap_or_else(|e| complaints.push(format!("open /dev/console: {e}")));
    mounts::cgroups(&mut complaints);
    set_hostname().unwrap_or_else(|e| complaints.push(format!("set the host name: {e}")));
    // The agent's as well, which ends the guest when it ends. What it starts has scores of its own.
    fs::write("/proc/self/oom_score_adj", SCORE).unwrap_or_else(|e| complaints.push(format!("set the OOM score: {e}")));
    if let Err(error) = rustix::process::setsid() {
        complaints.push(format!("setsid: {error}"));
    }
    let said = last_words::in_memory();
    let said = said.inspect_err(|e| complaints.push(format!("have the last words kept: {e}"))).ok();
    match fork_alone() {
        Ok(Fork::Child) => {
            if let Some(Err(error)) = said.map(last_words::keep) {
                complaints.push(format!("have the last words kept: {error}"));
            }
            complaints
        }
        Ok(Fork::Parent(agent)) => {
            let end = reap_until_end_of(agent);
            let words = said.and_then(|said| last_words::read(&said).ok()).unwrap_or_default();
            power_off(&with_last_words(end, &words))
        }
        Err(error) => power_off(&format!("the agent was not started: fork: {error}")),
    }
}

/// Reap whoever ends. Returns how the agent did.
fn reap_until_end_of(agent: i32) -> String {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == agent => return describe(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return format!("the agent is gone: wait: {error}"),
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => "the agent has finished".into(),
        (Some(code), _) => format!("the agent failed with exit code {code}"),
        (None, signal) => format!("the agent was killed by signal {}", signal.unwrap_or_default()),
    }
}

/// One line each, for so they go to the kernel's log.
fn with_last_words(end: String, words: &str) -> String {
    words.lines().fold(end, |text, line| format!("{text}\nlast words: {line}"))
}

/// End the guest: no process writes any more, what was written is on its disks, and the machine stops.
fn power_off(words: &str) -> ! {
    // The kernel's log reaches the console whatever has become of our descriptors, and at this level also when it is told to be quiet.
    for line in words.lines().chain(["powering off"]) {
        let _ = fs::write("/dev/kmsg", format!("<3>nacre: {line}\n"));
    }
    if let Some(everyone) = Pid::from_raw(-1) {
        let _ = kill_process(everyone, Signal::KILL); // ESRCH when nobody is left
    }
    while wait(WaitOptions::empty()).is_ok() {}
    rustix::fs::sync();
    let _ = rustix::system::reboot(command());
    loop {
        // Refused only where this is no machine of ours: then its owner stops it.
        std::thread::park();
    }
}

/// Without ACPI the kernel can't switch a virtual machine off and would halt for ever; a restart ends it under the VMMs' `-no-reboot`.
fn command() -> RebootCommand {
    if fs::exists("/sys/firmware/acpi").unwrap_or(false) { RebootCommand::PowerOff } else { RebootCommand::Restart }
}

fn set_hostname() -> rustix::io::Result<()> {
    match fs::read_to_string("/etc/hostname") {
        Ok(name) if !name.trim().is_empty() => rustix::system::sethostname(OsStr::new(name.trim()).as_encoded_bytes()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_follow_how_the_agent_ended() {
        assert_eq!(with_last_words("the agent has finished".into(), ""), "the agent has finished");
        let text =
            with_last_words("the agent was killed by signal 6".into(), "panicked at a.rs:1:2: b\nended by SIGABRT\n");
        let lines =
            ["the agent was killed by signal 6", "last words: panicked at a.rs:1:2: b", "last words: ended by SIGABRT"];
        assert_eq!(text, lines.join("\n"));
    }
}
