//! Signatures that `openssl` makes, and what becomes of them when anything about them is wrong.

use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::*;

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;
const ANY_REPOSITORY: &str = r#"{"type":"matchRepository"}"#;

/// The kinds of keys: the name, how one is made, and how `openssl dgst` or `pkeyutl` signs with it.
const KINDS: [(&str, &[&str], &[&str]); 6] = [
    ("P-256", &["ecparam", "-name", "prime256v1", "-genkey", "-noout"], &["dgst", "-sha256"]),
    ("P-384", &["ecparam", "-name", "secp384r1", "-genkey", "-noout"], &["dgst", "-sha384"]),
    ("P-384 with SHA-256", &["ecparam", "-name", "secp384r1", "-genkey", "-noout"], &["dgst", "-sha256"]),
    ("Ed25519", &["genpkey", "-algorithm", "ed25519"], &["pkeyutl", "-rawin"]),
    ("RSA", &["genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048"], &["dgst", "-sha256"]),
    (
        "RSA-PSS",
        &["genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048"],
        &["dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"],
    ),
];

/// Someone with a private key.
struct Signer {
    dir: tempfile::TempDir,
    sign: &'static [&'static str],
}

impl Signer {
    /// `None` where there is no openssl.
    fn new(make: &[&str], sign: &'static [&'static str]) -> Option<Signer> {
        if let Err(error) = Command::new("openssl").arg("version").output() {
            println!("skipped: openssl: {error}");
            return None;
        }
        let signer = Signer { dir: tempfile::tempdir().unwrap(), sign };
        let key = signer.path("key");
        signer.openssl(&[make, &["-out", &key]].concat());
        signer.openssl(&["pkey", "-in", &key, "-pubout", "-out", &signer.path("pub")]);
        Some(signer)
    }

    fn p256() -> Option<Signer> {
        Signer::new(KINDS[0].1, KINDS[0].2)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).into_os_string().into_string().unwrap()
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn pem(&self) -> Vec<u8> {
        std::fs::read(self.path("pub")).unwrap()
    }

    fn sign(&self, message: &[u8]) -> String {
        let (key, input, output) = (self.path("key"), self.path("message"), self.path("signature"));
        std::fs::write(&input, message).unwrap();
        let rest: &[&str] = match self.sign[0] {
            "dgst" => &["-sign", &key, "-out", &output, &input],
            _ => &["-sign", "-inkey", &key, "-in", &input, "-out", &output],
        };
        self.openssl(&[self.sign, rest].concat());
        STANDARD.encode(std::fs::read(output).unwrap())
    }

    fn legacy(&self, payload: &Value) -> Signature {
        let payload = payload.to_string().into_bytes();
        Signature::Legacy { signature_base64: self.sign(&payload), payload, proof: LegacyProof::default() }
    }

    fn envelope(&self, statement: &Value) -> Value {
        let statement = statement.to_string();
        let signed = format!("DSSEv1 28 application/vnd.in-toto+json {} {statement}", statement.len());
        let envelope = json!({
            "payload": STANDARD.encode(&statement),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{ "sig": self.sign(signed.as_bytes()) }],
        });
        bundle("dsseEnvelope", envelope)
    }

    fn message(&self, manifest: &[u8]) -> Value {
        let digest = STANDARD.encode(Sha256::digest(manifest));
        let digest = json!({ "algorithm": "SHA2_256", "digest": digest });
        bundle("messageSignature", json!({ "messageDigest": digest, "signature": self.sign(manifest) }))
    }
}

fn bundle(name: &str, content: Value) -> Value {
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": { "publicKey": { "hint": "x" }, "tlogEntries": [{ "logIndex": "1" }] },
        name: content,
    })
}

fn sealed(bundle: &Value) -> Signature {
    Signature::Bundle(bundle.to_string().into_bytes())
}

fn sha256() -> String {
    hex::encode(Sha256::digest(MANIFEST))
}

fn payload(reference: &str) -> Value {
    json!({
        "critical": {
            "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": format!("sha256:{}", sha256()) },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
}

fn statement() -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "digest": { "sha256": sha256() }, "annotations": {} }],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    })
}

/// A copy with one field set to something else.
fn with(value: &Value, pointer: &str, to: Value) -> Value {
    let mut copy = value.clone();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match copy.pointer_mut(parent).unwrap() {
        Value::Array(list) => list[name.parse::<usize>().unwrap()] = to,
        object => object[name] = to,
    }
    copy
}

