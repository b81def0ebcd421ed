//! Where unpacked layers are kept: `layers/<DiffID>` whole, `partial/…` not yet. Ready-made ones are mounted on `ready/<root hash>`.
//!
//! A layer moves from one to the other by a rename, so what stands in `layers` is whole. A partial one is locked by who
//! writes it; one that nobody locks was left by a pull that died, and the next pull removes it. The key is the DiffID
//! alone: a layer is unpacked by itself, so its directory depends on nothing below it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};
use crate::ready::Verity;
use crate::reference::Sha256;

/// The layers of one guest.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

/// A layer that is being written. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Partial {
    dir: PathBuf,
    _lock: File,
    kept: bool,
}

impl Store {
    /// Opens the store, makes it if need be, and clears what a pull that died has left.
    pub(crate) fn open(root: &Path) -> Result<Store> {
        let store = Store { root: root.to_path_buf() };
        for dir in [layers(root), store.partial()] {
            // Set-user-ID programs of an image are nobody's business before a container runs them.
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(|error| Error::system(format!("create {}", dir.display()), error))?;
        }
        store.sweep()?;
        Ok(store)
    }

    fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// All that a pull writes to. What lies beside them in the store is who mounts it's affair.
    pub(crate) fn places(&self) -> [PathBuf; 2] {
        [self.partial(), layers(&self.root)]
    }

    /// Nobody makes or sweeps partial layers while this is held: one that is not locked yet looks abandoned.
    fn lock(&self) -> Result<File> {
        let fail = |error| Error::system("lock the image store", error);
        let dir = File::open(self.partial()).map_err(fail)?;
        flock(&dir, FlockOperation::LockExclusive).map_err(|error| fail(error.into()))?;
        Ok(dir)
    }

    fn sweep(&self) -> Result<()> {
        let _lock = self.lock()?;
        let entries = fs::read_dir(self.partial()).map_err(|error| Error::system("list partial layers", error))?;
        for entry in entries.filter_map(std::result::Result::ok) {
            let Ok(dir) = File::open(entry.path()) else { continue };
            if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let gone = fs::remove_dir_all(entry.path());
                gone.map_err(|error| Error::system(format!("remove {}", entry.path().display()), error))?;
            }
        }
        Ok(())
    }

    /// The directory of a whole layer, if there is one.
    pub(crate) fn layer(&self, diff_id: &Sha256) -> Option<PathBuf> {
        Some(self.place(diff_id)).filter(|dir| dir.is_dir())
    }

    fn place(&self, diff_id: &Sha256) -> PathBuf {
        layers(&self.root).join(hex::encode(diff_id))
    }

    /// A new directory to unpack into.
    pub(crate) fn begin(&self) -> Result<Partial> {
        let fail = |error: std::io::Error| Error::system("make a directory for a layer", error);
        let _lock = self.lock()?;
        let dir = tempfile::Builder::new().prefix("").rand_bytes(12).tempdir_in(self.partial()).map_err(fail)?;
        let lock = File::open(dir.path()).map_err(fail)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| fail(error.into()))?;
        let partial = Partial { dir: dir.keep(), _lock: lock, kept: false };
        fs::DirBuilder::new().mode(0o755).create(partial.root()).map_err(fail)?;
        Ok(partial)
    }

    /// The layer is whole and what it says it is: keep it. When another pull was faster, its copy is as good.
    pub(crate) fn keep(&self, mut partial: Partial, diff_id: &Sha256) -> Result<PathBuf> {
        let place = self.place(diff_id);
        match fs::rename(partial.root(), &place) {
            Ok(()) => {
                partial.kept = true;
                let _ = fs::remove_dir(&partial.dir); // empty now; the next sweep takes it otherwise
                Ok(place)
            }
            Err(_) if place.is_dir() => Ok(place),
            Err(error) => Err(Error::system(format!("keep the layer {}", place.display()), error)),
        }
    }

    /// Removes the whole layers that are not `used`; returns how many. One that is half gone is not whole: it moves away first.
    pub(crate) fn collect(&self, used: &HashSet<PathBuf>) -> Result<usize> {
        let entries = fs::read_dir(layers(&self.root)).map_err(|error| Error::system("list the layers", error))?;
        let mut removed = 0;
        for layer in entries.filter_map(std::result::Result::ok).map(|entry| entry.path()) {
            if !used.contains(&layer) {
                let partial = self.begin()?;
                let moved = fs::rename(&layer, partial.root());
                moved.map_err(|error| Error::system(format!("remove {}", layer.display()), error))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Where a ready-made layer is to be mounted.
    pub(crate) fn ready(&self, verity: &Verity) -> PathBuf {
        ready(&self.root, verity)
    }
}

/// Where the whole layers of a store are.
pub(crate) fn layers(root: &Path) -> PathBuf {
    root.join("layers")
}

/// Where a ready-made layer is mounted in the store `root`. One that is said to end elsewhere is another one.
pub(crate) fn ready(root: &Path, verity: &Verity) -> PathBuf {
    root.join("ready").join(format!("{}-{}", verity.root_hash(), verity.blocks))
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
        fs::write(second.root().join("a"), "x").unwrap();
        assert_eq!(store.keep(second, &id).unwrap(), kept);
        assert!(store.layer(&id).unwrap().join("a").exists());
        assert!(fs::read_dir(store.partial()).unwrap().next().is_none());
    }

    #[test]
    fn layers_that_nobody_uses_go_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let kept = [[1; 32], [2; 32]].map(|id| {
            let partial = store.begin().unwrap();
            fs::write(partial.root().join("a"), "x").unwrap();
            store.keep(partial, &id).unwrap()
        });
        let live = store.begin().unwrap();
        assert_eq!(store.collect(&HashSet::from([kept[1].clone()])).unwrap(), 1);
        assert!(!kept[0].exists() && kept[1].join("a").exists() && live.root().exists());
        drop(live);
        assert!(fs::read_dir(store.partial()).unwrap().next().is_none());
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
