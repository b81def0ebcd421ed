//! One safe function per system call that nix and rustix do not offer safely.
