//! Builds the guest.
//!
//! `kernel` turns Debian's kernel source and our fragments into an uncompressed kernel; `build` turns a recipe, Debian packages and the
//! agent into an image. Both are pure functions of their inputs: same inputs, same bytes, whoever runs them and wherever. Neither
//! needs privileges, loop devices or a container engine. Each output has its digest in a manifest beside it.

pub mod diff;
pub mod elf;
pub mod fuzzing;
pub mod image;
pub mod inspect;
pub mod kernel;
pub mod lock;
pub mod manifest;
pub mod measure;
pub mod outputs;
pub mod packages;
pub mod place;
pub mod recipe;
pub mod root;
pub mod run;
pub mod sbom;
pub mod sign;
pub mod tree;
pub mod verify;
