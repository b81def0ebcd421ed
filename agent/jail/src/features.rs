//! What this engine knows, by name.

pub use crate::plan::{known_capabilities as capabilities, known_mount_options as mount_options};
