//! Names, scopes, identities, and whatever bytes there are.

use proptest::prelude::*;
use serde_json::json;

use super::file_tests::KEY;
use super::identity::Identity;
use super::named::is_scope;
use super::*;

fn named(text: &str) -> Named {
    Named::parse(text).unwrap()
}

fn digest(byte: &str) -> String {
    format!("sha256:{}", byte.repeat(32))
}

#[test]
fn a_name_is_written_out_in_full() {
    let pinned = format!("h.example:5000/a/b@{}", digest("0a"));
    for (text, full, pulled) in [
        ("busybox", "docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/busybox:1", "docker.io/library/busybox:1", "docker.io/library/busybox:1"),
        ("index.docker.io/a/b", "docker.io/a/b", "docker.io/a/b:latest"),
        ("a/b", "docker.io/a/b", "docker.io/a/b:latest"),
        ("localhost/a", "localhost/a", "localhost/a:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000", "docker.io/library/localhost:5000"),
        ("[::1]:5000/a:V_1.0-x", "[::1]:5000/a:V_1.0-x", "[::1]:5000/a:V_1.0-x"),
        ("gcr.io/a__b/c.d/e---f", "gcr.io/a__b/c.d/e---f", "gcr.io/a__b/c.d/e---f:latest"),
        (&pinned, &pinned, &pinned),
        (&pinned.replace('@', ":1@"), &pinned.replace('@', ":1@"), &pinned),
    ] {
        let found = named(text);
        assert_eq!((found.to_string().as_str(), found.pulled().to_string().as_str()), (full, pulled), "{text}");
        assert_eq!(named(&found.to_string()), found, "{text}");
    }
}

#[test]
fn what_is_no_name_is_refused() {
    let (long_tag, long_path) = (format!("a:{}", "t".repeat(129)), "p".repeat(256));
    let short_digest = format!("a@{}", &digest("0a")[..70]);
    for bad in [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A",
        "a/B",
        "a_",
        "-a",
        "a..b",
        "a___b",
        "a._b",
        "a b",
        "a\n",
        "a:",
        "a:-",
        "a:b:c",
        "a@",
        "a@sha256:0a",
        "a@sha512:00",
        "Docker.io/a/b",
        "h.io./a",
        ".h.io/a",
        "-h.io/a",
        "h.io:/a",
        "h.io:x/a",
        "h.io:99999/a",
        "h.io:+80/a",
        "[::1/a",
        "[::1]5/a",
        "[0:0:0:0:0:0:0:1]/a",
        "[::g]/a",
        "https://h.io/a",
        "h.io/a?b",
        "h_x.io/a",
        "ä/b",
        &"0a".repeat(32),
        &long_tag,
        &long_path,
        &short_digest,
        &format!("a@{}", digest("0A")),
        &format!("a@{0}@{0}", digest("0a")),
    ] {
        assert!(Named::parse(bad).is_err(), "{bad}");
    }
}

/// A policy with these scopes, each of which accepts nothing by a demand that names it.
fn scoped(scopes: &[&str]) -> Policy {
    let lists = scopes.iter().map(|scope| (scope.to_string(), json!([{ "type": "reject" }])));
    let lists = lists.collect::<serde_json::Map<_, _>>();
    let policy = json!({ "default": [{ "type": "insecureAcceptAnything" }], "transports": { "docker": lists } });
    Policy::parse(policy.to_string().as_bytes()).unwrap()
}

