//! The state that a processor of an SEV-SNP guest begins with: its VM save area (AMD64 manual, volume 2, appendix B), as QEMU and KVM fill it.

/// Segment registers: where they are, and their attributes. All have the limit 0xffff.
const SEGMENTS: [(usize, u16); 10] = [
    (0x00, 0x93), // es
    (0x10, 0x9b), // cs
    (0x20, 0x93), // ss
    (0x30, 0x93), // ds
    (0x40, 0x93), // fs
    (0x50, 0x93), // gs
    (0x60, 0),    // gdtr
    (0x70, 0x82), // ldtr
    (0x80, 0),    // idtr
    (0x90, 0x8b), // tr
];

/// Registers that every processor begins with.
const REGISTERS: [(usize, u64); 9] = [
    (0xd0, 0x1000),                 // efer: SVM
    (0x148, 0x40),                  // cr4: MCE
    (0x158, 0x10),                  // cr0
    (0x160, 0x400),                 // dr7
    (0x168, 0xffff_0ff0),           // dr6
    (0x170, 2),                     // rflags
    (0x268, 0x0007_0406_0007_0406), // g_pat
    (0x3e8, 1),                     // xcr0
    (0x408, 0x1f80),                // mxcsr
];

/// The page of a processor that begins at `entry`.
pub fn page(entry: u32, signature: u32, features: u64) -> [u8; 4096] {
    let mut page = [0; 4096];
    for (at, attributes) in SEGMENTS {
        put(&mut page, at + 2, &attributes.to_le_bytes());
        put(&mut page, at + 4, &0xffff_u32.to_le_bytes());
    }
    put(&mut page, 0x10, &0xf000_u16.to_le_bytes());
    put(&mut page, 0x18, &u64::from(entry & 0xffff_0000).to_le_bytes());
    for (at, value) in REGISTERS {
        put(&mut page, at, &value.to_le_bytes());
    }
    put(&mut page, 0x410, &0x37f_u16.to_le_bytes()); // x87's control word
    put(&mut page, 0x178, &u64::from(entry & 0xffff).to_le_bytes());
    // QEMU leaves the processor's signature in rdx, as a reset does.
    put(&mut page, 0x310, &u64::from(signature).to_le_bytes());
    put(&mut page, 0x3b0, &features.to_le_bytes());
    page
}

fn put(page: &mut [u8; 4096], at: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
