//! The measurements of a trust domain (Intel's "TDX Module Base Architecture Specification"), as QEMU builds it and OVMF boots in it.

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha384};

use super::firmware::Firmware;
use super::pcr::load_options;
use super::{Kernel, Register, authenticode, utf16};

const PAGE: usize = 4096;

/// What is measured of a page's content at a time.
const CHUNK: usize = 256;

/// What firmware logs on its way to a kernel that the host gave it.
const ACTIONS: [&[u8]; 4] = [
    b"Calling EFI Application from Boot Option",
    &[0; 4],
    b"Exit Boot Services Invocation",
    b"Exit Boot Services Returned with Success",
];

/// Why the others are not predicted.
pub const NOT_PREDICTED: [(&str, &str); 2] = [
    ("rtmr0", "it depends on the machine: memory, ACPI tables, boot variables"),
    ("rtmr3", "it is zero at boot, and whoever runs in the guest extends it"),
];

/// What is measured before the guest runs: the pages that the host adds and, of those that the firmware asks for, their content.
///
/// # Errors
/// Firmware without TDX's metadata.
pub fn mrtd(firmware: &Firmware<'_>) -> Result<String> {
    let mut hash = Sha384::new();
    for section in firmware.tdx()?.into_iter().filter(|section| !section.later) {
        for at in (0..section.bytes as usize).step_by(PAGE) {
            hash.update(record(b"MEM.PAGE.ADD", section.address + at as u64));
            for at in (at..at + PAGE).step_by(CHUNK).filter(|_| section.extended) {
                let held = section.data.get(at..section.data.len().min(at + CHUNK)).unwrap_or_default();
                let mut chunk = [0; CHUNK];
                chunk.iter_mut().zip(held).for_each(|(to, from)| *to = *from);
                hash.update(record(b"MR.EXTEND", section.address + at as u64));
                hash.update(chunk);
            }
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// RTMR 1 and 2 of a kernel that the host gives to firmware which loads it as it is (edk2 since 2025.05).
///
/// # Errors
/// A kernel that firmware can't start.
pub fn rtmrs(kernel: &Kernel<'_>) -> Result<[String; 2]> {
    let mut boot = Register::<Sha384>::zero();
    boot.extend(&authenticode::<Sha384>(kernel.image).context("the kernel")?);
    ACTIONS.iter().for_each(|action| boot.measure(action));
    let mut inputs = Register::<Sha384>::zero();
    inputs.measure(&utf16(&load_options(kernel)));
    if let Some(initrd) = kernel.initrd {
        inputs.measure(initrd);
    }
    Ok([boot.hex(), inputs.hex()])
}

/// An operation and its page's address.
fn record(operation: &[u8], address: u64) -> [u8; 128] {
    let mut record = [0; 128];
    record[..operation.len()].copy_from_slice(operation);
    record[16..24].copy_from_slice(&address.to_le_bytes());
    record
}
