//! Ready-made layers: disks of the host's that are mounted in place of layers that would be fetched and unpacked.
//!
//! ```text
//! EROFS
//! dm-verity      each block is read only if the root hash stands for it; that comes from a manifest or list that is trusted
//! the host's disk
//! ```
//!
//! A disk's serial number is a claim that costs a try at most. What is wrong when the file system is mounted has the layer pulled instead; what is
//! wrong later is an error for who reads it. The containers of a pod share the mounts; the last one's end undoes them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use nacre_protocol::disk::LAYER_SERIAL;
use nacre_pull::ready::Verity;
use nacre_sys::device_mapper::Mapped;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::disks::{self, Disk};
use super::pull::lock;
use super::verity;

/// The most disks that are looked at. A machine has no room for more.
const MAX_DISKS: usize = 64;

/// A disk does not stand for its layer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("there is no disk with the serial number {0}")]
    Missing(String),
    #[error("the disk {disk:?} has {found} bytes, less than the {wanted} of the layer")]
    TooSmall { disk: PathBuf, found: u64, wanted: u64 },
    #[error("{act} {path:?}")]
    System { act: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    fn system(act: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::System { act, path: path.into(), source: source.into() }
    }
}

/// The ready-made layers of the whole agent.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// By where they are mounted, with how many use them.
    mounted: Mutex<HashMap<PathBuf, (Layer, usize)>>,
    /// Serial numbers of disks that were not what they should be.
    distrusted: Mutex<HashSet<String>>,
    /// Names of devices are not used twice: one goes only when nothing has it open.
    made: AtomicU64,
}

/// A mounted layer. Dropping it undoes that.
#[derive(Debug)]
struct Layer {
    place: PathBuf,
    _device: Mapped,
}

impl Drop for Layer {
    fn drop(&mut self) {
        let _ = unmount(&self.place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW); // it goes with the guest at the latest
        let _ = fs::remove_dir(&self.place);
    }
}

/// Layers in use. Dropping it is the end of that.
#[derive(Debug)]
pub(super) struct InUse {
    disks: Arc<Disks>,
    places: Vec<PathBuf>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut mounted = lock(&self.disks.mounted);
        for place in self.places.drain(..) {
            if let Some((_, users)) = mounted.get_mut(&place) {
                *users = users.saturating_sub(1);
                if *users == 0 {
                    mounted.remove(&place);
                }
            }
        }
    }
}

impl Disks {
    /// The serial numbers of the disks that may be ready-made layers, sorted.
    pub(super) fn attached(&self) -> Vec<String> {
        let distrusted = lock(&self.distrusted);
        let mut serials: Vec<String> = candidates().into_iter().map(|disk| disk.serial).collect();
        serials.retain(|serial| !distrusted.contains(serial));
        serials.sort_unstable();
        serials.dedup();
        serials
    }

    /// Mounts those of `layers` that are not yet. A disk that is not what it should be is named no more. Blocks.
    pub(super) fn mount(self: &Arc<Self>, layers: &BTreeMap<PathBuf, Verity>) -> Result<InUse, Error> {
        let mut in_use = InUse { disks: self.clone(), places: Vec::new() };
        for (place, verity) in layers {
            let mut mounted = lock(&self.mounted);
            match mounted.get_mut(place) {
                Some((_, users)) => *users += 1,
                None => {
                    let layer = self.layer(place, verity).inspect_err(|_| {
                        lock(&self.distrusted).insert(verity.serial());
                    })?;
                    mounted.insert(place.clone(), (layer, 1));
                }
            }
            in_use.places.push(place.clone());
        }
        Ok(in_use)
    }

    fn layer(&self, place: &Path, verity: &Verity) -> Result<Layer, Error> {
        let serial = verity.serial();
        let disk = candidates().into_iter().find(|disk| disk.serial == serial);
        let disk = disk.ok_or_else(|| Error::Missing(serial.clone()))?;
        let (found, disk) = (disk.bytes(), disk.path());
        let found = found.map_err(|error| Error::system("ask for the size of", &disk, error))?;
        if found < verity.bytes() {
            return Err(Error::TooSmall { disk, found, wanted: verity.bytes() });
        }
        let name = format!("layer-{serial}-{}", self.made.fetch_add(1, Relaxed));
        let device = tree(verity).map(&name, &disk).map_err(|error| Error::system("verify", &disk, error))?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(place);
        made.map_err(|error| Error::system("make directory", place, error))?;
        mount(&device.path, place, "erofs", MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID, None)
            .map_err(|error| Error::system("mount a ready-made layer (type erofs) on", place, error))?;
        Ok(Layer { place: place.into(), _device: device })
    }
}

/// Data with their digests right behind them, no superblock and no salt.
fn tree(layer: &Verity) -> verity::Verity {
    let block = nacre_pull::verity::BLOCK as u64;
    verity::Verity {
        hash_type: 1,
        data_block: block,
        hash_block: block,
        data_blocks: layer.blocks,
        hash_start: layer.blocks,
        algorithm: "sha256".into(),
        root: layer.root_hash(),
        salt: None,
    }
}

/// The disks whose serial number may be the beginning of a root hash.
fn candidates() -> Vec<Disk> {
    let hex = |serial: &str| serial.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_digest = |disk: &Disk| disk.serial.len() == LAYER_SERIAL && hex(&disk.serial);
    disks::all().unwrap_or_default().into_iter().filter(is_digest).take(MAX_DISKS).collect()
}
