//! The launch digest of SEV-SNP (AMD's "SEV Secure Nested Paging Firmware ABI", `SNP_LAUNCH_UPDATE`), as QEMU launches.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use sha2::{Digest as _, Sha256, Sha384};

use super::Kernel;
use super::firmware::{Firmware, SevKind, bytes_of};
use super::vmsa;

const PAGE: usize = 4096;

/// What KVM takes at most.
const MAX_VCPUS: u32 = 4096;

/// The first instruction of the first processor.
const RESET: u32 = 0xffff_fff0;

/// Save areas lie where the guest has no memory.
const VMSA_ADDRESS: u64 = 0xffff_ffff_f000;

/// The family, model and stepping that a type of QEMU's has, as CPUID says them (AMD's "CPUID Specification", leaf 1).
const TYPES: [(&str, u32); 5] = [
    ("EPYC", 0x0080_0f12),
    ("EPYC-Rome", 0x0083_0f10),
    ("EPYC-Milan", 0x00a0_0f11),
    ("EPYC-Genoa", 0x00a1_0f10),
    ("EPYC-Turin", 0x00b0_0f00),
];

/// The hashes' table, and its entries.
const TABLE: &str = "9438d606-4f22-4cc9-b479-a793d411fd21";
const COMMAND_LINE: &str = "97d02dd8-bd20-4c94-aa78-e7714d36ab2a";
const INITRD: &str = "44baf731-3a2f-4bd7-9af1-41e29169781d";
const KERNEL: &str = "4de79437-abd2-427f-b835-d5b172d2045b";

/// A shape of VM.
#[derive(Debug, Clone, Serialize)]
pub struct Shape {
    /// How many processors.
    pub vcpus: u32,
    /// Their type, as QEMU names it.
    pub cpu: String,
    /// `SEV_FEATURES`: what the host's kernel turns on.
    pub features: u64,
}

/// A digest, and how it came about.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The launch digest.
    pub digest: [u8; 48],
    /// What was measured, and the digest as it was then.
    pub steps: Vec<(String, [u8; 48])>,
}

/// The digest that firmware, a shape, and what is booted directly give.
///
/// # Errors
/// Firmware that says too little for it, a type of processor that is not known.
pub fn launch(firmware: &Firmware<'_>, shape: &Shape, kernel: Option<&Kernel<'_>>) -> Result<Launch> {
    let signature = signature(&shape.cpu)?;
    ensure!((1..=MAX_VCPUS).contains(&shape.vcpus), "a VM has 1 to {MAX_VCPUS} processors, not {}", shape.vcpus);
    let sections = firmware.sev()?;
    let hashes = kernel.map(|kernel| hashes_page(firmware, kernel)).transpose()?;
    if hashes.is_some() && !sections.iter().any(|section| section.kind == SevKind::KernelHashes) {
        bail!(
            "this OVMF's SEV metadata have no area for kernel hashes: QEMU can't take kernel-hashes=on (build it from OvmfPkg/AmdSev)"
        );
    }
    let mut state = State { digest: [0; 48], steps: Vec::new() };
    state.range(firmware.address(), firmware.bytes.len(), |page| Page::Normal(slice(firmware.bytes, page)));
    state.done("firmware");
    for section in sections {
        let name = format!("{:?} at {:#x}, {} bytes", section.kind, section.address, section.bytes);
        state.range(section.address, section.bytes as usize, |_| match (section.kind, &hashes) {
            (SevKind::KernelHashes, Some(page)) => Page::Normal(page),
            (SevKind::KernelHashes | SevKind::Zero, _) => Page::Zero,
            (SevKind::Secrets, _) => Page::Secrets,
            (SevKind::Cpuid, _) => Page::Cpuid,
        });
        state.done(&name);
    }
    let [first, others] = [RESET, if shape.vcpus > 1 { firmware.reset_vector()? } else { RESET }]
        .map(|entry| vmsa::page(entry, signature, shape.features));
    for number in 0..shape.vcpus {
        state.page(VMSA_ADDRESS, Page::Vmsa(if number == 0 { &first } else { &others }));
        state.done(&format!("processor {number}"));
    }
    Ok(Launch { digest: state.digest, steps: state.steps })
}

