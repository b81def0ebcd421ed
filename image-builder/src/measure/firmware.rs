//! Firmware for confidential VMs (OVMF): the table of GUIDs at its end, and what SEV-SNP and TDX find by it.

use crate::outputs::identity::Guid;

const PAGE: u64 = 4096;

/// Firmware ends where the first 4 GiB do.
const TOP: u64 = 1 << 32;

/// The largest firmware that is read, and the largest memory that one of its sections may name.
const MAX_BYTES: usize = 64 << 20;
const MAX_SECTION: u64 = 64 << 20;

/// The most sections that metadata may have.
const MAX_SECTIONS: u32 = 64;

/// The table ends this far before the firmware's end; its header is the last thing in it.
const TABLE_END: usize = 32;
const ENTRY_HEADER: usize = 2 + 16;

const FOOTER: &str = "96b582de-1fb2-45f7-baea-a366c55a082d";
const SEV_METADATA: &str = "dc886566-984a-4798-a75e-5585a7bf67cc";
const KERNEL_HASHES: &str = "7255371f-3a3b-4b04-927b-1da6efa8d454";
const RESET_BLOCK: &str = "00f771de-1a7e-4fcb-890e-68c77e2fb44e";
const TDX_METADATA: &str = "e47a6535-984a-4798-865e-4685a7bf8ec2";

/// What keeps firmware from being measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its length makes no sense.
    #[error("firmware has whole pages, and {MAX_BYTES} bytes at most; this has {0} bytes")]
    Size(usize),
    /// It ends in no table of GUIDs.
    #[error("there is no table of GUIDs at the end: it is no OVMF")]
    NoTable,
    /// The table has no such entry.
    #[error("this OVMF has no {0}: build it from OvmfPkg/AmdSev, or for TDX from OvmfPkg/IntelTdx")]
    Lacks(&'static str),
    /// Something in it contradicts itself.
    #[error("the {0} are damaged")]
    Damaged(&'static str),
}

/// Firmware, and where its table says things are.
#[derive(Debug, Clone)]
pub struct Firmware<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    entries: Vec<([u8; 16], &'a [u8])>,
}

/// What a section of SEV's metadata is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SevKind {
    /// Memory that is zero at first: the firmware's own, or a calling area of an SVSM.
    Zero,
    /// The secrets page.
    Secrets,
    /// The CPUID page.
    Cpuid,
    /// The page with the hashes of what boots.
    KernelHashes,
}

/// Memory that the host prepares before it launches an SEV-SNP guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SevSection {
    /// Its address.
    pub address: u64,
    /// Its length, whole pages.
    pub bytes: u64,
    /// Its use.
    pub kind: SevKind,
}

/// Memory that the host adds to a trust domain before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdxSection<'a> {
    /// What of it the firmware holds; the rest is zero.
    pub data: &'a [u8],
    /// Its address.
    pub address: u64,
    /// Its length, whole pages.
    pub bytes: u64,
    /// Whether its content is measured, too.
    pub extended: bool,
    /// Whether the guest adds it itself, later.
    pub later: bool,
}

