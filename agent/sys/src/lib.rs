//! One safe function per system call that nix and rustix do not offer safely.
pub mod kvm;
pub mod lifeline;
pub mod tsc;
