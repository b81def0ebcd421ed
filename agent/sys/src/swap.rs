//! swapon(2), which neither nix nor rustix has.

// UNSAFETY: the raw system call takes its path by address.
#![expect(unsafe_code, reason = "swapon has no safe form")]

use std::ffi::CStr;
use std::io;

/// swapon(2): uses the device or file `path`, which must carry a swap signature, at the kernel's choice of priority.
///
/// # Errors
/// Those of swapon(2).
pub fn swapon(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` ends with a zero and outlives the call.
    let result = unsafe { libc::swapon(path.as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
