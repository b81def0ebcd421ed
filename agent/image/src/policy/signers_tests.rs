//! Signatures without a key of one's own: an authority, a log and a host of openssl's making.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::super::{LegacyProof, Named, Policy, Signature};

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;
const ISSUER: &str = "https://accounts.h.io";
/// When the signer's certificate was good: ten minutes, long ago.
const FROM: &str = "230101000000Z";
const TO: &str = "230101001000Z";
const WITHIN: i64 = 1_672_531_500;

const CA: &str = "\
[ca]
default_ca = own
[own]
database = index
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
copy_extensions = none
unique_subject = no
[any]
commonName = optional
";

/// The extensions of Fulcio's certificates.
const LEAF: &str = "\
basicConstraints = CA:false
keyUsage = critical,digitalSignature
extendedKeyUsage = codeSigning
subjectAltName = critical,email:a@h.io,DNS:build.h.io
1.3.6.1.4.1.57264.1.8 = ASN1:UTF8String:https://accounts.h.io
";

/// A directory with `ca.pem`, `middle.pem`, `leaf.pem`, `log.pub` and their keys.
struct World(tempfile::TempDir);

impl World {
    fn new(leaf: &str, from: &str, to: &str) -> Option<World> {
        if Command::new("openssl").arg("version").output().is_err() {
            println!("skipped: openssl is not installed");
            return None;
        }
        let world = World(tempfile::tempdir().unwrap());
        world.write("index", "");
        world.write("serial", "01\n");
        world.write("ca.cnf", CA);
        world.write("ca.ext", "basicConstraints = critical,CA:true\nkeyUsage = critical,keyCertSign\n");
        world.write("leaf.ext", leaf);
        for (name, curve) in
            [("ca", "secp384r1"), ("middle", "secp384r1"), ("leaf", "prime256v1"), ("log", "prime256v1")]
        {
            world.openssl(&format!("ecparam -name {curve} -genkey -noout -out {name}.key"));
            world.openssl(&format!("req -new -key {name}.key -subj /CN={name} -out {name}.csr"));
        }
        let ca = "ca -batch -notext -config ca.cnf -startdate 220101000000Z -enddate 420101000000Z -extfile ca.ext";
        world.openssl(&format!("{ca} -selfsign -keyfile ca.key -in ca.csr -out ca.pem"));
        world.openssl(&format!("{ca} -keyfile ca.key -cert ca.pem -in middle.csr -out middle.pem"));
        let by_middle = "ca -batch -notext -config ca.cnf -keyfile middle.key -cert middle.pem -extfile leaf.ext";
        world.openssl(&format!("{by_middle} -startdate {from} -enddate {to} -in leaf.csr -out leaf.pem"));
        world.openssl("pkey -in log.key -pubout -out log.pub");
        world.openssl("pkey -in leaf.key -pubout -out leaf.pub");
        Some(world)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap()
    }

    fn openssl(&self, args: &str) {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// In base64.
    fn sign(&self, key: &str, message: &[u8]) -> String {
        std::fs::write(self.0.path().join("message"), message).unwrap();
        self.openssl(&format!("dgst -sha256 -sign {key}.key -out signature message"));
        STANDARD.encode(std::fs::read(self.0.path().join("signature")).unwrap())
    }

    /// The log's word for a signature.
    fn entry(&self, signer: &str, payload: &[u8], signature: &str, time: i64) -> Value {
        let body = json!({ "apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
            "data": { "hash": { "algorithm": "sha256", "value": hex::encode(Sha256::digest(payload)) } },
            "signature": { "content": signature, "publicKey": { "content": STANDARD.encode(self.text(signer)) } },
        } });
        self.entered(&body, time)
    }

    /// A log is known by the digest of its key.
    fn log_id(&self) -> Vec<u8> {
        let der = super::super::log::der_of_pem(self.text("log.pub").as_bytes()).unwrap();
        Sha256::digest(der).to_vec()
    }

    fn entered(&self, body: &Value, time: i64) -> Value {
        // serde_json's maps are sorted, and none of these texts is escaped.
        let payload = json!({ "body": STANDARD.encode(body.to_string()), "integratedTime": time, "logIndex": 7,
            "logID": hex::encode(self.log_id()) });
        json!({ "SignedEntryTimestamp": self.sign("log", payload.to_string().as_bytes()), "Payload": payload })
    }

