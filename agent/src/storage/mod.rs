//! File systems that a sandbox or a container asks for, by driver.
//!
//! What was prepared is a value, [`Prepared`]: releasing or dropping it undoes everything in reverse order, also when preparing stops
//! half-way. A storage whose mount point is in use already is not mounted again but counted ([`Mounts`]), as several containers of a
//! pod name the same ones. Paths come from the host and are walked without following links.

pub mod directory;
mod disks;
mod drivers;
pub mod extensions;
mod flight;
mod gpt;
pub mod group;
mod layers;
pub mod mountinfo;
mod mounts;
mod options;
mod overlay;
mod ownership;
pub mod place;
pub mod pull;
mod ready;
pub mod rules;
pub mod stale;
mod undo;
mod verity;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent::Storage;
use nacre_pull::Image;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::device::{self, Devices};
use directory::Directory;
use drivers::multi_layer::{self, Group};
use drivers::{bind, block, ephemeral, local, overlayfs, virtio_fs, watchable};
use layers::Pulled;
use mounts::Demand;
use options::{Data, Options};
use place::DeviceError;
use pull::{PullError, Pulls};
use undo::{Steps, Undo};
use verity::Verity;

pub use drivers::ephemeral::update;
pub use mounts::Mounts;

/// The drivers there are, by name.
pub const HANDLERS: &[&str] = &[
    IMAGE_GUEST_PULL,
    EPHEMERAL,
    LOCAL,
    VIRTIO_FS,
    OVERLAYFS,
    BIND,
    BLK,
    MMIOBLK,
    SCSI,
    NVDIMM,
    EROFS_MULTI_LAYER,
    WATCHABLE,
];

const IMAGE_GUEST_PULL: &str = "image_guest_pull";
const EPHEMERAL: &str = "ephemeral";
const LOCAL: &str = "local";
const VIRTIO_FS: &str = "virtio-fs";
const OVERLAYFS: &str = "overlayfs";
const BIND: &str = "bind";
const BLK: &str = "blk";
const MMIOBLK: &str = "mmioblk";
const SCSI: &str = "scsi";
const NVDIMM: &str = "nvdimm";
const WATCHABLE: &str = "watchable-bind";
const EROFS_MULTI_LAYER: &str = "erofs.multi-layer";

/// The most storages of one request.
const MAX_STORAGES: usize = 128;

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
    /// A file system was not mounted.
    #[error("mount {what:?} (type {kind}) on {at:?}")]
    Mount {
        /// A device, a tag, a directory.
        what: PathBuf,
        /// The type.
        kind: String,
        /// Where it was to be.
        at: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The image was not pulled.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A disk was not found.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// A disk was not made ready to be mounted.
    #[error(transparent)]
    Prepare(#[from] DeviceError),
    /// Stale mounts are being looked for already.
    #[error("stale mounts are being looked for already, for an earlier request")]
    Sweeping,
    /// The host does not answer for what it shares.
    #[error("the host has not answered for its share in {0:?}")]
    Silent(Duration),
    /// A task of ours was ended.
    #[error("a task was ended before it was done")]
    Task,
}

impl Error {
    /// Whether the request itself is at fault.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Error::Invalid { .. }) || matches!(self, Error::Device(error) if error.is_invalid())
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
        match self {
            Error::Pull(error) => matches!(error, PullError::Deadline { .. }),
            Error::Device(error) => error.is_deadline(),
            Error::Silent(_) => true,
            _ => false,
        }
    }

    /// Whether too much is being done already.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Error::Pull(PullError::TooMany { .. }) | Error::Sweeping)
    }

    fn system(act: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Error {
        Error::System { act, path: path.into(), source: source.into() }
    }

    fn mount(what: &Path, at: &Path, kind: &str, source: impl Into<io::Error>) -> Error {
        Error::Mount { what: what.into(), kind: kind.into(), at: at.into(), source: source.into() }
    }
}

/// For whom storages are prepared, and with what.
#[derive(Debug)]
pub struct Context<'a> {
    /// A container's id, or "sandbox".
    pub owner: &'a str,
    /// Below which mount points are: the rest of the guest is not the host's to cover.
    pub root: &'a Path,
    /// A directory for what is written to pulled images.
    pub scratch: &'a Path,
    /// The mounts of the whole agent.
    pub mounts: &'a Arc<Mounts>,
    /// The pulls of the whole agent.
    pub pulls: &'a Arc<Pulls>,
    /// The devices of the guest.
    pub devices: &'a Devices,
}