impl<'a> Firmware<'a> {
    /// Finds the table.
    ///
    /// # Errors
    /// What is no OVMF.
    pub fn parse(bytes: &'a [u8]) -> Result<Firmware<'a>, Error> {
        if bytes.is_empty() || !(bytes.len() as u64).is_multiple_of(PAGE) || bytes.len() > MAX_BYTES {
            return Err(Error::Size(bytes.len()));
        }
        let damaged = Error::Damaged("table's lengths");
        let table = bytes.get(..bytes.len() - TABLE_END).ok_or(Error::NoTable)?;
        let (guid, all, _) = last_entry(table).ok_or(Error::NoTable)?;
        if guid != bytes_of(FOOTER) {
            return Err(Error::NoTable);
        }
        // The footer's length is the whole table's, its own header included.
        let start = table.len().checked_sub(all);
        let mut rest = start.and_then(|start| table.get(start..table.len() - ENTRY_HEADER));
        let mut entries = Vec::new();
        while let Some(left) = rest.filter(|left| !left.is_empty()) {
            let (guid, length, data_end) = last_entry(left).ok_or_else(|| damaged.clone())?;
            let start = left.len().checked_sub(length).filter(|start| *start <= data_end);
            let start = start.ok_or_else(|| damaged.clone())?;
            entries.push((guid, left.get(start..data_end).unwrap_or_default()));
            rest = left.get(..start);
        }
        rest.map(|_| Firmware { bytes, entries }).ok_or(damaged)
    }

    /// Where it begins in the guest's memory.
    pub fn address(&self) -> u64 {
        TOP - self.bytes.len() as u64
    }

    /// The first instruction of all processors but the first.
    ///
    /// # Errors
    /// Firmware that does not say.
    pub fn reset_vector(&self) -> Result<u32, Error> {
        let what = "reset block for SEV-ES";
        number(self.entry(RESET_BLOCK, what)?, 0).ok_or(Error::Damaged(what))
    }

    /// The address and the length of the area for the hashes of what boots.
    ///
    /// # Errors
    /// Firmware that has no such area.
    pub fn kernel_hashes(&self) -> Result<(u64, u64), Error> {
        let what = "area for kernel hashes";
        let entry = self.entry(KERNEL_HASHES, what)?;
        let (address, bytes) = number(entry, 0).zip(number(entry, 4)).ok_or(Error::Damaged(what))?;
        if address == 0 { Err(Error::Lacks(what)) } else { Ok((address.into(), bytes.into())) }
    }

    /// What SEV-SNP's metadata name.
    ///
    /// # Errors
    /// Firmware without, or with such as make no sense.
    pub fn sev(&self) -> Result<Vec<SevSection>, Error> {
        let what = "SEV metadata";
        let rest = self.pointed(SEV_METADATA, what)?;
        let count = number(rest, 12).filter(|_| rest.starts_with(b"ASEV")).ok_or(Error::Damaged(what))?;
        if count > MAX_SECTIONS {
            return Err(Error::Damaged(what));
        }
        let section = |at: usize| {
            let (address, bytes) = (u64::from(number(rest, at)?), u64::from(number(rest, at + 4)?));
            let kind = match number(rest, at + 8)? {
                1 | 4 => SevKind::Zero,
                2 => SevKind::Secrets,
                3 => SevKind::Cpuid,
                0x10 => SevKind::KernelHashes,
                _ => return None,
            };
            are_pages(address, bytes).then_some(SevSection { address, bytes, kind })
        };
        (0..count as usize).map(|n| section(16 + 12 * n).ok_or(Error::Damaged(what))).collect()
    }

    /// What TDX's metadata name.
    ///
    /// # Errors
    /// Firmware without, or with such as make no sense.
    pub fn tdx(&self) -> Result<Vec<TdxSection<'a>>, Error> {
        let what = "TDX metadata";
        let rest = self.pointed(TDX_METADATA, what)?;
        let count = number(rest, 12).filter(|_| rest.starts_with(b"TDVF")).ok_or(Error::Damaged(what))?;
        if count > MAX_SECTIONS {
            return Err(Error::Damaged(what));
        }
        let section = |at: usize| {
            let (offset, length) = (number(rest, at)? as usize, number(rest, at + 4)? as usize);
            let (address, bytes) = (long(rest, at + 8)?, long(rest, at + 16)?);
            let attributes = number(rest, at + 28)?;
            let data = self.bytes.get(offset..offset.checked_add(length)?)?;
            let fits = are_pages(address, bytes) && data.len() as u64 <= bytes;
            let (extended, later) = (attributes & 1 != 0, attributes & 2 != 0);
            fits.then_some(TdxSection { data, address, bytes, extended, later })
        };
        (0..count as usize).map(|n| section(16 + 32 * n).ok_or(Error::Damaged(what))).collect()
    }

    fn entry(&self, guid: &str, what: &'static str) -> Result<&'a [u8], Error> {
        let guid = bytes_of(guid);
        self.entries.iter().find(|(of, _)| *of == guid).map(|(_, data)| *data).ok_or(Error::Lacks(what))
    }

    /// What an entry points at, counted from the firmware's end.
    fn pointed(&self, guid: &str, what: &'static str) -> Result<&'a [u8], Error> {
        let back = number(self.entry(guid, what)?, 0).ok_or(Error::Damaged(what))? as usize;
        let start = self.bytes.len().checked_sub(back).ok_or(Error::Damaged(what))?;
        self.bytes.get(start..).ok_or(Error::Damaged(what))
    }
}

/// Entries are read from their end: data, their whole length, their GUID. The GUID, the length, and where the data ends.
fn last_entry(table: &[u8]) -> Option<([u8; 16], usize, usize)> {
    let (rest, guid) = table.split_last_chunk::<16>()?;
    let (data, length) = rest.split_last_chunk::<2>()?;
    Some((*guid, u16::from_le_bytes(*length).into(), data.len()))
}

/// A GUID as firmware stores it.
pub(super) fn bytes_of(guid: &str) -> [u8; 16] {
    Guid::parse(guid).unwrap_or_default().swapped().0
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn are_pages(address: u64, bytes: u64) -> bool {
    address.is_multiple_of(PAGE)
        && bytes.is_multiple_of(PAGE)
        && bytes <= MAX_SECTION
        && address.checked_add(bytes).is_some()
}
