//! Does KVM run a virtual CPU here, and how fast?
//!
//! The device's existence says nothing: some nested hosts create VMs and then never get a stock guest anywhere, because
//! they emulate it instruction by instruction. So a real-mode loop is run to its `hlt`, in a forked child that can be
//! killed while the kernel does not come back from KVM_RUN.

// UNSAFETY: fork, and KVM's ioctls on memory that the guest writes.
#![expect(unsafe_code, reason = "fork and the KVM ioctls have no safe wrapper")]

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

/// Iterations of the guest's loop: a few milliseconds on a processor, minutes when each instruction is emulated.
const ITERATIONS: u32 = 10_000_000;
/// Where the code lies in guest memory, clear of the interrupt table.
const CODE: usize = 0x1000;
const MEMORY: usize = 0x4000;

const KVM_CREATE_VM: libc::Ioctl = 0xAE01;
const KVM_GET_VCPU_MMAP_SIZE: libc::Ioctl = 0xAE04;
const KVM_CREATE_VCPU: libc::Ioctl = 0xAE41;
const KVM_SET_USER_MEMORY_REGION: libc::Ioctl = 0x4020_AE46;
const KVM_SET_TSS_ADDR: libc::Ioctl = 0xAE47;
const KVM_RUN: libc::Ioctl = 0xAE80;
const KVM_SET_REGS: libc::Ioctl = 0x4090_AE82;
const KVM_GET_SREGS: libc::Ioctl = 0x8138_AE83;
const KVM_SET_SREGS: libc::Ioctl = 0x4138_AE84;
const KVM_EXIT_HLT: u32 = 5;

/// What became of the trial guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// It ran to its end in this time.
    Halted(Duration),
    /// It did not end in the time given, and was killed.
    TimedOut,
    /// The kernel refused a step, or left the guest for another reason than its `hlt`.
    Refused {
        /// The step, as the name of a system call or ioctl.
        step: &'static str,
        /// The errno, or 0 when KVM_RUN returned with another exit reason.
        errno: i32,
    },
}

/// Steps of the trial, in order; a failed one is reported by its index.
const STEPS: [&str; 10] = [
    "open /dev/kvm",
    "KVM_CREATE_VM",
    "mmap",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_CREATE_VCPU",
    "KVM_GET_VCPU_MMAP_SIZE",
    "KVM_GET_SREGS",
    "KVM_SET_SREGS",
    "KVM_SET_REGS",
    "KVM_RUN",
];

/// What the child writes to its pipe: little-endian index of the failed step (or `STEPS.len()`), errno, nanoseconds.
const REPORT: usize = 16;

/// Run the trial guest, for at most `limit`. Fails only if the trial itself cannot be set up.
pub fn trial(limit: Duration) -> io::Result<Trial> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors were just made and belong to nobody else.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: the child makes async-signal-safe calls only, on stack memory and its own mappings, and never returns.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => child(writer.as_raw_fd()),
        pid => {
            drop(writer);
            let outcome = read_report(reader, limit);
            // SAFETY: `pid` is our child and not yet waited for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            reap(pid);
            outcome
        }
    }
}

/// Collect the killed child, unless the kernel holds it in KVM_RUN: then it is left to be collected at our own end.
fn reap(pid: libc::pid_t) {
    for _ in 0..100 {
        // SAFETY: no status is asked for.
        if unsafe { libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG) } != 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn read_report(reader: OwnedFd, limit: Duration) -> io::Result<Trial> {
    let deadline = Instant::now() + limit;
    let mut poll = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd, whose descriptor is open.
        match unsafe { libc::poll(&raw mut poll, 1, timeout) } {
            0 => return Ok(Trial::TimedOut),
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => break,
        }
    }
    let mut report = [0; REPORT];
    File::from(reader).read_exact(&mut report)?;
    let [s0, s1, s2, s3, e0, e1, e2, e3, nanos @ ..] = report;
    let errno = i32::from_le_bytes([e0, e1, e2, e3]);
    Ok(match STEPS.get(u32::from_le_bytes([s0, s1, s2, s3]) as usize) {
        Some(step) => Trial::Refused { step, errno },
        None => Trial::Halted(Duration::from_nanos(u64::from_le_bytes(nanos))),
    })
}

