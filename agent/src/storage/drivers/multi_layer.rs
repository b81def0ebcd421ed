//! EROFS layers that the host attaches as disks or partitions of one, and a place to write, as one overlay.
//!
//! A request has one such group, spread over storages that carry its mark; they come as one and go as one.
//!
//! ```text
//! overlay          on the mount point
//!  ├─ upper, work  on a disk with ext4, or in the guest's memory
//!  └─ EROFS …      the first is the uppermost
//!      dm-verity   if its root hash is given
//!      dm-linear   if it is a partition
//! ```

use std::path::{Path, PathBuf};

use nacre_protocol::agent::Storage;
use rustix::fs::{AtFlags, CWD, Mode, chmodat};
use rustix::mount::MountFlags;

use super::block::Before;
use crate::storage::directory::{self, Directory};
use crate::storage::gpt::Partition;
use crate::storage::mounts::Mounts;
use crate::storage::options::{Data, Options};
use crate::storage::overlay::{self, Writable};
use crate::storage::undo::{Steps, Undo};
use crate::storage::verity::Verity;
use crate::storage::{EROFS_MULTI_LAYER, Error, drivers, invalid};

const MEMBER: &str = "X-kata.multi-layer=true";
const UPPER: &str = "X-kata.overlay-upper";
const LOWER: &str = "X-kata.overlay-lower";
const MKFS: &str = "X-kata.mkfs=true";
const MKFS_TYPE: &str = "X-kata.mkfs.fs=";
const PARTITIONED: &str = "X-kata.gpt-partitioned=true";
const PARTITION: &str = "X-kata.partition-number=";
const MKDIR: &str = "X-kata.mkdir.path=";

/// What stands for the upper layer's own root in a path to be made.
const UPPER_ROOT: &str = "{{ mount 0 }}/";

/// Whether the storage is a part of the group.
pub fn is_member(storage: &Storage) -> bool {
    storage.driver == EROFS_MULTI_LAYER || has(storage, MEMBER)
}

/// Whether it is kept in memory, and so has no disk.
pub fn is_in_memory(storage: &Storage) -> bool {
    is_upper(storage) && storage.fstype == "tmpfs"
}

/// A layer and its disk's node, if it is on a disk.
#[derive(Debug)]
pub struct Layer {
    storage: Storage,
    disk: PathBuf,
}

/// The layers of a group.
#[derive(Debug)]
pub struct Group {
    upper: Option<Layer>,
    /// The uppermost first.
    lower: Vec<Layer>,
}

impl Group {
    /// A group of storages and their disks' nodes.
    pub fn new(members: Vec<(Storage, PathBuf)>) -> Result<Group, Error> {
        let mut group = Group { upper: None, lower: Vec::new() };
        for (storage, disk) in members {
            if is_upper(&storage) {
                if Verity::is_asked_for(&storage.options) {
                    return Err(invalid(&storage, "what is written to can't be verified"));
                }
                if group.upper.is_some() {
                    return Err(invalid(&storage, "there is an upper layer already"));
                }
                group.upper = Some(Layer { storage, disk });
            } else if is_lower(&storage) {
                group.lower.push(Layer { storage, disk });
            } else {
                return Err(invalid(&storage, format!("a layer has {UPPER} or {LOWER}")));
            }
        }
        Ok(group)
    }

    /// Mount it on `at`; what it takes is below `scratch`, a directory that is not there yet. Blocks.
    pub fn make(&self, at: &Path, scratch: &Path, mounts: &Mounts) -> Result<Steps, Error> {
        let mut steps = Steps::default();
        Directory::make(scratch)?;
        steps.push(Undo::Empty(scratch.into()));
        let root = scratch.join("upper");
        match &self.upper {
            Some(layer) if !is_in_memory(&layer.storage) => steps.append(layer.mount_upper(&root, mounts)?),
            _ => {
                Directory::make(&root)?;
                steps.push(Undo::Tree(root.clone()));
            }
        }
        for directory in self.upper.iter().flat_map(|layer| &layer.storage.options) {
            if let Some(directory) = directory.strip_prefix(MKDIR) {
                make_directory(&root, directory).map_err(|reason| self.invalid(reason))?;
            }
        }
        let (upper, work) = (Directory::make(&root.join("upper"))?, Directory::make(&root.join("work"))?);
        let mut lower = Vec::new();
        for (number, layer) in self.lower.iter().enumerate() {
            let place = scratch.join(number.to_string());
            steps.append(layer.mount_lower(&place, mounts)?);
            lower.push(Directory::find(&place)?);
        }
        let target = Directory::make(at)?;
        steps.push(Undo::Empty(at.into()));
        overlay::join(&lower, Some(Writable { upper: &upper, work: &work }), &target, &Options::default())
            .map_err(|error| Error::mount(Path::new("layers"), at, "overlay", error))?;
        steps.push(Undo::Mount(at.into()));
        Ok(steps)
    }

