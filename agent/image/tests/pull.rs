//! Pulls from real registries, by the worker as the agent starts it.

#![expect(clippy::unwrap_used, reason = "a claim that can't be tried has failed")]

mod cache;
mod cosign;
mod fixture;
mod gpg;
mod ocicrypt;
mod seal;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fixture::Compression::{Gzip, None as Plain, Zstd};
use fixture::{Image, Middle, Moody, PASSWORD, Registry, USER, archive, noise};
use nacre_pull::client::{self, Error};
use nacre_pull::{Auth, Event, Kind, Request, Server};
use tokio::process::Command;

/// The registry's silence that these tests take.
const SILENCE: Duration = Duration::from_secs(4);

/// Claims that hold whoever talks to the registry: our own server, and skopeo where a new one can be had.
macro_rules! whoever_talks {
    ($($claim:ident)*) => {
        mod own {
            $(#[tokio::test] async fn $claim() { super::$claim(super::Server::Own).await })*
        }
        mod skopeo {
            $(#[tokio::test] async fn $claim() {
                if nacre_tests::newer::tree().is_some() {
                    super::$claim(super::Server::Skopeo).await
                }
            })*
        }
    };
}

whoever_talks! {
    an_image_of_every_compression_is_pulled_and_its_layers_are_used_again
    an_image_is_found_by_digest_by_platform_and_in_dockers_format
    why_a_registry_gives_nothing_is_told_apart
    wrong_bytes_never_become_a_layer
    two_pulls_at_once_of_one_image_both_succeed
    a_registry_that_stops_in_the_middle_ends_the_pull_and_leaves_nothing
    what_a_killed_pull_leaves_is_not_taken_for_whole_and_goes_with_the_next
    a_blob_that_never_ends_is_cut_where_it_should_end
    a_token_is_got_and_does_not_follow_to_another_host
    mirrors_come_first_and_blocks_hold
    a_bundle_that_refers_to_an_index_vouches_for_what_it_leads_to
    the_policy_decides_before_anything_is_used
    a_layout_and_an_archive_of_one_are_images_too
    an_image_of_500_layers_is_pulled_in_order_and_one_of_more_is_refused
    an_encrypted_image_is_opened_by_its_key_and_by_no_other
    who_pulls_may_little_and_who_talks_to_the_registry_is_nobody_and_ends_with_the_pull
    nobody_that_a_redirect_leads_to_is_told_who_asks
    where_an_alias_leads_is_not_told_who_asks
}

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

async fn an_image_of_every_compression_is_pulled_and_its_layers_are_used_again(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let big = noise(3 << 20);
    let lowest = (archive(&[("a", b"lowest"), ("big", &big)]), Plain);
    let layers =
        [lowest.clone(), (archive(&[("a", b"gzip")]), Gzip), (archive(&[(".wh.a", b"")]), Zstd), lowest.clone()];
    let image = Image::new(&layers, "amd64");
    registry.push("every:1", &[(&image, "amd64")], &["--preserve-digests"]);
    let store = tempfile::tempdir().unwrap();

    let mut events = Vec::new();
    let request = secure(server, &registry, "every:1", store.path());
    let pulled = client::pull(worker(server), request.clone(), |event| events.push(event.clone())).await.unwrap();
    assert_eq!(pulled.manifest_digest, image.manifest);
    // The lowest layer is hidden by the topmost, which is the same.
    let [gzip, zstd, plain] = &pulled.layers[..] else { panic!("{:?}", pulled.layers) };
    assert_eq!(fs::read(gzip.join("a")).unwrap(), b"gzip");
    assert!(fs::symlink_metadata(zstd.join("a")).is_ok_and(|meta| !meta.is_file()));
    assert!(fs::read(plain.join("big")).unwrap() == big);
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_deref().unwrap(), ["/bin/true"]);
    let Some(Event::Resolved { bytes, layers: 3, .. }) = events.get(1) else { panic!("{events:?}") };
    let last = events.iter().rev().find_map(|event| match event {
        Event::Progress { layers_done, bytes_done } => Some((*layers_done, *bytes_done)),
        _ => None,
    });
    assert_eq!(last, Some((3, *bytes)));

    // What the store has is not fetched again.
    for layer in &image.layers[..3] {
        fs::remove_file(registry.blob(layer)).unwrap();
    }
    assert_eq!(pull(request).await.unwrap(), pulled);
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (3, 0));
}