/// The forked child: run the guest, write the report, exit.
fn child(report_to: i32) -> ! {
    let mut step = 0;
    // SAFETY: prctl with these arguments touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let (step, errno, nanos) = match run_guest(&mut step) {
        Ok(taken) => (STEPS.len(), 0, u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX)),
        Err(errno) => (step, errno, 0),
    };
    let mut report = [0; REPORT];
    report[..4].copy_from_slice(&(step as u32).to_le_bytes());
    report[4..8].copy_from_slice(&errno.to_le_bytes());
    report[8..].copy_from_slice(&nanos.to_le_bytes());
    // SAFETY: the buffer is valid for its length; _exit runs nothing of ours.
    unsafe {
        libc::write(report_to, report.as_ptr().cast(), REPORT);
        libc::_exit(0)
    }
}

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    size: u64,
    host_address: u64,
}

/// Descriptors and mappings are left to the child's exit. `step` follows what is being done.
fn run_guest(step: &mut usize) -> Result<Duration, i32> {
    // SAFETY: the path is a valid C string.
    let kvm = check(unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })?;
    *step += 1;
    let vm = ioctl(kvm, KVM_CREATE_VM, ptr::null_mut())?;
    // Old Intel processors need a place for a task state segment to run real mode; others ignore it.
    let _ = ioctl(vm, KVM_SET_TSS_ADDR, 0xFFFB_D000_usize as *mut c_void);
    *step += 1;
    let memory = map(MEMORY, -1)?;
    let [i0, i1, i2, i3] = ITERATIONS.to_le_bytes();
    // mov ecx, ITERATIONS; again: dec ecx; jnz again; hlt
    let code = [0x66, 0xB9, i0, i1, i2, i3, 0x66, 0x49, 0x75, 0xFC, 0xF4];
    // SAFETY: the mapping is MEMORY bytes long, and CODE plus the code lies within.
    unsafe { ptr::copy_nonoverlapping(code.as_ptr(), memory.cast::<u8>().add(CODE), code.len()) };
    *step += 1;
    let mut region =
        MemoryRegion { slot: 0, flags: 0, guest_address: 0, size: MEMORY as u64, host_address: memory as u64 };
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, (&raw mut region).cast())?;
    *step += 1;
    let vcpu = ioctl(vm, KVM_CREATE_VCPU, ptr::null_mut())?;
    *step += 1;
    let run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, ptr::null_mut())?;
    let run = map(run_size as usize, vcpu)?;
    *step += 1;
    let mut sregs = [0_u64; 39]; // struct kvm_sregs, 312 bytes; the code segment comes first
    ioctl(vcpu, KVM_GET_SREGS, sregs.as_mut_ptr().cast())?;
    *step += 1;
    sregs[0] = 0; // cs.base
    sregs[1] &= !(0xFFFF << 32); // cs.selector
    ioctl(vcpu, KVM_SET_SREGS, sregs.as_mut_ptr().cast())?;
    *step += 1;
    let mut regs = [0_u64; 18]; // struct kvm_regs; rip and rflags come last
    regs[16] = CODE as u64;
    regs[17] = 2; // the bit of rflags that is always set
    ioctl(vcpu, KVM_SET_REGS, regs.as_mut_ptr().cast())?;
    *step += 1;
    let started = Instant::now();
    ioctl(vcpu, KVM_RUN, ptr::null_mut())?;
    // SAFETY: struct kvm_run has its exit reason at offset 8, and the mapping is at least a page.
    let reason = unsafe { run.cast::<u32>().add(2).read_volatile() };
    if reason == KVM_EXIT_HLT { Ok(started.elapsed()) } else { Err(0) }
}

fn map(len: usize, fd: i32) -> Result<*mut c_void, i32> {
    let flags = libc::MAP_SHARED | if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: a new mapping at an address of the kernel's choice harms nobody.
    let at = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if at == libc::MAP_FAILED { Err(last_errno()) } else { Ok(at) }
}

fn ioctl(fd: i32, request: libc::Ioctl, argument: *mut c_void) -> Result<i32, i32> {
    // SAFETY: each request is paired by `run_guest` with the argument that the KVM API gives it.
    check(unsafe { libc::ioctl(fd, request, argument) })
}

fn check(result: i32) -> Result<i32, i32> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_ends_soon_after_its_limit() {
        let started = Instant::now();
        let outcome = trial(Duration::from_millis(200)).unwrap();
        assert!(started.elapsed() < Duration::from_millis(600), "{outcome:?} after {:?}", started.elapsed());
        println!("{outcome:?} in {:?}", started.elapsed());
    }
}
