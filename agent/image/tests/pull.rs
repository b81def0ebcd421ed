//! Pulls from real registries, by the worker as the agent starts it.

#![expect(clippy::unwrap_used, reason = "a claim that can't be tried has failed")]

mod cache;
mod cosign;
mod either;
mod fixture;
mod gpg;
mod memory;
mod ocicrypt;
mod seal;
mod stripes;

use std::fs;
use std::path::Path;
use std::time::Duration;

use fixture::Compression::{Gzip, None as Plain};
use fixture::{Image, Middle, Moody, PASSWORD, Registry, USER, archive};
use nacre_pull::client::{self, Error};
use nacre_pull::{Auth, Kind, Request, Server};
use tokio::process::Command;

/// The registry's silence that these tests take.
const SILENCE: Duration = Duration::from_secs(4);

/// A worker. One that is to start skopeo finds the newer one, at a place that skopeo's user may enter.
fn worker(server: Server) -> Command {
    let program = env!("CARGO_BIN_EXE_nacre-pull");
    let mut command = match nacre_tests::newer::tree().filter(|_| server == Server::Skopeo) {
        None => Command::new(program),
        Some(tree) => {
            let mut command = Command::new("unshare");
            let begin = "mount --bind \"$0\" /mnt && PATH=/mnt/programs:$PATH exec \"$@\"";
            command.args(["--mount", "sh", "-c", begin]).arg(tree).arg(program);
            command
        }
    };
    command.arg("worker").arg(SILENCE.as_secs().to_string());
    command
}

async fn pull(request: Request) -> Result<nacre_pull::Image, Error> {
    client::pull(worker(request.server), request, |_| {}).await
}

fn secure(server: Server, registry: &Registry, name: &str, store: &Path) -> Request {
    Request {
        reference: registry.reference(name),
        store: store.to_path_buf(),
        auth: Some(Auth { username: USER.into(), password: PASSWORD.into() }),
        ca_pem: Some(registry.ca()),
        skip_tls_verification: false,
        auth_file: None,
        registries: None,
        policy: None,
        lookaside: Vec::new(),
        decryption_keys: Vec::new(),
        key_providers: None,
        require_digest: false,
        server,
        attached: Vec::new(),
        known: Vec::new(),
        blob_cache: None,
    }
}

fn plain(server: Server, moody: &Moody, store: &Path) -> Request {
    let (reference, store) = (moody.reference(), store.to_path_buf());
    let request =
        serde_json::json!({ "reference": reference, "store": store, "skip_tls_verification": true, "server": server });
    serde_json::from_value(request).expect("a request")
}

fn count(store: &Path, kind: &str) -> usize {
    fs::read_dir(store.join(kind)).map_or(0, Iterator::count)
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_can_not_is_not() {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"x")]), Plain)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let moody = Moody::start(&image, &image.layers[0], Middle::HasNoTime);
    moody.forgets_types();
    pull(plain(Server::Own, &moody, store.path())).await.unwrap();
    let reference = format!("{}/image:2", moody.host());
    let before = moody.asked().len();
    let missing = pull(Request { reference, ..plain(Server::Own, &moody, store.path()) }).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    let asked = moody.asked().split_off(before);
    assert_eq!(asked.iter().filter(|asked| asked.contains("/manifests/2")).count(), 1, "{asked:?}");
}

/// A key that signs.
struct Signer(tempfile::TempDir);

impl Signer {
    fn new() -> Signer {
        let signer = Signer(tempfile::tempdir().expect("a directory"));
        let (key, public) = (signer.path("key"), signer.path("key.pub"));
        let mut openssl = std::process::Command::new("openssl");
        fixture::run(openssl.args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key]));
        let mut openssl = std::process::Command::new("openssl");
        fixture::run(openssl.args(["ec", "-in", &key, "-pubout", "-out", &public]));
        signer
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// In base64.
    fn sign(&self, text: &[u8]) -> String {
        fs::write(self.path("text"), text).expect("a file");
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-sign", &self.path("key"), &self.path("text")]);
        base64(&fixture::run(&mut openssl))
    }

    /// A bundle that says that the image with this manifest is signed.
    fn bundle(&self, manifest: &str) -> serde_json::Value {
        let statement = serde_json::json!({ "_type": "https://in-toto.io/Statement/v1",
            "subject": [{ "digest": { "sha256": manifest.trim_start_matches("sha256:") }, "annotations": {} }],
            "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {} });
        let (kind, statement) = ("application/vnd.in-toto+json", statement.to_string());
        let sealed = self.sign(format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len()).as_bytes());
        serde_json::json!({ "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": { "publicKey": { "hint": "x" }, "tlogEntries": [] },
            "dsseEnvelope": { "payload": base64(statement.as_bytes()), "payloadType": kind,
                "signatures": [{ "sig": sealed }] } })
    }
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}

#[tokio::test]
async fn a_skopeo_that_is_too_old_to_be_safe_is_refused() {
    let Some(registry) = Registry::start() else { return };
    let version = std::process::Command::new("skopeo").arg("--version").output().unwrap().stdout;
    let version = String::from_utf8_lossy(&version).into_owned();
    let minor: u32 = version.split('.').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    registry.push("a:1", &[(&Image::new(&[(archive(&[("a", b"x")]), Gzip)], "amd64"), "amd64")], &[]);
    let store = tempfile::tempdir().unwrap();
    let request = secure(Server::Skopeo, &registry, "a:1", store.path());
    let pulled = client::pull(worker(Server::Own), request, |_| {}).await;
    if minor >= 19 {
        pulled.unwrap();
    } else {
        let text = pulled.unwrap_err().to_string();
        assert!(text.contains("0.2.8"), "{text}");
    }
}

#[tokio::test]
async fn a_short_name_is_judged_by_what_it_stands_for() {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"x")]), Gzip)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let moody = Moody::start(&image, "", Middle::Goes);
    let (any, none) =
        (serde_json::json!([{ "type": "insecureAcceptAnything" }]), serde_json::json!([{ "type": "reject" }]));
    let policy = serde_json::json!({ "default": none, "transports": { "docker": { "docker.io": any } } });
    let with = |registries: String| Request {
        reference: "image:1".into(),
        registries: Some(registries),
        policy: Some(policy.to_string()),
        ..plain(Server::Own, &moody, store.path())
    };
    let host = moody.host();
    for registries in
        [format!("unqualified-search-registries = [\"{host}\"]"), format!("[aliases]\nimage = \"{host}/image\"")]
    {
        let error = pull(with(registries)).await.unwrap_err();
        assert!(error.kind() == Kind::Denied && error.to_string().contains("reject"), "{error}");
    }
}