async fn an_image_is_found_by_digest_by_platform_and_in_dockers_format(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"ours")]), Gzip)], "amd64");
    let other = Image::new(&[(archive(&[("a", b"other")]), Gzip)], "s390x");
    let index = registry.push("both:1", &[(&other, "s390x"), (&image, "amd64")], &["--preserve-digests"]);
    registry.push("docker:1", &[(&image, "amd64")], &["--format=v2s2"]);
    registry.push("other:1", &[(&other, "s390x")], &[]);
    let store = tempfile::tempdir().unwrap();
    let found = async |name: &str| {
        // Credentials come either way.
        let mut request = secure(server, &registry, name, store.path());
        if name == "docker:1" {
            let (host, _) = request.reference.split_once('/').unwrap();
            let auths = serde_json::json!({ host: { "auth": base64(format!("{USER}:{PASSWORD}").as_bytes()) } });
            request.auth_file = Some(serde_json::json!({ "auths": auths }).to_string());
            request.auth = None;
        }
        pull(request).await
    };
    for name in ["both:1", &format!("both@{index}"), &format!("both:1@{}", image.manifest), "docker:1"] {
        let pulled = found(name).await.unwrap();
        assert_eq!(fs::read(pulled.layers[0].join("a")).unwrap(), b"ours", "{name}");
    }
    assert_eq!(found("both:1").await.unwrap().manifest_digest, image.manifest);
    // What skopeo has converted can be judged by nobody.
    let policy = Some(serde_json::json!({ "default": [{ "type": "insecureAcceptAnything" }] }).to_string());
    let judged = Request { policy, ..secure(server, &registry, "docker:1", store.path()) };
    match (server, pull(judged).await) {
        (Server::Own, judged) => drop(judged.unwrap()),
        (Server::Skopeo, judged) => assert_eq!(judged.unwrap_err().kind(), Kind::Denied),
    }
    assert_eq!(found("other:1").await.unwrap_err().kind(), Kind::BadImage);
}

async fn why_a_registry_gives_nothing_is_told_apart(server: Server) {
    let Some(registry) = Registry::start() else { return };
    registry.push("a:1", &[(&Image::new(&[(archive(&[("a", b"x")]), Gzip)], "amd64"), "amd64")], &[]);
    let store = tempfile::tempdir().unwrap();
    let good = secure(server, &registry, "a:1", store.path());
    let wrong = Auth { username: USER.into(), password: "wrong".into() };
    for (request, kind, advice) in [
        (Request { auth: Some(wrong), ..good.clone() }, Kind::Unauthorized, "password"),
        (Request { auth: None, ..good.clone() }, Kind::Unauthorized, "password"),
        (Request { ca_pem: None, ..good.clone() }, Kind::UntrustedCa, "--tls-ca"),
        (secure(server, &registry, "a:2", store.path()), Kind::NotFound, "name and tag"),
        (secure(server, &registry, "b:1", store.path()), Kind::NotFound, "name and tag"),
        (Request { reference: "127.0.0.1:1/a:1".into(), ..good.clone() }, Kind::Unreachable, "is it up"),
        (Request { reference: "-a".into(), ..good.clone() }, Kind::BadRequest, "registry/name:tag"),
    ] {
        let shown = format!("{request:?}");
        let error = pull(request).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error} {shown}");
        let text = error.to_string();
        assert!(text.contains(advice) && !text.contains('\n') && !text.contains("wrong"), "{text}");
    }
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (0, 0));
}

