//! The mount points in use, and by how many.
//!
//! Each has a lock of its own, held while it is mounted and unmounted: who comes second waits until there is something to share, and a mount point
//! that takes long keeps nobody else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use nacre_protocol::agent::Storage;

use super::pull::lock;
use super::undo::{Steps, Undo};
use super::{Error, invalid};

/// The mount points of the whole agent.
#[derive(Debug, Default)]
pub struct Mounts {
    points: Mutex<HashMap<PathBuf, Arc<Mutex<Use>>>>,
    numbers: AtomicU64,
    /// Whether stale ones are being looked for.
    pub(super) sweeping: AtomicBool,
}

#[derive(Debug, Default)]
struct Use {
    count: usize,
    /// Kept although nobody uses it: the host says that others may still come.
    keep: bool,
    driver: String,
    source: String,
    /// What it takes to be rid of it, once it is there.
    steps: Option<Steps>,
    /// It is in the map no more.
    gone: bool,
}

impl Mounts {
    /// No mounts yet.
    pub fn new() -> Arc<Mounts> {
        Arc::default()
    }

    /// A number that is given once.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Relaxed)
    }

    /// One user more of `at`, for whom `make` makes it if nobody has yet. Blocks.
    pub(super) fn acquire(
        self: &Arc<Self>,
        storage: &Storage,
        at: &Path,
        make: impl FnOnce() -> Result<Steps, Error>,
    ) -> Result<Steps, Error> {
        loop {
            let entry = lock(&self.points).entry(at.into()).or_default().clone();
            let mut used = lock(&entry);
            if used.gone {
                continue;
            }
            if used.steps.is_none() {
                let made = make().inspect_err(|_| self.forget(at, &mut used))?;
                let (driver, source) = (storage.driver.clone(), storage.source.clone());
                *used = Use { driver, source, steps: Some(made), ..Use::default() };
            } else if (&used.driver, &used.source) != (&storage.driver, &storage.source) {
                return Err(invalid(
                    storage,
                    format!("{:?} of driver {:?} is mounted there", used.source, used.driver),
                ));
            }
            used.count += 1;
            used.keep |= storage.shared;
            let mut steps = Steps::default();
            steps.push(Undo::Shared { mounts: self.clone(), mount_point: at.into() });
            return Ok(steps);
        }
    }

    /// One user less. Blocks.
    pub(super) fn release(&self, at: &Path) -> Result<(), Error> {
        let Some(entry) = lock(&self.points).get(at).cloned() else { return Ok(()) };
        let mut used = lock(&entry);
        used.count = used.count.saturating_sub(1);
        if used.count > 0 || used.keep {
            return Ok(());
        }
        let released = used.steps.take().map_or(Ok(()), Steps::release);
        self.forget(at, &mut used);
        released
    }

    /// Does `act` while the mount at `at` can't go, if it is one of this driver.
    pub(super) fn with<T>(&self, at: &Path, driver: &str, act: impl FnOnce() -> T) -> Option<T> {
        let entry = lock(&self.points).get(at).cloned()?;
        let used = lock(&entry);
        (used.steps.is_some() && used.driver == driver).then(act)
    }

    /// Undo what is kept: nobody comes any more. Blocks.
    pub fn end(&self) -> Result<(), Error> {
        let entries: Vec<_> = lock(&self.points).drain().collect();
        let mut result = Ok(());
        for (_, entry) in entries {
            let mut used = lock(&entry);
            used.gone = true;
            result = result.and(used.steps.take().map_or(Ok(()), Steps::release));
        }
        result
    }

    /// Whoever waits for this one begins anew.
    fn forget(&self, at: &Path, used: &mut MutexGuard<'_, Use>) {
        used.gone = true;
        lock(&self.points).remove(at);
    }
}
