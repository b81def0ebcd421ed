//! How a registry is reached: which hosts serve an image, who asks for it, and how a registry wants to be asked.
//!
//! All of it is parsing and deciding; nothing here opens a connection.

pub mod challenge;
pub mod credentials;
pub mod lookaside;
pub mod registries;

mod name;

/// The most bytes of a configuration file.
const MAX_FILE: usize = 1 << 20;
