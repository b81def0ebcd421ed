//! Any text as the kernel's command line: no more complaints than characters.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let line = String::from_utf8_lossy(bytes);
    assert!(nacre_agent::fuzzing::command_line(&line) <= line.chars().count());
});