async fn wrong_bytes_never_become_a_layer(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let store = tempfile::tempdir().unwrap();
    let data = noise(1 << 20);
    for (name, compression) in [("plain:1", Plain), ("gzip:1", Gzip), ("zstd:1", Zstd)] {
        let image = Image::new(&[(archive(&[(name, &data)]), compression)], "amd64");
        registry.push(name, &[(&image, "amd64")], &["--preserve-digests"]);
        let blob = registry.blob(&image.layers[0]);
        let mut bytes = fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, bytes).unwrap();
        let error = pull(secure(server, &registry, name, store.path())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{name}: {error}");
        fs::write(&blob, &data).unwrap();
        let error = pull(secure(server, &registry, name, store.path())).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Corrupt | Kind::Stalled), "{name}: {error}");
    }
    let layer = (archive(&[("a", b"x")]), Gzip);
    let liar = Image::with_diff_ids(&[layer], "amd64", &[fixture::digest(b"something else")]);
    registry.push("liar:1", &[(&liar, "amd64")], &["--preserve-digests"]);
    let error = pull(secure(server, &registry, "liar:1", store.path())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::BadImage, "{error}");
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (0, 0));
}

async fn two_pulls_at_once_of_one_image_both_succeed(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let layers = [(archive(&[("a", &noise(1 << 20))]), Zstd), (archive(&[("b", b"x")]), Gzip)];
    registry.push("a:1", &[(&Image::new(&layers, "amd64"), "amd64")], &[]);
    let store = tempfile::tempdir().unwrap();
    let request = secure(server, &registry, "a:1", store.path());
    let (first, second) = tokio::join!(pull(request.clone()), pull(request));
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (2, 0));
}

async fn a_registry_that_stops_in_the_middle_ends_the_pull_and_leaves_nothing(server: Server) {
    let Some(_) = Registry::start() else { return };
    let layers = [(archive(&[("a", &noise(1 << 20))]), Gzip), (archive(&[("b", &noise(1 << 20))]), Plain)];
    let image = Image::new(&layers, "amd64");
    let store = tempfile::tempdir().unwrap();
    // skopeo waits for ever, and we for it: three silences and ten seconds.
    let longest = if server == Server::Own { 3 * SILENCE } else { 3 * SILENCE + Duration::from_secs(15) };
    for middle in [Middle::Closes, Middle::Stalls] {
        let moody = Moody::start(&image, &image.layers[0], middle);
        let begun = Instant::now();
        let error = pull(plain(server, &moody, store.path())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Stalled, "{error}");
        assert!(begun.elapsed() < longest, "{error}: after {:?}", begun.elapsed());
        assert_eq!(count(store.path(), "partial"), 0, "{error}");
        moody.change(Middle::Goes);
        let whole = pull(plain(server, &moody, store.path())).await.unwrap();
        assert_eq!(whole.layers.len(), 2);
        fs::remove_dir_all(store.path().join("layers")).unwrap();
    }
}

