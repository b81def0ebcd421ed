//! Loading a compiled seccomp filter.

// UNSAFETY: the raw system call takes the program by address.
#![expect(unsafe_code, reason = "seccomp has no safe form")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A BPF program for seccomp(2), checked for shape.
#[derive(Debug, Clone)]
pub struct Program(Vec<libc::sock_filter>);

/// The bytes of one BPF instruction.
const INSTRUCTION: usize = size_of::<libc::sock_filter>();

impl Program {
    /// Reads what libseccomp exports: instructions of 8 bytes each, in the machine's order.
    ///
    /// Returns `None` for a length that is no multiple of 8, is zero, or exceeds what the kernel takes (4096 instructions).
    pub fn from_bytes(bytes: &[u8]) -> Option<Program> {
        let instructions: Vec<_> = bytes
            .chunks_exact(INSTRUCTION)
            .filter_map(|c| <[u8; INSTRUCTION]>::try_from(c).ok())
            .map(|[c0, c1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
                code: u16::from_ne_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_ne_bytes([k0, k1, k2, k3]),
            })
            .collect();
        let whole = bytes.len().is_multiple_of(INSTRUCTION);
        (whole && !instructions.is_empty() && instructions.len() <= 4096).then_some(Program(instructions))
    }

    /// The form that [`Program::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = |i: &libc::sock_filter| {
            let ([c0, c1], [k0, k1, k2, k3]) = (i.code.to_ne_bytes(), i.k.to_ne_bytes());
            [c0, c1, i.jt, i.jf, k0, k1, k2, k3]
        };
        self.0.iter().flat_map(bytes).collect()
    }
}

/// seccomp(2) `SECCOMP_SET_MODE_FILTER` on the calling thread. Needs no_new_privs or CAP_SYS_ADMIN. With
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` among `flags` it returns the listener. Async-signal-safe.
///
/// # Errors
/// Those of seccomp(2).
pub fn load(program: &Program, flags: u64) -> io::Result<Option<OwnedFd>> {
    let raw = libc::sock_fprog { len: program.0.len() as u16, filter: program.0.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which outlives the call, and does not write to it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const raw) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 => Ok(None),
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        fd => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
    }
}
