//! `containerd-shim-nacre-v2`: pods of containerd's and CRI-O's as guests (containerd, "Runtime v2"), one process for each pod.
//!
//! The road of a request: [`service`] reads it, [`life`] finds or makes the [`pod`], which asks the guest through its [`sandbox`] for what
//! [`translate`] has made of the host's specification. Each process of the pod's is a [`process`], joined to the host's FIFOs by [`stdio`].
//! What the pod has on the host is in its [`journal`], by which [`remnants`] removes what a crash has left.

pub mod args;
pub mod bootstrap;
pub mod bundle;
pub mod cgroup;
pub mod config;
pub mod containerd;
pub mod delete;
pub mod error;
pub mod events;
pub mod group;
pub mod holdings;
pub mod journal;
pub mod life;
pub mod log;
pub mod metrics;
pub mod mounts;
pub mod pod;
pub mod process;
pub mod registry;
pub mod remnants;
pub mod sandbox;
pub mod serve;
pub mod service;
pub mod sizing;
pub mod stats;
pub mod stdio;
pub mod task;
pub mod translate;
pub mod volumes;

use std::ffi::OsString;

use anyhow::Result;

use self::args::{Action, Args};

/// Does what the command line says.
///
/// # Errors
/// What failed.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let args = Args::parse(arguments)?;
    match args.action {
        Action::Serve => serve::serve(&args),
        Action::Start => bootstrap::start(&args),
        Action::Delete => delete::delete(&args),
        Action::Version => delete::version(),
        Action::Info => delete::info(),
    }
}
