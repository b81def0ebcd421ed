//! The guest as a machine: what it can do, its clock, its entropy.

mod clock;
mod details;
mod entropy;

pub use clock::{ClockError, set_clock};
pub use details::{DetailsError, details};
pub use entropy::{EntropyError, reseed};