async fn what_a_killed_pull_leaves_is_not_taken_for_whole_and_goes_with_the_next(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", &noise(1 << 20))]), Gzip)], "amd64");
    let moody = Moody::start(&image, &image.layers[0], Middle::Stalls);
    let store = tempfile::tempdir().unwrap();
    {
        let (told, mut arrived) = tokio::sync::mpsc::unbounded_channel();
        let told = move |event: &Event| {
            if matches!(event, Event::Resolved { .. }) {
                let _ = told.send(());
            }
        };
        tokio::select! {
            result = client::pull(worker(server), plain(server, &moody, store.path()), told) => panic!("{result:?}"),
            () = async {
                arrived.recv().await;
                while count(store.path(), "partial") == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await; // a directory that appears tells nobody
                }
            } => {}
        }
    }
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (0, 1));
    // The worker is dead once its lock can be had.
    let left = fs::read_dir(store.path().join("partial")).unwrap().next().unwrap().unwrap().path();
    rustix::fs::flock(fs::File::open(left).unwrap(), rustix::fs::FlockOperation::LockExclusive).unwrap();
    moody.change(Middle::Goes);
    pull(plain(server, &moody, store.path())).await.unwrap();
    assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (1, 0));
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on_from_where_it_was() {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", &noise(1 << 20))]), Plain)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let moody = Moody::start(&image, &image.layers[0], Middle::ClosesOnce);
    moody.forgets_types();
    pull(plain(Server::Own, &moody, store.path())).await.unwrap();
    let ranges: Vec<_> = moody.asked().into_iter().filter(|asked| asked.contains("\nrange: bytes=")).collect();
    assert_eq!(ranges.len(), 1, "{ranges:?}");

    // What may pass is tried again, what can't is not.
    fs::remove_dir_all(store.path().join("layers")).unwrap();
    moody.change(Middle::HasNoTime);
    pull(plain(Server::Own, &moody, store.path())).await.unwrap();
    let reference = format!("{}/image:2", moody.host());
    let before = moody.asked().len();
    let missing = pull(Request { reference, ..plain(Server::Own, &moody, store.path()) }).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    let asked = moody.asked().split_off(before);
    assert_eq!(asked.iter().filter(|asked| asked.contains("/manifests/2")).count(), 1, "{asked:?}");
}

async fn a_blob_that_never_ends_is_cut_where_it_should_end(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", &noise(1 << 20))]), Gzip)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let moody = Moody::start(&image, &image.layers[0], Middle::NeverEnds);
    assert_eq!(pull(plain(server, &moody, store.path())).await.unwrap().layers.len(), 1);
}

async fn a_token_is_got_and_does_not_follow_to_another_host(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"x")]), Gzip)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let (moody, elsewhere) = (Moody::start(&image, "", Middle::Goes), Moody::start(&image, "", Middle::Goes));
    // skopeo does not ask for it again.
    moody.wants_token("tame", if server == Server::Own { 2 } else { 0 });
    // To skopeo all ports of a host are the host.
    moody.sends_for_blobs_to(&elsewhere, if server == Server::Own { "127.0.0.1" } else { "localhost" });
    let auth = Some(Auth { username: USER.into(), password: PASSWORD.into() });
    pull(Request { auth, ..plain(server, &moody, store.path()) }).await.unwrap();
    let token = moody.asked().into_iter().find(|asked| asked.contains("/token?")).unwrap();
    assert!(token.contains("service=moody") && token.contains("scope=repository%3Aimage%3Apull"), "{token}");
    assert!(token.contains("authorization: basic "), "{token}");
    let elsewhere = elsewhere.asked();
    assert!(elsewhere.iter().any(|asked| asked.contains("/blobs/")));
    assert!(!elsewhere.iter().any(|asked| asked.contains("authorization")), "{elsewhere:?}");
}

async fn mirrors_come_first_and_blocks_hold(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"x")]), Gzip)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let moody = Moody::start(&image, "", Middle::Goes);
    let registries = format!(
        "[[registry]]\nprefix = \"registry.example/team\"\nlocation = \"127.0.0.1:1\"\n\
         [[registry.mirror]]\nlocation = \"127.0.0.1:1/dead\"\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n\
         [[registry]]\nlocation = \"blocked.example\"\nblocked = true\n",
        moody.host()
    );
    let of = |reference: &str| {
        let registries = Some(registries.clone());
        Request {
            reference: reference.into(),
            registries,
            skip_tls_verification: false,
            ..plain(server, &moody, store.path())
        }
    };
    let pulled = pull(of("registry.example/team/image:1")).await.unwrap();
    assert_eq!(pulled.reference, "registry.example/team/image:1");
    let blocked = pull(of("blocked.example/a:1")).await.unwrap_err();
    assert!(blocked.to_string().contains("blocked"), "{blocked}");
    // A rule is about the names that begin with its prefix, and about no others.
    let other = pull(of("127.0.0.1:1/registry.example/team/image:1")).await.unwrap_err();
    assert_eq!(other.kind(), Kind::Unreachable, "{other}");
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