impl Context<'_> {
    fn mount_point(&self, storage: &Storage) -> Result<PathBuf, Error> {
        let at = checked_path(storage)?;
        match at.strip_prefix(self.root) {
            Ok(below) if !below.as_os_str().is_empty() => Ok(at),
            _ => Err(invalid(storage, format!("the mount point is not below {:?}", self.root))),
        }
    }

    /// A directory for what is written, which nobody has had before. No container's name begins with a dot.
    fn scratch(&self) -> PathBuf {
        self.scratch.join(".storages").join(self.mounts.number().to_string())
    }
}

/// Storages that are there. Dropping it undoes them.
#[derive(Debug, Default)]
pub struct Prepared {
    steps: Steps,
    pulled: Option<Arc<Pulled>>,
    rootfs: Option<PathBuf>,
}

/// Prepare all of `storages`, in order. Dropping the future undoes what it did.
pub async fn prepare(storages: &[Storage], context: &Context<'_>) -> Result<Prepared, Error> {
    check_count(storages)?;
    let mut making = Making::default();
    let result = making.0.all(storages, context).await;
    let prepared = std::mem::take(&mut making.0);
    match result {
        Ok(()) => Ok(prepared),
        Err(error) => {
            // The first error is worth more; the answer waits until nothing is left.
            let _ = spawn_blocking(move || prepared.release()).await;
            Err(error)
        }
    }
}

/// What is being prepared. Should nobody wait for it any more, it is undone where that may take its time.
#[derive(Default)]
struct Making(Prepared);

impl Drop for Making {
    fn drop(&mut self) {
        let prepared = std::mem::take(&mut self.0);
        if !prepared.steps.is_empty()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(prepared));
        }
    }
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

    /// Who asked for them is there: what is to outlive it does from now on.
    pub fn establish(&self) {
        self.steps.establish();
    }

    /// Undo everything, in reverse order and to the end; the first error is told. Blocks.
    pub fn release(self) -> Result<(), Error> {
        self.steps.release()
    }

    async fn all(&mut self, storages: &[Storage], context: &Context<'_>) -> Result<(), Error> {
        let mut layers: Vec<Storage> =
            storages.iter().filter(|storage| multi_layer::is_member(storage)).cloned().collect();
        for storage in storages {
            let is_disk = multi_layer::is_member(storage) || [BLK, MMIOBLK, SCSI, NVDIMM].contains(&&*storage.driver);
            if Verity::is_asked_for(&storage.options) && !is_disk {
                return Err(invalid(storage, "what is no disk can't be verified"));
            }
            match storage.driver.as_str() {
                // All of them where the first one stands.
                _ if multi_layer::is_member(storage) => self.layers(std::mem::take(&mut layers), context).await?,
                IMAGE_GUEST_PULL => self.pull(storage, context).await?,
                EPHEMERAL => self.shared(storage, context, ephemeral::make).await?,
                LOCAL => self.shared(storage, context, local::make).await?,
                VIRTIO_FS => self.shared(storage, context, virtio_fs::make).await?,
                BIND => self.shared(storage, context, bind::make).await?,
                OVERLAYFS => {
                    let (root, scratch) = (context.root.to_path_buf(), context.scratch());
                    let make = move |storage: &Storage, at: &Path| overlayfs::make(storage, at, &root, &scratch);
                    self.shared(storage, context, make).await?;
                }
                WATCHABLE => {
                    if let Some(place) =
                        watchable::to_be_covered(&context.mount_point(storage)?, context.mounts).await?
                    {
                        self.shared(&place, context, ephemeral::make).await?;
                    }
                    let scratch = context.scratch();
                    self.shared(storage, context, move |storage, at| watchable::make(storage, at, &scratch)).await?;
                }
                BLK | MMIOBLK | SCSI | NVDIMM => self.block(storage, context).await?,
                _ => return Err(Error::Driver(storage.driver.chars().take(64).collect())),
            }
        }
        Ok(())
    }

    /// What others may have there already is counted, otherwise `make` makes it.
    async fn shared(
        &mut self,
        storage: &Storage,
        context: &Context<'_>,
        make: impl FnOnce(&Storage, &Path) -> Result<Steps, Error> + Send + 'static,
    ) -> Result<(), Error> {
        self.shared_by(Demand::of(std::slice::from_ref(storage)), storage, context, make).await
    }

    async fn shared_by(
        &mut self,
        mut demand: Demand,
        storage: &Storage,
        context: &Context<'_>,
        make: impl FnOnce(&Storage, &Path) -> Result<Steps, Error> + Send + 'static,
    ) -> Result<(), Error> {
        let at = context.mount_point(storage)?;
        // What a pod's containers share lives as long as the pod, though the host does not say so: one of them may be started again.
        let is_own = at.starts_with(context.root.join(context.owner));
        demand.keep = storage.shared || [EPHEMERAL, LOCAL].contains(&&*storage.driver) && !is_own;
        let (mounts, storage) = (context.mounts.clone(), storage.clone());
        // Should nobody wait for it any more, the steps are dropped as soon as they are done.
        let done = spawn_blocking(move || {
            mounts.acquire(&storage, demand, &at, || {
                let steps = make(&storage, &at)?;
                if let Some(group) = storage.fs_group.as_ref() {
                    ownership::apply(&at, group, storage.options.iter().any(|option| option == "ro"))?;
                }
                Ok(steps)
            })
        });
        self.steps.append(done.await.map_err(|_| Error::Task)??);
        Ok(())
    }

    async fn block(&mut self, storage: &Storage, context: &Context<'_>) -> Result<(), Error> {
        let disk = context.devices.block(&block::locator(storage)?).await?.node;
        let name = format!("volume-{}", context.mounts.number());
        self.shared(storage, context, move |storage, at| block::make(storage, at, &disk, &name)).await
    }

    async fn layers(&mut self, members: Vec<Storage>, context: &Context<'_>) -> Result<(), Error> {
        let Some(first) = members.first().cloned() else { return Ok(()) };
        let demand = Demand::of(&members);
        let mut found = Vec::with_capacity(members.len());
        for member in members {
            if member.mount_point != first.mount_point {
                return Err(invalid(&member, "the layers of a container have one mount point"));
            }
            let disk = match multi_layer::is_in_memory(&member) {
                true => PathBuf::new(),
                false => context.devices.block(&block::locator(&member)?).await?.node,
            };
            found.push((member, disk));
        }
        let (group, scratch, mounts) = (Group::new(found)?, context.scratch(), context.mounts.clone());
        self.shared_by(demand, &first, context, move |_, at| group.make(at, &scratch, &mounts)).await
    }

    async fn pull(&mut self, storage: &Storage, context: &Context<'_>) -> Result<(), Error> {
        if self.pulled.is_some() {
            return Err(invalid(storage, "a container has one image"));
        }
        let mount_point = match storage.mount_point.as_str() {
            "" => context.root.join(context.owner).join("rootfs"),
            _ => context.mount_point(storage)?,
        };
        self.steps.push(Undo::Value(Box::new(context.mounts.claim(storage, &mount_point)?)));
        let (pulled, ready) = context.pulls.pull_mounted(context.owner, &storage.source).await?;
        let (scratch, at, image) = (context.scratch(), mount_point.clone(), pulled.clone());
        let mounted = spawn_blocking(move || mount_image(&image, ready, &scratch, &at));
        self.steps.append(mounted.await.map_err(|_| Error::Task)??);
        self.pulled = Some(pulled);
        self.rootfs = Some(mount_point);
        Ok(())
    }
}

