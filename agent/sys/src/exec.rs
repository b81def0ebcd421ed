//! Becoming another program: execve(2) from strings laid out beforehand, and the signal state it starts with.

// UNSAFETY: execve takes arrays of pointers; sigaction takes a struct by address.
#![expect(unsafe_code, reason = "execve and sigaction have no safe form that does not allocate")]

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::io;

/// A NULL-terminated array of C strings, ready for execve(2).
pub struct StringArray {
    strings: Vec<CString>,
    /// The last string, if it is to be filled in later. Its last byte stays 0.
    room: Option<Box<[u8]>>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// Lays out `strings`.
    pub fn new(strings: Vec<CString>) -> StringArray {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        StringArray { strings, room: None, pointers }
    }

    /// Lays out `strings` and one more, of at most `length` bytes, which is empty until it is filled in.
    pub fn with_room(strings: Vec<CString>, length: usize) -> StringArray {
        let room = vec![0; length + 1].into_boxed_slice();
        let all = strings.iter().map(|s| s.as_ptr()).chain([room.as_ptr().cast(), std::ptr::null()]);
        let pointers = all.collect();
        StringArray { strings, room: Some(room), pointers }
    }

    /// Fills in the string for which there is room, if there is: `parts`, one after the other, as far as they go in. Async-signal-safe.
    pub fn fill_in(&mut self, parts: &[&[u8]]) {
        let Some((_, room)) = self.room.as_deref_mut().and_then(<[u8]>::split_last_mut) else { return };
        let bytes = parts.iter().copied().flatten().chain(std::iter::repeat(&0));
        room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// The strings.
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

impl fmt::Debug for StringArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.strings.fmt(f)
    }
}

// SAFETY: the pointers lead into `strings` and `room`, whose heap memory moves with the value and is changed by who holds it alone.
unsafe impl Send for StringArray {}
// SAFETY: as for Send; there is no interior mutability.
unsafe impl Sync for StringArray {}

/// execve(2). Returns only when it fails. Async-signal-safe.
pub fn execve(path: &CStr, argv: &StringArray, envp: &StringArray) -> io::Error {
    // SAFETY: both arrays end in NULL and their strings live as long as the borrow.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Every signal back to its default action and none blocked, as a new program expects. Async-signal-safe.
pub fn reset_signals() {
    // SAFETY: zero is SIG_DFL with no flags and an empty mask; each call is given valid addresses. A signal that can't be changed
    // (SIGKILL, SIGSTOP) answers EINVAL, which changes nothing. SIGABRT takes a lock in glibc and Rust leaves it alone, so do we.
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        for signal in (1..=libc::SIGRTMAX()).filter(|signal| *signal != libc::SIGABRT) {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Has the signals that ask to end (SIGHUP, SIGINT, SIGQUIT, SIGTERM) end the calling process until it executes another program: the first process of
/// a PID namespace ignores those that it does not handle (pid_namespaces(7)). Async-signal-safe.
pub fn end_on_signals() {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: _exit is async-signal-safe and runs no handler of the parent's.
        unsafe { libc::_exit(128 + signal) }
    }
    // SAFETY: the structure is plain numbers, for which zero is no flags and an empty mask; its handler has the form that is wanted without SA_SIGINFO.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = end as *const () as libc::sighandler_t;
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// close_range(2): every descriptor from `first` on closes when a program is executed. Async-signal-safe.
///
/// # Errors
/// Those of close_range(2).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no memory is passed, and nothing is closed now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// close_range(2): closes the descriptors from `first` to `last`. Async-signal-safe.
///
/// # Errors
/// Those of close_range(2).
///
/// # Safety
/// Whoever owns one of them must not use it again: for the copy of a descriptor table that a child has.
pub unsafe fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: no memory is passed; the caller answers for the descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_ends_where_its_room_does() {
        let mut array = StringArray::with_room(vec![c"A=1".into()], 9);
        let last = |array: &StringArray| {
            let room = array.room.as_deref().unwrap();
            CStr::from_bytes_until_nul(room).unwrap().to_owned()
        };
        assert_eq!((array.pointers.len(), last(&array)), (3, c"".to_owned()));
        array.fill_in(&[b"HOME=", b"/root"]);
        assert_eq!(last(&array), c"HOME=/roo".to_owned());
        array.fill_in(&[b"HOME=", b"/"]);
        assert_eq!(last(&array), c"HOME=/".to_owned());
        StringArray::new(Vec::new()).fill_in(&[b"nowhere"]);
    }
}
