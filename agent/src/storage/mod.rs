//! File systems that a sandbox or a container asks for, by driver.
//!
//! What was prepared is a value, [`Prepared`]: releasing or dropping it undoes everything in reverse order, also when preparing stops
//! half-way. A storage whose mount point is in use already is not mounted again but counted ([`Mounts`]), as several containers of a
//! pod name the same ones. Paths come from the host and are walked without following links.

pub mod directory;
mod disks;
mod flight;
pub mod group;
mod layers;
mod options;
mod overlay;
pub mod place;
pub mod pull;
mod ready;
pub mod rules;

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nacre_protocol::agent::Storage;
use nacre_pull::Image;
use rustix::mount::{UnmountFlags, mount, mount_remount, unmount};

use crate::device::Devices;
use directory::Directory;
use layers::Pulled;
use options::Options;
use pull::{PullError, Pulls};
use ready::InUse;

/// The drivers there are, by name.
pub const HANDLERS: &[&str] = &[IMAGE_GUEST_PULL, EPHEMERAL, LOCAL];

const IMAGE_GUEST_PULL: &str = "image_guest_pull";
const EPHEMERAL: &str = "ephemeral";
const LOCAL: &str = "local";

/// The most storages of one request.
const MAX_STORAGES: usize = 128;

/// Where a pulled image is mounted when the host does not say.
const CONTAINERS: &str = "/run/kata-containers";

/// A storage was not prepared or not released.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense.
    #[error("storage {mount_point:?} (driver {driver:?}): {reason}")]
    Invalid {
        /// The driver as requested.
        driver: String,
        /// The mount point as requested.
        mount_point: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no such driver.
    #[error("storage driver {0:?} is not supported by this agent; it has {HANDLERS:?}")]
    Driver(String),
    /// A system call failed.
    #[error("{act} {path:?}")]
    System {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The image was not pulled.
    #[error(transparent)]
    Pull(#[from] PullError),
}

impl Error {
    /// Whether the request itself is at fault.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Error::Invalid { .. })
    }

    /// Whether the agent does not offer what is asked for.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Error::Driver(_))
    }

    /// Whether the image policy does not allow it.
    pub fn is_denied(&self) -> bool {
        matches!(self, Error::Pull(error) if error.kind() == Some(nacre_pull::Kind::Denied))
    }

    /// Whether time ran out.
    pub fn is_deadline(&self) -> bool {
        matches!(self, Error::Pull(PullError::Deadline { .. }))
    }

    /// Whether too much is being done already.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Error::Pull(PullError::TooMany { .. }))
    }

    fn system(act: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Error {
        Error::System { act, path: path.into(), source: source.into() }
    }
}

/// For whom storages are prepared, and with what.
#[derive(Debug)]
pub struct Context<'a> {
    /// A container's id, or "sandbox".
    pub owner: &'a str,
    /// A directory for what is written to pulled images.
    pub scratch: &'a Path,
    /// The mounts of the whole agent.
    pub mounts: &'a Arc<Mounts>,
    /// The pulls of the whole agent.
    pub pulls: &'a Arc<Pulls>,
    /// The devices of the guest.
    pub devices: &'a Devices,
}

/// Storages that are there. Dropping it undoes them.
#[derive(Debug, Default)]
pub struct Prepared {
    undo: Vec<Undo>,
    pulled: Option<Arc<Pulled>>,
    rootfs: Option<PathBuf>,
}

#[derive(Debug)]
enum Undo {
    Shared {
        mounts: Arc<Mounts>,
        mount_point: PathBuf,
    },
    Mount(PathBuf),
    Tree(PathBuf),
    /// A directory that was made to be mounted on, empty again.
    Empty(PathBuf),
    /// Ready-made layers.
    Ready(InUse),
}

/// Prepare all of `storages`, in order. Dropping the future undoes what it did.
pub async fn prepare(storages: &[Storage], context: &Context<'_>) -> Result<Prepared, Error> {
    let mut prepared = Prepared::default();
    check_count(storages)?;
    for storage in storages {
        match storage.driver.as_str() {
            IMAGE_GUEST_PULL => prepared.pull(storage, context).await?,
            EPHEMERAL => prepared.shared(storage, context, ephemeral)?,
            LOCAL => prepared.shared(storage, context, local)?,
            _ => return Err(Error::Driver(storage.driver.chars().take(64).collect())),
        }
    }
    Ok(prepared)
}

