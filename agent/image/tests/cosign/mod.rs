//! Signatures that cosign itself has made, of the form that it attaches by tag and of today's; and what cosign says of those that our tests make.

mod services;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::fixture::{self, Compression::Gzip, Image, Middle, Moody, PASSWORD, Registry, USER, archive};
use super::{Signer, base64, plain, pull, secure};
use nacre_pull::{Kind, Request, Server};
use services::Services;

/// cosign, with a key pair of its own and neither a log nor a clock to ask.
struct Cosign {
    program: PathBuf,
    dir: tempfile::TempDir,
}

/// What is said of a signature that is attached by tag. cosign will forget how one day.
const BY_TAG: [&str; 3] = ["--new-bundle-format=false", "--tlog-upload=false", "--use-signing-config=false"];

impl Cosign {
    /// `None`, and the reason on standard output, where cosign can't be had.
    fn new() -> Option<Cosign> {
        let cosign = Cosign { program: nacre_tests::newer::program("cosign")?, dir: tempfile::tempdir().unwrap() };
        fixture::run(cosign.command().arg("generate-key-pair"));
        for (what, name) in [("signing-config", "services"), ("trusted-root", "root")] {
            fixture::run(cosign.command().args([what, "create", "--out", name]));
        }
        Some(cosign)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.dir.path()).env("HOME", self.dir.path()).env("COSIGN_PASSWORD", "");
        command
    }

    /// A command about an image of `registry`.
    fn on(&self, registry: &Registry, command: &str) -> Command {
        fs::write(self.dir.path().join("ca.pem"), registry.ca()).unwrap();
        let mut cosign = self.command();
        cosign.args([command, "--registry-cacert=ca.pem"]);
        cosign.args([format!("--registry-username={USER}"), format!("--registry-password={PASSWORD}")]);
        cosign
    }

    fn sign(&self, registry: &Registry, name: &str, options: &[&str]) {
        let mut sign = self.on(registry, "sign");
        sign.args(["--yes", "--key=cosign.key"]).args(options).arg(registry.reference(name));
        fixture::run(&mut sign);
    }

    /// In today's form.
    fn seal(&self, registry: &Registry, name: &str, options: &[&str]) {
        let services = ["--signing-config=services", "--trusted-root=root"];
        self.sign(registry, name, &[options, &services].concat());
    }

    fn key(&self) -> String {
        self.dir.path().join("cosign.pub").display().to_string()
    }

    fn text(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.dir.path().join(name)).unwrap()).unwrap()
    }
}

fn by(key: &str) -> Option<String> {
    let demand = json!({ "type": "sigstoreSigned", "keyPath": key, "signedIdentity": { "type": "matchRepository" } });
    Some(json!({ "default": [demand] }).to_string())
}

async fn denied(request: Request, why: &str) {
    let error = pull(request).await.unwrap_err();
    assert!(error.kind() == Kind::Denied && error.to_string().contains(why), "{error}");
}

fn image(text: &str) -> Image {
    Image::new(&[(archive(&[("a", text.as_bytes())]), Gzip)], "amd64")
}

#[tokio::test]
async fn an_image_that_cosign_has_signed_is_pulled_and_no_other() {
    let (Some(registry), Some(cosign)) = (Registry::start(), Cosign::new()) else { return };
    let (image, stranger, store) = (image("signed"), Signer::new(), tempfile::tempdir().unwrap());
    for form in ["by-tag", "bundle"] {
        let (signed, name) = (format!("{form}@{}", image.manifest), format!("{form}:1"));
        registry.push(&name, &[(&image, "amd64")], &["--preserve-digests"]);
        let of =
            |name: &str, key: &str| Request { policy: by(key), ..secure(Server::Own, &registry, name, store.path()) };
        denied(of(&name, &cosign.key()), "no signature").await;
        match form {
            "by-tag" => cosign.sign(&registry, &signed, &[&["--annotations=who=me"], &BY_TAG[..]].concat()),
            _ => cosign.seal(&registry, &signed, &["--annotations=who=me"]),
        }
        for name in [&name, &signed] {
            assert_eq!(pull(of(name, &cosign.key())).await.unwrap().manifest_digest, image.manifest);
            denied(of(name, &stranger.path("key.pub")), "no key of the policy made it").await;
        }
    }
}

