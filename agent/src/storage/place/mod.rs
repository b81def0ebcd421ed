//! Where layers are kept, and what containers write to their images: in memory as it is, in memory compressed, or on a disk of the host's.
//!
//! Nothing of it outlives the guest. It is set up once, after the agent listens, and pulls wait for it. What was asked for and can't be had makes
//! every pull fail: layers never go elsewhere in silence.

pub(super) mod disk;
mod ext4;
mod zram;

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nacre_protocol::disk::SCRATCH;
use rustix::mount::{MountFlags, mount};
use tokio::sync::watch;

use crate::config::image_store::ImageStore;
use crate::storage::pull::lock;

/// Shares of the guest's memory, in percent, that a tmpfs or zram may take.
const MOST_OF_MEMORY: u64 = 80;

/// Set-user-ID programs and devices of an image work only where a container has it mounted. Nothing is flushed, for nothing outlives the
/// guest; and nothing is read that was not written: no inodes ahead of those that are wanted, no bitmaps.
const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOATIME);
const EXT4_OPTIONS: &CStr = c"errors=remount-ro,nobarrier,inode_readahead_blks=0,no_prefetch_block_bitmaps";

/// The place was not set up, or has failed since.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No disk, though one was asked for.
    #[error(
        "the image store is to be on a scratch disk and the VM has none: run it with one (nacre run --scratch SIZE)"
    )]
    NoDisk,
    /// The device is not what it should be.
    #[error("set up the image store")]
    Device(#[from] DeviceError),
    /// Something that was written is gone, and nobody can tell what.
    #[error(
        "the image store lost what was written to it, as a disk does that fails: run the pod anew, on another disk"
    )]
    Lost,
    /// The agent is about to end.
    #[error("set up the image store: ended before it was done")]
    Ended,
}

