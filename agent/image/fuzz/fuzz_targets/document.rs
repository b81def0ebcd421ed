//! Any manifest and any configuration, with a NUL between them: a plan for the layers, or an error that says why not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_pull::fuzzing::{manifest, plan};
use nacre_pull::ocicrypt::Keys;

/// An error quotes a little of what is wrong, not a manifest.
const MAX_MESSAGE: usize = 4097;

fuzz_target!(|bytes: &[u8]| {
    let text = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (document, config) = bytes.split_at(text);
    if let Err(error) = manifest(document) {
        assert!((1..MAX_MESSAGE).contains(&error.message.len()), "{error}");
    }
    match plan(document, config.get(1..).unwrap_or_default(), &Keys::default()) {
        Some(Ok(layers)) => assert!((1..=500).contains(&layers)),
        Some(Err(error)) => assert!((1..MAX_MESSAGE).contains(&error.message.len()), "{error}"),
        None => {}
    }
});
