//! Disks of the host's with a file system, or with one that is made here.
//!
//! What is on a disk is the host's to read and to change, unless `encryption_key=ephemeral` has it encrypted and its changes noticed, with a key that
//! nobody but the kernel knows; then nothing that was there before can be read.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use nacre_protocol::agent::Storage;
use rustix::mount::MountFlags;

use super::bind::bind;
use crate::device::{self, Locator};
use crate::storage::options::Data;
use crate::storage::place::disk::{self, Disk, Encrypted};
use crate::storage::place::{self, memory};
use crate::storage::undo::{Steps, Undo};
use crate::storage::verity::Verity;
use crate::storage::{BIND, Error, MMIOBLK, NVDIMM, SCSI, drivers, invalid, parse_options};

/// What is mounted of disks. Each type is a piece of the kernel that reads what the host has written.
const FILE_SYSTEMS: &[&str] = &["ext4", "xfs", "btrfs", "erofs", "squashfs"];

/// The file system that is made.
const EXT4: &str = "ext4";

/// What to do with a disk before it is mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Make a file system.
    pub create: bool,
    /// Encrypt what is written.
    pub encrypt: bool,
}

/// Where the disk is.
pub fn locator(storage: &Storage) -> Result<Locator, device::Error> {
    match storage.driver.as_str() {
        SCSI => Locator::scsi(&storage.source),
        MMIOBLK | NVDIMM => Locator::node(&storage.source),
        _ if storage.source.starts_with('/') => Locator::node(&storage.source),
        _ => Locator::pci(&storage.source),
    }
}

/// Mount the disk whose node is `disk`; devices that are made of it are called `name`. Blocks.
pub fn make(storage: &Storage, at: &Path, disk: &Path, name: &str) -> Result<Steps, Error> {
    let before = Before::parse(&storage.driver_options).map_err(|reason| invalid(storage, reason))?;
    if before.create && Verity::is_asked_for(&storage.options) {
        return Err(invalid(storage, "what is made anew can't be verified"));
    }
    let kind = match storage.fstype.as_str() {
        // A volume that is a disk itself.
        BIND if before == Before::default() && !Verity::is_asked_for(&storage.options) => {
            return bind(disk, at, &parse_options(storage, Data::Tmpfs)?, false);
        }
        "" => EXT4,
        kind if FILE_SYSTEMS.contains(&kind) => kind,
        other => {
            return Err(invalid(storage, format!("file system type {other:?} is not supported; {FILE_SYSTEMS:?} are")));
        }
    };
    if before.create && kind != EXT4 {
        return Err(invalid(storage, format!("file systems of type {EXT4} are made, none of type {kind}")));
    }
    let mut options = parse_options(storage, Data::Any)?;
    let mut steps = Steps::default();
    let mut disk = before.act(disk, name, &mut steps)?;
    if let Some(verified) = drivers::verified(storage, &disk, name, &mut steps)? {
        disk = verified;
        options.flags |= MountFlags::RDONLY;
    }
    steps.append(drivers::mount(&disk, at, kind, &options)?);
    Ok(steps)
}

impl Before {
    fn parse(options: &[String]) -> Result<Before, String> {
        let mut before = Before::default();
        for option in options {
            match option.as_str() {
                "create_filesystem" => before.create = true,
                "encryption_key=ephemeral" => before.encrypt = true,
                other => {
                    let other: String = other.chars().take(64).collect();
                    return Err(format!("driver option {other:?} is not known"));
                }
            }
        }
        // Under a new key what is there is noise.
        if before.encrypt && !before.create {
            Err("encryption_key: needs create_filesystem".into())
        } else {
            Ok(before)
        }
    }

    /// Returns the node of what is to be mounted.
    pub fn act(&self, disk: &Path, name: &str, steps: &mut Steps) -> Result<PathBuf, Error> {
        let failed = |error| Error::system("ask for the size of", disk, error);
        if !self.create {
            return Ok(disk.into());
        }
        let mut bytes = File::open(disk).and_then(|mut disk| disk.seek(SeekFrom::End(0))).map_err(failed)?;
        let mut node = disk.to_path_buf();
        if self.encrypt {
            let whole = Disk { path: disk.into(), bytes };
            bytes = bytes.min(disk::most(memory()));
            if bytes < whole.bytes {
                tracing::warn!(?disk, bytes, "the guest has too little memory for the tags of a larger encrypted disk");
            }
            let encrypted = Encrypted::make(name, &whole, bytes)?;
            node = encrypted.path().into();
            steps.push(Undo::Value(Box::new(encrypted)));
        }
        place::make_file_system(&node, bytes)?;
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_of_encryption_is_refused() {
        let parse = |options: &[&str]| Before::parse(&options.iter().map(|o| (*o).to_string()).collect::<Vec<_>>());
        assert_eq!(parse(&[]).unwrap(), Before::default());
        assert_eq!(parse(&["create_filesystem"]).unwrap(), Before { create: true, encrypt: false });
        let both = parse(&["encryption_key=ephemeral", "create_filesystem"]).unwrap();
        assert_eq!(both, Before { create: true, encrypt: true });
        for bad in [&["encryption_key=ephemeral"][..], &["create_filesystem", "encryption_key=kbs:///a/b"], &["x"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_disk_is_named_as_its_driver_has_it() {
        let at = |driver: &str, source: &str| {
            locator(&Storage { driver: driver.into(), source: source.into(), ..Storage::new() })
        };
        assert_eq!(at("blk", "02/01").unwrap(), Locator::pci("02/01").unwrap());
        assert_eq!(at("blk", "/dev/vda").unwrap(), Locator::node("/dev/vda").unwrap());
        assert_eq!(at("scsi", "1:2").unwrap(), Locator::Scsi { target: 1, lun: 2 });
        assert!(
            at("mmioblk", "02/01").is_err() && at("nvdimm", "/dev/../etc").is_err() && at("scsi", "/dev/sda").is_err()
        );
    }
}