/// A block device was not made, or has no file system.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Too small for a file system.
    #[error("the device has {0} bytes, a file system needs {least} MiB: make it larger", least = ext4::SMALLEST >> 20)]
    Small(u64),
    /// A system call failed.
    #[error("{act} {object}")]
    System {
        /// What was tried.
        act: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl DeviceError {
    fn system(act: &'static str, object: impl std::fmt::Display, source: impl Into<io::Error>) -> DeviceError {
        DeviceError::System { act, object: object.to_string(), source: source.into() }
    }
}

/// Where layers are kept, once it has been set up.
#[derive(Debug, Clone)]
pub struct Place(watch::Receiver<Option<Result<Arc<Medium>, Arc<Error>>>>);

/// The other end of a [`Place`]: what it is to be.
#[derive(Debug)]
pub struct Setup(watch::Sender<Option<Result<Arc<Medium>, Arc<Error>>>>);

/// What is mounted there. Dropping it gives back what can be given back.
#[derive(Debug, Default)]
struct Medium {
    /// The file system, if it is one of a block device.
    root: Option<File>,
    lost: Mutex<bool>,
    _device: Option<Device>,
}

#[derive(Debug)]
enum Device {
    Zram(zram::Zram),
    Disk(disk::Encrypted),
}

impl Device {
    /// Its node.
    fn path(&self) -> PathBuf {
        match self {
            Device::Zram(zram) => zram.path(),
            Device::Disk(disk) => disk.path().into(),
        }
    }
}

impl Default for Place {
    /// A directory as it is found.
    fn default() -> Place {
        Place(watch::channel(Some(Ok(Arc::default()))).1)
    }
}

impl Place {
    /// One that is still to be set up.
    pub fn later() -> (Setup, Place) {
        let (sender, receiver) = watch::channel(None);
        (Setup(sender), Place(receiver))
    }

    /// Returns when layers can be kept there.
    pub async fn ready(&self) -> Result<(), Arc<Error>> {
        if *lock(&self.medium().await?.lost) { Err(Error::Lost.into()) } else { Ok(()) }
    }

    /// Returns when what was written until now is there for good. A disk that fails may lose what the kernel writes late: files would then
    /// read as zeros. So no layer is used before this, and none after a failure.
    pub async fn keep(&self) -> Result<(), Arc<Error>> {
        let medium = self.medium().await?;
        tokio::task::spawn_blocking(move || medium.keep()).await.unwrap_or(Err(Error::Lost)).map_err(Arc::new)
    }

    async fn medium(&self) -> Result<Arc<Medium>, Arc<Error>> {
        let mut receiver = self.0.clone();
        let state = receiver.wait_for(Option::is_some).await.map_err(|_| Error::Ended)?;
        state.clone().unwrap_or_else(|| Err(Error::Ended.into()))
    }
}

impl Setup {
    /// Sets it up at `at`, and tells all who wait. Blocks.
    pub fn run(self, at: &Path, wanted: Option<ImageStore>, size: Option<u64>) {
        let medium = Medium::make(at, wanted, size);
        if let Err(error) = &medium {
            tracing::error!(error = crate::chain(error), "no image can be pulled");
        }
        self.0.send_replace(Some(medium.map(Arc::new).map_err(Arc::new)));
    }

    /// It stays a directory as it is found.
    pub fn as_it_is(self) {
        self.0.send_replace(Some(Ok(Arc::default())));
    }
}

impl Medium {
    fn make(at: &Path, wanted: Option<ImageStore>, size: Option<u64>) -> Result<Medium, Error> {
        fs::create_dir_all(at).map_err(|error| DeviceError::system("make directory", at.display(), error))?;
        let disk = disk::find()?;
        let memory = memory();
        match (wanted, disk) {
            (Some(ImageStore::Disk), None) => Err(Error::NoDisk),
            (Some(ImageStore::Disk) | None, Some(disk)) => {
                let bytes = disk.bytes.min(size.unwrap_or(u64::MAX)).min(disk::most(memory));
                tracing::info!(disk = disk.bytes, used = bytes, "images are kept on the scratch disk, encrypted");
                Medium::of_device(Device::Disk(disk::Encrypted::make(SCRATCH, &disk, bytes)?), bytes, at)
            }
            (Some(ImageStore::Zram), _) => {
                let bytes = size.unwrap_or(memory);
                let zram = zram::Zram::make(bytes, Some(memory / 100 * MOST_OF_MEMORY))?;
                Medium::of_device(Device::Zram(zram), bytes, at)
            }
            (Some(ImageStore::Memory) | None, _) => Medium::of_memory(at, size),
        }
    }

    /// Without a size it is part of the directory's own tmpfs.
    fn of_memory(at: &Path, size: Option<u64>) -> Result<Medium, Error> {
        let Some(size) = size else { return Ok(Medium::default()) };
        let data =
            CString::new(format!("mode=755,size={size}")).map_err(|error| DeviceError::system("write", size, error))?;
        mount("tmpfs", at, "tmpfs", FLAGS, data.as_c_str())
            .map_err(|error| DeviceError::system("mount tmpfs on", at.display(), error))?;
        Ok(Medium::default())
    }

    fn of_device(device: Device, bytes: u64, at: &Path) -> Result<Medium, Error> {
        let path = device.path();
        make_file_system(&path, bytes)?;
        mount(&path, at, "ext4", FLAGS, EXT4_OPTIONS)
            .map_err(|error| DeviceError::system("mount (ext4)", path.display(), error))?;
        let root = File::open(at).map_err(|error| DeviceError::system("open", at.display(), error))?;
        Ok(Medium { root: Some(root), lost: Mutex::default(), _device: Some(device) })
    }

    /// The kernel tells each failure once; from then on it is remembered here.
    fn keep(&self) -> Result<(), Error> {
        let Some(root) = &self.root else { return Ok(()) };
        // One at a time, so that nobody asks between the kernel's telling and our remembering.
        let mut lost = lock(&self.lost);
        if let Err(error) = rustix::fs::syncfs(root) {
            *lost = true;
            tracing::error!(%error, "the image store lost what was written to it");
        }
        if *lost { Err(Error::Lost) } else { Ok(()) }
    }
}

/// Make an empty ext4 of `bytes` on the device at `path`.
pub(super) fn make_file_system(path: &Path, bytes: u64) -> Result<(), DeviceError> {
    let failed = |error| DeviceError::system("make a file system on", path.display(), error);
    let (mut uuid, mut hash) = ([0; 16], [0; 16]);
    random(&mut uuid)?;
    random(&mut hash)?;
    let pieces = ext4::format(bytes, &ext4::Identity { uuid, hash }).ok_or(DeviceError::Small(bytes))?;
    let file = File::options().write(true).open(path).map_err(failed)?;
    for piece in pieces {
        file.write_all_at(&piece.bytes, piece.offset).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}

fn random(bytes: &mut [u8]) -> Result<(), DeviceError> {
    let failed = |error| DeviceError::system("draw", "random numbers", error);
    // Until 256 bytes it draws all at once.
    rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty()).map(drop).map_err(failed)
}

/// The guest's memory, in bytes.
pub(super) fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests;
