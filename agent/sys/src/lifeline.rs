//! Children that end with their parent, however it ends.
//!
//! The kernel ties the signal to the *thread* that spawned the child: spawn from a thread that lives as long as the
//! child is to live.

// UNSAFETY: code between fork and exec is unsafe by signature.
#![expect(unsafe_code, reason = "pre_exec has no safe form")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

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
