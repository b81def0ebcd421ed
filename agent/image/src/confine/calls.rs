//! The system calls of a worker and of its server, as BPF.
//!
//! Listed is also what other C libraries and kernels would choose for the same. What is in no list ends the process: whoever makes it make such a
//! call has it already. What is only tried, and done without, answers `ENOSYS`.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

type Result<T> = std::result::Result<T, BackendError>;

/// Memory, threads, time, signals: what every program does.
const RUNTIME: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// What is open already, and looking at files.
const INPUT_OUTPUT: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pselect6,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendfile,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The same by their old names.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// Files of a layer, and the end of the server.
const UNPACKING: &[c_long] = &[
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsetxattr,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// What a thread takes from itself when it is confined once more.
const CONFINING: &[c_long] = &[libc::SYS_capget, libc::SYS_capset, libc::SYS_landlock_restrict_self];

/// linux/seccomp.h: the operation of seccomp(2) that adds a filter.
const SECCOMP_SET_MODE_FILTER: i32 = 1;

#[cfg(target_arch = "x86_64")]
const OLD_UNPACKING: &[c_long] =
    &[libc::SYS_chmod, libc::SYS_mkdir, libc::SYS_open, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD_UNPACKING: &[c_long] = &[];

/// Talking to a registry, and asking for its address. A resolver's modules come as libraries.
const TALKING: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_setsockopt,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// A program's beginning, and that of a shell that begins it.
const BEGINNING: &[c_long] = &[
    libc::SYS_capget,
    libc::SYS_execve,
    libc::SYS_getpgid,
    libc::SYS_getppid,
    libc::SYS_getrlimit,
    libc::SYS_set_tid_address,
    libc::SYS_setrlimit,
    libc::SYS_umask,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getpgrp,
];

/// An archive that is unpacked.
const SCRATCH: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_mkdirat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

#[cfg(target_arch = "x86_64")]
const OLD_SCRATCH: &[c_long] = &[libc::SYS_mkdir, libc::SYS_open, libc::SYS_rmdir, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD_SCRATCH: &[c_long] = &[];

/// Registries, and what a resolver asks: the local name service, the kernel's list of addresses.
const FAMILIES: &[i32] = &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK];

const IOCTLS: &[u64] = &[libc::FIOCLEX, libc::FIONBIO, libc::FIONREAD, libc::TCGETS];

const FCNTLS: &[i32] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_GETPIPE_SZ,
    libc::F_SETFD,
    libc::F_SETFL,
    libc::F_SETPIPE_SZ,
];

/// linux/prctl.h, `PR_SET_VMA`: names of memory, which allocators give.
const PR_SET_VMA: i32 = 0x5356_4d41;

/// A new thread, in the namespaces of the one that makes it.
const NAMESPACES: i32 = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// The filters of a worker that has started all that it is going to. A host's cache is called anew for each blob.
pub(super) fn worker(family: Option<i32>) -> Result<[BpfProgram; 2]> {
    let mut calls = Calls::default();
    calls.always(&[RUNTIME, INPUT_OUTPUT, OLD, UNPACKING, OLD_UNPACKING, CONFINING]).threads()?.own()?;
    calls.one_of(libc::SYS_prctl, 0, &[libc::PR_SET_NO_NEW_PRIVS, libc::PR_CAPBSET_DROP])?;
    calls.one_of(libc::SYS_seccomp, 0, &[SECCOMP_SET_MODE_FILTER])?;
    if let Some(family) = family {
        calls.always(&[&[libc::SYS_connect]]).one_of(libc::SYS_socket, 0, &[family])?;
    }
    // Code comes from the program alone.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        calls.when(call, 2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?;
    }
    calls.compile(&[libc::SYS_clone3, libc::SYS_io_uring_setup])
}

