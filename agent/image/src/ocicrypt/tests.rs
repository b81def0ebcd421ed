use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit as _, StreamCipher as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use nacre_protocol::keyprovider::{
    KeyProviderKeyWrapProtocolInput as Input, KeyProviderKeyWrapProtocolOutput as Output,
};
use nacre_protocol::keyprovider_ttrpc::{self, KeyProviderService};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::Sha256;
use ttrpc::asynchronous::TtrpcContext;

use super::provider::Providers;
use super::*;

const TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
const KEY: [u8; 32] = [7; 32];
const NONCE: [u8; 16] = [255; 16]; // the counter runs over at once

/// Hands out what it is asked to unwrap.
struct Echo;

impl Unwrap for Echo {
    fn unwrap(&self, _: &str, annotation: &str, _: &Parameters) -> Result<Zeroizing<Vec<u8>>> {
        Ok(BASE64_STANDARD.decode(annotation).unwrap().into())
    }
}

fn echo() -> Keys {
    Keys { provider: Some(Box::new(Echo)), ..Keys::default() }
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn encrypt(plain: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = plain.to_vec();
    Ctr128BE::<Aes256>::new(&KEY.into(), &NONCE.into()).apply_keystream(&mut bytes);
    let hmac = Hmac::<Sha256>::new_from_slice(&KEY).unwrap().chain_update(&bytes).finalize();
    (bytes, hmac.into_bytes().to_vec())
}

fn public(hmac: &[u8]) -> Value {
    json!({ "cipher": CIPHER, "hmac": b64(hmac), "cipheroptions": {} })
}

fn private() -> Value {
    json!({ "symkey": b64(KEY), "digest": format!("sha256:{}", "0a".repeat(32)), "cipheroptions": { "nonce": b64(NONCE) } })
}

fn annotations(public: &Value, private: &Value) -> HashMap<String, String> {
    HashMap::from([
        (PUBLIC.into(), b64(public.to_string())),
        (format!("{KEYS}provider.echo"), b64(private.to_string())),
    ])
}

fn kind<T: fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind
}

fn unlock(public: &Value, private: &Value) -> Result<(Encrypted, PrivateOptions)> {
    let encrypted = Encrypted::of(TYPE, &annotations(public, private))?.unwrap();
    let options = encrypted.unlock(&echo())?;
    Ok((encrypted, options))
}

fn read(ciphertext: &[u8], hmac: &[u8]) -> io::Result<Vec<u8>> {
    let (encrypted, options) = unlock(&public(hmac), &private()).unwrap();
    let mut plain = Vec::new();
    encrypted.decrypter(&options, ciphertext).unwrap().read_to_end(&mut plain).map(|_| plain)
}

fn corrupt(read: io::Result<Vec<u8>>) -> bool {
    Error::reading("", read.unwrap_err()).kind == Kind::Corrupt
}

#[test]
fn a_layer_is_decrypted_and_any_change_to_it_is_noticed() {
    let plain: Vec<u8> = (0..100_003u32).map(|n| n as u8).collect();
    let (bytes, hmac) = encrypt(&plain);
    assert_eq!(read(&bytes, &hmac).unwrap(), plain);
    assert!(read(&[], &encrypt(&[]).1).unwrap().is_empty());
    for at in [0, 50_000, bytes.len() - 1] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert!(corrupt(read(&bytes, &hmac)));
    }
    for length in [0, 1, 65_536, bytes.len() - 1] {
        assert!(corrupt(read(&bytes[..length], &hmac)));
    }
    assert!(corrupt(read(&[&bytes[..], &[0]].concat(), &hmac)));
}

#[test]
fn a_layer_that_was_changed_never_ends_well() {
    let (encrypted, options) = unlock(&public(&[0; 32]), &private()).unwrap();
    let mut decrypter = encrypted.decrypter(&options, &b"x"[..]).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(decrypter.read(&mut []).unwrap(), 0);
    assert_eq!(decrypter.read(&mut buffer).unwrap(), 1);
    for _ in 0..3 {
        assert!(decrypter.read(&mut buffer).is_err());
    }
}

#[test]
fn only_an_encrypted_layer_is_encrypted() {
    assert!(Encrypted::of("application/vnd.oci.image.layer.v1.tar", &HashMap::new()).unwrap().is_none());
    let encrypted = Encrypted::of(TYPE, &annotations(&public(&[0; 32]), &private())).unwrap().unwrap();
    assert_eq!(encrypted.plain_type(), "application/vnd.oci.image.layer.v1.tar+gzip");
}