    fn signature(&self, payload: &[u8], time: i64) -> Signature {
        let signature = self.sign("leaf", payload);
        let bundle = Some(self.entry("leaf.pem", payload, &signature, time).to_string());
        let (certificate, chain) = (Some(self.text("leaf.pem")), Some(self.text("middle.pem") + &self.text("ca.pem")));
        let proof = LegacyProof { certificate, chain, bundle };
        Signature::Legacy { payload: payload.to_vec(), signature_base64: signature, proof }
    }

    fn judge(&self, demand: &Value, signature: &Signature) -> Result<(), String> {
        let mut demand = demand.clone();
        demand["type"] = "sigstoreSigned".into();
        demand["signedIdentity"] = json!({ "type": "matchRepository" });
        let policy = json!({ "default": [demand] }).to_string();
        let read = |path: &str| std::fs::read(self.0.path().join(path));
        let policy = Policy::parse_with(policy.as_bytes(), &read).unwrap();
        let named = Named::parse("h.io/a:1").unwrap();
        policy.judge(&named, MANIFEST, std::slice::from_ref(signature)).map_err(|error| error.to_string())
    }
}

fn payload() -> Vec<u8> {
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(MANIFEST)));
    json!({ "critical": { "image": { "docker-manifest-digest": digest }, "identity": { "docker-reference": "h.io/a" },
        "type": "cosign container image signature" }, "optional": null })
    .to_string()
    .into_bytes()
}

fn fulcio() -> Value {
    json!({ "fulcio": { "caPath": "ca.pem", "oidcIssuer": ISSUER, "subjectEmail": "a@h.io" },
        "rekorPublicKeyPath": "log.pub" })
}

fn refused(result: Result<(), String>, why: &str) {
    let error = result.unwrap_err();
    assert!(error.contains(why), "{error}\n{why}");
}

#[test]
fn who_had_a_certificate_when_the_log_entered_it_has_signed() {
    let Some(world) = World::new(LEAF, FROM, TO) else { return };
    let (payload, demand) = (payload(), fulcio());
    let good = world.signature(&payload, WITHIN);
    world.judge(&demand, &good).unwrap();
    refused(world.judge(&demand, &world.signature(&payload, WITHIN + 3600)), "no authority of the policy vouches");
    refused(world.judge(&demand, &world.signature(b"{}", WITHIN)), "has no critical");

    let change = |field: &str, value: &str| {
        let mut demand = fulcio();
        demand["fulcio"][field] = value.into();
        demand
    };
    refused(world.judge(&change("oidcIssuer", "https://other.h.io"), &good), "has not vouched for its subject");
    refused(world.judge(&change("subjectEmail", "b@h.io"), &good), "is not for b@h.io");
    refused(world.judge(&change("caPath", "leaf.pem"), &good), "no authority of the policy vouches");
    let mut other_log = fulcio();
    other_log["rekorPublicKeyPath"] = "leaf.pub".into();
    refused(world.judge(&other_log, &good), "no log of the policy has entered it");

    let Signature::Legacy { payload, signature_base64, proof } = good else { return };
    let without = |change: fn(&mut LegacyProof)| {
        let mut proof = proof.clone();
        change(&mut proof);
        Signature::Legacy { payload: payload.clone(), signature_base64: signature_base64.clone(), proof }
    };
    refused(world.judge(&demand, &without(|proof| proof.certificate = None)), "it has no certificate");
    refused(world.judge(&demand, &without(|proof| proof.bundle = None)), "no log has entered it");
    refused(world.judge(&demand, &without(|proof| proof.chain = None)), "no authority of the policy vouches");
    refused(world.judge(&demand, &without(|proof| proof.certificate = proof.chain.clone())), "more than 1 cert");
    // The log's word for another signature, and a later one than the log's.
    let another = world.entry("leaf.pem", &payload, &world.sign("leaf", &payload), WITHIN).to_string();
    let by_log = world.entry("log.pub", &payload, &signature_base64, WITHIN).to_string();
    let moved = proof.bundle.clone().unwrap().replace(&WITHIN.to_string(), &(WITHIN + 1).to_string());
    for (bundle, why) in
        [(another, "another signature"), (by_log, "another signature"), (moved, "no log of the policy")]
    {
        let proof = LegacyProof { bundle: Some(bundle), ..proof.clone() };
        let signature =
            Signature::Legacy { payload: payload.clone(), signature_base64: signature_base64.clone(), proof };
        refused(world.judge(&demand, &signature), why);
    }
}

