//! Layers that skopeo has encrypted, for keys that openssl has made.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says why it skips")]

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use nacre_pull::Kind;
use nacre_pull::ocicrypt::{Encrypted, Keys, PrivateKey};
use serde_json::{Value, json};

use crate::fixture::Compression::{Gzip, None as Plain, Zstd};
use crate::fixture::{Image, archive, digest, gzip, noise, on_path, run};

const JWE: &str = "org.opencontainers.image.enc.keys.jwe";

/// How openssl is asked for a key.
const RSA: &[&str] = &["genrsa", "-traditional", "2048"];
const RSA_PKCS8: &[&str] = &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"];
const P256: &[&str] = &["ecparam", "-genkey", "-name", "prime256v1"]; // its parameters come first
const P256_PKCS8: &[&str] = &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const P384: &[&str] = &["ecparam", "-genkey", "-noout", "-name", "secp384r1"];
const P521: &[&str] = &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"];

/// A directory for keys and images. `None`, and the reason on standard output, where a program is missing.
fn workshop() -> Option<tempfile::TempDir> {
    let missing = ["skopeo", "openssl"].into_iter().find(|program| !on_path(program));
    if let Some(program) = missing {
        println!("skipped: {program} is not installed");
        return None;
    }
    Some(tempfile::tempdir().unwrap())
}

/// Makes `name.pem` and `name.pub`.
fn keypair(dir: &Path, name: &str, how: &[&str]) -> PrivateKey {
    let (private, public) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.pub")));
    run(Command::new("openssl").args([how[0], "-out"]).arg(&private).args(&how[1..]));
    run(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&private).arg("-out").arg(public));
    PrivateKey::from_pem(&fs::read_to_string(private).unwrap()).unwrap()
}

struct Layer {
    media_type: String,
    annotations: HashMap<String, String>,
    bytes: Vec<u8>,
}

impl Layer {
    fn encrypted(&self) -> Encrypted {
        Encrypted::of(&self.media_type, &self.annotations).unwrap().unwrap()
    }

    fn read(&self, keys: &Keys) -> io::Result<Vec<u8>> {
        let encrypted = self.encrypted();
        let options = encrypted.unlock(keys)?;
        let mut plain = Vec::new();
        encrypted.decrypter(&options, self.bytes.as_slice())?.read_to_end(&mut plain).map(|_| plain)
    }
}

/// The layers of the image as skopeo encrypts it for the readers.
fn encrypt(dir: &Path, image: &Image, readers: &[&str], arguments: &[&str]) -> Vec<Layer> {
    let (plain, secret) = (tempfile::tempdir_in(dir).unwrap(), tempfile::tempdir_in(dir).unwrap());
    Image::write(plain.path(), &[(image, "amd64")]);
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--insecure-policy"]).args(arguments);
    for reader in readers {
        skopeo.arg("--encryption-key").arg(format!("jwe:{}", dir.join(format!("{reader}.pub")).display()));
    }
    run(skopeo.args([plain.path(), secret.path()].map(|dir| format!("oci:{}:image", dir.display()))));
    let blob = |digest: &Value| {
        fs::read(secret.path().join("blobs").join(digest.as_str().unwrap().replace(':', "/"))).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(secret.path().join("index.json")).unwrap()).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0]["digest"])).unwrap();
    let layer = |layer: &Value| Layer {
        media_type: layer["mediaType"].as_str().unwrap().into(),
        annotations: serde_json::from_value(layer["annotations"].clone()).unwrap(),
        bytes: blob(&layer["digest"]),
    };
    manifest["layers"].as_array().unwrap().iter().map(layer).collect()
}

fn only(key: PrivateKey) -> Keys {
    Keys { private: vec![key], ..Keys::default() }
}

/// An error's kind, and what it says.
fn said<T>(result: io::Result<T>) -> (Kind, String) {
    let error = result.err().unwrap().downcast::<nacre_pull::Error>().unwrap();
    (error.kind, error.message)
}

