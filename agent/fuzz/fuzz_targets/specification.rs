//! Any bytes as a specification off the wire: a plan, or an error that says why not.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(text) = nacre_agent::fuzzing::specification(bytes) {
        assert!(!text.is_empty());
    }
});
