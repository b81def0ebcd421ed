//! Unified kernel images: systemd's stub with everything that boots in its sections, so that firmware measures one file and starts it
//! (<https://uapi-group.org/specifications/specs/unified_kernel_image/>).

use std::fs;

use anyhow::{Context as _, Result};

use super::pe;

/// The stub, as Debian's systemd-boot-efi has it.
pub const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// Where a kernel says of which release it is (Documentation/arch/x86/boot.rst): a pointer, counted from the first sector's end.
const VERSION_POINTER: usize = 0x20e;
const SETUP: usize = 0x200;
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

/// What goes in.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The image's name.
    pub name: &'a str,
    /// The compressed kernel.
    pub kernel: &'a [u8],
    /// Its command line.
    pub command_line: &'a str,
    /// Its initrd.
    pub initrd: Option<&'a [u8]>,
}

/// The bytes of the program.
///
/// # Errors
/// A stub that is missing; a kernel that is none.
pub fn pack(parts: &Parts<'_>) -> Result<Vec<u8>> {
    let stub = fs::read(STUB).with_context(|| format!("read {STUB} (Debian's systemd-boot-efi has it)"))?;
    let release = release(parts.kernel).context("the kernel is no bzImage")?;
    let osrel = format!("ID=nacre\nNAME=Nacre\nPRETTY_NAME=\"Nacre {}\"\n", parts.name);
    let mut sections: Vec<(&str, &[u8])> =
        vec![(".osrel", osrel.as_bytes()), (".cmdline", parts.command_line.as_bytes()), (".uname", release.as_bytes())];
    sections.extend(parts.initrd.map(|initrd| (".initrd", initrd)));
    // Last, for it may unpack itself to where others would be.
    sections.push((".linux", parts.kernel));
    pe::append(&stub, &sections).with_context(|| STUB.to_string())
}

/// The first word of the kernel's version.
pub fn release(kernel: &[u8]) -> Option<String> {
    kernel.get(MAGIC.0..)?.starts_with(MAGIC.1).then_some(())?;
    let pointer = u16::from_le_bytes(*kernel.get(VERSION_POINTER..)?.first_chunk()?);
    let text = kernel.get(usize::from(pointer) + SETUP..)?;
    let word = text.split(|byte| matches!(byte, b' ' | 0)).next()?;
    let printable = !word.is_empty() && word.len() <= 64 && word.iter().all(u8::is_ascii_graphic);
    printable.then(|| String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_its_release() {
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].copy_from_slice(&0x40u16.to_le_bytes());
        kernel[0x240..0x250].copy_from_slice(b"6.12.1 (x@y) #1\0");
        assert_eq!(release(&kernel).unwrap(), "6.12.1");
        kernel[0x20e..0x210].copy_from_slice(&0xffffu16.to_le_bytes());
        assert_eq!(release(&kernel), None);
        assert_eq!(release(b"\x7fELF"), None);
    }
}
