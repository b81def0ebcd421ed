//! Children that end with their parent, however it ends, those that the kernel may kill before it, and those that inherit descriptors.
//!
//! The kernel ties the signal to the *thread* that spawned the child: spawn from a thread that lives as long as the
//! child is to live.

// UNSAFETY: code between fork and exec is unsafe by signature.
#![expect(unsafe_code, reason = "pre_exec has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::sync::Arc;

/// Let the kernel kill what `command` starts as soon as the thread that starts it is gone.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = process::id();
    let arm = move || {
        // SAFETY: both calls are async-signal-safe and touch no memory of ours.
        let (armed, current) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
        if armed != 0 {
            return Err(io::Error::last_os_error());
        }
        // A parent that died before the signal was armed would never trigger it.
        if u32::try_from(current) != Ok(parent) { Err(io::Error::from_raw_os_error(libc::ECHILD)) } else { Ok(()) }
    };
    // SAFETY: `arm` allocates nothing and takes no lock: io::Error::from_raw_os_error only stores the number.
    unsafe { command.pre_exec(arm) }
}

/// The kernel may kill what `command` starts for want of memory as readily as any process, whatever holds for its parent. Its user must be its
/// parent's: another's score is not its own to set.
pub fn be_killable(command: &mut Command) -> &mut Command {
    let raise = || {
        // SAFETY: open, write and close are async-signal-safe; path and text are statics, and the descriptor is ours.
        let written = unsafe {
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            let written = libc::write(file, c"0".as_ptr().cast(), 1);
            libc::close(file);
            written
        };
        if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: `raise` allocates nothing and takes no lock.
    unsafe { command.pre_exec(raise) }
}

/// What `command` starts has `descriptors`, too, by the same numbers.
pub fn inherit(command: &mut Command, descriptors: Vec<Arc<OwnedFd>>) -> &mut Command {
    let keep = move || {
        for descriptor in &descriptors {
            // SAFETY: fcntl is async-signal-safe, and the descriptor is open as long as the closure is.
            if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `keep` allocates nothing and takes no lock.
    unsafe { command.pre_exec(keep) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_the_descriptors_that_it_is_given() {
        let (reader, writer) = io::pipe().unwrap();
        let writer = Arc::new(OwnedFd::from(writer));
        let script = format!("echo here >&{}", writer.as_raw_fd());
        let mut command = Command::new("sh");
        let status = inherit(command.args(["-c", &script]), vec![writer.clone()]).status().unwrap();
        assert!(status.success());
        drop((command, writer));
        assert_eq!(io::read_to_string(reader).unwrap(), "here\n");
    }

    #[test]
    fn a_child_has_the_usual_score() {
        let output = be_killable(Command::new("cat").arg("/proc/self/oom_score_adj")).output().unwrap();
        assert_eq!(output.stdout, b"0\n");
    }
}
