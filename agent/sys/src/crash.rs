//! A fatal signal, named in a file before it ends the process.

// UNSAFETY: sigaction takes structures by address, and a handler runs wherever the signal strikes.
#![expect(unsafe_code, reason = "signal handlers have no safe form")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

/// Signals that mean that the program is broken, and what is written of each.
const FATAL: [(libc::c_int, &[u8]); 6] = [
    (libc::SIGSEGV, b"ended by SIGSEGV\n"),
    (libc::SIGBUS, b"ended by SIGBUS\n"),
    (libc::SIGILL, b"ended by SIGILL\n"),
    (libc::SIGFPE, b"ended by SIGFPE\n"),
    (libc::SIGABRT, b"ended by SIGABRT\n"),
    (libc::SIGSYS, b"ended by SIGSYS\n"),
];

struct Record {
    file: OwnedFd,
    /// A copy of the process on its way to another program is not the process.
    owner: libc::pid_t,
    /// What was to be done before.
    previous: [libc::sigaction; FATAL.len()],
}

static RECORD: OnceLock<Record> = OnceLock::new();

/// Has a fatal signal write its name to `file` before it does what it did until now. Once only; a second file is ignored.
///
/// # Errors
/// Those of sigaction(2).
pub fn name_fatal_signals(file: OwnedFd) -> io::Result<()> {
    // SAFETY: plain numbers, for which zero is the default action.
    let mut previous: [libc::sigaction; FATAL.len()] = unsafe { std::mem::zeroed() };
    for ((signal, _), before) in FATAL.iter().zip(&mut previous) {
        // SAFETY: asks only; the structure is ours.
        check(unsafe { libc::sigaction(*signal, std::ptr::null(), before) })?;
    }
    // SAFETY: getpid touches no memory.
    let owner = unsafe { libc::getpid() };
    if RECORD.set(Record { file, owner, previous }).is_err() {
        return Ok(());
    }
    // SAFETY: plain numbers; the handler has the form that SA_SIGINFO wants. The standard library has given each thread a stack for handlers.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = strike as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        action
    };
    for (signal, _) in FATAL {
        // SAFETY: the structure outlives the call.
        check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    }
    Ok(())
}

extern "C" fn strike(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let Some(record) = RECORD.get() else { return };
    let known = FATAL.iter().zip(&record.previous).find(|((known, _), _)| *known == signal);
    let Some(((_, text), previous)) = known else { return };
    // SAFETY: getpid, write, sigaction, signal and raise are async-signal-safe; text and structure are statics, and the kernel's `info` is valid here.
    unsafe {
        if libc::getpid() == record.owner {
            libc::write(record.file.as_raw_fd(), text.as_ptr().cast(), text.len()); // nobody is left to hear that it failed
        }
        if (*info).si_code > 0 && signal != libc::SIGSYS {
            // What the program did happens again on return, and then as before.
            libc::sigaction(signal, previous, std::ptr::null_mut());
        } else {
            // A process has sent it, or a system call was refused: it would not come again.
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