#[test]
fn annotations_that_make_no_sense_or_too_much_are_refused() {
    let good = annotations(&public(&[0; 32]), &private());
    let jwe = format!("{KEYS}jwe");
    for (name, value) in [
        (PUBLIC, "A".repeat(MAX_ANNOTATION + 4)),
        (PUBLIC, "?".into()),
        (PUBLIC, b64("{}")),
        (PUBLIC, b64(json!({ "cipher": "ROT13", "hmac": b64([0; 32]) }).to_string())),
        (PUBLIC, b64(public(&[0; 31]).to_string())),
        (&jwe, "A".repeat(MAX_ANNOTATION + 4)),
        (&jwe, vec!["AAAA"; MAX_WRAPPED].join(",")), // and the provider's
        (&jwe, "AAA".into()),
        (KEYS, "AAAA".into()),
        (&format!("{KEYS}provider."), "AAAA".into()),
        (&format!("{KEYS}provider.{}", "a".repeat(MAX_NAME + 1)), "AAAA".into()),
        (&format!("{KEYS}provider.a\nb"), "AAAA".into()),
    ] {
        let mut annotations = good.clone();
        annotations.insert(name.into(), value);
        assert_eq!(kind(Encrypted::of(TYPE, &annotations)), Kind::BadImage, "{name}");
    }
    for name in good.keys() {
        let mut annotations = good.clone();
        annotations.remove(name);
        assert_eq!(kind(Encrypted::of(TYPE, &annotations)), Kind::BadImage, "no {name}");
    }
}

#[test]
fn a_wrapped_key_that_makes_no_sense_is_refused_and_not_quoted() {
    let mut bad = vec![json!({}), json!("secret"), json!({ "symkey": ["secret"] })];
    for (field, value) in [
        ("symkey", json!("secret")),
        ("symkey", json!(b64("secret"))),
        ("digest", json!("secret")),
        ("digest", json!("sha256:00")),
        ("cipheroptions", json!({ "nonce": b64([0; 15]) })),
        ("cipheroptions", json!({})),
    ] {
        let mut options = private();
        options[field] = value;
        bad.push(options);
    }
    for options in bad {
        let opened = unlock(&public(&[0; 32]), &options);
        let error = opened.and_then(|(encrypted, options)| encrypted.decrypter(&options, io::empty()).map(|_| ()));
        let error = error.unwrap_err();
        assert_eq!(error.kind, Kind::BadImage, "{options}");
        assert!(!error.message.contains(&b64("secret")), "{error}");
    }
}

#[test]
fn a_nonce_in_the_public_options_counts_first() {
    let mut public = public(&encrypt(b"text").1);
    public["cipheroptions"]["nonce"] = json!(b64(NONCE));
    let mut private = private();
    for nonce in [json!({ "nonce": b64([0; 16]) }), json!({}), Value::Null] {
        private["cipheroptions"] = nonce;
        let (encrypted, options) = unlock(&public, &private).unwrap();
        let text = io::read_to_string(encrypted.decrypter(&options, &encrypt(b"text").0[..]).unwrap()).unwrap();
        assert_eq!(text, "text");
    }
}

#[test]
fn it_is_said_what_is_missing_to_open_a_layer() {
    let mut annotations = annotations(&public(&[0; 32]), &private());
    let encrypted = Encrypted::of(TYPE, &annotations).unwrap().unwrap();
    let error = encrypted.unlock(&Keys::default()).unwrap_err();
    assert_eq!(error.kind, Kind::Locked);
    assert!(error.message.contains("no key was given") && error.message.contains("key provider echo"), "{error}");

    let wrapped = annotations.remove(&format!("{KEYS}provider.echo")).unwrap();
    annotations.insert(format!("{KEYS}pgp"), wrapped);
    let error = Encrypted::of(TYPE, &annotations).unwrap().unwrap().unlock(&echo()).unwrap_err();
    assert_eq!(error.kind, Kind::Locked);
    assert!(error.message.contains("pgp (not supported)"), "{error}");
}

#[test]
fn keys_show_nothing_of_themselves() {
    let (encrypted, options) = unlock(&public(&[0; 32]), &private()).unwrap();
    assert_eq!(format!("{options:?}{:?}", echo()), "PrivateOptions { .. }Keys { private: [], .. }");
    let decrypter = encrypted.decrypter(&options, io::empty()).unwrap();
    assert_eq!(format!("{decrypter:?}"), "Decrypter { verdict: None, .. }");
}

#[test]
fn what_is_no_private_key_is_refused() {
    let marked = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let open = "-----END PRIVATE KEY----------BEGIN PRIVATE KEY-----";
    for pem in ["", "a", marked, locked, open, &"a".repeat(100_000)] {
        assert_eq!(kind(PrivateKey::from_pem(pem)), Kind::BadRequest, "{pem:.80}");
    }
}

