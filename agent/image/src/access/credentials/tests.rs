use super::*;
use proptest::prelude::*;
use serde_json::json;

fn auth(user: &str) -> serde_json::Value {
    json!({ "auth": BASE64_STANDARD.encode(format!("{user}:pass:word")) })
}

fn ask(file: &serde_json::Value, reference: &str) -> Result<Option<Secret>> {
    Credentials::parse(file.to_string().as_bytes())?.for_reference(reference)
}

/// Whose secret is shown for an image.
fn user(file: &serde_json::Value, reference: &str) -> Option<String> {
    match ask(file, reference).unwrap() {
        Some(Secret::Basic { username, password }) => {
            assert_eq!(password, "pass:word");
            Some(username)
        }
        Some(Secret::IdentityToken(token)) => Some(format!("token {token}")),
        None => None,
    }
}

#[test]
fn the_longest_key_counts_and_only_whole_parts_of_a_name() {
    let file = json!({ "auths": {
        "h.io/ns/repo": auth("repo"), "h.io/ns": auth("ns"), "h.io": auth("host"), "h.io:5000": auth("port"),
        "Upper.io": auth("upper"), "t.io": { "auth": "", "identitytoken": "abc" }, "empty.io": {},
    }});
    for (reference, expected) in [
        ("h.io/ns/repo:1", Some("repo")),
        ("h.io/ns/repo/deeper", Some("repo")),
        ("h.io/ns/repository", Some("ns")),
        ("h.io/nsx/repo", Some("host")),
        ("H.IO/x", Some("host")),
        ("h.io:5000/ns/repo", Some("port")),
        ("h.io:5001/ns/repo", None),
        ("h.io.evil.io/ns/repo", None),
        ("evil.io/h.io/ns/repo", None),
        ("sub.h.io/ns/repo", None),
        ("upper.io/a", Some("upper")),
        ("t.io/a", Some("token abc")),
        ("empty.io/a", None),
        ("alpine", None),
    ] {
        assert_eq!(user(&file, reference).as_deref(), expected, "{reference}");
    }
}

#[test]
fn docker_s_old_keys_are_known() {
    let hub = json!({ "auths": {
        "https://index.docker.io/v1/": auth("hub"), "https://h.io/v2": auth("v2"), "http://h.io": auth("plain"),
        "https://index.docker.io/v1/access-token": auth("other"), "https://h.io/ns": auth("no"),
    }});
    for reference in ["alpine", "a/b:1", "docker.io/library/alpine", "index.docker.io/a/b"] {
        assert_eq!(user(&hub, reference).as_deref(), Some("hub"), "{reference}");
    }
    assert_eq!(user(&hub, "h.io/ns/a").as_deref(), Some("v2"));
    let both = json!({ "auths": { "https://index.docker.io/v1/": auth("old"), "docker.io": auth("new") } });
    assert_eq!(user(&both, "alpine").as_deref(), Some("new"));
    for key in ["docker.io/library", "docker.io/library/alpine", "index.docker.io", "registry-1.docker.io"] {
        assert_eq!(user(&json!({ "auths": { key: auth("me") } }), "alpine").as_deref(), Some("me"), "{key}");
    }
}

#[test]
fn a_program_that_keeps_secrets_is_named_where_it_would_be_asked() {
    let file = json!({
        "auths": { "mine.io": auth("me"), "kept.io": {}, "https://index.docker.io/v1/": {} },
        "credHelpers": { "ecr.io": "ecr-login" }, "credsStore": "desktop", "psFormat": "x",
    });
    for (reference, named) in [
        ("ecr.io/a", &["credHelpers", "ecr-login", "ecr.io"]),
        ("kept.io/a", &["credsStore", "desktop", "kept.io"]),
        ("alpine", &["credsStore", "desktop", "docker.io"]),
    ] {
        let error = ask(&file, reference).unwrap_err().to_string();
        assert!(named.iter().all(|name| error.contains(name)), "{error}");
    }
    assert_eq!(user(&file, "mine.io/a").as_deref(), Some("me"));
    assert_eq!(user(&file, "public.io/a"), None);
}

#[test]
fn what_is_malformed_is_refused_and_never_quoted() {
    let encoded = |text: &str| BASE64_STANDARD.encode(text);
    for text in [
        json!({ "auths": { "h.io": { "auth": "hunter2!" } } }).to_string(),
        json!({ "auths": { "h.io": { "auth": encoded("hunter2") } } }).to_string(),
        json!({ "auths": { "h.io": "hunter2" } }).to_string(),
        json!({ "auths": { "h.io": { "identitytoken": ["hunter2"] } } }).to_string(),
        json!({ "auths": "hunter2" }).to_string(),
        "{\"auths\": {\"h.io\": {\"auth\": hunter2".to_string(),
        String::new(),
        " ".repeat(MAX_FILE + 1),
    ] {
        let error = Credentials::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(!error.contains("hunter2") && !error.contains(&encoded("hunter2")), "{error}");
    }
}

#[test]
fn a_secret_is_not_in_what_is_printed() {
    let file = json!({ "auths": { "h.io": auth("hunter2"), "t.io": { "identitytoken": "hunter2" } } }).to_string();
    let credentials = Credentials::parse(file.as_bytes()).unwrap();
    let shown = format!("{credentials:?} {:?}", credentials.for_reference("t.io/a"));
    assert!(!shown.contains("hunter2") && !shown.contains("pass:word"), "{shown}");
}

proptest! {
    #[test]
    fn any_bytes_end_in_an_answer(text: Vec<u8>, key: String, auth: String, name: String) {
        let _ = Credentials::parse(&text);
        let file = json!({ "auths": { key.clone(): { "auth": auth } }, "credHelpers": { key: "x" } });
        let _ = ask(&file, &name);
        let _ = ask(&json!({ "auths": { name.clone(): { "identitytoken": "x" } } }), &name);
    }
}
