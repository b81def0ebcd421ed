//! An image's name on the first line, and any `registries.conf` after it: places that are names of that image, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_pull::access::registries::Registries;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let (name, file) = text.split_once('\n').unwrap_or((&text, ""));
    let Ok(registries) = Registries::parse(file) else { return };
    let Ok(endpoints) = registries.endpoints(name) else { return };
    // The last is the place itself, and what is pinned stays pinned.
    assert!(endpoints.last().is_some_and(|endpoint| !endpoint.is_mirror));
    let digest = |name: &str| name.split_once('@').map(|(_, digest)| digest.to_string());
    for endpoint in &endpoints {
        assert!(nacre_pull::fuzzing::reference(&endpoint.reference).is_ok(), "{}", endpoint.reference);
        assert_eq!(digest(&endpoint.reference), digest(name));
    }
});