/// What `--explain` says.
pub fn explain(launch: &Launch) -> String {
    launch.steps.iter().fold(String::new(), |mut out, (name, digest)| {
        let _ = writeln!(out, "  {} after {name}", hex::encode(digest)); // writing to a String can't fail
        out
    })
}

/// Versions of a type differ in what CPUID says elsewhere.
fn signature(cpu: &str) -> Result<u32> {
    let is_version = |rest: &str| {
        rest.is_empty()
            || rest == "-IBPB"
            || rest.strip_prefix("-v").is_some_and(|n| matches!(n.as_bytes(), [b'1'..=b'9']))
    };
    let known = TYPES.iter().find(|(name, _)| cpu.strip_prefix(name).is_some_and(is_version));
    known.map(|(_, signature)| *signature).with_context(|| {
        format!(
            "the type {cpu:?} is not known: it is {} or a version of one, like EPYC-Milan-v2",
            TYPES.map(|(name, _)| name).join(", ")
        )
    })
}

/// The page in which firmware finds what it has to compare kernel, initrd and command line with. It is zero around the table.
fn hashes_page(firmware: &Firmware<'_>, kernel: &Kernel<'_>) -> Result<[u8; PAGE]> {
    let (address, bytes) = firmware.kernel_hashes()?;
    let entry = |guid, hash: [u8; 32]| [&bytes_of(guid)[..], &50_u16.to_le_bytes(), &hash].concat();
    let line = Sha256::new().chain_update(kernel.command_line).chain_update([0]).finalize();
    let entries = [
        entry(COMMAND_LINE, line.into()),
        entry(INITRD, Sha256::digest(kernel.initrd.unwrap_or_default()).into()),
        entry(KERNEL, Sha256::digest(kernel.image).into()),
    ]
    .concat();
    let length = (16 + 2 + entries.len()) as u16; // 168
    let table = [&bytes_of(TABLE)[..], &length.to_le_bytes(), &entries].concat();
    let start = (address % PAGE as u64) as usize;
    let mut page = [0; PAGE];
    let place = page.get_mut(start..start + table.len()).filter(|place| place.len() as u64 <= bytes);
    place.context("this OVMF's area for kernel hashes is too small")?.copy_from_slice(&table);
    Ok(page)
}

/// A page that is added. What the firmware of the processor fills in itself is measured by its place only.
enum Page<'a> {
    Normal(&'a [u8]),
    Vmsa(&'a [u8]),
    Zero,
    Secrets,
    Cpuid,
}

struct State {
    digest: [u8; 48],
    steps: Vec<(String, [u8; 48])>,
}

impl State {
    fn range<'a>(&mut self, address: u64, bytes: usize, content: impl Fn(usize) -> Page<'a>) {
        for at in (0..bytes).step_by(PAGE) {
            self.page(address + at as u64, content(at));
        }
    }

    /// `PAGE_INFO`: the digest so far, the content's, a length, the page's type, no permissions for lower levels, its address.
    fn page(&mut self, address: u64, page: Page<'_>) {
        let (kind, content) = match page {
            Page::Normal(bytes) => (1, Sha384::digest(bytes).into()),
            Page::Vmsa(bytes) => (2, Sha384::digest(bytes).into()),
            Page::Zero => (3, [0; 48]),
            Page::Secrets => (5, [0; 48]),
            Page::Cpuid => (6, [0; 48]),
        };
        let info =
            Sha384::new().chain_update(self.digest).chain_update(content).chain_update([0x70, 0, kind, 0, 0, 0, 0, 0]);
        self.digest = info.chain_update(address.to_le_bytes()).finalize().into();
    }

    fn done(&mut self, what: &str) {
        self.steps.push((what.into(), self.digest));
    }
}

