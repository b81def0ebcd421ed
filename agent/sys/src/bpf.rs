//! eBPF programs that decide about a cgroup's devices.

// UNSAFETY: bpf(2) takes its arguments by address.
#![expect(unsafe_code, reason = "bpf has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction (linux/bpf.h, `struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What to do.
    pub code: u8,
    /// The destination register in the low half, the source register in the high one.
    pub registers: u8,
    /// A distance, in bytes for loads and in instructions for jumps.
    pub offset: i16,
    /// A constant.
    pub constant: i32,
}

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_QUERY: libc::c_long = 16;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The most programs of one cgroup that are told of.
const MAX_PROGRAMS: usize = 64;

#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
}

fn bpf<T>(command: libc::c_long, argument: &mut T) -> io::Result<i32> {
    // SAFETY: each argument is a prefix of `union bpf_attr` of the size that is stated, and its addresses outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(argument), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads a program that decides about devices (`BPF_PROG_TYPE_CGROUP_DEVICE`).
///
/// # Errors
/// Those of bpf(2); `EINVAL` or `EACCES` when the kernel's verifier refuses it.
pub fn load_device_program(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    bpf(PROG_LOAD, &mut load).map(owned)
}

/// Attaches a program to the cgroup v2 directory `cgroup`, beside those that are there: all of them must allow.
///
/// # Errors
/// Those of bpf(2).
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
        ..Attach::default()
    };
    bpf(PROG_ATTACH, &mut attach).map(drop)
}

/// Takes a program off again.
///
/// # Errors
/// Those of bpf(2).
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut detach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        ..Attach::default()
    };
    bpf(PROG_DETACH, &mut detach).map(drop)
}

/// The programs that are attached to `cgroup` itself.
///
/// # Errors
/// Those of bpf(2).
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    let ids = ids.iter().take(query.prog_cnt as usize);
    ids.map(|id| bpf(PROG_GET_FD_BY_ID, &mut [*id, 0, 0]).map(owned)).collect()
}
