//! Any bytes as an initrd or as a program for firmware: what is in it, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = nacre_image::fuzzing::image(bytes);
});
