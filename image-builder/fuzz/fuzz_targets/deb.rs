//! Any bytes as a Debian package: files within it, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = nacre_image::fuzzing::deb(bytes);
});
