//! Any bytes as a layer's archive: entries whose holes add up, or an error that says why not.

#![no_main]

use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;

/// Where a header's checksum is, and what marks one.
const SUM: std::ops::Range<usize> = 148..156;
const MAGIC: (usize, &[u8]) = (257, b"ustar");

/// Right checksums, for what has a wrong one is not read further.
fn with_sums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK).filter(|block| block[MAGIC.0..].starts_with(MAGIC.1)) {
        block[SUM].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let bytes = with_sums(bytes);
    match nacre_pull::fuzzing::archive(&bytes) {
        Ok(entries) => assert!(entries <= bytes.len() / BLOCK),
        Err(error) => assert!((1..4097).contains(&error.message.len()), "{}", error.message.len()),
    }
});
