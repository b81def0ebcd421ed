//! The mount points in use, and by how many.
//!
//! Each has a lock of its own, held while it is mounted and unmounted: who comes second waits until there is something to share, and a mount point
//! that takes long keeps nobody else.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use nacre_protocol::agent::Storage;

use super::pull::lock;
use super::undo::{Steps, Undo};
use super::{Error, invalid, options};

/// The mount points of the whole agent.
#[derive(Debug, Default)]
pub struct Mounts {
    points: Mutex<HashMap<PathBuf, Arc<Mutex<Use>>>>,
    /// Where images are, which nothing may cover: neither as a whole nor in part.
    images: Mutex<BTreeSet<PathBuf>>,
    numbers: AtomicU64,
    /// Whether stale ones are being looked for.
    pub(super) sweeping: AtomicBool,
}

#[derive(Debug, Default)]
struct Use {
    count: usize,
    /// Kept although nobody uses it.
    keep: bool,
    parts: Vec<Part>,
    /// What it takes to be rid of it, once it is there.
    steps: Option<Steps>,
    /// It is in the map no more.
    gone: bool,
}

/// What a mount is to be. Who comes second gets what is there only if that is all that was asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Demand {
    parts: Vec<Part>,
    /// Kept although nobody uses it: others may still come.
    pub(super) keep: bool,
}

/// Of a storage: driver, source and type, the driver's options, and those of the mount that are for the agent.
type Part = [Vec<String>; 3];

impl Demand {
    /// What `storages` ask for, which are mounted as one.
    pub(super) fn of(storages: &[Storage]) -> Demand {
        let part = |storage: &Storage| {
            let named = [&storage.driver, &storage.source, &storage.fstype].map(String::clone).to_vec();
            let ours = storage.options.iter().filter(|option| options::is_ours(option)).cloned().collect();
            [named, storage.driver_options.clone(), ours]
        };
        Demand { parts: storages.iter().map(part).collect(), keep: false }
    }
}

impl Use {
    fn driver(&self) -> &str {
        self.parts.first().and_then(|[named, ..]| named.first()).map_or("", String::as_str)
    }

    fn source(&self) -> &str {
        self.parts.first().and_then(|[named, ..]| named.get(1)).map_or("", String::as_str)
    }
}

/// A place that an image has.
#[derive(Debug)]
pub(super) struct Claim {
    mounts: Arc<Mounts>,
    at: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.mounts.images).remove(&self.at);
    }
}

/// Whether one is, or leads to, the other.
fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
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

    /// A place for an image, for as long as the claim is there.
    pub(super) fn claim(self: &Arc<Self>, storage: &Storage, at: &Path) -> Result<Claim, Error> {
        let (mut images, points) = (lock(&self.images), lock(&self.points));
        if images.iter().chain(points.keys()).any(|other| overlap(other, at)) {
            return Err(invalid(storage, "something is mounted there, above or below it"));
        }
        images.insert(at.into());
        Ok(Claim { mounts: self.clone(), at: at.into() })
    }

    /// One user more of `at`, for whom `make` makes it if nobody has yet. Blocks.
    pub(super) fn acquire(
        self: &Arc<Self>,
        storage: &Storage,
        demand: Demand,
        at: &Path,
        make: impl FnOnce() -> Result<Steps, Error>,
    ) -> Result<Steps, Error> {
        loop {
            let entry = {
                let (images, mut points) = (lock(&self.images), lock(&self.points));
                if images.iter().any(|image| overlap(image, at)) {
                    return Err(invalid(storage, "an image is there, above or below it"));
                }
                points.entry(at.into()).or_default().clone()
            };
            let mut used = lock(&entry);
            if used.gone {
                continue;
            }
            if used.steps.is_none() {
                let made = make().inspect_err(|_| self.forget(at, &mut used))?;
                *used = Use { parts: demand.parts, steps: Some(made), ..Use::default() };
            } else if used.parts != demand.parts {
                let there = (used.source(), used.driver());
                return Err(invalid(
                    storage,
                    format!("{:?} of driver {:?} is mounted there, or otherwise", there.0, there.1),
                ));
            }
            used.count += 1;
            let mut steps = Steps::default();
            steps.push(Undo::Shared { mounts: self.clone(), mount_point: at.into(), keep: demand.keep });
            return Ok(steps);
        }
    }

    /// What is at `at` stays until [`Mounts::end`].
    pub(super) fn keep(&self, at: &Path) {
        let Some(entry) = lock(&self.points).get(at).cloned() else { return };
        lock(&entry).keep = true;
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
        (used.steps.is_some() && used.driver() == driver).then(act)
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
