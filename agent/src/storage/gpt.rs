//! Where a partition is: a disk's GUID partition table (UEFI 2.10, chapter 5).
//!
//! The table is the host's, and so is what it leads to: nothing here is to be trusted further than dm-verity goes. Its checksums are not looked at.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nacre_sys::device_mapper::{self, Mapped, Target};

use super::disks::SECTOR;

/// The header, in the second sector.
const SIGNATURE: &[u8] = b"EFI PART";

/// As many partitions as tables have room for.
const MAX_PARTITIONS: u32 = 128;

/// The bytes of an entry that are of use here, and the most that one may have.
const ENTRY: usize = 128;
const MAX_ENTRY: u32 = 4096;

/// A part of a disk, in sectors.
#[derive(Debug, PartialEq, Eq)]
pub struct Partition {
    first: u64,
    sectors: u64,
}

impl Partition {
    /// The partition `number`, counted from 1, of `disk`.
    pub fn find(disk: &Path, number: u32) -> io::Result<Partition> {
        let mut disk = File::open(disk)?;
        let sectors = disk.seek(SeekFrom::End(0))? / SECTOR;
        let mut header = [0; SECTOR as usize];
        disk.read_exact_at(&mut header, SECTOR)?;
        let at = entry(&header, number).ok_or_else(|| wrong(format!("the disk has no partition {number}")))?;
        let mut bytes = [0; ENTRY];
        disk.read_exact_at(&mut bytes, at)?;
        of_entry(&bytes, sectors).ok_or_else(|| wrong(format!("partition {number} is none, or not on the disk")))
    }

    /// The device `name`, which shows what is in it and can't be written.
    pub fn map(&self, name: &str, disk: &Path) -> io::Result<Mapped> {
        let parameters = format!("{} {}", disk.display(), self.first);
        let target = Target { sectors: self.sectors, kind: "linear", parameters: &parameters, read_only: true };
        device_mapper::create(name, &target)
    }
}

/// Where the entry of a partition is, in bytes.
fn entry(header: &[u8], number: u32) -> Option<u64> {
    let (table, count, size) = (u64_at(header, 72)?, u32_at(header, 80)?, u32_at(header, 84)?);
    let sane = header.starts_with(SIGNATURE) && count <= MAX_PARTITIONS && (ENTRY as u32..=MAX_ENTRY).contains(&size);
    let index = number.checked_sub(1).filter(|index| sane && *index < count)?;
    table.checked_mul(SECTOR)?.checked_add(u64::from(index) * u64::from(size))
}

/// What the entry says, if it is in use and on a disk of so many sectors.
fn of_entry(entry: &[u8], sectors: u64) -> Option<Partition> {
    let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
    let used = entry.get(..16)?.iter().any(|byte| *byte != 0);
    (used && 0 < first && first <= last && last < sectors).then(|| Partition { first, sectors: last - first + 1 })
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn wrong(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of 64 sectors whose table, in its third, has these partitions.
    fn disk(count: u32, size: u32, partitions: &[(u64, u64)]) -> tempfile::NamedTempFile {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(64 * SECTOR).unwrap();
        let write = |bytes: &[u8], at: u64| disk.as_file().write_all_at(bytes, at).unwrap();
        write(SIGNATURE, SECTOR);
        write(&2u64.to_le_bytes(), SECTOR + 72);
        write(&[count.to_le_bytes(), size.to_le_bytes()].concat(), SECTOR + 80);
        for (number, (first, last)) in partitions.iter().enumerate() {
            let at = 2 * SECTOR + number as u64 * u64::from(size);
            write(&[9; 16], at);
            write(&[first.to_le_bytes(), last.to_le_bytes()].concat(), at + 32);
        }
        disk
    }

    #[test]
    fn a_partition_is_found_by_its_number() {
        for size in [128, 256] {
            let disk = disk(4, size, &[(34, 40), (41, 63)]);
            let found = |number| Partition::find(disk.path(), number);
            assert_eq!(found(1).unwrap(), Partition { first: 34, sectors: 7 });
            assert_eq!(found(2).unwrap(), Partition { first: 41, sectors: 23 });
            for none in [0, 3, 4, 5, u32::MAX] {
                assert!(found(none).is_err(), "{none}");
            }
        }
    }

    #[test]
    fn a_table_that_makes_no_sense_has_no_partition() {
        for (count, size, partition) in [
            (129, 128, (34, 40)),
            (4, 64, (34, 40)),
            (4, 8192, (34, 40)),
            (4, 128, (40, 34)),
            (4, 128, (34, 64)),
            (4, 128, (0, 63)),
            (4, 128, (34, u64::MAX)),
        ] {
            assert!(
                Partition::find(disk(count, size, &[partition]).path(), 1).is_err(),
                "{count} {size} {partition:?}"
            );
        }
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(Partition::find(empty.path(), 1).is_err());
        let no_signature = disk(4, 128, &[(34, 40)]);
        no_signature.as_file().write_all_at(b"x", SECTOR).unwrap();
        assert!(Partition::find(no_signature.path(), 1).is_err());
        let far = disk(4, 128, &[(34, 40)]);
        far.as_file().write_all_at(&u64::MAX.to_le_bytes(), SECTOR + 72).unwrap();
        assert!(Partition::find(far.path(), 1).is_err());
    }
}