#[tokio::test]
async fn who_signs_a_list_of_images_vouches_for_each_and_who_signs_one_for_that() {
    let (Some(registry), Some(cosign)) = (Registry::start(), Cosign::new()) else { return };
    let (ours, other, store) = (image("ours"), image("other"), tempfile::tempdir().unwrap());
    let push = |name: &str| registry.push(name, &[(&other, "s390x"), (&ours, "amd64")], &["--preserve-digests"]);
    let of = |name: &str| Request { policy: by(&cosign.key()), ..secure(Server::Own, &registry, name, store.path()) };
    for (form, sign) in [("by-tag", Cosign::sign as fn(&Cosign, &Registry, &str, &[&str])), ("bundle", Cosign::seal)] {
        let options = if form == "by-tag" { &BY_TAG[..] } else { &[] };
        let name = |what: &str| format!("{form}-{what}");
        let list = push(&format!("{}:1", name("list")));
        sign(&cosign, &registry, &format!("{}@{list}", name("list")), options);
        // The list's signature says nothing of an image that is asked for by its own digest.
        pull(of(&format!("{}:1", name("list")))).await.unwrap();
        denied(of(&format!("{}@{}", name("list"), ours.manifest)), "no signature").await;

        push(&format!("{}:1", name("each")));
        sign(&cosign, &registry, &format!("{}@{list}", name("each")), &[options, &["--recursive"]].concat());
        pull(of(&format!("{}:1", name("each")))).await.unwrap();
        pull(of(&format!("{}@{}", name("each"), ours.manifest))).await.unwrap();

        push(&format!("{}:1", name("one")));
        sign(&cosign, &registry, &format!("{}@{}", name("one"), ours.manifest), options);
        pull(of(&format!("{}:1", name("one")))).await.unwrap();
    }
}

#[tokio::test]
async fn what_else_a_key_has_said_of_an_image_is_no_signature() {
    let (Some(registry), Some(cosign)) = (Registry::start(), Cosign::new()) else { return };
    let (image, store) = (image("tested"), tempfile::tempdir().unwrap());
    registry.push("app:1", &[(&image, "amd64")], &["--preserve-digests"]);
    fs::write(cosign.dir.path().join("said"), "{}").unwrap();
    let mut attest = cosign.on(&registry, "attest");
    attest.args(["--yes", "--key=cosign.key", "--predicate=said", "--type=custom"]);
    attest.args(["--signing-config=services", "--trusted-root=root"]);
    fixture::run(attest.arg(registry.reference(&format!("app@{}", image.manifest))));
    let request = Request { policy: by(&cosign.key()), ..secure(Server::Own, &registry, "app:1", store.path()) };
    denied(request.clone(), "none of 1 signatures is good: 1: statement.").await;
    cosign.seal(&registry, &format!("app@{}", image.manifest), &[]);
    pull(request).await.unwrap();
}

