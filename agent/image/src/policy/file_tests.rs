//! Policies that are refused, and ones that no image meets.

use super::*;

/// A P-256 key that nobody signs with here, in base64 of PEM.
pub(super) const KEY: &str = concat!(
    "LS0tLS1CRUdJTiBQVUJMSUMgS0VZLS0tLS0KTUZrd0V3WUhLb1pJemowQ0FRWUlLb1pJemowREFRY0RRZ0FFL2JpL0h6TXVPQTJ5",
    "MXJPN2o0dWp0My9nY3lNcQpFUVJVMVh0YnRiUzY0SHZhTnFtbmZVM2FNSjRUV2dRT2Q3WFpTRWdVTmlGaThkR0lMYThPdUV4TUtB",
    "PT0KLS0tLS1FTkQgUFVCTElDIEtFWS0tLS0tCg==",
);

/// An authority that vouches for nobody here, in base64 of PEM.
const CA: &str = concat!(
    "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJiekNDQVJXZ0F3SUJBZ0lVSXEwaUtReWNvTFlSVXZLbjd6OFEzeHNlaTFNd0Nn",
    "WUlLb1pJemowRUF3SXcKRERFS01BZ0dBMVVFQXd3QllUQWdGdzB5TmpFeE1qVXhOREEzTXpoYUdBOHlNVEkyTVRFd01URTBNRGN6T0Zv",
    "dwpEREVLTUFnR0ExVUVBd3dCWVRCWk1CTUdCeXFHU000OUFnRUdDQ3FHU000OUF3RUhBMElBQk1wM09rdFdFR3kvCkxkRS90VmJ2QmtN",
    "OW9HT1hJVFJmS3o4TlE3ZG5jZHNkc21CZHlzMkJnaHIxTlFHSnVwQmJUaXhQMllxSzB2VWQKdVN6a2tRbTFrQ21qVXpCUk1CMEdBMVVk",
    "RGdRV0JCUXhrb2N1OWtiQXc4YzJtbFNMcU9LcVdKVEgyakFmQmdOVgpIU01FR0RBV2dCUXhrb2N1OWtiQXc4YzJtbFNMcU9LcVdKVEgy",
    "akFQQmdOVkhSTUJBZjhFQlRBREFRSC9NQW9HCkNDcUdTTTQ5QkFNQ0EwZ0FNRVVDSUdkT3BRTSt2bUxWZXAxTzFYVFFtTWZ1OVFnTER6",
    "OFdkUXFFUW1BR0ZFNXYKQWlFQXRsL1pvY2RaRXhHS0RhWTRBaDNMb0crU2szK3lzbmZ6M1RhcnFuS2hmWlU9Ci0tLS0tRU5EIENFUlRJ",
    "RklDQVRFLS0tLS0K",
);

const ACCEPT: &str = r#"{"type":"insecureAcceptAnything"}"#;

