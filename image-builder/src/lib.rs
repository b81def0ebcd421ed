//! Builds the guest.
//!
//! `kernel` turns Debian's kernel source and our fragments into an uncompressed kernel; `build` turns a recipe, Debian packages and the
//! agent into an initrd. Both are pure functions of their inputs: same inputs, same bytes, whoever runs them and wherever. Neither
//! needs privileges, loop devices or a container engine. Each output has its digest in a manifest beside it.

pub mod cpio;
pub mod elf;
pub mod image;
pub mod kernel;
pub mod manifest;
pub mod packages;
pub mod recipe;
pub mod run;
pub mod tree;
