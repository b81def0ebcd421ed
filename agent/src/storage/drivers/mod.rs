//! The drivers, one file each.

pub mod ephemeral;
pub mod local;
