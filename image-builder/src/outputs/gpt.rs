//! GUID partition tables (UEFI 2.10, chapter 5): written with room for nothing more, and read as if by whoever would be misled by one.

use crc32fast::hash as crc32;

use super::identity::Guid;

/// The unit in which everything is counted.
pub const SECTOR: usize = 512;

/// What partitions begin at a multiple of: a page of the host's and of the guest's.
const ALIGNMENT: usize = 4096;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER: usize = 92;

/// Both tables have as many entries as the specification asks for.
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
const TABLE: usize = ENTRIES * ENTRY;
const TABLE_SECTORS: u64 = (TABLE / SECTOR) as u64;

/// The characters that a name may have.
const MAX_NAME: usize = 36;

/// "Read-only", as the discoverable partitions have it.
const READ_ONLY: u64 = 1 << 60;

/// What a partition of an MBR is that only says that a GUID partition table follows.
const PROTECTIVE: u8 = 0xee;

/// A partition to be made.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// What it is for.
    pub kind: Guid,
    /// Which one it is.
    pub guid: Guid,
    /// A name in ASCII.
    pub name: &'a str,
    /// What it holds.
    pub content: &'a [u8],
}

/// A partition that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// What it is for.
    pub kind: Guid,
    /// Which one it is.
    pub guid: Guid,
    /// Its name.
    pub name: String,
    /// Its first sector.
    pub first: u64,
    /// Its last sector.
    pub last: u64,
}

/// A disk's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The disk's identity.
    pub disk: Guid,
    /// Its partitions, by their numbers.
    pub partitions: Vec<Partition>,
}

/// It is no table, or one that could be read in two ways.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too short, or not a number of sectors.
    #[error("{0} bytes are no disk with two partition tables")]
    Size(usize),
    /// The first sector.
    #[error("the first sector does not say that the partition table is a GUID one")]
    Protective,
    /// One of the headers.
    #[error("the {which} header: {reason}")]
    Header {
        /// Which of the two.
        which: &'static str,
        /// What it lacks.
        reason: &'static str,
    },
    /// A partition.
    #[error("partition {number}: {reason}")]
    Partition {
        /// Its number, counted from 1.
        number: usize,
        /// What it lacks.
        reason: &'static str,
    },
}

/// The bytes of a disk with these partitions, at most as many as a table has room for.
pub fn write(disk: Guid, parts: &[Part<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; (2 + TABLE_SECTORS as usize) * SECTOR];
    let mut table = Vec::with_capacity(TABLE);
    for part in parts.iter().take(ENTRIES) {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        let first = (bytes.len() / SECTOR) as u64;
        bytes.extend(part.content);
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        table.extend(entry(part, first, (bytes.len() / SECTOR) as u64 - 1));
    }
    table.resize(TABLE, 0);
    // The whole disk is a number of pages, and its last sectors are the other table and its header.
    let sectors = (bytes.len() + TABLE + SECTOR).next_multiple_of(ALIGNMENT) as u64 / SECTOR as u64;
    let last = sectors - 1;
    let head = |own: u64, other: u64, entries: u64| header(disk, (own, other), entries, last, &table);
    let (primary, backup) = (head(1, last, 2), head(last, 1, last - TABLE_SECTORS));
    bytes.resize((last - TABLE_SECTORS) as usize * SECTOR, 0);
    bytes.extend(&table);
    bytes.extend(backup);
    let front = [protective(last), primary, table].concat();
    bytes.splice(..front.len(), front);
    bytes
}

fn entry(part: &Part<'_>, first: u64, last: u64) -> Vec<u8> {
    let numbers = [first, last, READ_ONLY].map(u64::to_le_bytes).concat();
    let name = part.name.encode_utf16().take(MAX_NAME).flat_map(u16::to_le_bytes);
    let mut bytes = [&part.kind.swapped().0[..], &part.guid.swapped().0, &numbers].concat();
    bytes.extend(name);
    bytes.resize(ENTRY, 0);
    bytes
}

