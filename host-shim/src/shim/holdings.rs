//! What a pod has on the host, taken in one place: noted in the journal before, and let go of as a whole.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use tokio::task::AbortHandle;

use super::cgroup::Groups;
use super::journal::{self, Held, Journal, Proc};
use super::log::Log;
use super::pod::Pod;
use super::{metrics, remnants};
use crate::network::{self, Network};

/// A pod's directory, control groups and network.
#[derive(Debug)]
pub struct Holdings {
    journal: Journal,
    groups: Groups,
    metrics: Option<AbortHandle>,
}

impl Holdings {
    /// Takes them for the pod `id`, after what a shim has left that died. Whatever fails, nothing is held.
    ///
    /// # Errors
    /// What stands against it.
    pub fn take(id: &str, groups: Groups, netns: Option<PathBuf>, log: &Log) -> Result<(Holdings, Option<Network>)> {
        let left = Journal::read(&journal::dir_of(id))?;
        if left.is_some_and(|held| held.shim.is_none_or(|shim| !shim.is_alive())) {
            remnants::clear(id)?;
        }
        let held = Held { shim: Proc::of(std::process::id()), netns: netns.clone(), cgroups: groups.paths.clone() };
        let holdings = Holdings { journal: Journal::create(id, &held)?, groups, metrics: None };
        let made = || {
            holdings.groups.enter()?;
            Ok(netns.as_deref().map(network::attach).transpose()?)
        };
        match made() {
            Ok(network) => Ok((holdings, network)),
            Err(error) => {
                holdings.release(log);
                Err(error)
            }
        }
    }

    /// The pod's directory.
    pub fn dir(&self) -> PathBuf {
        self.journal.dir().into()
    }

    /// Shows what `pod` uses to who asks in its directory.
    ///
    /// # Errors
    /// A socket that can't be made.
    pub fn serve_metrics(&mut self, pod: Arc<Pod>) -> Result<()> {
        self.metrics = Some(metrics::serve(self.journal.dir(), pod)?);
        Ok(())
    }

    /// Lets go of them. What stands against it is only said: `delete` tries again.
    pub fn release(self, log: &Log) {
        if let Some(metrics) = &self.metrics {
            metrics.abort();
        }
        self.groups.leave();
        if let Err(error) = remnants::undo(self.journal.dir(), self.journal.held()) {
            log.warn(&format!("{}: {error:#}", self.journal.dir().display()));
        }
    }
}