#[test]
fn each_key_opens_what_skopeo_has_encrypted_for_it_alone_and_among_others() {
    let Some(dir) = workshop() else { return };
    let archives = [archive(&[("a", &noise(3 << 20))]), archive(&[("b", b"")])];
    let image = Image::new(&archives.clone().map(|archive| (archive, Gzip)), "amd64");
    let plain = archives.map(|archive| gzip(&archive));
    let ways = [("r", RSA), ("r8", RSA_PKCS8), ("e", P256), ("e8", P256_PKCS8), ("e384", P384), ("e521", P521)];
    let keys: Vec<_> = ways.iter().map(|(name, how)| (*name, only(keypair(dir.path(), name, how)))).collect();
    let all = encrypt(dir.path(), &image, &ways.map(|(name, _)| name), &[]);
    for (name, keys) in &keys {
        for layers in [&encrypt(dir.path(), &image, &[name], &[]), &all] {
            assert_eq!(layers.len(), 2);
            for (layer, plain) in layers.iter().zip(&plain) {
                assert_eq!(layer.encrypted().plain_type(), "application/vnd.oci.image.layer.v1.tar+gzip");
                assert!(layer.read(keys).unwrap() == *plain, "{name}");
            }
        }
    }
}

#[test]
fn every_compression_can_be_encrypted_and_the_digest_inside_is_of_what_skopeo_was_given() {
    let Some(dir) = workshop() else { return };
    let keys = only(keypair(dir.path(), "r", RSA));
    let text = archive(&[("a", b"text")]);
    let image = Image::new(&[(text.clone(), Plain), (text.clone(), Gzip), (text.clone(), Zstd)], "amd64");
    // skopeo compresses the first anew, and all of them when it is told to. The digest stays.
    for arguments in [&[][..], &["--dest-compress-format", "zstd"]] {
        let layers = encrypt(dir.path(), &image, &["r"], arguments);
        assert_eq!(layers.len(), 3);
        for (layer, given) in layers.iter().zip(&image.layers) {
            let plain = layer.read(&keys).unwrap();
            let mut archive = Vec::new();
            if plain.starts_with(&[0x1f, 0x8b]) {
                flate2::read::MultiGzDecoder::new(&plain[..]).read_to_end(&mut archive).unwrap();
            } else {
                archive = zstd::decode_all(&plain[..]).unwrap();
            }
            assert!(archive == text, "{}", layer.media_type);
            assert_eq!(layer.encrypted().unlock(&keys).unwrap().digest.as_ref(), Some(given));
        }
        assert_ne!(digest(&layers[0].read(&keys).unwrap()), image.layers[0]);
    }
}

