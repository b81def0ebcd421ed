//! What sysfs and `/dev` have of a device at this moment. All of this blocks for as long as sysfs takes.

use std::fs::{self, FileType, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use super::Error;
use super::locator::{Locator, PciPath};

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its node.
    pub node: PathBuf,
    /// Its number's first part.
    pub major: u32,
    /// Its number's second part.
    pub minor: u32,
}

/// Where the kernel shows its devices.
#[derive(Debug, Clone)]
pub struct Tree {
    /// `/sys`.
    pub sysfs: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Tree {
    /// The block device at `locator`, or what there is in its place.
    pub fn block(&self, locator: &Locator) -> Result<Block, String> {
        let directory = match locator {
            Locator::Pci(path) => only(&only(&self.pci(path)?, is_virtio)?.join("block"), any)?,
            Locator::Node(name) => self.sysfs.join("class/block").join(name),
            Locator::Scsi { target, lun } => {
                let suffix = format!(":0:{target}:{lun}");
                let disks = self.sysfs.join("class/scsi_device");
                only(&only(&disks, |name| name.ends_with(&suffix))?.join("device/block"), any)?
            }
        };
        self.node(&directory)
    }

    /// The directory of the PCI device at the end of `path`.
    pub fn pci(&self, path: &PciPath) -> Result<PathBuf, String> {
        let mut bus = format!("0000:{:02x}", path.root);
        let mut directory = self.pci_root(&bus)?;
        for (level, slot) in path.slots.iter().enumerate() {
            if level > 0 {
                bus = name_of(&only(&directory.join("pci_bus"), any)?);
            }
            directory.push(format!("{bus}:{slot}"));
            if !directory.is_dir() {
                return Err(format!("there is no {directory:?}"));
            }
        }
        Ok(directory)
    }

    /// The name of the network interface of the card at `path`. That of a virtio card is one level down.
    pub fn interface(&self, path: &PciPath) -> Result<String, String> {
        let card = self.pci(path)?;
        let card = only(&card, is_virtio).unwrap_or(card);
        only(&card.join("net"), any).map(|interface| name_of(&interface))
    }

    /// On machines that have their devices from a device tree, the root is below its bridge.
    fn pci_root(&self, bus: &str) -> Result<PathBuf, String> {
        let (name, devices) = (format!("pci{bus}"), self.sysfs.join("devices"));
        let direct = devices.join(&name);
        if direct.is_dir() {
            return Ok(direct);
        }
        let bridges = entries(&devices.join("platform")).unwrap_or_default();
        let found = bridges.into_iter().map(|bridge| bridge.join(&name)).find(|root| root.is_dir());
        found.ok_or_else(|| format!("there is no {direct:?}"))
    }

    /// Have every SCSI host look for a disk.
    pub fn scan_scsi(&self, target: u8, lun: u16) {
        for host in entries(&self.sysfs.join("class/scsi_host")).unwrap_or_default() {
            let scan = host.join("scan");
            if let Err(error) = write(&scan, &format!("0 {target} {lun}")) {
                tracing::warn!("look for a SCSI disk: {}", crate::chain(&error)); // another host may have it
            }
        }
    }

    /// The node of the block device that is `directory` in sysfs. It is made a moment after that, and before the kernel tells.
    fn node(&self, directory: &Path) -> Result<Block, String> {
        let node = self.dev.join(name_of(directory));
        let (major, minor) = number(directory, &node, FileTypeExt::is_block_device)?;
        Ok(Block { node, major, minor })
    }
}

/// The number of the device that is `directory` in sysfs. It has that `node`, of the right kind.
pub(super) fn number(directory: &Path, node: &Path, is_kind: fn(&FileType) -> bool) -> Result<(u32, u32), String> {
    let file = directory.join("dev");
    let text = fs::read_to_string(&file).map_err(|e| format!("{file:?}: {e}"))?;
    let number = text.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (major, minor) = number.ok_or_else(|| format!("{file:?} has no device number"))?;
    let metadata = fs::symlink_metadata(node).map_err(|e| format!("{node:?}: {e}"))?;
    if !is_kind(&metadata.file_type()) || number_of(metadata.rdev()) != (major, minor) {
        return Err(format!("{node:?} is not the device {major}:{minor} that {directory:?} is"));
    }
    Ok((major, minor))
}

/// Write to a file that sysfs has.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Error> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| Error::system("write to", path, source))
}

pub(super) fn number_of(device: u64) -> (u32, u32) {
    (major(device), minor(device))
}

fn is_virtio(name: &str) -> bool {
    name.starts_with("virtio")
}

fn any(_: &str) -> bool {
    true
}

/// The only entry of `directory` whose name is `wanted`.
fn only(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf, String> {
    let mut found = entries(directory)?.into_iter().filter(|entry| wanted(&name_of(entry)));
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry),
        (None, _) => Err(format!("there is no such device in {directory:?}")),
        (Some(_), Some(_)) => Err(format!("there are several such devices in {directory:?}")),
    }
}

pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let list = fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    list.map_err(|error| format!("{directory:?}: {error}"))
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