#[tokio::test]
async fn a_bundle_of_cosigns_that_was_changed_or_moved_vouches_for_nothing() {
    let (Some(registry), Some(cosign)) = (Registry::start(), Cosign::new()) else { return };
    let (signed, store) = (image("signed"), tempfile::tempdir().unwrap());
    registry.push("app:1", &[(&signed, "amd64")], &["--preserve-digests"]);
    let name = format!("app@{}", signed.manifest);
    cosign.seal(&registry, &name, &["--upload=false", "--bundle=made"]);
    let made = cosign.text("made");
    let mut changed = made.clone();
    let sha256 = image("other").manifest.split_off("sha256:".len());
    let statement = json!({ "_type": "https://in-toto.io/Statement/v1", "subject": [{ "digest": { "sha256": sha256 } }],
        "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {} });
    changed["dsseEnvelope"]["payload"] = base64(statement.to_string().as_bytes()).into();

    let asked = async |image: &Image, bundle: &Value| {
        let mut image = image.clone();
        image.refer(bundle);
        let moody = Moody::start(&image, "", Middle::Goes);
        pull(Request { policy: by(&cosign.key()), ..plain(Server::Own, &moody, store.path()) }).await
    };
    asked(&signed, &made).await.unwrap();
    for (bundle, why) in [(made, "it is for the sha256"), (changed, "no key of the policy made it")] {
        let error = asked(&image("other"), &bundle).await.unwrap_err();
        assert!(error.kind() == Kind::Denied && error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn who_has_signed_without_a_key_is_known_by_an_authority_and_a_log() {
    let (Some(registry), Some(cosign)) = (Registry::start(), Cosign::new()) else { return };
    let (image, store, services) = (image("keyless"), tempfile::tempdir().unwrap(), Services::start());
    registry.push("app:1", &[(&image, "amd64")], &["--preserve-digests"]);
    fs::write(cosign.dir.path().join("config"), services.config().to_string()).unwrap();
    let mut sign = cosign.on(&registry, "sign");
    sign.args(["--yes", "--signing-config=config", "--identity-token", &services.token()]);
    // It looks for Sigstore's own authorities, with which it would check what it gets from ours, and is not to find them.
    sign.env("HTTPS_PROXY", "http://127.0.0.1:1");
    fixture::run(sign.arg(registry.reference(&format!("app@{}", image.manifest))));

    let by = |authority: &str, email: &str, log: &str| {
        let fulcio =
            json!({ "caPath": services.path(authority), "oidcIssuer": services::ISSUER, "subjectEmail": email });
        let demand = json!({ "type": "sigstoreSigned", "fulcio": fulcio, "rekorPublicKeyPath": services.path(log),
            "signedIdentity": { "type": "matchRepository" } });
        let policy = Some(json!({ "default": [demand] }).to_string());
        Request { policy, ..secure(Server::Own, &registry, "app:1", store.path()) }
    };
    pull(by("ca.pem", services::EMAIL, "log.pub")).await.unwrap();
    denied(by("ca.pem", "b@h.io", "log.pub"), "is not for b@h.io").await;
    denied(by("ca.pem", services::EMAIL, "signer.pub"), "no log of the policy has entered it").await;
    fs::write(services.path("other.pem"), registry.ca()).unwrap();
    denied(by("other.pem", services::EMAIL, "log.pub"), "no authority of the policy vouches").await;
}

#[tokio::test]
async fn cosign_takes_what_our_tests_make_for_its_own() {
    let (Some(registry), Some(cosign)) = (Registry::start(), Cosign::new()) else { return };
    let (signer, mut image) = (Signer::new(), image("ours"));
    registry.push("ours:1", &[(&image, "amd64")], &["--preserve-digests"]);
    let signature = Image::signature(&image.manifest, &registry.reference("ours"), |payload| signer.sign(payload));
    let tag = format!("ours:{}.sig", image.manifest.replace(':', "-"));
    registry.push(&tag, &[(&signature, "amd64")], &["--preserve-digests"]);
    let verify = |mut cosign: Command, key: &str, reference: &str| {
        cosign.args(["--trusted-root=root", "--insecure-ignore-tlog=true", "--key", key, reference]);
        cosign.output().unwrap()
    };
    let by_tag = || {
        let mut command = cosign.on(&registry, "verify");
        command.arg("--new-bundle-format=false");
        command
    };
    image.refer(&signer.bundle(&image.manifest));
    let moody = Moody::start(&image, "", Middle::Goes);
    let bundle = || {
        let mut command = cosign.command();
        command.args(["verify", "--allow-http-registry"]);
        command
    };
    for (command, reference) in
        [(&by_tag as &dyn Fn() -> Command, registry.reference("ours:1")), (&bundle, moody.reference())]
    {
        let good = verify(command(), &signer.path("key.pub"), &reference);
        assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
        let bad = verify(command(), &cosign.key(), &reference);
        assert!(!bad.status.success(), "{reference}");
    }
}