async fn a_bundle_that_refers_to_an_index_vouches_for_what_it_leads_to(server: Server) {
    let Some(_) = Registry::start() else { return };
    let signer = Signer::new();
    let mut image = Image::new(&[(archive(&[("a", b"x")]), Gzip)], "amd64").indexed("amd64");
    image.refer(&signer.bundle(&image.manifest));
    let moody = Moody::start(&image, "", Middle::Goes);
    let store = tempfile::tempdir().unwrap();
    let by = |signer: &Signer| {
        let demand = serde_json::json!({ "type": "sigstoreSigned", "keyPath": signer.path("key.pub"),
            "signedIdentity": { "type": "matchRepository" } });
        let policy = Some(serde_json::json!({ "default": [demand] }).to_string());
        Request { policy, ..plain(server, &moody, store.path()) }
    };
    let error = pull(by(&Signer::new())).await.unwrap_err();
    assert!(error.kind() == Kind::Denied && error.to_string().contains("no key of the policy made it"), "{error}");
    pull(by(&signer)).await.unwrap();
}

async fn the_policy_decides_before_anything_is_used(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"ours")]), Gzip)], "amd64");
    registry.push("signed:1", &[(&image, "amd64")], &["--preserve-digests"]);
    let other = Image::new(&[(archive(&[("a", b"other")]), Gzip)], "amd64");
    registry.push("signed:2", &[(&other, "amd64")], &["--preserve-digests"]);
    let signer = Signer::new();
    let sign = |payload: &[u8]| signer.sign(payload);
    let signature = Image::signature(&image.manifest, &registry.reference("signed"), sign);
    let tag = format!("signed:{}.sig", image.manifest.replace(':', "-"));
    registry.push(&tag, &[(&signature, "amd64")], &["--preserve-digests"]);

    let store = tempfile::tempdir().unwrap();
    let demand = |what: serde_json::Value| Some(serde_json::json!({ "default": [what] }).to_string());
    let signed = demand(serde_json::json!({ "type": "sigstoreSigned", "keyPath": signer.path("key.pub"),
        "signedIdentity": { "type": "matchRepository" } }));
    let of = |name: &str, policy: &Option<String>| Request {
        policy: policy.clone(),
        ..secure(server, &registry, name, store.path())
    };
    let denied = async |request: Request, word: &str| {
        let error = pull(request).await.unwrap_err();
        assert!(error.kind() == Kind::Denied && error.to_string().contains(word), "{error}");
    };
    let reject = demand(serde_json::json!({ "type": "reject" }));
    denied(of("signed:1", &reject), "reject").await;
    denied(of("signed:2", &signed), "no signature").await;
    denied(Request { require_digest: true, ..of("signed:1", &None) }, "by digest").await;
    assert_eq!(count(store.path(), "layers"), 0);
    pull(of("signed:1", &signed)).await.unwrap();
    pull(Request { require_digest: true, ..of(&format!("signed@{}", image.manifest), &signed) }).await.unwrap();
    // Also what the store has already.
    denied(of("signed:1", &reject), "reject").await;
    let nonsense = pull(of("signed:1", &Some("{}".into()))).await.unwrap_err();
    assert_eq!(nonsense.kind(), Kind::BadRequest, "{nonsense}");
}

