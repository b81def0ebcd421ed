//! What an ELF file says of itself. Libraries are found by reading, never by running the program that wants them.

use anyhow::{Context as _, Result, bail};
use object::elf::{DT_NEEDED, DT_STRSZ, DT_STRTAB, FileHeader64, PT_INTERP, PT_NOTE};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{Endianness, ReadRef as _};

/// What a program needs to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The path of its loader.
    pub interpreter: Option<String>,
    /// The names of its libraries.
    pub libraries: Vec<String>,
}

/// Whether `bytes` begin like an ELF file.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Reads the dynamic section of a 64-bit ELF file. A static one needs nothing.
///
/// # Errors
/// A malformed file.
pub fn needs(bytes: &[u8]) -> Result<Needs> {
    let header = FileHeader64::<Endianness>::parse(bytes).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    let mut needs = Needs::default();
    for segment in header.program_headers(endian, bytes)? {
        if segment.p_type(endian) == PT_INTERP {
            let data = segment.data(endian, bytes).ok().context("a loader beyond the file's end")?;
            let name = data.split(|byte| *byte == 0).next().unwrap_or_default();
            needs.interpreter = Some(String::from_utf8_lossy(name).into_owned());
        }
        let Some(dynamic) = segment.dynamic(endian, bytes)? else { continue };
        let value = |tag: u32| dynamic.iter().find(|d| d.tag32(endian) == Some(tag)).map(|d| d.d_val(endian));
        let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else { continue };
        let start = offset_of(header, endian, bytes, address)?;
        let strings = bytes.read_bytes_at(start, size).ok().context("names beyond the file's end")?;
        for entry in dynamic.iter().filter(|d| d.tag32(endian) == Some(DT_NEEDED)) {
            let name = usize::try_from(entry.d_val(endian)).ok().and_then(|at| strings.get(at..));
            let name =
                name.context("a name beyond the table's end")?.split(|byte| *byte == 0).next().unwrap_or_default();
            needs.libraries.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(needs)
}

/// Where in the file the byte lies that is mapped at `address`.
fn offset_of(header: &FileHeader64<Endianness>, endian: Endianness, bytes: &[u8], address: u64) -> Result<u64> {
    for segment in header.program_headers(endian, bytes)? {
        let start = segment.p_vaddr(endian);
        if segment.p_type(endian) == object::elf::PT_LOAD
            && (start..start + segment.p_filesz(endian)).contains(&address)
        {
            return Ok(address - start + segment.p_offset(endian));
        }
    }
    bail!("no segment holds address {address:#x}")
}

/// Whether the file carries the note `kind` of `owner`.
///
/// # Errors
/// A malformed file.
pub fn has_note(bytes: &[u8], owner: &str, kind: u32) -> Result<bool> {
    let header = FileHeader64::<Endianness>::parse(bytes).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, bytes)?.iter().filter(|s| s.p_type(endian) == PT_NOTE) {
        let Some(mut notes) = segment.notes(endian, bytes)? else { continue };
        while let Some(note) = notes.next()? {
            if note.name() == owner.as_bytes() && note.n_type(endian) == kind {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_libc_and_a_loader() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = needs(&own).unwrap();
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"), "{needs:?}");
        assert!(needs.interpreter.unwrap().contains("ld-linux"));
        assert!(has_note(&own, "GNU", 3).unwrap() && !has_note(&own, "Xen", 18).unwrap());
    }

    #[test]
    fn a_broken_file_is_an_error() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [0, 4, 63, 64, 200, 1000] {
            let _ = needs(&own[..length]); // an error or nothing found, but no panic
        }
        assert!(needs(b"#!/bin/sh").is_err());
    }
}
