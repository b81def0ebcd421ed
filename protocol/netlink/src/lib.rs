//! The kernel's network by rtnetlink(7): links, addresses, routes and neighbours, for the guest's agent and the host's shim, and the traffic
//! control by which the shim joins a pod's interfaces to its VM.
//!
//! This is written here instead of taken from a crate because few of rtnetlink's messages are needed, and the crates that know all of them
//! weigh a tenth of the agent.

pub mod kernel;
pub mod prefix;
pub mod socket;
pub mod traffic;

pub use socket::Socket;
