//! Who is believed, who is told what, and who may do what.

use std::fs;
use std::time::{Duration, Instant};

use nacre_pull::{Auth, Kind, Request, Server};

use super::whoever_talks;
use crate::fixture::Compression::Gzip;
use crate::fixture::{self, Image, Middle, Moody, PASSWORD, Registry, USER, archive, noise};
use crate::{Signer, count, plain, pull, secure, worker};

whoever_talks! {
    a_token_is_got_and_does_not_follow_to_another_host
    mirrors_come_first_and_blocks_hold
    a_bundle_that_refers_to_an_index_vouches_for_what_it_leads_to
    the_policy_decides_before_anything_is_used
    an_encrypted_image_is_opened_by_its_key_and_by_no_other
    who_pulls_may_little_and_who_talks_to_the_registry_is_nobody_and_ends_with_the_pull
    nobody_that_a_redirect_leads_to_is_told_who_asks
    where_an_alias_leads_is_not_told_who_asks
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
