//! Children that have a terminal to themselves.

// UNSAFETY: code between fork and exec is unsafe by signature.
#![expect(unsafe_code, reason = "pre_exec has no safe form")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Let `command` lead a session whose terminal is its standard input, if that is one which nobody else has.
pub fn lead_session(command: &mut Command) -> &mut Command {
    let lead = || {
        // SAFETY: both calls are async-signal-safe and touch no memory of ours.
        unsafe {
            if libc::setsid() == -1 {
                return Err(io::Error::last_os_error());
            }
            // Without a terminal of its own a shell has no job control, and is one all the same.
            libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0);
        }
        Ok(())
    };
    // SAFETY: `lead` allocates nothing and takes no lock.
    unsafe { command.pre_exec(lead) }
}
