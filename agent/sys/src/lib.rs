//! One safe function per system call that nix and rustix do not offer safely.

pub mod bpf;
pub mod cgroup;
pub mod clone;
pub mod crash;
pub mod device_mapper;
pub mod early;
pub mod exec;
pub mod ext4;
pub mod fork;
pub mod heap;
pub mod kvm;
pub mod lifeline;
pub mod loop_device;
pub mod loopback;
pub mod mount;
pub mod pidfd;
pub mod process;
pub mod random;
pub mod reaper;
pub mod seccomp;
pub mod swap;
pub mod tap;
pub mod terminal;
pub mod tsc;
pub mod xfs;
