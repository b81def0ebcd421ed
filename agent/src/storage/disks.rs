//! The disks that the guest has, by the serial numbers that the host has given them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the kernel lists block devices (Documentation/ABI/stable/sysfs-block).
const LIST: &str = "/sys/block";

/// The unit of the kernel's sizes.
pub(super) const SECTOR: u64 = 512;

/// A disk with a serial number. Not all block devices have one.
#[derive(Debug)]
pub(super) struct Disk {
    name: String,
    pub(super) serial: String,
}

/// All of them, by their names.
pub(super) fn all() -> io::Result<Vec<Disk>> {
    let disk = |entry: fs::DirEntry| {
        let serial = fs::read_to_string(entry.path().join("serial")).ok()?.trim().to_string();
        Some(Disk { name: entry.file_name().into_string().ok()?, serial })
    };
    let entries = fs::read_dir(LIST)?.collect::<io::Result<Vec<_>>>()?;
    let mut disks: Vec<_> = entries.into_iter().filter_map(disk).collect();
    disks.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(disks)
}

impl Disk {
    /// Its node.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// What the host says of its size, in bytes.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        let text = fs::read_to_string(Path::new(LIST).join(&self.name).join("size"))?;
        let sectors: u64 = text.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(sectors.saturating_mul(SECTOR))
    }
}
