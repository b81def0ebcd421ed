//! What stands in for Sigstore's services, as far as cosign asks them to sign: an authority that believes every token, and a log of one entry.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::base64;
use crate::fixture::run;

pub const ISSUER: &str = "https://accounts.h.io";
pub const EMAIL: &str = "a@h.io";

/// The services. Their certificate is `ca.pem` and the log's key `log.pub`.
pub struct Services {
    dir: Arc<tempfile::TempDir>,
    address: SocketAddr,
}

impl Services {
    pub fn start() -> Services {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let at = dir.path();
        let curve = "-pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(at, &format!("req -x509 -newkey ec {curve} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
        openssl(at, &format!("req -new -newkey ec {curve} -subj /CN=anybody -keyout any.key -out any.csr"));
        openssl(at, "ecparam -name prime256v1 -genkey -noout -out log.key");
        openssl(at, "pkey -in log.key -pubout -out log.pub");
        openssl(at, "pkey -in log.key -pubout -outform DER -out log.der");
        let extensions = format!(
            "keyUsage = critical,digitalSignature\nextendedKeyUsage = codeSigning\nsubjectAltName = critical,email:{EMAIL}\n\
             1.3.6.1.4.1.57264.1.1 = DER:{}\n1.3.6.1.4.1.57264.1.8 = ASN1:UTF8String:{ISSUER}\n",
            hex::encode(ISSUER)
        );
        fs::write(at.join("leaf.ext"), extensions).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let services = Services { address: listener.local_addr().unwrap(), dir };
        let dir = services.dir.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = answer(stream, dir.path()); // who asks wrongly gets no answer
            }
        });
        services
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What tells cosign where they are.
    pub fn config(&self) -> Value {
        let since = json!({ "start": "2022-01-01T00:00:00Z" });
        let service = json!({ "url": format!("http://{}", self.address), "majorApiVersion": 1, "validFor": since, "operator": "h.io" });
        json!({ "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json", "caUrls": [service],
            "rekorTlogUrls": [service], "rekorTlogConfig": { "selector": "ANY" }, "tsaConfig": {} })
    }

    /// What an OpenID provider would give to who has the address. Nobody looks at its signature.
    pub fn token(&self) -> String {
        let part = |value: Value| base64(value.to_string().as_bytes()).replace('+', "-").replace('/', "_");
        let head = json!({ "alg": "RS256", "typ": "JWT" });
        let claims = json!({ "iss": ISSUER, "sub": EMAIL, "email": EMAIL, "email_verified": true, "aud": "sigstore",
            "iat": now(), "exp": now() + 600 });
        format!("{}.{}.c2lnbmVk", part(head), part(claims)).replace('=', "")
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn openssl(dir: &Path, args: &str) -> Vec<u8> {
    run(Command::new("openssl").args(args.split(' ')).current_dir(dir))
}

/// In base64.
fn promise(dir: &Path, text: &str) -> String {
    fs::write(dir.join("text"), text).unwrap();
    base64(&openssl(dir, "dgst -sha256 -sign log.key text"))
}

fn answer(mut stream: TcpStream, dir: &Path) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let lines: Vec<String> =
        reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let length = lines.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok())?;
    let mut asked = vec![0; length];
    reader.read_exact(&mut asked).ok()?;
    let asked: Value = serde_json::from_slice(&asked).ok()?;
    let (status, name, body) = match lines.first()?.contains("/signingCert ") {
        true => ("200 OK", String::new(), certificate(&asked, dir)),
        false => entry(&asked, dir),
    };
    let (body, name) = (body.to_string(), format!("ETag: {name}\r\nContent-Type: application/json\r\n"));
    let head = format!("HTTP/1.1 {status}\r\n{name}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).ok()
}

fn certificate(asked: &Value, dir: &Path) -> Value {
    fs::write(dir.join("signer.pub"), asked["publicKeyRequest"]["publicKey"]["content"].as_str().unwrap()).unwrap();
    let by = "-CA ca.pem -CAkey ca.key -set_serial 1 -days 1 -extfile leaf.ext";
    let leaf = openssl(dir, &format!("x509 -req -in any.csr -force_pubkey signer.pub {by}"));
    let chain = [String::from_utf8(leaf).unwrap(), fs::read_to_string(dir.join("ca.pem")).unwrap()];
    json!({ "signedCertificateEmbeddedSct": { "chain": { "certificates": chain } } })
}

/// The log's entry for a signed statement, its first, and the name that it is given.
fn entry(asked: &Value, dir: &Path) -> (&'static str, String, Value) {
    let proposed = &asked["spec"]["proposedContent"];
    let envelope: Value = serde_json::from_str(proposed["envelope"].as_str().unwrap()).unwrap();
    let payload = envelope["payload"].as_str().unwrap();
    let payload = base64::engine::Engine::decode(&base64::engine::general_purpose::STANDARD, payload).unwrap();
    let digest = |bytes: &[u8]| json!({ "algorithm": "sha256", "value": hex::encode(Sha256::digest(bytes)) });
    let spec = json!({ "envelopeHash": digest(proposed["envelope"].as_str().unwrap().as_bytes()), "payloadHash": digest(&payload),
        "signatures": [{ "signature": envelope["signatures"][0]["sig"], "verifier": proposed["verifiers"][0] }] });
    let body = json!({ "apiVersion": "0.0.1", "kind": "dsse", "spec": spec }).to_string();
    let log = hex::encode(Sha256::digest(fs::read(dir.join("log.der")).unwrap()));
    let mut entry = json!({ "body": base64(body.as_bytes()), "integratedTime": now(), "logID": log, "logIndex": 0 });
    // serde_json's maps are sorted, which is what the log signs.
    let promised = promise(dir, &entry.to_string());
    let leaf = hex::encode(Sha256::digest([&[0], body.as_bytes()].concat()));
    entry["verification"] = json!({ "signedEntryTimestamp": promised, "inclusionProof": { "checkpoint": "nobody asks for it",
        "hashes": [], "logIndex": 0, "rootHash": leaf, "treeSize": 1 } });
    ("201 Created", leaf.clone(), json!({ leaf: entry }))
}
