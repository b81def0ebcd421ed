//! A process that keeps a PID namespace: its first, which waits for the orphans of the others (pid_namespaces(7)).

// UNSAFETY: what runs in the child makes async-signal-safe calls only.
#![expect(unsafe_code, reason = "a child of a process with threads has no safe form")]

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::clone::{Cloned, clone3};
use crate::pidfd;

/// A PID namespace's first process. Dropping it ends it, and with it all that are in the namespace.
#[derive(Debug)]
pub struct Reaper {
    pid: i32,
    pidfd: OwnedFd,
}

impl Reaper {
    /// Begins a PID namespace.
    ///
    /// # Errors
    /// Those of clone3(2).
    pub fn spawn() -> io::Result<Reaper> {
        // SAFETY: `reap` makes system calls on its own stack, and nothing else.
        let Cloned { pid, pidfd } = unsafe { clone3(libc::CLONE_NEWPID as u64, None, reap) }?;
        Ok(Reaper { pid, pidfd })
    }

    /// Its number here.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL); // it may have been killed
        // SAFETY: no status is asked for; the child is ours and nobody else waits for it.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// Waits for orphans for ever. Those who share the namespace must reach neither the descriptors nor the memory of whom this is a copy.
fn reap() -> i32 {
    // SAFETY: async-signal-safe system calls; the sets are on this stack.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        libc::prctl(libc::PR_SET_NAME, c"pause".as_ptr());
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        loop {
            libc::sigwaitinfo(&raw const set, std::ptr::null_mut());
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    #[test]
    fn others_join_its_namespace_and_end_with_it() {
        let reaper = match Reaper::spawn() {
            Ok(reaper) => reaper,
            Err(error) => return println!("skipped: no PID namespaces here: {error}"),
        };
        let pid = reaper.pid().to_string();
        // An orphan: its parent has ended, and the reaper is to wait for it.
        let script = "sleep 0.05 >/dev/null 2>&1 & sleep 1000 >/dev/null 2>&1 & echo $!";
        let output = Command::new("nsenter").args(["--target", &pid, "--pid", "sh", "-c", script]).output().unwrap();
        let inner = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && inner.trim().parse::<u32>().unwrap() > 1, "{inner}");
        let sleeps = || {
            let children = format!("/proc/{pid}/task/{pid}/children");
            std::fs::read_to_string(children)
                .unwrap_or_default()
                .split_whitespace()
                .map(String::from)
                .collect::<Vec<_>>()
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while sleeps().len() != 1 {
            assert!(std::time::Instant::now() < deadline, "the orphan that ended is not waited for: {:?}", sleeps());
            std::thread::yield_now();
        }
        let left = sleeps().remove(0);
        drop(reaper);
        assert!(!Path::new("/proc").join(&left).join("ns/pid").exists(), "it ends with its namespace");
    }
}
