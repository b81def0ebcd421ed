//! Images that skopeo has signed with GPG, and where their signatures are found.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nacre_pull::{Kind, Request, Server};

use crate::fixture::Compression::Gzip;
use crate::fixture::{Image, Registry, archive, on_path, run};
use crate::{pull, secure};

/// Someone who signs.
struct Signer {
    home: tempfile::TempDir,
    key: String,
}

impl Signer {
    fn new() -> Signer {
        let home = tempfile::tempdir().unwrap();
        let gpg = |args: &[&str]| {
            let mut gpg = Command::new("gpg");
            gpg.args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]);
            run(gpg.args(args).env("GNUPGHOME", home.path()))
        };
        gpg(&["--quick-generate-key", "a@h.io", "ed25519", "sign", "0"]);
        let listed = String::from_utf8(gpg(&["--with-colons", "--list-keys"])).unwrap();
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        let key = line.split(':').nth(9).unwrap().to_string();
        fs::write(home.path().join("key.gpg"), gpg(&["--armor", "--export"])).unwrap();
        Signer { home, key }
    }

    fn policy(&self) -> Option<String> {
        let demand = serde_json::json!({ "type": "signedBy", "keyType": "GPGKeys", "keyPath": self.home.path().join("key.gpg") });
        Some(serde_json::json!({ "default": [demand] }).to_string())
    }

    /// Has skopeo sign the manifest in `layout` as the image `reference`.
    fn sign(&self, layout: &Path, digest: &str, reference: &str) -> Vec<u8> {
        let (manifest, signature) =
            (layout.join("blobs/sha256").join(&digest[7..]), self.home.path().join("signature"));
        let mut skopeo = Command::new("skopeo");
        skopeo.arg("standalone-sign").arg(manifest).args([reference, &self.key, "--output"]).arg(&signature);
        run(skopeo.env("GNUPGHOME", self.home.path()));
        fs::read(signature).unwrap()
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").args(["--kill", "all"]).env("GNUPGHOME", self.home.path()).status();
    }
}

/// Serves the files of `dir` over TLS with the registry's certificate.
fn serve(dir: PathBuf, registry: &Registry) -> String {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let (pem, key) = (registry.ca(), registry.key());
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let tls = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = BufReader::new(rustls::StreamOwned::new(tls, socket));
            let mut line = String::new();
            if stream.read_line(&mut line).is_err() {
                continue;
            }
            assert!(!line.contains("Authorization"));
            let path = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
            let found = fs::read(dir.join(path));
            let (status, body) = found.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let stream = stream.get_mut();
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            stream.conn.send_close_notify();
            let _ = stream.flush();
            let _ = stream.sock.read(&mut [0]); // until the client is gone
        }
    });
    format!("https://127.0.0.1:{port}")
}

#[tokio::test]
async fn an_image_that_gpg_vouches_for_is_pulled_and_no_other() {
    if !["gpg", "skopeo"].iter().all(|program| on_path(program)) {
        return println!("skipped: gpg or skopeo is not installed");
    }
    let Some(registry) = Registry::start() else { return };
    let layers = [(archive(&[("a", b"ours")]), Gzip)];
    let (image, other) = (Image::new(&layers, "amd64"), Image::new(&layers, "s390x"));
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let index = Image::write(&layout, &[(&other, "s390x"), (&image, "amd64")]);
    registry.push("app:1", &[(&other, "s390x"), (&image, "amd64")], &["--preserve-digests"]);
    registry.push("app:2", &[(&image, "amd64")], &["--preserve-digests"]);
    let (signer, stranger) = (Signer::new(), Signer::new());

    let stores = dir.path().join("stores");
    let put = |signature: &[u8], digest: &str, number: usize| {
        let place = stores.join(format!("app@{}", digest.replace(':', "=")));
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join(format!("signature-{number}")), signature).unwrap();
    };
    let store = tempfile::tempdir().unwrap();
    let request = |name: &str, lookaside: &str, signer: &Signer| Request {
        policy: signer.policy(),
        lookaside: vec![format!("default-docker:\n  lookaside: {lookaside}\n")],
        ..secure(Server::Own, &registry, name, store.path())
    };
    let denied = async |request: Request, why: &str| {
        let error = pull(request).await.unwrap_err();
        assert!(error.kind() == Kind::Denied && error.to_string().contains(why), "{error}");
    };
    let address = serve(stores.clone(), &registry);
    for place in [format!("file://{}", stores.display()), address] {
        let _ = fs::remove_dir_all(&stores);
        denied(request("app:1", &place, &signer), "no signature").await;
        // The second signature is good, for the index.
        put(&stranger.sign(&layout, &index, &registry.reference("app:1")), &index, 1);
        denied(request("app:1", &place, &signer), "no key of the policy made it").await;
        put(&signer.sign(&layout, &index, &registry.reference("app:1")), &index, 2);
        pull(request("app:1", &place, &signer)).await.unwrap();
        denied(request("app:2", &place, &signer), "no signature").await;
        // Signed under another name.
        put(&signer.sign(&layout, &image.manifest, &registry.reference("app:1")), &image.manifest, 1);
        denied(request("app:2", &place, &signer), "it is for").await;
        pull(request(&format!("app@{}", image.manifest), &place, &signer)).await.unwrap();
        // One that vouches for another image.
        put(&signer.sign(&layout, &index, &registry.reference("app:2")), &image.manifest, 1);
        denied(request("app:2", &place, &signer), "it is for").await;
    }
    denied(Request { lookaside: Vec::new(), ..request("app:1", "", &signer) }, "no signature").await;
}
