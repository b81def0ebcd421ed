//! Any annotations of an encrypted layer: a line each, `NAME VALUE`, whose value is wrapped in base64 as ocicrypt does it.
//! Its key is found, or an error says why not.

#![no_main]

use libfuzzer_sys::fuzz_target;

use std::cell::LazyCell;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nacre_pull::Kind;
use nacre_pull::ocicrypt::{Encrypted, Keys, PrivateKey};

const TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
const PREFIX: &str = "org.opencontainers.image.enc.";

/// A key that is nobody's: its number is 1.
const KEY: &str = "-----BEGIN EC PRIVATE KEY-----
MDECAQEEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABoAoGCCqGSM49
AwEH
-----END EC PRIVATE KEY-----";

thread_local! {
    static KEYS: LazyCell<Keys> = LazyCell::new(|| {
        let key = PrivateKey::from_pem(KEY).expect("the key is whole");
        Keys { private: vec![key], ..Keys::default() }
    });
}

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let wrapped = |value: &str| value.split('\t').map(|key| BASE64_STANDARD.encode(key)).collect::<Vec<_>>().join(",");
    let annotations = lines.map(|(name, value)| (format!("{PREFIX}{name}"), wrapped(value))).collect();
    let result = Encrypted::of(TYPE, &annotations).and_then(|layer| {
        let layer = layer.expect("the type says so");
        KEYS.with(|keys| layer.unlock(keys))
    });
    if let Err(error) = result {
        assert!(matches!(error.kind, Kind::BadImage | Kind::Locked), "{error}");
        assert!((1..4097).contains(&error.message.len()), "{}", error.message.len());
    }
});
