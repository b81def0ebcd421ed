//! Any bytes as `config.json`: a plan, or an error that says why not; never a panic.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use nacre_jail::{Plan, read_spec};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(spec) = read_spec(bytes)
        && let Err(error) = Plan::new("fuzz", &spec.value, Path::new("/bundle"))
    {
        assert!(!error.to_string().is_empty());
    }
});