    fn invalid(&self, reason: String) -> Error {
        let nobody = Storage::new();
        invalid(self.upper.as_ref().map_or(&nobody, |layer| &layer.storage), reason)
    }
}

impl Layer {
    /// A disk that is made a file system on the way serves this container alone, so that it is encrypted as well.
    fn mount_upper(&self, at: &Path, mounts: &Mounts) -> Result<Steps, Error> {
        let storage = &self.storage;
        let kind = storage.options.iter().find_map(|option| option.strip_prefix(MKFS_TYPE));
        let kind = kind.unwrap_or_else(|| storage.fstype.strip_prefix("mkfs/").unwrap_or(&storage.fstype));
        if kind != "ext4" {
            return Err(invalid(storage, format!("file system type {kind:?} is not supported; ext4 and tmpfs are")));
        }
        let made = has(storage, MKFS) || storage.fstype.starts_with("mkfs/");
        let mut steps = Steps::default();
        let before = Before { create: made, encrypt: made };
        let disk = before.act(&self.disk, &format!("upper-{}", mounts.number()), &mut steps)?;
        steps.append(drivers::mount(&disk, at, kind, &self.options()?)?);
        Ok(steps)
    }

    fn mount_lower(&self, at: &Path, mounts: &Mounts) -> Result<Steps, Error> {
        let mut steps = Steps::default();
        let mut disk = self.disk.clone();
        if let Some(number) = self.partition()? {
            let failed = |error| Error::system("find a partition of", &self.disk, error);
            let partition = Partition::find(&disk, number).map_err(failed)?;
            let mapped = partition.map(&format!("partition-{}", mounts.number()), &disk).map_err(failed)?;
            disk.clone_from(&mapped.path);
            steps.push(Undo::Value(Box::new(mapped)));
        }
        let name = format!("verity-{}", mounts.number());
        if let Some(verified) = drivers::verified(&self.storage, &disk, &name, &mut steps)? {
            disk = verified;
        }
        let mut options = self.options()?;
        options.flags |= MountFlags::RDONLY;
        steps.append(drivers::mount(&disk, at, "erofs", &options)?);
        Ok(steps)
    }

    fn options(&self) -> Result<Options, Error> {
        Options::parse(&self.storage.options, Data::Any).map_err(|reason| invalid(&self.storage, reason))
    }

    fn partition(&self) -> Result<Option<u32>, Error> {
        let number = self.storage.options.iter().find_map(|option| option.strip_prefix(PARTITION));
        match (has(&self.storage, PARTITIONED), number.map(str::parse)) {
            (true, Some(Ok(number))) => Ok(Some(number)),
            (false, None) => Ok(None),
            _ => Err(invalid(&self.storage, format!("{PARTITIONED} and {PARTITION}NUMBER go together"))),
        }
    }
}

/// `PATH[:MODE]`, below the upper layer's root.
fn make_directory(root: &Path, text: &str) -> Result<(), String> {
    let wrong = || format!("{MKDIR} {text:?} is not {UPPER_ROOT}PATH or {UPPER_ROOT}PATH:MODE");
    let (path, mode) = text.split_once(':').map_or((text, None), |(path, mode)| (path, Some(mode)));
    let below = path.strip_prefix(UPPER_ROOT).and_then(|path| directory::parse(&format!("/{path}")).ok());
    let mode = mode.map(|mode| u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(wrong));
    let (below, mode) = (below.ok_or_else(wrong)?, mode.transpose()?);
    let place = root.join(below.strip_prefix("/").unwrap_or(&below));
    let made = Directory::make(&place).map_err(|error| crate::chain(&error))?;
    let Some(mode) = mode else { return Ok(()) };
    chmodat(CWD, made.path(), Mode::from_raw_mode(mode), AtFlags::empty())
        .map_err(|error| format!("{place:?}: {error}"))
}

fn has(storage: &Storage, option: &str) -> bool {
    storage.options.iter().any(|other| other == option)
}

fn is_upper(storage: &Storage) -> bool {
    has(storage, UPPER) || has(storage, MKFS) || (storage.fstype == "ext4" && !has(storage, LOWER))
}

fn is_lower(storage: &Storage) -> bool {
    has(storage, LOWER) || storage.fstype == "erofs"
}