fn slice(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..at + PAGE).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::made;

    fn digest(cpu: &str, vcpus: u32, features: u64, kernel: Option<&Kernel<'_>>) -> String {
        let bytes = made::firmware();
        let firmware = Firmware::parse(&bytes).unwrap();
        hex::encode(launch(&firmware, &Shape { vcpus, cpu: cpu.into(), features }, kernel).unwrap().digest)
    }

    /// These were computed by sev-snp-measure 0.0.13; tests/measure.rs asks it again for more, where it can be had.
    #[test]
    fn digests_are_those_of_another_implementation() {
        let kernel = made::KERNEL;
        let bare = Kernel { initrd: None, ..kernel };
        let cases = [
            (
                "EPYC-v4",
                1,
                0x1,
                Some(&kernel),
                "049256037dc7dea922b3aaa518cff35bdf058f0950a1d3cda8b65175a57c110dd8826ef67017ceaaba82c5d6031236a7",
            ),
            (
                "EPYC-Milan-v2",
                1,
                0x1,
                Some(&kernel),
                "b4c396d02c9e35e9347bba016fd4f518fbf42d7059182e91b754d178a87b499b8abc2565795c05684e0cc7eddfc34ce7",
            ),
            (
                "EPYC-Milan-v2",
                2,
                0x21,
                Some(&kernel),
                "aef61ffd4cd908f95a36c528c96ecae6ac84cb6b3abf7cf451b9314b8f5654b221601341ae5cbd282d3f175828870bb2",
            ),
            (
                "EPYC-Genoa",
                2,
                0x1,
                Some(&kernel),
                "1826255a2d961f33f9be42ee0b57c73d45ad66571de9aac3d649ccb5460413c6299f9402098cc5a181971c790f9f187d",
            ),
            (
                "EPYC-Turin",
                1,
                0x1,
                Some(&kernel),
                "6ea74468c6ee741571fd17bac5d5ba449bb6d22a1ca9b4cad9d00bbc0b6c74f21dc5ba93a36c3422c36ca30a46a14523",
            ),
            (
                "EPYC-Milan-v2",
                1,
                0x1,
                Some(&bare),
                "a00e3fe24c72b03e2f2c1eff1c01d21e06bf569f63fe07ddfc703f65c58786bfc2087faf98c80c6dda0f7643d11cae6b",
            ),
            (
                "EPYC-Milan-v2",
                1,
                0x1,
                None,
                "c4657943730ced36cd7dec9128436fdc495c1628e66db573537e971b1994149147ddf10d760a604494296b52fd236a62",
            ),
        ];
        for (cpu, vcpus, features, kernel, expected) in cases {
            assert_eq!(digest(cpu, vcpus, features, kernel), expected, "{cpu} {vcpus} {features:#x}");
        }
    }

    #[test]
    fn what_can_t_be_measured_is_told() {
        let bytes = made::firmware();
        let shape = |vcpus, cpu: &str| Shape { vcpus, cpu: cpu.into(), features: 1 };
        let error = |bytes: &[u8], shape| {
            format!("{:#}", launch(&Firmware::parse(bytes).unwrap(), &shape, Some(&made::KERNEL)).unwrap_err())
        };
        assert!(error(&bytes, shape(1, "Skylake")).contains("\"Skylake\" is not known"));
        assert!(error(&bytes, shape(0, "EPYC")).contains("1 to 4096"));
        for (entry, expected) in [
            (made::SEV, "no SEV metadata"),
            (made::HASHES, "no area for kernel hashes"),
            (made::RESET, "no reset block"),
        ] {
            let error = error(&made::without(entry), shape(2, "EPYC"));
            assert!(error.contains(expected), "{error}");
        }
    }
}
