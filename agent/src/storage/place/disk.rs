//! A disk of the host's that the host can neither read nor change unseen.
//!
//! ```text
//! ext4
//! dm-crypt       AES-XTS                    the host sees which sectors are written, and nothing of what
//! dm-integrity   HMAC-SHA-256 of each sector and its number
//!  │     └─ tags ── zram: the guest's memory
//! the host's disk
//! ```
//!
//! The tags lie where the host can't reach them, so a sector that it changes, moves or puts back to what it was is not read: the reader gets an
//! error. The keys are drawn here and kept by nobody but the kernel. The disk is not wiped first: a sector that was never written has no tag, and
//! nothing reads it. They take 16 bytes of memory for each 4 KiB that are written.

use std::path::{Path, PathBuf};

use nacre_protocol::disk::SCRATCH;
use nacre_sys::device_mapper::{self, Mapped, Target};
use zeroize::Zeroizing;

use super::zram::Zram;
use super::{DeviceError, random};
use crate::storage::disks::{self, SECTOR};

const BLOCK: u64 = 4096;

/// Bytes of a block's tag: half of the HMAC, which is as hard to guess as a key of that length.
const TAG: u64 = 16;

/// Room for dm-integrity's superblock and journal, of which it wants one section though it has no use for it: 172 KiB.
const BESIDES: u64 = 1 << 20;

/// A disk of this many times the memory has tags that take an eighth of it.
const TIMES_MEMORY: u64 = BLOCK / TAG / 8;

/// The host's disk.
#[derive(Debug)]
pub struct Disk {
    /// Its node.
    pub path: PathBuf,
    /// What the host says of its size.
    pub bytes: u64,
}

/// The most that is used of a disk in a guest with this much memory.
pub fn most(memory: u64) -> u64 {
    memory.saturating_mul(TIMES_MEMORY)
}

/// The first disk with our serial number.
pub fn find() -> Result<Option<Disk>, DeviceError> {
    let disks = disks::all().map_err(|error| DeviceError::system("list", "disks", error))?;
    let Some(disk) = disks.into_iter().find(|disk| disk.serial == SCRATCH) else { return Ok(None) };
    let path = disk.path();
    let bytes = disk.bytes().map_err(|error| DeviceError::system("ask for the size of", path.display(), error))?;
    Ok(Some(Disk { path, bytes }))
}

/// The disk, made safe. Dropping it removes the devices, unless they are in use; the uppermost goes first.
#[derive(Debug)]
pub struct Encrypted {
    crypt: Mapped,
    _integrity: Mapped,
    _tags: Zram,
}

impl Encrypted {
    /// Of the first `bytes` of the disk; the device to use is called `name`.
    pub fn make(name: &str, disk: &Disk, bytes: u64) -> Result<Encrypted, DeviceError> {
        let sectors = bytes / BLOCK * BLOCK / SECTOR;
        // dm-integrity counts the tags of the whole disk; those that are never written take no memory.
        let tags = Zram::make((disk.bytes / BLOCK).saturating_mul(TAG).saturating_add(BESIDES), None)?;
        let table = integrity(&disk.path, &tags.path(), &key::<32>()?);
        let integrity = map(&format!("{name}-integrity"), "integrity", sectors, &table)?;
        let crypt = map(name, "crypt", sectors, &crypt(&integrity.path, &key::<64>()?))?;
        Ok(Encrypted { crypt, _integrity: integrity, _tags: tags })
    }

    /// The node of the device to use.
    pub fn path(&self) -> &Path {
        &self.crypt.path
    }
}

fn map(name: &str, kind: &str, sectors: u64, parameters: &str) -> Result<Mapped, DeviceError> {
    device_mapper::create(name, &Target { sectors, kind, parameters, read_only: false })
        .map_err(|error| DeviceError::system("make the mapped device", name, error))
}

/// dm-integrity without a journal: a guest that dies leaves nothing to be made whole. Small buffers of tags, for memory may be short.
fn integrity(disk: &Path, tags: &Path, key: &str) -> Zeroizing<String> {
    let (disk, tags) = (disk.display(), tags.display());
    Zeroizing::new(format!(
        "{disk} 0 {TAG} D 5 internal_hash:hmac(sha256):{key} meta_device:{tags} block_size:{BLOCK} journal_sectors:1 buffer_sectors:8"
    ))
}

/// dm-crypt, in the threads of who writes and of who has read: to hand over to others takes longer.
fn crypt(below: &Path, key: &str) -> Zeroizing<String> {
    let below = below.display();
    Zeroizing::new(format!(
        "aes-xts-plain64 {key} 0 {below} 0 3 sector_size:{BLOCK} no_read_workqueue no_write_workqueue"
    ))
}

/// A new key of `N` bytes, in hexadecimal.
fn key<const N: usize>() -> Result<Zeroizing<String>, DeviceError> {
    let mut bytes = Zeroizing::new([0; N]);
    random(bytes.as_mut())?;
    let mut text = Zeroizing::new(String::with_capacity(2 * N));
    for byte in bytes.iter() {
        text.extend([byte >> 4, byte & 15].map(|half| char::from_digit(half.into(), 16).unwrap_or('0')));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_another_and_has_its_length() {
        let (one, two) = (key::<64>().unwrap(), key::<64>().unwrap());
        assert!(one != two && one.len() == 128 && one.chars().all(|c| c.is_ascii_hexdigit()));
    }

    #[test]
    fn tables_have_as_many_options_as_they_say() {
        for (table, fixed) in
            [(integrity("/dev/a".as_ref(), "/dev/b".as_ref(), "00"), 4), (crypt("/dev/a".as_ref(), "00"), 5)]
        {
            let words: Vec<&str> = table.split(' ').collect();
            assert_eq!(words[fixed].parse(), Ok(words.len() - fixed - 1), "{}", &**table);
        }
    }
}
