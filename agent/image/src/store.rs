//! Where unpacked layers are kept: `layers/<DiffID>` whole, `partial/…` not yet.
//!
//! A layer moves from one to the other by a rename, so what stands in `layers` is whole. A partial one is locked by who writes it; one
//! that nobody locks was left by a pull that died and goes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::error::{Error, Result};

/// The layers of one guest.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

/// A layer that is being written. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Partial {
    dir: PathBuf,
    lock: File,
    kept: bool,
}

impl Store {
    /// Opens the store, makes it if need be, and clears what a pull that died has left.
    pub(crate) fn open(root: &Path) -> Result<Store> {
        let store = Store { root: root.to_path_buf() };
        for dir in [store.layers(), store.partial()] {
            fs::create_dir_all(&dir).map_err(|error| Error::system(format!("create {}", dir.display()), error))?;
        }
        store.sweep()?;
        Ok(store)
    }

    fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    fn sweep(&self) -> Result<()> {
        let entries = fs::read_dir(self.partial()).map_err(|error| Error::system("list partial layers", error))?;
        for entry in entries.filter_map(std::result::Result::ok) {
            let Ok(dir) = File::open(entry.path()) else { continue };
            if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = fs::remove_dir_all(entry.path()); // another pull may sweep, too
            }
        }
        Ok(())
    }

    /// The directory of a whole layer, if there is one.
    pub(crate) fn layer(&self, diff_id: &[u8; 32]) -> Option<PathBuf> {
        let dir = self.layers().join(hex::encode(diff_id));
        dir.is_dir().then_some(dir)
    }

    /// A new directory to unpack into.
    pub(crate) fn begin(&self) -> Result<Partial> {
        let fail = |error: std::io::Error| Error::system("make a directory for a layer", error);
        let dir = tempfile::Builder::new().prefix("").rand_bytes(12).tempdir_in(self.partial()).map_err(fail)?.keep();
        let lock = File::open(&dir).map_err(fail)?;
        let partial = Partial { dir, lock, kept: false };
        rustix::fs::flock(&partial.lock, FlockOperation::LockExclusive).map_err(|error| fail(error.into()))?;
        fs::create_dir(partial.root()).map_err(fail)?;
        Ok(partial)
    }

    /// The layer is whole and what it says it is: keep it. When another pull was faster, its copy is as good.
    pub(crate) fn keep(&self, mut partial: Partial, diff_id: &[u8; 32]) -> Result<PathBuf> {
        let kept = self.layers().join(hex::encode(diff_id));
        match fs::rename(partial.root(), &kept) {
            Ok(()) => {
                partial.kept = true;
                let _ = fs::remove_dir(&partial.dir); // empty now; the next sweep takes it otherwise
                Ok(kept)
            }
            Err(_) if kept.is_dir() => Ok(kept),
            Err(error) => Err(Error::system(format!("keep the layer {}", kept.display()), error)),
        }
    }
}

impl Partial {
    /// The directory that becomes the layer's root.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.dir); // the next sweep takes what is left
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id = [7; 32];
        drop(store.begin().unwrap());
        assert!(fs::read_dir(store.partial()).unwrap().next().is_none());

        let (first, second) = (store.begin().unwrap(), store.begin().unwrap());
        fs::write(first.root().join("a"), "x").unwrap();
        assert!(store.layer(&id).is_none());
        let kept = store.keep(first, &id).unwrap();
        assert_eq!(store.keep(second, &id).unwrap(), kept);
        assert!(store.layer(&id).unwrap().join("a").exists());
    }

    #[test]
    fn what_a_dead_pull_left_is_swept_and_what_a_live_one_writes_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let live = store.begin().unwrap();
        let dead = store.partial().join("dead");
        fs::create_dir_all(dead.join("root")).unwrap();
        Store::open(dir.path()).unwrap();
        assert!(!dead.exists() && live.root().exists());
    }
}