#[test]
fn another_key_or_none_or_changed_bytes_are_told_apart() {
    let Some(dir) = workshop() else { return };
    let keys = only(keypair(dir.path(), "right", RSA));
    let mut wrong = only(keypair(dir.path(), "wrong", RSA));
    wrong.private.push(keypair(dir.path(), "curve", P256));
    let image = Image::new(&[(archive(&[("a", &noise(200_000))]), Gzip)], "amd64");
    let mut layer = encrypt(dir.path(), &image, &["right"], &[]).remove(0);

    let (kind, message) = said(layer.read(&wrong));
    assert!(kind == Kind::Locked && message.contains("no key fits (2 tried)"), "{message}");
    let (kind, message) = said(layer.read(&Keys::default()));
    assert!(kind == Kind::Locked && message.contains("no key was given"), "{message}");

    let annotation = layer.annotations[JWE].clone();
    let jwe: Value = serde_json::from_slice(&BASE64_STANDARD.decode(&annotation).unwrap()).unwrap();
    let change = |layer: &mut Layer, field: &str, value: Value| {
        let mut jwe = jwe.clone();
        jwe[field] = value;
        layer.annotations.insert(JWE.into(), BASE64_STANDARD.encode(jwe.to_string()));
    };
    let protected = |header: Value| json!(BASE64_URL_SAFE_NO_PAD.encode(header.to_string()));
    for (field, value) in [
        ("ciphertext", json!("AAAA")),
        ("tag", json!("AAAA")),
        ("iv", json!("AAAA")),
        ("iv", json!("AAAA====")),
        ("aad", json!("AAAA")),
        ("header", json!({ "alg": "RSA-OAEP" })),
        ("recipients", json!([])),
        ("recipients", Value::Array(vec![json!({}); 65])),
        ("protected", protected(json!({ "alg": "RSA-OAEP", "enc": "A128GCM" }))),
        ("protected", protected(json!({ "alg": "RSA-OAEP", "enc": "A256GCM", "zip": "DEF" }))),
        ("protected", protected(json!({ "alg": "RSA-OAEP", "enc": "A256GCM", "crit": ["b64"] }))),
        ("protected", protected(json!({ "enc": "A256GCM" }))),
    ] {
        change(&mut layer, field, value);
        let (kind, message) = said(layer.read(&keys));
        assert_eq!(kind, Kind::BadImage, "{field}: {message}");
    }
    // One good wrapped key among bad ones is enough.
    let others = [layer.annotations[JWE].clone(), annotation.clone()].join(",");
    layer.annotations.insert(JWE.into(), others);
    assert!(layer.read(&keys).is_ok());

    layer.bytes[100_000] ^= 1;
    assert_eq!(said(layer.read(&keys)).0, Kind::Corrupt);
    layer.bytes[100_000] ^= 1;
    layer.bytes.pop();
    assert_eq!(said(layer.read(&keys)).0, Kind::Corrupt);
}

#[test]
fn a_key_wrapped_by_rsa_with_sha256_is_unwrapped() {
    let Some(dir) = workshop() else { return };
    let path = |name: &str| dir.path().join(name);
    let keys = only(keypair(dir.path(), "r", RSA));
    fs::write(path("key"), [5; 32]).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["pkeyutl", "-encrypt", "-pubin", "-pkeyopt", "rsa_padding_mode:oaep"]);
    openssl.args(["-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256", "-inkey"]).arg(path("r.pub"));
    run(openssl.arg("-in").arg(path("key")).arg("-out").arg(path("wrapped")));

    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let protected = encode(br#"{"enc":"A256GCM"}"#);
    let options = json!({ "symkey": BASE64_STANDARD.encode([1; 32]), "cipheroptions": {} }).to_string();
    let message = Payload { msg: options.as_bytes(), aad: protected.as_bytes() };
    let sealed = Aes256Gcm::new(&[5; 32].into()).encrypt(&[0; 12].into(), message).unwrap();
    let (ciphertext, tag) = sealed.split_at(options.len());
    let reader =
        json!({ "header": { "alg": "RSA-OAEP-256" }, "encrypted_key": encode(&fs::read(path("wrapped")).unwrap()) });
    let stranger = json!({ "header": { "alg": "A256KW" }, "encrypted_key": "AAAA" });
    let jwe = json!({ "protected": protected, "recipients": [stranger, reader], "iv": encode(&[0; 12]),
        "ciphertext": encode(ciphertext), "tag": encode(tag) });
    let public = json!({ "cipher": "AES_256_CTR_HMAC_SHA256", "hmac": BASE64_STANDARD.encode([0; 32]) });
    let annotations = HashMap::from([
        (JWE.into(), BASE64_STANDARD.encode(jwe.to_string())),
        ("org.opencontainers.image.enc.pubopts".into(), BASE64_STANDARD.encode(public.to_string())),
    ]);
    let encrypted = Encrypted::of("application/vnd.oci.image.layer.v1.tar+encrypted", &annotations).unwrap().unwrap();
    assert_eq!(*encrypted.unlock(&keys).unwrap().symkey, [1; 32]);
}
