//! Programs for UEFI firmware, as far as sections are added to them and found in them (Microsoft's PE format).

use object::LittleEndian as LE;
use object::pe::{IMAGE_SCN_CNT_INITIALIZED_DATA, IMAGE_SCN_MEM_READ};
use object::read::pe::{ImageNtHeaders as _, ImageOptionalHeader as _, PeFile64};

/// What sections begin at a multiple of in memory, as firmware protects pages.
const PAGE: u32 = 4096;

/// Where the headers have what: the time, the number of sections; and behind them the image's size and the checksum.
const SECTIONS_AT: usize = 6;
const TIME_AT: usize = 8;
const OPTIONAL_AT: usize = 24;
const IMAGE_SIZE_AT: usize = OPTIONAL_AT + 56;
const CHECKSUM_AT: usize = OPTIONAL_AT + 64;

/// The header of a section.
const SECTION: usize = 40;

/// It is no such program, or has no room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a program.
    #[error("no program for 64-bit UEFI firmware: {0}")]
    NotPe(String),
    /// A section is there already, or its name is too long.
    #[error("there can't be another section {0}")]
    Name(String),
    /// The headers end where the first section begins.
    #[error("there is no room for the header of section {0}")]
    NoRoom(String),
    /// Sizes have 32 bits.
    #[error("with section {0} it gets larger than 4 GiB")]
    TooLarge(String),
}

impl From<object::Error> for Error {
    fn from(error: object::Error) -> Error {
        Error::NotPe(error.to_string())
    }
}

/// A section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section<'a> {
    /// Its name.
    pub name: String,
    /// What of it is in the file, without what pads it.
    pub data: &'a [u8],
}

/// The sections of a program, in the order of their headers.
///
/// # Errors
/// What is no program, or one whose sections are not in it.
pub fn sections(program: &[u8]) -> Result<Vec<Section<'_>>, Error> {
    let file = PeFile64::parse(program)?;
    let section = |header: &object::pe::ImageSectionHeader| {
        let data = header.pe_data(program)?;
        let name = String::from_utf8_lossy(header.raw_name()).into_owned();
        let size = data.len().min(header.virtual_size.get(LE) as usize);
        Ok(Section { name, data: data.get(..size).unwrap_or(data) })
    };
    file.section_table().iter().map(section).collect()
}

/// Adds sections behind those that are there, at addresses behind theirs.
///
/// # Errors
/// What is no program, and one that has no room for more.
pub fn append(program: &[u8], added: &[(&str, &[u8])]) -> Result<Vec<u8>, Error> {
    let file = PeFile64::parse(program)?;
    let (nt, table) = (file.nt_headers(), file.section_table());
    let optional = nt.optional_header();
    let (file_alignment, alignment) = (optional.file_alignment(), optional.section_alignment().max(PAGE));
    let header = file.dos_header().nt_headers_offset() as usize;
    let mut at =
        header + OPTIONAL_AT + usize::from(nt.file_header().size_of_optional_header.get(LE)) + SECTION * table.len();
    let first = table.iter().map(|s| s.pointer_to_raw_data.get(LE)).filter(|at| *at > 0).min().unwrap_or_default();
    let room = first.min(optional.size_of_headers()) as usize;
    let mut address = table
        .iter()
        .map(|s| s.virtual_address.get(LE).saturating_add(s.virtual_size.get(LE)))
        .max()
        .unwrap_or_default();
    let mut names: Vec<String> = table.iter().map(|s| String::from_utf8_lossy(s.raw_name()).into_owned()).collect();
    if !file_alignment.is_power_of_two() || !alignment.is_power_of_two() {
        return Err(Error::NotPe("its alignments are no powers of two".into()));
    }

    let mut out = program.to_vec();
    for (name, data) in added {
        if name.len() > 8 || names.iter().any(|there| there == name) {
            return Err(Error::Name((*name).into()));
        }
        if at + SECTION > room {
            return Err(Error::NoRoom((*name).into()));
        }
        let too_large = || Error::TooLarge((*name).into());
        out.resize(out.len().next_multiple_of(file_alignment as usize), 0);
        let offset = u32::try_from(out.len()).map_err(|_| too_large())?;
        out.extend(*data);
        out.resize(out.len().next_multiple_of(file_alignment as usize), 0);
        let raw = u32::try_from(out.len()).map_err(|_| too_large())? - offset;
        let size = data.len() as u32; // not more than `raw`
        address = address.checked_next_multiple_of(alignment).ok_or_else(too_large)?;
        let mut fields = [0; SECTION];
        fields[..name.len()].copy_from_slice(name.as_bytes());
        fields[8..24].copy_from_slice(&[size, address, raw, offset].map(u32::to_le_bytes).concat());
        fields[36..].copy_from_slice(&(IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ).to_le_bytes());
        put(&mut out, at, &fields);
        address = address.checked_add(size).ok_or_else(too_large)?;
        at += SECTION;
        names.push((*name).into());
    }
    let too_large = || Error::TooLarge(names.last().cloned().unwrap_or_default());
    put(&mut out, header + SECTIONS_AT, &(names.len() as u16).to_le_bytes());
    put(&mut out, header + TIME_AT, &[0; 4]);
    put(
        &mut out,
        header + IMAGE_SIZE_AT,
        &address.checked_next_multiple_of(alignment).ok_or_else(too_large)?.to_le_bytes(),
    );
    // Firmware takes none for right.
    put(&mut out, header + CHECKSUM_AT, &[0; 4]);
    Ok(out)
}

/// Over bytes that are there, as they have been read.
fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::uki::STUB;

    #[test]
    fn what_is_added_is_found_and_what_was_there_stays() {
        let Ok(stub) = std::fs::read(STUB) else { return println!("skipped: {STUB} is not there (systemd-boot-efi)") };
        let before = sections(&stub).unwrap();
        let large = vec![7; 100_000];
        let added: [(&str, &[u8]); 3] = [(".osrel", b"ID=nacre\n"), (".cmdline", b"quiet"), (".linux", &large)];
        let bytes = append(&stub, &added).unwrap();
        let after = sections(&bytes).unwrap();
        assert_eq!(after[..before.len()], before);
        let found: Vec<_> = after[before.len()..].iter().map(|section| (&*section.name, section.data)).collect();
        assert_eq!(found, added);
        assert_eq!(append(&bytes, &[(".linux", b"")]), Err(Error::Name(".linux".into())));
        let many: Vec<_> = (0..40).map(|n| format!(".n{n}")).collect();
        let many: Vec<_> = many.iter().map(|name| (&**name, &b"x"[..])).collect();
        assert!(matches!(append(&stub, &many), Err(Error::NoRoom(_))));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for bad in [&b""[..], b"MZ", &[0; 4096]] {
            assert!(matches!(append(bad, &[]), Err(Error::NotPe(_))));
            assert!(sections(bad).is_err());
        }
    }
}
