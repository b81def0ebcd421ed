//! Any text as a recipe: a recipe, or an error with its place.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = nacre_image::fuzzing::recipe(&String::from_utf8_lossy(bytes));
});