async fn a_layout_and_an_archive_of_one_are_images_too(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"x")]), Zstd)], "amd64");
    let (dir, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Image::write(&dir.path().join("layout"), &[(&image, "amd64")]);
    let tar = dir.path().join("archive.tar");
    let mut archive = tar::Builder::new(fs::File::create(&tar).unwrap());
    archive.append_dir_all(".", dir.path().join("layout")).unwrap();
    archive.finish().unwrap();
    let layout = format!("oci:{}:image", dir.path().join("layout").display());
    let plain = format!("dir:{}", dir.path().join("plain").display());
    let mut skopeo = std::process::Command::new("skopeo");
    fixture::run(skopeo.args(["copy", "--quiet", "--insecure-policy", &layout, &plain]));
    let of = |reference: &str| {
        let request = serde_json::json!({ "reference": reference, "store": store.path(),
            "skip_tls_verification": false, "server": server });
        pull(serde_json::from_value(request).unwrap())
    };
    for reference in [&layout, &format!("oci-archive:{}", tar.display()), &plain] {
        let pulled = of(reference).await;
        if *reference == plain && server == Server::Own {
            let error = pulled.unwrap_err();
            assert!(error.kind() == Kind::BadRequest && error.to_string().contains("skopeo"), "{error}");
            continue;
        }
        assert_eq!(fs::read(pulled.unwrap().layers[0].join("a")).unwrap(), b"x");
        fs::remove_dir_all(store.path().join("layers")).unwrap();
        // skopeo unpacks an archive, and nothing of that stays.
        assert_eq!(count(store.path(), "partial"), 0, "{reference}");
    }
}