/// The filters of a server that has read what it was told.
pub(super) fn server() -> Result<[BpfProgram; 2]> {
    let mut calls = Calls::default();
    calls.always(&[RUNTIME, INPUT_OUTPUT, OLD, TALKING]).threads()?.own()?;
    calls.one_of(libc::SYS_socket, 0, FAMILIES)?;
    let written = SeccompCmpOp::MaskedEq((libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64);
    calls.when(libc::SYS_openat, 2, written.clone(), libc::O_RDONLY as u64)?;
    #[cfg(target_arch = "x86_64")]
    calls.when(libc::SYS_open, 1, written, libc::O_RDONLY as u64)?;
    calls.compile(&[libc::SYS_clone3, libc::SYS_io_uring_setup, libc::SYS_openat2])
}

/// The filters of skopeo, before it begins. Where it may write is for others to say.
pub(super) fn skopeo() -> Result<[BpfProgram; 2]> {
    let mut calls = Calls::default();
    calls.always(&[RUNTIME, INPUT_OUTPUT, OLD, TALKING, BEGINNING, SCRATCH, OLD_SCRATCH]).threads()?.own()?;
    calls.one_of(libc::SYS_socket, 0, FAMILIES)?;
    // Its own limits; the hard ones go up for nobody.
    calls.when(libc::SYS_prlimit64, 0, SeccompCmpOp::Eq, 0)?;
    calls.compile(&[libc::SYS_clone3, libc::SYS_io_uring_setup])
}

/// What is allowed: a call always, or by any of its rules.
#[derive(Default)]
struct Calls(BTreeMap<i64, Vec<SeccompRule>>);

impl Calls {
    fn always(&mut self, lists: &[&[c_long]]) -> &mut Calls {
        self.0.extend(lists.concat().into_iter().map(|call| (call, Vec::new())));
        self
    }

    /// Allows `call` when the lower half of its argument is so.
    fn when(&mut self, call: c_long, argument: u8, is: SeccompCmpOp, value: u64) -> Result<()> {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value)?;
        self.0.entry(call).or_default().push(SeccompRule::new(vec![condition])?);
        Ok(())
    }

    fn one_of(&mut self, call: c_long, argument: u8, values: &[i32]) -> Result<()> {
        values.iter().try_for_each(|value| self.when(call, argument, SeccompCmpOp::Eq, *value as u64))
    }

    /// Threads, but no processes and no namespaces.
    fn threads(&mut self) -> Result<&mut Calls> {
        let flags = SeccompCmpOp::MaskedEq((NAMESPACES | libc::CLONE_THREAD) as u64);
        self.when(libc::SYS_clone, 0, flags, libc::CLONE_THREAD as u64)?;
        Ok(self)
    }

    /// What a process may do to itself: abort, look at its limits, name its threads, work on its descriptors.
    fn own(&mut self) -> Result<()> {
        self.when(libc::SYS_tgkill, 0, SeccompCmpOp::Eq, std::process::id().into())?;
        let looks = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
        self.0.entry(libc::SYS_prlimit64).or_default().push(SeccompRule::new(vec![looks])?);
        self.one_of(libc::SYS_prctl, 0, &[libc::PR_GET_NAME, libc::PR_SET_NAME, PR_SET_VMA])?;
        self.one_of(libc::SYS_fcntl, 1, FCNTLS)?;
        IOCTLS.iter().try_for_each(|request| self.when(libc::SYS_ioctl, 1, SeccompCmpOp::Eq, *request))
    }

    /// Two programs, for one knows two answers only.
    fn compile(mut self, tried: &[c_long]) -> Result<[BpfProgram; 2]> {
        self.always(&[tried]);
        let arch = std::env::consts::ARCH.try_into()?;
        let tried = tried.iter().map(|call| (*call, Vec::new())).collect();
        let missing = SeccompAction::Errno(libc::ENOSYS as u32);
        let missing = SeccompFilter::new(tried, SeccompAction::Allow, missing, arch)?;
        let allowed = SeccompFilter::new(self.0, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
        Ok([missing.try_into()?, allowed.try_into()?])
    }
}
