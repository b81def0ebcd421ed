//! Any bytes as a disk with a verified root: what is wrong with it, block by block.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = nacre_image::fuzzing::disk(bytes);
});
