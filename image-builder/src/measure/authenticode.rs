//! The digest by which firmware measures a program: Authenticode's (Microsoft's "Windows Authenticode Portable Executable Signature Format").

use anyhow::{Context as _, Result, ensure};
use object::LittleEndian as LE;
use object::read::pe::{ImageNtHeaders as _, ImageOptionalHeader as _, PeFile64};
use sha2::Digest;

/// Where the optional header has its checksum, and its data directories; the fifth of them is the table of certificates.
const CHECKSUM: usize = 24 + 64;
const CERTIFICATES: usize = 24 + 112 + 4 * 8;

/// The digest of all that does not change when the program is signed: neither checksum nor certificates.
///
/// # Errors
/// What is no program for 64-bit UEFI firmware, and one whose headers are not of the file.
pub fn authenticode<D: Digest>(program: &[u8]) -> Result<sha2::digest::Output<D>> {
    let file = PeFile64::parse(program).context("no program for 64-bit UEFI firmware")?;
    let (nt, optional) = (file.dos_header().nt_headers_offset() as usize, file.nt_headers().optional_header());
    let headers = optional.size_of_headers() as usize;
    let part = |from: usize, to: usize| program.get(from..to).context("its headers are damaged");
    ensure!(optional.number_of_rva_and_sizes() > 4, "it has no place for certificates");
    let mut hash = D::new();
    hash.update(part(0, nt + CHECKSUM)?);
    hash.update(part(nt + CHECKSUM + 4, nt + CERTIFICATES)?);
    hash.update(part(nt + CERTIFICATES + 8, headers)?);
    let mut sections: Vec<(u32, u32)> =
        file.section_table().iter().map(|s| (s.pointer_to_raw_data.get(LE), s.size_of_raw_data.get(LE))).collect();
    sections.retain(|(_, bytes)| *bytes > 0);
    sections.sort_unstable();
    let mut hashed = headers;
    for (start, bytes) in sections {
        hash.update(part(start as usize, start as usize + bytes as usize)?);
        hashed += bytes as usize;
    }
    let certificates = part(nt + CERTIFICATES + 4, nt + CERTIFICATES + 8)?;
    let certificates = u32::from_le_bytes(*certificates.first_chunk().context("its headers are damaged")?) as usize;
    // What follows the last section counts, too.
    let end = program.len().checked_sub(certificates).context("its certificates are longer than it is")?;
    if end > hashed {
        hash.update(part(hashed, end)?);
    }
    Ok(hash.finalize())
}
