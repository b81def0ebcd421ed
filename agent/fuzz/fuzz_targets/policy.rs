//! Any text as a policy and any bytes as requests, with a NUL between them: a judgement, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime can be made");
}

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default());
    RUNTIME.with(|runtime| nacre_agent::fuzzing::policy(runtime, &text, parts.next().unwrap_or_default()));
});
