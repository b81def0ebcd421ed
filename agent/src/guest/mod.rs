//! The guest as a machine: what it can do, its clock, its entropy, what is plugged into it, its volumes, what its containers left.

mod beneath;
mod clock;
mod details;
mod diagnostics;
mod entropy;
mod hotplug;
mod swap;
mod volume;

pub use clock::{ClockError, set_clock};
pub use details::{DetailsError, details};
pub use diagnostics::{DiagnosticsError, check_kind, termination_log};
pub use entropy::{EntropyError, reseed};
pub use hotplug::{DEVICES, HotplugError, online, probe_memory};
pub use swap::{SwapError, add_swap};
pub use volume::{VolumeError, resize_volume, volume_stats};
