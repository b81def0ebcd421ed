//! What integration tests, the demo and the benchmarks share: a registry, images, an agent as a process, and a guest.
//!
//! Everything here is real: Debian's docker-registry with TLS, skopeo to push with, QEMU to boot. What a machine lacks makes a test say
//! `skipped: why`.

pub mod agent;
pub mod chance;
pub mod containerd;
pub mod cri;
pub mod demo_image;
pub mod dist;
pub mod holdings;
pub mod image;
pub mod newer;
pub mod node;
pub mod registry;
pub mod suite;
pub mod wire;