fn script(text: &str) -> Keys {
    let config = json!({ "key-providers": { "echo": { "cmd": { "path": "/bin/sh", "args": ["-c", text] } } } });
    let providers = Providers::from_config(&config.to_string()).unwrap().within(Duration::from_secs(20));
    Keys { provider: Some(Box::new(providers)), ..Keys::default() }
}

fn unlock_by(keys: &Keys) -> Result<PrivateOptions> {
    Encrypted::of(TYPE, &annotations(&public(&[0; 32]), &private())).unwrap().unwrap().unlock(keys)
}

#[test]
fn a_program_unwraps_keys_in_either_dialect() {
    let options = private().to_string();
    for optsdata in [json!(b64(&options)), json!(options.as_bytes())] {
        let reply = json!({ "keywrapresults": { "annotation": null }, "keyunwrapresults": { "optsdata": optsdata } });
        // It answers only to the right question.
        let question = format!(r#""annotation":"{}""#, b64(&options));
        let mut keys = script(&format!("grep -qF '{question}' && echo '{reply}'"));
        keys.parameters.insert("echo".into(), vec![b"parameter".to_vec()]);
        assert_eq!(*unlock_by(&keys).unwrap().symkey, KEY);
    }
}

#[test]
fn a_program_is_told_the_parameters() {
    let parameters = Parameters::from([("a".into(), vec![b"b".to_vec()])]);
    let request: Value = serde_json::from_slice(&provider::request("AAAA", &parameters)).unwrap();
    let expected = json!({
        "op": "keyunwrap", "keywrapparams": { "ec": null, "optsdata": null },
        "keyunwrapparams": { "dc": { "Parameters": { "a": [b64("b")] } }, "annotation": "AAAA" },
    });
    assert_eq!(request, expected);
}

#[test]
fn a_program_that_fails_opens_nothing_and_holds_nobody_up() {
    for (text, said) in [
        ("exit 3", "exit status: 3"),
        ("echo '{}'; exit 3", "exit status: 3"),
        ("echo '{}'", "makes no sense"),
        (r#"echo '{"keyunwrapresults":{"optsdata":["secret"]}}'"#, "makes no sense"),
        ("yes", "more than 320 KiB"),
    ] {
        let error = unlock_by(&script(text)).unwrap_err();
        assert_eq!(error.kind, Kind::Locked);
        assert!(error.message.contains(said) && !error.message.contains("secret"), "{text}: {error}");
    }
    // Neither it nor what it starts is waited for: with its output open, and closed.
    for text in ["sleep 1000 & sleep 1000", "exec >&-; sleep 1000"] {
        let config = json!({ "key-providers": { "echo": { "cmd": { "path": "/bin/sh", "args": ["-c", text] } } } });
        let providers = Providers::from_config(&config.to_string()).unwrap().within(Duration::from_millis(200));
        let started = Instant::now();
        let error = providers.unwrap("echo", "AAAA", &Parameters::new()).unwrap_err();
        assert!(error.message.contains("no answer within") && started.elapsed() < Duration::from_secs(20), "{error}");
    }
    assert!(unlock_by(&script("")).unwrap_err().message.contains("key provider echo"));
}

#[test]
fn key_providers_that_cannot_be_asked_are_refused() {
    for (attributes, said) in [
        (json!({ "ttrpc": "localhost:1" }), "unix:///PATH"),
        (json!({ "ttrpc": "vsock://2:1024" }), "unix:///PATH"),
        (json!({ "ttrpc": "unix:///a", "cmd": { "path": "/a" } }), "not one of cmd and ttrpc"),
        (json!({ "grpc": "localhost:1" }), "a: grpc is not supported"),
        (json!({ "native": "x" }), "a: native is not supported"),
        (json!({ "cmd": { "path": "/a" }, "grpc": "localhost:1" }), "a: grpc is not supported"),
        (json!({ "cmd": { "path": "a" } }), "must be absolute"),
        (json!({ "other": 1 }), "unknown field"),
        (json!({}), "not one of cmd and ttrpc"),
    ] {
        let error = Providers::from_config(&json!({ "key-providers": { "a": attributes } }).to_string()).unwrap_err();
        assert_eq!(error.kind, Kind::BadRequest);
        assert!(error.message.contains(said), "{error}");
    }
    let providers = Providers::from_config(r#"{"key-providers":{}}"#).unwrap();
    let error = providers.unwrap("a", "AAAA", &Parameters::new()).unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::Locked, "it is not configured"));
}

/// A Confidential Data Hub that knows one key.
struct Hub(String);

#[async_trait::async_trait]
impl KeyProviderService for Hub {
    async fn un_wrap_key(&self, _: &TtrpcContext, input: Input) -> ttrpc::Result<Output> {
        let asked: Value = serde_json::from_slice(&input.KeyProviderKeyWrapProtocolInput).unwrap();
        if asked["keyunwrapparams"]["annotation"] != b64(&self.0).as_str() {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no such key")));
        }
        let answer = json!({ "keyunwrapresults": { "optsdata": self.0.as_bytes() } }).to_string().into_bytes();
        Ok(Output { KeyProviderKeyWrapProtocolOutput: answer, ..Output::new() })
    }
}

#[tokio::test]
async fn a_service_unwraps_keys_and_its_refusal_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix://{}/hub.sock", dir.path().display());
    let service = keyprovider_ttrpc::create_key_provider_service(Arc::new(Hub(private().to_string())));
    let mut server = ttrpc::asynchronous::Server::new().bind(&address).unwrap().register_service(service);
    server.start().await.unwrap();
    let asked = tokio::task::spawn_blocking(move || {
        let config = json!({ "key-providers": { "echo": { "ttrpc": address } } });
        let providers = Providers::from_config(&config.to_string()).unwrap().within(Duration::from_secs(20));
        let refusal = providers.unwrap("echo", "AAAA", &Parameters::new()).unwrap_err();
        let keys = Keys { provider: Some(Box::new(providers)), ..Keys::default() };
        (unlock_by(&keys).unwrap().symkey.to_vec(), refusal)
    });
    let (key, refusal) = asked.await.unwrap();
    assert_eq!(key, KEY);
    assert!(refusal.kind == Kind::Locked && refusal.message.contains("no such key"), "{refusal}");
    server.shutdown().await.unwrap();
}