/// A header, with its checksum, in a sector of its own.
fn header(disk: Guid, (own, other): (u64, u64), entries: u64, last: u64, table: &[u8]) -> Vec<u8> {
    let (first_usable, last_usable) = (2 + TABLE_SECTORS, last - TABLE_SECTORS - 1);
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([REVISION, HEADER as u32, 0, 0].map(u32::to_le_bytes).concat());
    bytes.extend([own, other, first_usable, last_usable].map(u64::to_le_bytes).concat());
    bytes.extend(disk.swapped().0);
    bytes.extend(entries.to_le_bytes());
    bytes.extend([ENTRIES as u32, ENTRY as u32, crc32(table)].map(u32::to_le_bytes).concat());
    let checksum = crc32(&bytes).to_le_bytes();
    bytes.splice(16..20, checksum);
    bytes.resize(SECTOR, 0);
    bytes
}

/// The first sector: one partition that covers the disk, for who knows no other table.
fn protective(last: u64) -> Vec<u8> {
    let sectors = u32::try_from(last).unwrap_or(u32::MAX);
    let mut bytes = vec![0; 446];
    bytes.extend([0, 0, 2, 0, PROTECTIVE, 0xff, 0xff, 0xff]);
    bytes.extend([1, sectors].map(u32::to_le_bytes).concat());
    bytes.resize(510, 0);
    bytes.extend([0x55, 0xaa]);
    bytes
}

/// Reads the table of a whole disk. Both copies must be there and say the same.
///
/// # Errors
/// Anything that a table made here does not have.
pub fn read(disk: &[u8]) -> Result<Table, Error> {
    let last = (disk.len() / SECTOR) as u64;
    let Some(last) =
        last.checked_sub(1).filter(|last| disk.len().is_multiple_of(SECTOR) && *last > 2 * TABLE_SECTORS + 2)
    else {
        return Err(Error::Size(disk.len()));
    };
    if disk.get(510..512) != Some(&[0x55, 0xaa]) || disk.get(450) != Some(&PROTECTIVE) {
        return Err(Error::Protective);
    }
    let primary = Header::read(disk, "first", (1, last), 2, last)?;
    let backup = Header::read(disk, "last", (last, 1), last - TABLE_SECTORS, last)?;
    if primary.disk != backup.disk || primary.table != backup.table {
        return Err(Error::Header { which: "last", reason: "it says something else than the first" });
    }
    let entries =
        primary.table.chunks_exact(ENTRY).enumerate().filter(|(_, entry)| entry.iter().any(|byte| *byte != 0));
    let mut partitions: Vec<Partition> = Vec::new();
    for (index, entry) in entries {
        let wrong = |reason| Error::Partition { number: index + 1, reason };
        let partition = Partition::parse(entry).ok_or(wrong("it makes no sense"))?;
        if partition.first < 2 + TABLE_SECTORS
            || partition.first > partition.last
            || partition.last >= last - TABLE_SECTORS
        {
            return Err(wrong("it is not between the tables"));
        }
        if partitions.iter().any(|other| other.first <= partition.last && partition.first <= other.last) {
            return Err(wrong("it overlaps another"));
        }
        partitions.push(partition);
    }
    Ok(Table { disk: primary.disk, partitions })
}

/// What a header says that is not known beforehand.
struct Header<'a> {
    disk: Guid,
    table: &'a [u8],
}

impl Header<'_> {
    /// The header in sector `own`, whose table must begin at sector `entries`.
    fn read<'a>(
        disk: &'a [u8],
        which: &'static str,
        (own, other): (u64, u64),
        entries: u64,
        last: u64,
    ) -> Result<Header<'a>, Error> {
        let wrong = |reason| Error::Header { which, reason };
        let at = |sector: u64, length: usize| {
            let start = usize::try_from(sector).ok()?.checked_mul(SECTOR)?;
            disk.get(start..start.checked_add(length)?)
        };
        let (bytes, table) = at(own, SECTOR).zip(at(entries, TABLE)).ok_or(wrong("it is not on the disk"))?;
        if !bytes.starts_with(SIGNATURE) {
            return Err(wrong("it has no signature"));
        }
        let guid = bytes.get(56..72).and_then(<[u8]>::first_chunk).ok_or(wrong("it is too short"))?;
        let guid = Guid(*guid).swapped();
        // All that is free in a header is the disk's identity and the entries; so what it must be can be told.
        if bytes != header(guid, (own, other), entries, last, table) {
            return Err(wrong("a field or a checksum is wrong"));
        }
        Ok(Header { disk: guid, table })
    }
}