fn policy(signer: &Signer, identity: &str) -> Policy {
    let key = STANDARD.encode(signer.pem());
    let policy =
        format!(r#"{{"default":[{{"type":"sigstoreSigned","keyData":"{key}","signedIdentity":{identity}}}]}}"#);
    Policy::parse(policy.as_bytes()).unwrap()
}

fn verdict(policy: &Policy, image: &str, signatures: &[Signature]) -> Result<(), String> {
    policy.judge(&Named::parse(image).unwrap(), MANIFEST, signatures).map_err(|denied| denied.to_string())
}

fn assert_denied(policy: &Policy, image: &str, signature: Signature, why: &str) {
    let said = verdict(policy, image, &[signature]).unwrap_err();
    assert!(said.contains(why) && !said.contains('\n'), "{why}: {said}");
}

#[test]
fn a_signature_of_every_kind_of_key_is_verified() {
    for (name, make, sign) in KINDS {
        let Some(signer) = Signer::new(make, sign) else { return };
        let policy = policy(&signer, ANY_REPOSITORY);
        assert!(policy.wanted(&Named::parse("h.io/a").unwrap()).sigstore);
        let good = [
            signer.legacy(&payload("h.io/a")),
            sealed(&signer.envelope(&statement())),
            sealed(&signer.message(MANIFEST)),
        ];
        for signature in good {
            assert_eq!(verdict(&policy, "h.io/a:1", &[signature]), Ok(()), "{name}");
        }
        // One letter of what is signed is another.
        let Signature::Legacy { payload, signature_base64, proof } = signer.legacy(&payload("h.io/b")) else { return };
        let payload = String::from_utf8(payload).unwrap().replace("h.io/b", "h.io/a").into_bytes();
        assert_denied(
            &policy,
            "h.io/a:1",
            Signature::Legacy { payload, signature_base64, proof },
            "no key of the policy made it",
        );
    }
}

#[test]
fn a_signature_by_another_key_is_none() {
    let (Some(ours), Some(theirs)) = (Signer::p256(), Signer::p256()) else { return };
    let policy = policy(&ours, ANY_REPOSITORY);
    let why = "none of 1 signatures is good: 1: no key of the policy made it";
    assert_denied(&policy, "h.io/a", theirs.legacy(&payload("h.io/a")), why);
    assert_denied(&policy, "h.io/a", sealed(&theirs.envelope(&statement())), why);
    assert_denied(&policy, "h.io/a", sealed(&theirs.message(MANIFEST)), why);
    assert!(verdict(&policy, "h.io/a", &[]).unwrap_err().ends_with("the image has no signature"));
}

#[test]
fn one_good_signature_is_enough_and_bad_ones_are_counted() {
    let (Some(ours), Some(theirs)) = (Signer::p256(), Signer::p256()) else { return };
    let policy = policy(&ours, ANY_REPOSITORY);
    let junk = Signature::Bundle(b"{\n".to_vec());
    let bad = [junk, theirs.legacy(&payload("h.io/a")), ours.legacy(&payload("h.io/b"))];
    let said = verdict(&policy, "h.io/a", &bad).unwrap_err();
    let start = "h.io/a:latest: the image policy for everything (default) denies it: requirement 1 (sigstoreSigned): \
                 none of 3 signatures is good: 1: EOF";
    let end = "; 2: no key of the policy made it; 3: it is for h.io/b (matchRepository)";
    assert!(said.starts_with(start) && said.ends_with(end), "{said}");
    let good = [&bad[..], &[ours.legacy(&payload("h.io/a"))]].concat();
    assert_eq!(verdict(&policy, "h.io/a", &good), Ok(()));
    let many = vec![bad[1].clone(); 20];
    let said = verdict(&policy, "h.io/a", &many).unwrap_err();
    assert!(said.contains("none of 20") && said.ends_with("; 8: no key of the policy made it; …"), "{said}");
}

#[test]
fn every_requirement_must_hold_and_any_of_its_keys_will_do() {
    let (Some(one), Some(two)) = (Signer::p256(), Signer::p256()) else { return };
    let both = |signer: &Signer| {
        format!(r#"{{"type":"sigstoreSigned","keyPath":"{}","signedIdentity":{ANY_REPOSITORY}}}"#, signer.path("pub"))
    };
    let each = Policy::parse(format!(r#"{{"default":[{},{}]}}"#, both(&one), both(&two)).as_bytes()).unwrap();
    let any = json!({ "type": "sigstoreSigned", "keyPaths": [format!("file://{}", one.path("pub")), two.path("pub")],
                      "signedIdentity": { "type": "matchRepository" } });
    let any = Policy::parse(json!({ "default": [any] }).to_string().as_bytes()).unwrap();
    let (first, second) = (one.legacy(&payload("h.io/a")), sealed(&two.envelope(&statement())));
    assert_eq!(verdict(&any, "h.io/a", std::slice::from_ref(&second)), Ok(()));
    assert_eq!(verdict(&each, "h.io/a", &[first.clone(), second]), Ok(()));
    assert!(verdict(&each, "h.io/a", &[first]).unwrap_err().contains("requirement 2 (sigstoreSigned)"));
}

#[test]
fn a_payload_is_for_one_manifest_and_one_repository() {
    let Some(signer) = Signer::p256() else { return };
    let (good, other) = (payload("h.io/a"), format!("sha256:{}", "00".repeat(32)));
    let by_repository = policy(&signer, ANY_REPOSITORY);
    for (pointer, to, why) in [
        ("/critical/image/docker-manifest-digest", json!(other), "it is for \"sha256:0000"),
        ("/critical/image/docker-manifest-digest", json!(sha256()), "it is for"),
        ("/critical/image/docker-manifest-digest", json!(null), "docker-manifest-digest is null, not a string"),
        ("/critical/image/x", json!(1), "payload.critical.image has a field \"x\""),
        ("/critical/identity/docker-reference", json!("h.io/b"), "it is for h.io/b (matchRepository)"),
        ("/critical/identity/docker-reference", json!("h.io/A"), "no image name"),
        ("/critical/type", json!("atomic container signature"), "payload.critical.type is \"atomic"),
        ("/critical/x", json!(1), "payload.critical has a field \"x\""),
        ("/x", json!(1), "payload has a field \"x\""),
        ("/optional", json!([]), "payload.optional is a list"),
        ("/optional", json!({ "creator": 1 }), "creator is a number"),
        ("/optional", json!({ "timestamp": 1.5 }), "not a whole number"),
    ] {
        assert_denied(&by_repository, "h.io/a", signer.legacy(&with(&good, pointer, to)), why);
    }
    let optional = with(&good, "/optional", json!({ "creator": "me", "timestamp": 1, "other": [1] }));
    assert_eq!(verdict(&by_repository, "h.io/a", &[signer.legacy(&optional)]), Ok(()));
    let twice = br#"{"critical":{},"critical":{},"optional":null}"#.to_vec();
    let twice =
        Signature::Legacy { signature_base64: signer.sign(&twice), payload: twice, proof: LegacyProof::default() };
    assert_denied(&by_repository, "h.io/a", twice, "there twice");
    let large = Signature::Legacy {
        payload: vec![b' '; (1 << 20) + 1],
        signature_base64: String::new(),
        proof: LegacyProof::default(),
    };
    assert_denied(&by_repository, "h.io/a", large, "it is too large");

    // cosign names a repository only, which the default rule does not accept, and which the denial explains.
    let by_default = policy(&signer, r#"{"type":"matchRepoDigestOrExact"}"#);
    assert_denied(&by_default, "h.io/a", signer.legacy(&good), "use matchRepository or exactRepository");
    assert_eq!(verdict(&by_default, "h.io/a:1", &[signer.legacy(&payload("h.io/a:1"))]), Ok(()));
}

#[test]
fn a_bundle_is_for_one_manifest_and_says_so_in_a_known_way() {
    let Some(signer) = Signer::p256() else { return };
    let policy = policy(&signer, ANY_REPOSITORY);
    let good = statement();
    for (pointer, to, why) in [
        ("/_type", json!("https://in-toto.io/Statement/v0.1"), "statement._type is"),
        ("/predicateType", json!("https://slsa.dev/provenance/v1"), "statement.predicateType is"),
        ("/subject", json!([]), "the statement has no subject"),
        ("/subject/0/digest/sha256", json!("00".repeat(32)), "it is for the sha256 \"0000"),
        ("/subject/0/digest", json!({ "sha512": "00" }), "has no sha256"),
        ("/subject/0/name", json!("h.io/b"), "it is for h.io/b (matchRepository)"),
        ("/subject/0/name", json!("pkg:oci/a"), "no image name"),
    ] {
        assert_denied(&policy, "h.io/a", sealed(&signer.envelope(&with(&good, pointer, to))), why);
    }
    for name in ["", "h.io/a"] {
        let bundle = signer.envelope(&with(&good, "/subject/0/name", json!(name)));
        assert_eq!(verdict(&policy, "h.io/a", &[sealed(&bundle)]), Ok(()), "{name:?}");
    }
    let (envelope, message) = (signer.envelope(&good), signer.message(MANIFEST));
    let signature = envelope["dsseEnvelope"]["signatures"][0].clone();
    for (bundle, pointer, to, why) in [
        (&envelope, "/mediaType", json!("application/vnd.dev.sigstore.bundle+json;version=0.1"), "is not known"),
        (&envelope, "/x", json!(1), "bundle has a field \"x\""),
        (&envelope, "/messageSignature", message["messageSignature"].clone(), "has not one of"),
        (&envelope, "/verificationMaterial", json!({ "certificate": {} }), "has no rawBytes"),
        (&envelope, "/verificationMaterial", json!({}), "has no publicKey"),
        (&envelope, "/dsseEnvelope/payloadType", json!("text/plain"), "the payload's type \"text/plain\""),
        (&envelope, "/dsseEnvelope/payload", json!(STANDARD.encode("{}")), "no key of the policy made it"),
        (&envelope, "/dsseEnvelope/signatures", json!([]), "has not one signature"),
        (&envelope, "/dsseEnvelope/signatures", json!([signature, signature]), "has not one signature"),
        (&message, "/messageSignature/signature", json!("-"), "is not base64"),
        (&message, "/messageSignature/messageDigest/algorithm", json!("SHA1"), "the digest \"SHA1\""),
        (&message, "/messageSignature/messageDigest/digest", json!("AAAA"), "it is for another manifest"),
    ] {
        assert_denied(&policy, "h.io/a", sealed(&with(bundle, pointer, to)), why);
    }
    assert_denied(&policy, "h.io/a", sealed(&signer.message(b"{}")), "it is for another manifest");
}

#[test]
fn a_bundle_without_a_name_is_for_the_repository_it_is_in() {
    let Some(signer) = Signer::p256() else { return };
    let exact = policy(&signer, r#"{"type":"exactRepository","dockerRepository":"h.io/a"}"#);
    let by_default = policy(&signer, r#"{"type":"matchRepoDigestOrExact"}"#);
    for bundle in [signer.envelope(&statement()), signer.message(MANIFEST)] {
        assert_eq!(verdict(&exact, "h.io/a:1", &[sealed(&bundle)]), Ok(()));
        assert_denied(&exact, "h.io/b:1", sealed(&bundle), "it is for h.io/b (exactRepository)");
        assert_denied(&by_default, "h.io/a:1", sealed(&bundle), "use matchRepository or exactRepository");
    }
}

#[test]
fn a_key_that_is_weak_or_of_another_kind_is_refused_with_the_file() {
    let rsa = |bits: &'static str| vec!["genpkey", "-algorithm", "rsa", "-pkeyopt", bits];
    for (make, why) in [
        (rsa("rsa_keygen_bits:1024"), "2048 to 8192 bits"),
        (vec!["ecparam", "-name", "secp521r1", "-genkey", "-noout"], "not P-256 or P-384"),
        (vec!["genpkey", "-algorithm", "x25519"], "not ECDSA, Ed25519 or RSA"),
    ] {
        let Some(signer) = Signer::new(&make, &[]) else { return };
        let parse = |pem: Vec<u8>| {
            let policy = json!({ "default": [{ "type": "sigstoreSigned", "keyPath": "/k" }] }).to_string();
            Policy::parse_with(policy.as_bytes(), &|_| Ok(pem.clone())).unwrap_err().to_string()
        };
        assert!(parse(signer.pem()).contains(why), "{why}");
        let private = std::fs::read(PathBuf::from(signer.path("key"))).unwrap();
        assert!(parse(private).contains("no PEM public key"));
        assert!(parse([signer.pem(), signer.pem()].concat()).contains("no PEM with one key"));
    }
}
