//! Firmware and a kernel made for tests: they have the tables, and boot nothing.

use super::Kernel;
use crate::outputs::identity::Guid;

pub const SEV: &str = "dc886566-984a-4798-a75e-5585a7bf67cc";
pub const HASHES: &str = "7255371f-3a3b-4b04-927b-1da6efa8d454";
pub const RESET: &str = "00f771de-1a7e-4fcb-890e-68c77e2fb44e";

/// What is booted.
pub const KERNEL: Kernel<'_> =
    Kernel { image: b"kernel-bytes\n", initrd: Some(b"initrd-bytes\n"), command_line: "console=ttyS0 panic=-1" };

const SECTIONS: [(u32, u32, u32); 7] = [
    (0x80_0000, 0x9000, 1),
    (0x80_a000, 0x3000, 1),
    (0x80_d000, 0x1000, 2),
    (0x80_e000, 0x1000, 3),
    (0x80_f000, 0x1000, 4),
    (0x81_0000, 0x1000, 0x10),
    (0x81_1000, 0xf000, 1),
];

/// All of it.
pub fn firmware() -> Vec<u8> {
    without("")
}

/// Firmware whose table lacks an entry.
pub fn without(guid: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..0x4000_usize).map(|at| (31 * (at / 4096) + at % 4096) as u8).collect();
    let mut metadata = [&b"ASEV"[..], &[16 + 12 * 7, 1, 7].map(u32::to_le_bytes).concat()].concat();
    metadata.extend(
        SECTIONS.iter().flat_map(|(address, bytes, kind)| [*address, *bytes, *kind].map(u32::to_le_bytes).concat()),
    );
    bytes[0x3c00..0x3c00 + metadata.len()].copy_from_slice(&metadata);
    let entries: [(&str, &[u32]); 3] = [(SEV, &[0x400]), (HASHES, &[0x81_0c00, 0x400]), (RESET, &[0x0080_b004])];
    let mut table = Vec::new();
    for (of, data) in entries.iter().filter(|(of, _)| *of != guid) {
        table.extend(data.iter().flat_map(|value| value.to_le_bytes()));
        header(&mut table, data.len() * 4 + 18, of);
    }
    let all = table.len() + 18;
    header(&mut table, all, "96b582de-1fb2-45f7-baea-a366c55a082d");
    let end = bytes.len() - 32;
    bytes[end - table.len()..end].copy_from_slice(&table);
    bytes
}

fn header(table: &mut Vec<u8>, length: usize, guid: &str) {
    table.extend((length as u16).to_le_bytes());
    table.extend(Guid::parse(guid).unwrap().swapped().0);
}
