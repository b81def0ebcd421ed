//! The contract between host and guest.
//!
//! [`generated`] holds the Kata agent API, our own service and the key providers' one, made at build time from `proto/`. [`address`] and [`connect`] say
//! where an agent is and how to reach it; [`convert`] turns the wire's OCI messages into the specification's types and back; [`blob_cache`] is
//! apart from all that: what a guest and the host's cache of blobs say to each other; [`disk`] is by what a guest knows its disks. Nothing here knows what either side does with a request.

pub mod address;
pub mod blob_cache;
pub mod connect;
pub mod convert;
pub mod disk;

/// Messages and services, generated from `proto/`.
#[expect(clippy::allow_attributes, reason = "which lints generated code trips is its generator's business")]
#[allow(clippy::all, clippy::unwrap_used, missing_docs, missing_debug_implementations, unused_qualifications)]
pub mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub use generated::{
    agent, agent_ttrpc, csi, health, health_ttrpc, keyprovider, keyprovider_ttrpc, nacre, nacre_ttrpc, oci, types,
};
pub use protobuf::well_known_types::empty;

/// The port on which an agent listens, on vsock.
pub const AGENT_PORT: u32 = 1024;

/// The largest ttRPC message, either way: 4 MiB, without its 10-byte header.
pub const MAX_MESSAGE: usize = 4 << 20;