async fn an_image_of_500_layers_is_pulled_in_order_and_one_of_more_is_refused(server: Server) {
    let (dir, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of = |count: usize| {
        let layers: Vec<_> = (0..count).map(|n| (archive(&[("a", n.to_string().as_bytes())]), Gzip)).collect();
        let layout = dir.path().join(count.to_string());
        Image::write(&layout, &[(&Image::new(&layers, "amd64"), "amd64")]);
        let reference = format!("oci:{}:image", layout.display());
        let request = serde_json::json!({ "reference": reference, "store": store.path(), "skip_tls_verification": false, "server": server });
        pull(serde_json::from_value(request).unwrap())
    };
    let pulled = of(500).await.unwrap();
    let found: Vec<_> = pulled.layers.iter().map(|layer| fs::read_to_string(layer.join("a")).unwrap()).collect();
    assert_eq!(found, (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
    let error = of(501).await.unwrap_err();
    assert!(error.kind() == Kind::BadImage && error.to_string().contains("at most 500"), "{error}");
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

async fn an_encrypted_image_is_opened_by_its_key_and_by_no_other(server: Server) {
    let Some(registry) = Registry::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for name in ["right", "wrong"] {
        let mut openssl = std::process::Command::new("openssl");
        fixture::run(openssl.args(["genrsa", "-out", &path(name), "2048"]));
        let mut openssl = std::process::Command::new("openssl");
        fixture::run(openssl.args(["rsa", "-in", &path(name), "-pubout", "-out", &path(&format!("{name}.pub"))]));
    }
    let layers = [(archive(&[("a", &noise(1 << 20))]), Gzip), (archive(&[("b", b"secret")]), Gzip)];
    let image = Image::new(&layers, "amd64");
    let key = format!("--encryption-key=jwe:{}", path("right.pub"));
    registry.push("locked:1", &[(&image, "amd64")], &[&key]);
    let store = tempfile::tempdir().unwrap();
    let with = |names: &[&str]| {
        let decryption_keys = names.iter().map(|name| fs::read_to_string(path(name)).unwrap()).collect();
        Request { decryption_keys, ..secure(server, &registry, "locked:1", store.path()) }
    };
    for names in [&[][..], &["wrong"]] {
        let error = pull(with(names)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Locked, "{error}");
    }
    let pulled = pull(with(&["wrong", "right"])).await.unwrap();
    assert_eq!(fs::read(pulled.layers[1].join("b")).unwrap(), b"secret");

    // A layer that was changed on its way never becomes one, even with a digest that is right.
    fs::remove_dir_all(store.path().join("layers")).unwrap();
    let copy = dir.path().join("copy");
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--src-tls-verify=false", &format!("--src-creds={USER}:{PASSWORD}")]);
    skopeo.arg(format!("docker://{}", registry.reference("locked:1"))).arg(format!("oci:{}:image", copy.display()));
    fixture::run(&mut skopeo);
    Image::spoil(&copy, 0);
    let decryption_keys = vec![fs::read_to_string(path("right")).unwrap()];
    let reference = format!("oci:{}:image", copy.display());
    let error = pull(Request { reference, decryption_keys, ..with(&[]) }).await.unwrap_err();
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains("HMAC"), "{error}");
    assert_eq!(count(store.path(), "partial"), 0);
}

async fn who_pulls_may_little_and_who_talks_to_the_registry_is_nobody_and_ends_with_the_pull(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", &noise(1 << 20))]), Gzip)], "amd64");
    let moody = Moody::start(&image, &image.layers[0], Middle::Stalls);
    let store = tempfile::tempdir().unwrap();
    let mut command = worker(server);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let request = serde_json::to_vec(&plain(server, &moody, store.path())).unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().unwrap(), &request).await.unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    while !lines.next_line().await.unwrap().unwrap().contains("Resolved") {}
    let pid = child.id().unwrap();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let server: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let confined = ["NoNewPrivs:\t1", "Seccomp:\t2"];
    let nobody = ["Uid:\t65534\t65534", "Gid:\t65534\t65534", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000"];
    for line in nobody.iter().chain(&confined) {
        assert!(status.contains(line), "{line}: {status}");
    }
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP
    let unpacks = ["CapPrm:\t000000008820001b", "CapEff:\t000000008820001b", "CapBnd:\t000000008820001b"];
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = thread.unwrap().path().join("status");
        for line in unpacks.iter().chain(&confined) {
            // One that was made and has not begun is seen as it was made; nobody tells when it begins.
            let deadline = Instant::now() + Duration::from_secs(5);
            loop {
                let status = fs::read_to_string(&path).unwrap();
                if status.contains(line) {
                    break;
                }
                assert!(Instant::now() < deadline, "{line}: {status}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    let server = rustix::process::Pid::from_raw(server).unwrap();
    let server = rustix::process::pidfd_open(server, rustix::process::PidfdFlags::empty()).unwrap();
    child.kill().await.unwrap();
    let mut ready = [rustix::event::PollFd::new(&server, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ready, Some(&limit)).unwrap(), 1, "it lives on");
}

async fn nobody_that_a_redirect_leads_to_is_told_who_asks(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"x")]), Gzip)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let (moody, elsewhere) = (Moody::start(&image, "", Middle::Goes), Moody::start(&image, "", Middle::Goes));
    moody.sends_for_blobs_to(&elsewhere, "127.0.0.1");
    elsewhere.wants_token("theirs", 0);
    let auth = Some(Auth { username: USER.into(), password: PASSWORD.into() });
    let error = pull(Request { auth, ..plain(server, &moody, store.path()) }).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized, "{error}");
    let asked = elsewhere.asked();
    assert!(!asked.iter().any(|asked| asked.contains("/token") || asked.contains("authorization")), "{asked:?}");
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

async fn where_an_alias_leads_is_not_told_who_asks(server: Server) {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"x")]), Gzip)], "amd64");
    let store = tempfile::tempdir().unwrap();
    let moody = Moody::start(&image, "", Middle::Goes);
    moody.wants_token("theirs", 0);
    let request = Request {
        reference: "app:1".into(),
        registries: Some(format!("[aliases]\napp = \"{}/image\"", moody.host())),
        auth: Some(Auth { username: USER.into(), password: PASSWORD.into() }),
        ..plain(server, &moody, store.path())
    };
    pull(request.clone()).await.unwrap();
    assert!(!moody.asked().iter().any(|asked| asked.contains("authorization: basic")), "{:?}", moody.asked());
    pull(Request { reference: moody.reference(), registries: None, ..request }).await.unwrap();
    assert!(moody.asked().iter().any(|asked| asked.contains("authorization: basic")), "{:?}", moody.asked());
}
