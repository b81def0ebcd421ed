//! Any policy and any bundle, with a NUL between them: read to the last field, or refused; and nothing passes for a signature.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_pull::policy::{LegacyProof, Named, Policy, Signature, Wanted};

const SIGNED: &[u8] = br#"{"default":[{"type":"sigstoreSigned","keyPath":"/key"}]}"#;
const KEY: &[u8] = b"-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
";

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == 0).chain(std::iter::repeat(&[][..]));
    let (json, bundle) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let named = Named::parse("registry.example/team/image:1").expect("it is a name");
    let key = |_: &str| Ok(KEY.to_vec());
    let text = String::from_utf8_lossy(bundle).into_owned();
    let proof = LegacyProof { certificate: Some(text.clone()), chain: Some(text.clone()), bundle: Some(text.clone()) };
    let signatures = [
        Signature::Bundle(bundle.to_vec()),
        Signature::Legacy { payload: bundle.to_vec(), signature_base64: text, proof },
        Signature::Gpg(bundle.to_vec()),
    ];
    if let Ok(policy) = Policy::parse_with(json, &key) {
        let denied = policy.judge(&named, b"{}", &signatures).is_err();
        assert!(denied || policy.wanted(&named) == Wanted::default());
    }
    let signed = Policy::parse_with(SIGNED, &key).expect("the policy is right");
    assert!(signed.judge(&named, b"{}", &signatures).is_err());
});
