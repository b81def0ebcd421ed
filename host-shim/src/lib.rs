//! The host side: boots a pod's VM, reaches its agent, and gives people the `nacre` command.
//!
//! Nothing here is trusted by the guest. The road of `nacre run`: [`cli`] → [`run`] makes a [`state`] directory, boots a [`vmm`], talks to
//! the agent through [`guest`] with what [`spec`] lays out, and joins the caller's streams to the container's ([`streams`]).

pub mod accelerator;
pub mod attach;
pub mod blob_cache;
pub mod cli;
pub mod commands;
pub mod console;
pub mod detach;
pub mod doctor;
pub mod failure;
pub mod guest;
pub mod layout;
pub mod metrics;
pub mod network;
pub mod progress;
pub mod ready;
pub mod reference;
pub mod run;
pub mod scratch;
pub mod shim;
pub mod signals;
pub mod size;
pub mod spec;
pub mod state;
pub mod streams;
pub mod terminal;
pub mod timings;
pub mod vmm;
pub mod volumes;
pub mod vsock;