#[test]
fn the_closest_scope_alone_decides() {
    let pinned = format!("a.b.io:5000/x/y@{}", digest("0a"));
    // Each row is a name and the scopes that hold for it, the closest first.
    for (name, scopes) in [
        (
            "busybox",
            &[
                "docker.io/library/busybox:latest",
                "docker.io/library/busybox",
                "docker.io/library",
                "docker.io",
                "*.io",
                "",
            ][..],
        ),
        (
            "a.b.io:5000/x/y:1",
            &["a.b.io:5000/x/y:1", "a.b.io:5000/x/y", "a.b.io:5000/x", "a.b.io:5000", "*.b.io", "*.io", ""],
        ),
        (&pinned, &[&pinned, "a.b.io:5000/x/y", "a.b.io:5000/x", "a.b.io:5000", "*.b.io", "*.io", ""]),
        (&pinned.replace('@', ":1@"), &[&pinned, "a.b.io:5000/x/y"]),
    ] {
        for (index, scope) in scopes.iter().enumerate() {
            let policy = scoped(&scopes[index..]);
            let said = policy.judge(&named(name), b"", &[]).unwrap_err().to_string();
            let expected = if scope.is_empty() { "all of docker".to_string() } else { format!("scope {scope} ") };
            assert!(said.contains(&expected), "{name} {scope}: {said}");
        }
    }
    for (name, other) in [
        ("busybox", "docker.io/library/busy"),
        ("busybox", "docker.io/library/busybox:1"),
        ("evil.io/example.com/x", "example.com"),
        ("example.com.evil.io/x", "example.com"),
        ("example.com:5000/x", "example.com"),
        ("example.com/x", "*.example.com"),
        ("notexample.com/x", "*.example.com"),
        (&pinned.replace('@', ":1@"), "a.b.io:5000/x/y:1"),
    ] {
        assert!(scoped(&[other]).judge(&named(name), b"", &[]).is_ok(), "{name} {other}");
    }
}

#[test]
fn a_scope_that_no_image_has_is_a_mistake() {
    let pinned = format!("h.io/a@{}", digest("0a"));
    for good in ["", "*.io", "h.io", "localhost", "h.io:5000/a/b", "docker.io/library/busybox:1", "[::1]:5000", &pinned]
    {
        assert!(is_scope(good), "{good}");
    }
    for bad in [
        "busybox",
        "a/b",
        "docker.io/",
        "/",
        "*",
        "*.",
        "*.io/a",
        "*.io:5000",
        "https://h.io",
        "h.io/A",
        "H.io",
        "docker.io/busybox:1",
    ] {
        assert!(!is_scope(bad), "{bad}");
    }
    assert!(!is_scope("index.docker.io") && !is_scope(&pinned.replace('@', ":1@")));
}