impl Partition {
    fn parse(entry: &[u8]) -> Option<Partition> {
        let guid = |at: usize| Some(Guid(*entry.get(at..)?.first_chunk()?).swapped());
        let number = |at: usize| Some(u64::from_le_bytes(*entry.get(at..)?.first_chunk()?));
        let units = entry.get(56..)?.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        Some(Partition {
            kind: guid(0)?,
            guid: guid(16)?,
            name: String::from_utf16(&units).ok()?,
            first: number(32)?,
            last: number(40)?,
        })
    }

    /// Its bytes of `disk`.
    pub fn of<'a>(&self, disk: &'a [u8]) -> Option<&'a [u8]> {
        let byte = |sector: u64| usize::try_from(sector).ok()?.checked_mul(SECTOR);
        disk.get(byte(self.first)?..byte(self.last.checked_add(1)?)?)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const KIND: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";

    fn disk() -> Vec<u8> {
        let kind = Guid::parse(KIND).unwrap();
        let part = |number, name, content| Part { kind, guid: Guid([number; 16]), name, content };
        write(Guid([7; 16]), &[part(1, "one", &[1; 5000]), part(2, "two", &[2; 512])])
    }

    #[test]
    fn what_is_written_is_read() {
        let disk = disk();
        assert_eq!(disk.len() % ALIGNMENT, 0);
        let table = read(&disk).unwrap();
        assert_eq!(table.disk, Guid([7; 16]));
        let found: Vec<_> = table.partitions.iter().map(|p| (&*p.name, p.first, p.last)).collect();
        assert_eq!(found, [("one", 40, 49), ("two", 56, 56)]);
        assert_eq!(table.partitions[0].kind.to_string(), KIND);
        assert_eq!(table.partitions[1].of(&disk).unwrap(), [2; 512]);
    }

    #[test]
    fn a_byte_that_is_changed_in_a_table_is_seen() {
        let disk = disk();
        let end = disk.len() - SECTOR;
        for at in
            [450, 510, 512, 520, 528, 536, 568, 600, 900, 1024 + 32, 1024 + ENTRY * 7, end, end + 60, end - 32 * SECTOR]
        {
            let mut other = disk.clone();
            other[at] ^= 1;
            assert!(read(&other).is_err(), "{at}");
        }
        assert!(read(&disk[..disk.len() - SECTOR]).is_err());
        assert_eq!(read(&disk[..100]), Err(Error::Size(100)));
        assert_eq!(read(&[]), Err(Error::Size(0)));
    }

    #[test]
    fn partitions_lie_between_the_tables_and_beside_each_other() {
        let part = |first: u64, last: u64| {
            let part = Part { kind: Guid([1; 16]), guid: Guid([2; 16]), name: "x", content: &[] };
            entry(&part, first, last)
        };
        let with = |entries: &[Vec<u8>]| {
            let mut disk = disk();
            let last = (disk.len() / SECTOR) as u64 - 1;
            let mut table = entries.concat();
            table.resize(TABLE, 0);
            for (own, other, at) in [(1, last, 2), (last, 1, last - TABLE_SECTORS)] {
                let put = |disk: &mut Vec<u8>, sector: u64, bytes: Vec<u8>| {
                    let start = sector as usize * SECTOR;
                    disk.splice(start..start + bytes.len(), bytes);
                };
                put(&mut disk, own, header(Guid([7; 16]), (own, other), at, last, &table));
                put(&mut disk, at, table.clone());
            }
            read(&disk)
        };
        assert_eq!(with(&[part(40, 41), part(42, 43)]).unwrap().partitions.len(), 2);
        for bad in [part(33, 40), part(41, 40), part(40, 1 << 40), part(40, u64::MAX)] {
            assert!(matches!(with(&[bad]), Err(Error::Partition { number: 1, .. })));
        }
        assert!(matches!(with(&[part(40, 45), part(45, 46)]), Err(Error::Partition { number: 2, .. })));
    }

    #[test]
    fn sfdisk_finds_nothing_to_complain_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), disk()).unwrap();
        let sfdisk = ["/usr/sbin/sfdisk", "/sbin/sfdisk"].into_iter().find(|path| std::path::Path::new(path).exists());
        let Some(sfdisk) = sfdisk else { return println!("skipped: sfdisk is not installed (fdisk)") };
        let output = Command::new(sfdisk).arg("--verify").arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("No errors detected"), "{output:?}");
    }
}