#[test]
fn a_certificate_for_another_purpose_or_without_an_issuer_vouches_for_nothing() {
    for (from, to, why) in [
        ("extendedKeyUsage = codeSigning\n", "", "not for signing code"),
        ("codeSigning", "serverAuth", "no authority of the policy vouches"),
        ("1.3.6.1.4.1.57264.1.8", "1.3.6.1.4.1.57264.1.9", "has not vouched for its subject"),
    ] {
        let Some(world) = World::new(&LEAF.replace(from, to), FROM, TO) else { return };
        refused(world.judge(&fulcio(), &world.signature(&payload(), WITHIN)), why);
    }
    // The issuer twice, and not the same.
    let twice = format!("{LEAF}1.3.6.1.4.1.57264.1.1 = DER:{}\n", hex::encode("https://other.h.io"));
    let Some(world) = World::new(&twice, FROM, TO) else { return };
    refused(world.judge(&fulcio(), &world.signature(&payload(), WITHIN)), "has not vouched for its subject");
}

#[test]
fn a_key_may_have_to_be_in_the_log() {
    let Some(world) = World::new(LEAF, FROM, TO) else { return };
    let (payload, demand) = (payload(), json!({ "keyPath": "leaf.pub", "rekorPublicKeyPath": "log.pub" }));
    let signature = world.sign("leaf", &payload);
    let with = |bundle: Option<Value>| {
        let proof = LegacyProof { bundle: bundle.map(|bundle| bundle.to_string()), ..LegacyProof::default() };
        Signature::Legacy { payload: payload.clone(), signature_base64: signature.clone(), proof }
    };
    world.judge(&demand, &with(Some(world.entry("leaf.pub", &payload, &signature, WITHIN)))).unwrap();
    refused(world.judge(&demand, &with(None)), "no log has entered it");
    refused(
        world.judge(&demand, &with(Some(world.entry("log.pub", &payload, &signature, WITHIN)))),
        "another signature",
    );
    refused(world.judge(&demand, &with(Some(json!({})))), "has no SignedEntryTimestamp");
}

#[test]
fn an_authority_of_ones_own_vouches_for_an_address_or_a_host_today() {
    let Some(world) = World::new(LEAF, "220101000000Z", "420101000000Z") else { return };
    let good = world.signature(&payload(), WITHIN);
    let demand = |field: &str, value: &str| json!({ "pki": { "caRootsPath": "ca.pem", field: value } });
    world.judge(&demand("subjectEmail", "a@h.io"), &good).unwrap();
    world.judge(&demand("subjectHostname", "build.h.io"), &good).unwrap();
    refused(world.judge(&demand("subjectEmail", "b@h.io"), &good), "is not for b@h.io");
    refused(world.judge(&demand("subjectHostname", "other.h.io"), &good), "is not for other.h.io");
    let mut between = demand("subjectEmail", "a@h.io");
    between["pki"]["caIntermediatesPath"] = "middle.pem".into();
    let Signature::Legacy { payload: bytes, signature_base64, mut proof } = good else { return };
    proof.chain = None;
    let bare = Signature::Legacy { payload: bytes, signature_base64, proof };
    world.judge(&between, &bare).unwrap();
    refused(world.judge(&demand("subjectEmail", "a@h.io"), &bare), "no authority of the policy vouches");
    let Some(past) = World::new(LEAF, FROM, TO) else { return };
    let late = past.signature(&payload(), WITHIN);
    refused(past.judge(&demand("subjectEmail", "a@h.io"), &late), "no authority of the policy vouches");
}