fn refusal(policy: &str) -> String {
    Policy::parse(policy.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_file_is_refused_as_a_whole_and_told_why() {
    for (policy, why) in [
        ("", "EOF"),
        ("[]", "policy is a list, not an object"),
        (r#"{}"#, "policy has no default"),
        (r#"{"default":[]}"#, "default is an empty list"),
        (r#"{"default":{}}"#, "default is an object, not a list"),
        (r#"{"default":null}"#, "default is null, not a list"),
        (r#"{"default":[null]}"#, "default[0] is null, not an object"),
        (r#"{"default":[["reject"]]}"#, "default[0] is a list, not an object"),
        (r#"{"default":[@]} x"#, "trailing characters"),
        (r#"{"default":[@],"default":[@]}"#, r#"the field "default" is there twice"#),
        (r#"{"default":[{"type":"reject","type":"insecureAcceptAnything"}]}"#, r#"the field "type" is there twice"#),
        (r#"{"default":[@],"Default":[@]}"#, r#"policy has a field "Default" that is not known"#),
        (r#"{"default":[{"type":"reject","why":1}]}"#, r#"default[0] has a field "why""#),
        (r#"{"default":[{"type":"Reject"}]}"#, r#"default[0]: the type "Reject" is not known"#),
        (r#"{"default":[{"type":1}]}"#, "default[0].type is a number, not a string"),
        (r#"{"default":[{}]}"#, "default[0] has no type"),
        (r#"{"default":[@],"transports":[]}"#, "transports is a list, not an object"),
        (r#"{"default":[@],"transports":{"docker":[@]}}"#, "docker is a list, not an object"),
        (r#"{"default":[@],"transports":{"Docker":{}}}"#, r#"the transport "Docker" is not known"#),
        (r#"{"default":[@],"transports":{"docker":{"h.io":[]}}}"#, r#"docker "h.io" is an empty list"#),
        (r#"{"default":[@],"transports":{"docker":{"h.io":[@],"h.io":[@]}}}"#, r#""h.io" is there twice"#),
        (r#"{"default":[@],"transports":{"docker":{"busybox":[@]}}}"#, r#"docker "busybox": no image has such a name"#),
        (r#"{"default":[@],"transports":{"oci":{"/x":[{"type":"x"}]}}}"#, r#"oci "/x"[0]: the type "x" is not known"#),
    ] {
        let said = refusal(&policy.replace('@', ACCEPT));
        assert!(said.contains(why), "{policy}: {said}");
    }
    assert!(refusal(&"[".repeat(10_000)).contains("recursion limit"));
    assert!(matches!(Policy::parse(&vec![b' '; MAX_POLICY + 1]), Err(Error::TooLarge)));
}

#[test]
fn a_requirement_is_refused_for_any_field_that_is_wrong() {
    let (key, signed) = (format!(r#""keyData":"{KEY}""#), r#""type":"sigstoreSigned""#);
    for (fields, why) in [
        (signed.to_string(), "has neither keyPath"),
        (format!(r#"{signed},"keyPath":"/none/such""#), "read the key \"/none/such\""),
        (format!(r#"{signed},"keyPath":"key.pub""#), "no absolute path"),
        (format!(r#"{signed},"keyPath":"/dev/null""#), "it is no file"),
        (format!(r#"{signed},"keyPath":"kbs:///a/b/c""#), "no absolute path"),
        (format!(r#"{signed},"keyPath":"""#), "keyPath is empty"),
        (format!(r#"{signed},"keyPath":["/k"]"#), "keyPath is a list, not a string"),
        (format!(r#"{signed},"keyPaths":[]"#), "keyPaths is an empty list"),
        (format!(r#"{signed},"keyPaths":"/k""#), "keyPaths is a string, not a list"),
        (format!(r#"{signed},"keyDatas":[1]"#), "keyDatas is a number, not a string"),
        (format!(r#"{signed},"keyData":"-""#), "keyData is not base64"),
        (format!(r#"{signed},"keyData":"AAAA""#), "its key data: it is no PEM"),
        (format!(r#"{signed},{key},"keyPath":"/k""#), "one source of keys too many"),
        (format!(r#"{signed},{key},"fulcio":{{}}"#), "fulcio has no CA"),
        (format!(r#"{signed},{key},"signedIdentity":null"#), "signedIdentity is null"),
        (format!(r#"{signed},{key},"signedIdentity":{{"type":"matchAll"}}"#), "the type \"matchAll\" is not known"),
        (format!(r#"{signed},{key},"signedIdentity":{{"type":"matchExact","x":1}}"#), "a field \"x\""),
        (
            format!(r#"{signed},{key},"signedIdentity":{{"type":"exactReference","dockerReference":"h.io/a"}}"#),
            "neither tag nor digest",
        ),
        (
            format!(r#"{signed},{key},"signedIdentity":{{"type":"exactRepository","dockerRepository":"A"}}"#),
            "no image name",
        ),
        (
            format!(
                r#"{signed},{key},"signedIdentity":{{"type":"remapIdentity","prefix":"h.io/a:1","signedPrefix":"h.io"}}"#
            ),
            "neither a host",
        ),
        (
            format!(r#"{signed},{key},"signedIdentity":{{"type":"remapIdentity","prefix":"h.io"}}"#),
            "has no signedPrefix",
        ),
        (
            format!(r#"{signed},"fulcio":{{"caData":"{CA}","oidcIssuer":"i","subjectEmail":"e"}}"#),
            "fulcio needs a Rekor key",
        ),
        (format!(r#"{signed},"fulcio":{{"caData":"{CA}","oidcIssuer":"","subjectEmail":"e"}}"#), "oidcIssuer is empty"),
        (format!(r#"{signed},"fulcio":{{"caData":"AA==","oidcIssuer":"i","subjectEmail":"e"}}"#), "no certificate"),
        (format!(r#"{signed},"pki":{{"caRootsData":"{CA}"}}"#), "neither subjectEmail nor subjectHostname"),
        (
            format!(r#"{signed},"rekorPublicKeyData":"{KEY}","pki":{{"caRootsData":"{CA}","subjectEmail":"e"}}"#),
            "takes no Rekor key",
        ),
        (r#""type":"signedBy","keyData":"AA==""#.into(), "has no keyType"),
        (r#""type":"signedBy","keyType":"GPG","keyData":"AA==""#.into(), "the keyType \"GPG\" is not known"),
        (r#""type":"signedBy","keyType":"GPGKeys""#.into(), "has no key"),
        (r#""type":"signedBy","keyType":"GPGKeys","keyDatas":["AA=="]"#.into(), "has no key"),
        (r#""type":"signedBaseLayer""#.into(), "has no baseLayerIdentity"),
    ] {
        let said = refusal(&format!(r#"{{"default":[{{{fields}}}]}}"#));
        assert!(said.contains(why), "{fields}: {said}");
    }
}

#[test]
fn what_cannot_be_judged_is_denied() {
    for (fields, why) in [
        (
            r#""type":"signedBy","keyType":"X509Certificates","keyPath":"/none""#.to_string(),
            "signedBy with the keyType X509Certificates is not supported",
        ),
        (
            r#""type":"signedBaseLayer","baseLayerIdentity":{"type":"matchExact"}"#.into(),
            "signedBaseLayer is not supported",
        ),
    ] {
        let policy = Policy::parse(format!(r#"{{"default":[{ACCEPT},{{{fields}}}]}}"#).as_bytes()).unwrap();
        let said = policy.judge(&Named::parse("busybox").unwrap(), b"", &[]).unwrap_err().to_string();
        let start =
            "docker.io/library/busybox:latest: the image policy for everything (default) denies it: requirement 2 (";
        assert!(said.starts_with(start) && said.ends_with(why), "{said}");
        assert!(!policy.wanted(&Named::parse("busybox").unwrap()).sigstore);
    }
}

#[test]
fn the_two_plain_policies_say_yes_and_no() {
    let image = Named::parse("busybox").unwrap();
    assert!(Policy::accept_all().judge(&image, b"", &[]).is_ok());
    assert!(Policy::reject_all().judge(&image, b"", &[]).is_err());
    assert!(!Policy::accept_all().wanted(&image).sigstore && !Policy::reject_all().wanted(&image).sigstore);
}