#[test]
fn a_service_that_is_not_there_or_says_nothing_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("hub.sock");
    let config = json!({ "key-providers": { "a": { "ttrpc": format!("unix://{}", socket.display()) } } });
    let providers = Providers::from_config(&config.to_string()).unwrap().within(Duration::from_millis(200));
    let missing = providers.unwrap("a", "AAAA", &Parameters::new()).unwrap_err();
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let silent = providers.unwrap("a", "AAAA", &Parameters::new()).unwrap_err();
    assert_eq!((missing.kind, silent.kind), (Kind::Locked, Kind::Locked), "{missing} {silent}");
}

fn jwe_like() -> impl Strategy<Value = String> {
    let text = prop_oneof!["[A-Za-z0-9_-]{0,60}", Just("eyJlbmMiOiJBMjU2R0NNIn0".to_string()), ".{0,20}"];
    let alg = prop_oneof![Just("RSA-OAEP"), Just("RSA-OAEP-256"), Just("ECDH-ES+A256KW"), Just("none")];
    let crv = prop_oneof![Just("P-256"), Just("P-384"), Just("P-521"), Just("X25519")];
    (proptest::collection::vec(text, 8), alg, crv).prop_map(|(t, alg, crv)| {
        let header = json!({ "alg": alg, "epk": { "kty": "EC", "crv": crv, "x": t[0], "y": t[1] }, "apu": t[2] });
        let recipients = [json!({ "header": header, "encrypted_key": t[3] })];
        json!({ "protected": t[4], "recipients": recipients, "iv": t[5], "ciphertext": t[6], "tag": t[7] }).to_string()
    })
}

proptest! {
    #[test]
    fn no_annotation_makes_it_panic(
        public in prop_oneof![".*", ".*".prop_map(b64), Just(b64(public(&[0; 32]).to_string()))],
        jwe in prop_oneof![".*", "[{}\\[\\]\":,a-z0-9]*".prop_map(b64), jwe_like().prop_map(b64)],
        name in ".*",
        value in ".*",
    ) {
        let annotations = HashMap::from([
            (PUBLIC.to_string(), public),
            (format!("{KEYS}jwe"), jwe),
            (format!("{KEYS}provider.{name}"), b64(&value)),
        ]);
        let pem = p256::SecretKey::from_slice(&[1; 32]).unwrap().to_sec1_pem(Default::default()).unwrap();
        let keys = Keys { private: vec![PrivateKey::from_pem(&pem).unwrap()], ..echo() };
        if let Ok(Some(encrypted)) = Encrypted::of(TYPE, &annotations) {
            let _ = encrypted.unlock(&keys);
        }
        let _ = provider::reply(value.as_bytes());
        let _ = Providers::from_config(&value);
        let _ = PrivateKey::from_pem(&value);
    }
}