/// Give storages that are mounted already, ephemeral ones, the options of `storages`. All are judged before the first is changed. Blocks.
pub fn update(storages: &[Storage], mounts: &Mounts) -> Result<(), Error> {
    check_count(storages)?;
    let judge = |storage: &Storage| {
        if storage.driver != EPHEMERAL {
            return Err(invalid(storage, format!("only those of driver {EPHEMERAL:?} can be updated")));
        }
        Ok((checked_path(storage)?, parse_options(storage)?))
    };
    let judged: Vec<_> = storages.iter().map(judge).collect::<Result<_, _>>()?;
    storages.iter().zip(&judged).try_for_each(|(storage, (at, options))| mounts.update(storage, at, options))
}

fn check_count(storages: &[Storage]) -> Result<(), Error> {
    let Some(excess) = storages.get(MAX_STORAGES) else { return Ok(()) };
    Err(invalid(excess, format!("one of {} storages; at most {MAX_STORAGES} are taken", storages.len())))
}

impl Prepared {
    /// The image that was pulled, if one was.
    pub fn image(&self) -> Option<&Image> {
        self.pulled.as_ref().map(|pulled| &pulled.image)
    }

    /// Where the pulled image's file system is mounted.
    pub fn rootfs(&self) -> Option<&Path> {
        self.rootfs.as_deref()
    }

    /// Undo everything, in reverse order and to the end; the first error is told. Blocks.
    pub fn release(mut self) -> Result<(), Error> {
        self.undo_all()
    }

    fn undo_all(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        while let Some(undo) = self.undo.pop() {
            result = result.and(undo.run());
        }
        result
    }

    fn shared(
        &mut self,
        storage: &Storage,
        context: &Context<'_>,
        make: fn(&Storage, &Path) -> Result<Undo, Error>,
    ) -> Result<(), Error> {
        let mount_point = checked_path(storage)?;
        context.mounts.acquire(&mount_point, storage.shared, || make(storage, &mount_point))?;
        self.undo.push(Undo::Shared { mounts: context.mounts.clone(), mount_point });
        Ok(())
    }

    async fn pull(&mut self, storage: &Storage, context: &Context<'_>) -> Result<(), Error> {
        if self.pulled.is_some() {
            return Err(invalid(storage, "a container has one image"));
        }
        let mount_point = match storage.mount_point.as_str() {
            "" => Path::new(CONTAINERS).join(context.owner).join("rootfs"),
            _ => checked_path(storage)?,
        };
        let (pulled, ready) = context.pulls.pull_mounted(context.owner, &storage.source).await?;
        // What exists from here on is undone by `self`.
        self.undo.push(Undo::Ready(ready));
        let scratch = context.scratch.join(context.owner);
        let upper = Directory::make(&scratch)?;
        self.undo.push(Undo::Tree(scratch.clone()));
        let target = Directory::make(&mount_point)?;
        self.undo.push(Undo::Empty(mount_point.clone()));
        overlay::mount(&pulled.image.layers, &upper, &scratch, &target, &mount_point)?;
        self.undo.push(Undo::Mount(mount_point.clone()));
        self.pulled = Some(pulled);
        self.rootfs = Some(mount_point);
        Ok(())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Err(error) = self.undo_all() {
            tracing::warn!(error = crate::chain(&error), "a storage was not released");
        }
    }
}

impl Undo {
    fn run(self) -> Result<(), Error> {
        match self {
            Undo::Shared { mounts, mount_point } => mounts.release(&mount_point),
            Undo::Ready(in_use) => {
                drop(in_use);
                Ok(())
            }
            Undo::Mount(path) => match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
                Err(error) => Err(Error::system("unmount", path, error)),
            },
            Undo::Empty(path) => {
                // The host may have put something else there or above; then it stays.
                let _ = fs::remove_dir(&path).and_then(|()| path.parent().map_or(Ok(()), fs::remove_dir));
                Ok(())
            }
            Undo::Tree(path) => match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::system("remove", path, error)),
                _ => Ok(()),
            },
        }
    }
}