#[test]
fn bundles_bring_certificates_and_logs_too() {
    let Some(world) = World::new(LEAF, FROM, TO) else { return };
    // A chain in a bundle is its root's business: the policy names the one that signed.
    let mut demand = fulcio();
    demand["fulcio"]["caPath"] = "middle.pem".into();
    let statement = json!({ "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": "h.io/a", "digest": { "sha256": hex::encode(Sha256::digest(MANIFEST)) } }],
        "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {} })
    .to_string();
    let kind = "application/vnd.in-toto+json";
    let encoded = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
    let signature = world.sign("leaf", encoded.as_bytes());
    let body = json!({ "apiVersion": "0.0.1", "kind": "dsse", "spec": {
        "payloadHash": { "algorithm": "sha256", "value": hex::encode(Sha256::digest(&statement)) },
        "signatures": [{ "signature": signature, "verifier": STANDARD.encode(world.text("leaf.pem")) }],
    } });
    let entry = world.entered(&body, WITHIN);
    let leaf = super::super::log::der_of_pem(world.text("leaf.pem").as_bytes()).unwrap();
    let tlog = json!({ "logIndex": "7", "logId": { "keyId": STANDARD.encode(world.log_id()) },
        "kindVersion": { "kind": "dsse", "version": "0.0.1" }, "integratedTime": WITHIN.to_string(),
        "inclusionPromise": { "signedEntryTimestamp": entry["SignedEntryTimestamp"] },
        "canonicalizedBody": entry["Payload"]["body"] });
    let bundle = |tlog: &[Value]| {
        let bundle = json!({ "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": { "certificate": { "rawBytes": STANDARD.encode(&leaf) }, "tlogEntries": tlog },
            "dsseEnvelope": { "payload": STANDARD.encode(&statement), "payloadType": kind,
                "signatures": [{ "sig": signature }] } });
        Signature::Bundle(bundle.to_string().into_bytes())
    };
    world.judge(&demand, &bundle(std::slice::from_ref(&tlog))).unwrap();
    refused(world.judge(&demand, &bundle(&[])), "no log has entered it");
    refused(
        world.judge(&json!({ "keyPath": "log.pub" }), &bundle(std::slice::from_ref(&tlog))),
        "made with a certificate",
    );
    let mut later = tlog;
    later["integratedTime"] = (WITHIN + 1).to_string().into();
    refused(world.judge(&demand, &bundle(&[later])), "no log of the policy has entered it");
}

#[test]
fn cosign_takes_what_is_made_here_for_a_keyless_signature() {
    let Some(cosign) = nacre_tests::newer::program("cosign") else { return };
    // Fulcio writes the issuer in both ways.
    let both = format!("{LEAF}1.3.6.1.4.1.57264.1.1 = DER:{}\n", hex::encode(ISSUER));
    let Some(world) = World::new(&both, FROM, TO) else { return };
    let good = world.signature(&payload(), WITHIN);
    world.judge(&fulcio(), &good).unwrap();

    let Signature::Legacy { payload, signature_base64, proof } = good else { return };
    let entry: Value = serde_json::from_str(&proof.bundle.unwrap()).unwrap();
    let bundle = json!({ "base64Signature": signature_base64, "cert": STANDARD.encode(proof.certificate.unwrap()),
        "rekorBundle": entry });
    world.write("bundle", &bundle.to_string());
    world.write("payload", std::str::from_utf8(&payload).unwrap());
    world.write("authorities", &proof.chain.unwrap());
    let verify = |log: &str| {
        let mut cosign = Command::new(&cosign);
        cosign.args([
            "verify-blob",
            "--bundle=bundle",
            "--new-bundle-format=false",
            "--offline",
            "--insecure-ignore-sct",
        ]);
        cosign.args(["--certificate-identity=a@h.io", "--certificate-oidc-issuer", ISSUER, "payload"]);
        let dir = world.0.path();
        cosign.current_dir(dir).env("HOME", dir).env("SIGSTORE_ROOT_FILE", dir.join("authorities"));
        cosign.env("SIGSTORE_REKOR_PUBLIC_KEY", dir.join(log)).output().unwrap()
    };
    let verified = verify("log.pub");
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    assert!(!verify("leaf.pub").status.success());
}
