//! Any text as an image's name: one that another program can be given, or refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_pull::policy::Named;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let _ = Named::parse(&text);
    let Ok((asked, registry)) = nacre_pull::fuzzing::reference(&text) else { return };
    assert!(!asked.starts_with('-') && !asked.contains(['\0', '\n']), "{asked:?}");
    assert!(!registry.is_empty());
    if let Some(rest) = asked.strip_prefix("docker://") {
        assert!(rest.bytes().all(|byte| byte.is_ascii_graphic()), "{asked:?}");
        // What is pinned stays pinned.
        assert_eq!(text.split_once('@').map(|(_, digest)| digest), rest.split_once('@').map(|(_, digest)| digest));
    }
});