/// The mount points in use, and by how many.
#[derive(Debug, Default)]
pub struct Mounts(Mutex<HashMap<PathBuf, Use>>);

#[derive(Debug)]
struct Use {
    count: usize,
    /// Kept although nobody uses it: the host says that others may still come.
    keep: bool,
    undo: Undo,
}

impl Mounts {
    /// No mounts yet.
    pub fn new() -> Arc<Mounts> {
        Arc::default()
    }

    fn acquire(&self, at: &Path, keep: bool, make: impl FnOnce() -> Result<Undo, Error>) -> Result<(), Error> {
        let mut mounts = self.lock();
        match mounts.get_mut(at) {
            Some(mount) => mount.count += 1,
            None => {
                let undo = make()?;
                mounts.insert(at.into(), Use { count: 1, keep, undo });
            }
        }
        Ok(())
    }

    /// Mount the tmpfs at `at` anew. Nothing else is: the host may not change how the guest's own are mounted.
    fn update(&self, storage: &Storage, at: &Path, options: &Options) -> Result<(), Error> {
        let mounts = self.lock(); // it must not go meanwhile
        if !mounts.get(at).is_some_and(|mount| matches!(mount.undo, Undo::Mount(_))) {
            return Err(invalid(storage, "no such storage is mounted"));
        }
        let (directory, data) = (Directory::make(at)?, data_of(storage, options)?);
        mount_remount(directory.path(), options.flags, data.as_c_str())
            .map_err(|error| Error::system("mount anew, with other options,", at, error))
    }

    fn release(&self, at: &Path) -> Result<(), Error> {
        let mut mounts = self.lock();
        let Some(mount) = mounts.get_mut(at) else { return Ok(()) };
        mount.count = mount.count.saturating_sub(1);
        if mount.count > 0 || mount.keep {
            return Ok(());
        }
        mounts.remove(at).map_or(Ok(()), |mount| mount.undo.run())
    }

    /// A holder that panicked left the map whole: each change to it is one call.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tmpfs of its own.
fn ephemeral(storage: &Storage, at: &Path) -> Result<Undo, Error> {
    if !matches!(storage.fstype.as_str(), "tmpfs" | "") {
        return Err(invalid(storage, format!("file system type {:?} is not supported; tmpfs is", storage.fstype)));
    }
    let options = parse_options(storage)?;
    let directory = Directory::make(at)?;
    let data = data_of(storage, &options)?;
    mount("tmpfs", directory.path(), "tmpfs", options.flags, data.as_c_str())
        .map_err(|error| Error::system("mount tmpfs on", at, error))?;
    let undo = Undo::Mount(at.into());
    // Opened anew, as the mount covers the directory.
    match Directory::make(at).and_then(|mounted| mounted.own(&options, at)) {
        Ok(()) => Ok(undo),
        Err(error) => undo.run().and(Err(error)),
    }
}

fn data_of(storage: &Storage, options: &Options) -> Result<CString, Error> {
    CString::new(options.data.as_str()).map_err(|_| invalid(storage, "an option holds a NUL"))
}

/// A directory in the guest, which goes with the last who uses it.
fn local(storage: &Storage, at: &Path) -> Result<Undo, Error> {
    let options = parse_options(storage)?;
    Directory::make(at)?.own(&options, at)?;
    Ok(Undo::Tree(at.into()))
}

fn parse_options(storage: &Storage) -> Result<Options, Error> {
    let mut options = Options::parse(&storage.options).map_err(|reason| invalid(storage, reason))?;
    if let Some(group) = storage.fs_group.as_ref() {
        options.group = Some(group.group_id);
    }
    Ok(options)
}

fn checked_path(storage: &Storage) -> Result<PathBuf, Error> {
    directory::parse(&storage.mount_point).map_err(|reason| invalid(storage, format!("the mount point {reason}")))
}

fn invalid(storage: &Storage, reason: impl Into<String>) -> Error {
    let short = |text: &str| text.chars().take(256).collect();
    Error::Invalid { driver: short(&storage.driver), mount_point: short(&storage.mount_point), reason: reason.into() }
}

#[cfg(test)]
mod tests;
