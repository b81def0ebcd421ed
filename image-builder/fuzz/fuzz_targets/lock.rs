//! Any text as a lock: one that is the same when it is written again, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = nacre_image::fuzzing::lock(&String::from_utf8_lossy(bytes));
});
