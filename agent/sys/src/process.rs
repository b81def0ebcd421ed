//! Attributes of the calling process that rustix does not set.

// UNSAFETY: raw system calls, of which one takes its argument by address.
#![expect(unsafe_code, reason = "personality, sched_setattr, ioprio_set, keyctl and prctl have no safe form")]

use std::io;

/// The arguments of sched_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// `SCHED_…`.
    pub policy: u32,
    /// `SCHED_FLAG_…`.
    pub flags: u64,
    /// −20 to 19, for the policies of normal processes.
    pub nice: i32,
    /// 1 to 99, for real-time policies.
    pub priority: u32,
    /// Nanoseconds per period, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
}

/// linux/sched/types.h, `SCHED_ATTR_SIZE_VER0`.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// sched_setattr(2) on the calling thread. Async-signal-safe.
///
/// # Errors
/// Those of sched_setattr(2).
pub fn set_scheduling(s: &Scheduling) -> io::Result<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: s.policy,
        flags: s.flags,
        nice: s.nice,
        priority: s.priority,
        runtime: s.runtime,
        deadline: s.deadline,
        period: s.period,
    };
    // SAFETY: `attr` has the size that it states and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

/// ioprio_set(2) on the calling process: a class (1 real time, 2 best effort, 3 idle) and a level from 0 to 7. Async-signal-safe.
///
/// # Errors
/// Those of ioprio_set(2).
pub fn set_io_priority(class: u8, level: u8) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    let priority = i32::from(class) << 13 | i32::from(level);
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) })
}

/// personality(2). Async-signal-safe.
///
/// # Errors
/// Those of personality(2).
pub fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_personality, persona) })
}

/// keyctl(2) `KEYCTL_JOIN_SESSION_KEYRING`: a new, anonymous session keyring, so that the caller's keys stay behind. Async-signal-safe.
///
/// # Errors
/// Those of keyctl(2); `ENOSYS` on a kernel without keys.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    let anonymous: *const libc::c_char = std::ptr::null();
    // SAFETY: a null name is "anonymous"; no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, anonymous) })
}

/// prctl(2) `PR_SET_DUMPABLE` 0: until it executes another program, nobody without CAP_SYS_PTRACE over the guest sees into the calling
/// process, its descriptors or its program file. Async-signal-safe.
///
/// # Errors
/// Those of prctl(2).
pub fn hide() -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into())
}

/// Whether the current directory can be reached from the root directory: getcwd(2) says "(unreachable)" or `ENOENT` if not.
/// Async-signal-safe.
pub fn current_directory_is_inside_root() -> bool {
    let mut path = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most as much as the array's length.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    length > 0 && path.first() == Some(&b'/')
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