#[test]
fn an_identity_accepts_what_its_rule_says() {
    let (one, other) = (digest("01"), digest("02"));
    let at = |name: &str, digest: &str| format!("{name}@{digest}");
    let (image, twin, foreign) = (at("h.io/a", &one), at("h.io/a", &other), at("h.io/b", &one));
    let rule = |kind: &str| json!({ "type": kind });
    let reference = json!({ "type": "exactReference", "dockerReference": "h.io/a:1" });
    let repository = json!({ "type": "exactRepository", "dockerRepository": "h.io/a" });
    let remap = json!({ "type": "remapIdentity", "prefix": "m.io/x", "signedPrefix": "h.io" });
    let docker = json!({ "type": "remapIdentity", "prefix": "m.io", "signedPrefix": "docker.io" });
    // The rule, the image, what is signed, whether it is accepted.
    for (rule, image, signed, good) in [
        (rule("matchExact"), "h.io/a:1", "h.io/a:1", true),
        (rule("matchExact"), "h.io/a:1", "h.io/a:2", false),
        (rule("matchExact"), "h.io/a:1", "h.io/a", false),
        (rule("matchExact"), "h.io/a", "h.io/a", false),
        (rule("matchExact"), "h.io/a", "h.io/a:latest", true),
        (rule("matchExact"), "busybox:1", "index.docker.io/library/busybox:1", true),
        (rule("matchExact"), &image, &image, true),
        (rule("matchExact"), &image, &twin, false),
        (rule("matchExact"), &image, "h.io/a:1", false),
        (rule("matchRepoDigestOrExact"), "h.io/a:1", "h.io/a:1", true),
        (rule("matchRepoDigestOrExact"), "h.io/a:1", "h.io/a:2", false),
        (rule("matchRepoDigestOrExact"), "h.io/a:1", &image, false),
        (rule("matchRepoDigestOrExact"), "h.io/a:1", "h.io/a", false),
        (rule("matchRepoDigestOrExact"), &image, "h.io/a:1", true),
        (rule("matchRepoDigestOrExact"), &image, &twin, true),
        (rule("matchRepoDigestOrExact"), &image, "h.io/a", false),
        (rule("matchRepoDigestOrExact"), &image, &foreign, false),
        (rule("matchRepository"), "h.io/a:1", "h.io/a", true),
        (rule("matchRepository"), &image, "h.io/a:7", true),
        (rule("matchRepository"), "h.io/a:1", "h.io/b", false),
        (rule("matchRepository"), "h.io/a:1", "g.io/a", false),
        (reference.clone(), "g.io/other:9", "h.io/a:1", true),
        (reference.clone(), "h.io/a:1", "h.io/a", false),
        (reference, "h.io/a:2", "h.io/a:2", false),
        (repository.clone(), "g.io/other:9", "h.io/a", true),
        (repository.clone(), "h.io/b:1", "h.io/a:5", true),
        (repository, "h.io/b:1", "h.io/b", false),
        (remap.clone(), "m.io/x/a:1", "h.io/a:1", true),
        (remap.clone(), &at("m.io/x/a", &one), "h.io/a:7", true),
        (remap.clone(), &at("m.io/x/a", &one), "h.io/a", false),
        (remap.clone(), "m.io/x/a:1", "m.io/x/a:1", false),
        (remap.clone(), "m.io/xx/a:1", "h.io/x/a:1", false),
        (remap.clone(), "m.io/xx/a:1", "m.io/xx/a:1", true),
        (remap.clone(), "m.io/x:1", "h.io/x:1", false),
        (remap, "m.io/y/a:1", "m.io/y/a:1", true),
        (docker.clone(), "m.io/library/busybox:1", "busybox:1", true),
        (docker, "m.io/busybox:1", "busybox:1", false),
    ] {
        let value = json::parse(rule.to_string().as_bytes()).unwrap();
        let identity = Identity::parse(value, "signedIdentity").unwrap();
        let verdict = identity.accepts(&named(image).pulled(), &named(signed));
        assert_eq!(verdict.is_ok(), good, "{rule} {image} {signed}: {verdict:?}");
    }
}

proptest! {
    #[test]
    fn no_text_breaks_the_parsers(text in ".{0,80}", name in "[a-zA-Z0-9:/@.\\[\\]_*-]{0,60}") {
        let _ = (Named::parse(&text), is_scope(&text), Policy::parse(text.as_bytes()));
        if let Ok(named) = Named::parse(&name) {
            prop_assert!(is_scope(&named.pulled().to_string()));
        }
        let _ = is_scope(&name);
    }

    #[test]
    fn a_name_reads_as_it_is_written(name in "([a-z]{1,3}\\.[a-z]{1,3}/)?[a-z0-9]{1,4}(/[a-z0-9]{1,4})?(:[a-z0-9]{1,3})?") {
        let found = named(&name);
        prop_assert_eq!(&named(&found.to_string()), &found);
    }

    #[test]
    fn no_signature_breaks_the_judge(place in 0..400_usize, byte: u8, junk: Vec<u8>) {
        let policy = json!({ "default": [{ "type": "sigstoreSigned", "keyData": KEY }] });
        let policy = Policy::parse(policy.to_string().as_bytes()).unwrap();
        let mut bundle = json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": { "publicKey": { "hint": "x" } },
            "dsseEnvelope": {
                "payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": [{ "sig": "AAAA" }],
            },
        }).to_string().into_bytes();
        if let Some(found) = bundle.get_mut(place) {
            *found = byte;
        }
        let legacy = Signature::Legacy { payload: junk.clone(), signature_base64: "AAAA".into(), proof: LegacyProof::default() };
        let signatures = [Signature::Bundle(bundle), Signature::Bundle(junk), legacy];
        let verdict = policy.judge(&named("busybox"), b"{}", &signatures);
        prop_assert!(verdict.is_err());
    }
}
