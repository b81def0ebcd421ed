//! The container engine: a specification in, a running, confined process out.
//!
//! *Plan, then fork.* [`Plan::new`] judges the specification and lays out every path, buffer and filter; [`Container::create`] makes the
//! cgroup, forks once, and the child walks a list of steps made of plain system calls until it waits at its start gate. A step
//! that fails comes back as its own description and the errno. Nothing is re-executed and nothing is serialised.

mod cgroup;
mod channel;
mod container;
mod copy_up;
mod document;
mod error;
mod exit;
pub mod features;
mod hook;
mod launch;
mod listener;
mod plan;
mod prepare;
mod process;
mod record;
mod shared_root;
mod stats;
mod step;

pub use cgroup::{OomKills, is_unified as has_unified_cgroups};
pub use container::{Container, Status};
pub use document::{Read, read_process, read_spec};
pub use error::Error;
pub use exit::ExitStatus;
pub use plan::{Plan, check_id, keep_filters_in};
pub use process::Process;
pub use record::{Note, Record};
pub use shared_root::Mounted;
pub use stats::{BlockIo, BlockIoEntry, Cpu, HugePages, Memory, Pids, Stats};

use std::os::fd::OwnedFd;

/// What a terminal makes of the end of a line that a program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LineEnds {
    /// A carriage return and a line feed, as terminals do.
    #[default]
    Terminal,
    /// What the program wrote: for somebody whose own terminal adds what it needs.
    Plain,
}

/// Where a process reads and writes: the child's ends.
#[derive(Debug)]
pub enum Io {
    /// Three descriptors, for file descriptors 0, 1 and 2.
    Pipes {
        /// File descriptor 0.
        stdin: OwnedFd,
        /// File descriptor 1.
        stdout: OwnedFd,
        /// File descriptor 2.
        stderr: OwnedFd,
    },
    /// The caller's own.
    Inherit,
    /// A pseudo-terminal of the container's own devpts, the controlling terminal of a new session. Its master is had from
    /// [`Process::take_terminal`].
    Terminal {
        /// Columns and rows; `None` leaves them at 0.
        size: Option<(u16, u16)>,
        /// What ends a line.
        lines: LineEnds,
    },
}
