//! Children that begin in another cgroup.

// UNSAFETY: code between fork and exec is unsafe by signature.
#![expect(unsafe_code, reason = "pre_exec has no safe form")]

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Let what `command` starts enter the cgroup whose `cgroup.procs` is open for writing, before it runs a program.
pub fn join(command: &mut Command, procs: File) -> &mut Command {
    let enter = move || match (&procs).write(b"0") {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))),
    };
    // SAFETY: `enter` makes one system call on memory that is constant, allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) }
}