/// Mount a pulled image, whose layers stay as long as `ready` does, on `at`; what is written goes to `scratch`, which is not there yet. Blocks.
fn mount_image(
    pulled: &Pulled,
    ready: impl fmt::Debug + Send + Sync + 'static,
    scratch: &Path,
    at: &Path,
) -> Result<Steps, Error> {
    let mut steps = Steps::default();
    steps.push(Undo::Value(Box::new(ready)));
    let upper = Directory::make(scratch)?;
    steps.push(Undo::Tree(scratch.into()));
    let target = Directory::make(at)?;
    if let Some(parent) = at.parent() {
        steps.push(Undo::Empty(parent.into()));
    }
    steps.push(Undo::Empty(at.into()));
    overlay::mount(&pulled.image.layers, &upper, scratch, &target, at)?;
    steps.push(Undo::Mount(at.into()));
    Ok(steps)
}

/// Show the file `source` at `at` too, for as long as the guest lives; no link is followed on the way there. Blocks.
pub fn show(source: &Path, at: &Path) -> Result<(), Error> {
    bind::bind(source, at, &Options::default(), false).map(Steps::keep)
}

fn parse_options(storage: &Storage, understood: Data) -> Result<Options, Error> {
    Options::parse(&storage.options, understood).map_err(|reason| invalid(storage, reason))
}

fn checked_path(storage: &Storage) -> Result<PathBuf, Error> {
    directory::parse(&storage.mount_point).map_err(|reason| invalid(storage, format!("the mount point {reason}")))
}

fn invalid(storage: &Storage, reason: impl Into<String>) -> Error {
    let short = |text: &str| text.chars().take(256).collect();
    Error::Invalid { driver: short(&storage.driver), mount_point: short(&storage.mount_point), reason: reason.into() }
}

#[cfg(test)]
mod block_tests;
#[cfg(test)]
mod tests;
