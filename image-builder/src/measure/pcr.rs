//! The PCRs of a TPM, or of a virtual one, after OVMF and systemd's stub, or the kernel's, have booted
//! (TCG's "PC Client Platform Firmware Profile"; systemd-stub(7)).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use sha2::Digest;

use super::{Kernel, Register, authenticode, utf16};
use crate::outputs::pe::{self, Section};

/// What firmware measures before it starts the first boot option, and what divides its part from the rest.
const ACTION: &[u8] = b"Calling EFI Application from Boot Option";
const SEPARATOR: &[u8] = &[0; 4];

/// What a stub of this version measures to PCR 11, in this order: `.pcrsig` never is, for it signs the result. Later ones measure more.
const STUB_VERSION: u32 = 252;
const MEASURED: [&str; 7] = [".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"];

/// Where a stub says its version.
const VERSION: &[u8] = b"#### LoaderInfo: systemd-stub ";

/// Why the others are not predicted.
pub const NOT_PREDICTED: [(&str, &str); 2] = [
    ("pcr 0 to 3, 5 to 7", "they are the firmware's, and depend on its build, its settings and the machine"),
    (
        "pcr 8, 10, 12 to 15",
        "nothing of the image is measured there at boot; initdata, credentials and the guest itself may be",
    ),
];

/// PCRs by number, in hex.
pub type Pcrs = BTreeMap<u8, String>;

/// The PCRs of a unified kernel image that firmware starts by itself, from a disk.
///
/// # Errors
/// What is no such image, or has a stub whose habits are not known.
pub fn unified<D: Digest>(image: &[u8]) -> Result<Pcrs> {
    let sections = pe::sections(image)?;
    let of = |name: &str| sections.iter().find(|section| section.name == name).map(|section| section.data);
    let kernel = of(".linux").context("it has no section .linux: it is no unified kernel image")?;
    let mut boot = Register::<D>::zero();
    boot.measure(ACTION);
    boot.measure(SEPARATOR);
    boot.extend(&authenticode::<D>(image)?);
    boot.extend(&authenticode::<D>(kernel).context("section .linux")?);
    let line = str::from_utf8(of(".cmdline").unwrap_or_default()).context("section .cmdline is no text")?;
    let inputs = inputs::<D>(line.trim_end_matches(['\0', '\n']), of(".initrd"));
    Ok([(4, boot.hex()), (9, inputs.hex()), (11, stub::<D>(image, &sections)?.hex())].into())
}

/// The PCRs of a kernel that QEMU hands to OVMF with `-kernel`: it is loaded before boot options would be.
///
/// # Errors
/// A kernel that firmware can't start.
pub fn direct<D: Digest>(kernel: &Kernel<'_>) -> Result<Pcrs> {
    let mut boot = Register::<D>::zero();
    boot.extend(&authenticode::<D>(kernel.image)?);
    boot.measure(ACTION);
    boot.measure(SEPARATOR);
    let inputs = inputs::<D>(&load_options(kernel), kernel.initrd);
    Ok([(4, boot.hex()), (9, inputs.hex())].into())
}

/// The command line as OVMF passes it on: with the name under which the initrd is found.
pub(super) fn load_options(kernel: &Kernel<'_>) -> String {
    format!("{}{}", kernel.command_line, if kernel.initrd.is_some() { " initrd=initrd" } else { "" })
}

/// The kernel's own stub measures what it was started with.
fn inputs<D: Digest>(line: &str, initrd: Option<&[u8]>) -> Register<D> {
    let mut register = Register::zero();
    register.measure(&utf16(line));
    if let Some(initrd) = initrd {
        register.measure(initrd);
    }
    register
}

/// Each section's name with a NUL, then what it holds.
fn stub<D: Digest>(image: &[u8], sections: &[Section<'_>]) -> Result<Register<D>> {
    let version = version(image).context("it has no stub of systemd's")?;
    ensure!(version == STUB_VERSION, "what systemd's stub {version} measures is not known: {STUB_VERSION} is");
    let mut register = Register::zero();
    for name in MEASURED {
        if let Some(section) = sections.iter().find(|section| section.name == name) {
            register.measure(format!("{name}\0").as_bytes());
            register.measure(section.data);
        }
    }
    Ok(register)
}

fn version(image: &[u8]) -> Option<u32> {
    let at = image.windows(VERSION.len()).position(|window| window == VERSION)?;
    let digits = image.get(at + VERSION.len()..)?.split(|byte| !byte.is_ascii_digit()).next()?;
    str::from_utf8(digits).ok()?.parse().ok()
}
