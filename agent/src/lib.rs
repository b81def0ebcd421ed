//! The guest agent: PID 1 of a confidential pod's VM.
//!
//! A request's road, and so the order of the modules: [`server`] accepts, [`rpc`] decodes and asks [`policy`], [`sandbox`] knows the
//! pod's state, [`container`] drives the container engine, [`storage`], [`device`], [`network`], [`guest`], [`copy_file`], [`metrics`] and
//! [`passthrough`] do what their names say. [`init`] is process 1.

pub mod args;
pub mod boot;
pub mod check;
pub mod config;
pub mod console;
pub mod container;
pub mod copy_file;
pub mod device;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod guest;
pub mod helpers;
pub mod init;
pub mod last_words;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod network;
pub mod passthrough;
pub mod policy;
pub mod rpc;
pub mod sandbox;
pub mod server;
pub mod stats;
pub mod storage;

/// An error and its causes on one line. A cause that the text above it repeats is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.ends_with(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}
