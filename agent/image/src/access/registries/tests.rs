use super::*;
use proptest::prelude::*;

fn digest() -> String {
    format!("sha256:{}", "0a".repeat(32))
}

/// Where an image may be had, mirrors marked by `~` and insecure hosts by `!`.
fn ask(conf: &str, reference: &str) -> std::result::Result<Vec<String>, String> {
    let registries = Registries::parse(conf).unwrap_or_else(|error| panic!("{conf}: {error}"));
    let endpoints = registries.endpoints(reference).map_err(|error| error.to_string())?;
    let mark = |yes: bool, mark: &'static str| if yes { mark } else { "" };
    let shown = |end: Endpoint| format!("{}{}{}", mark(end.is_mirror, "~"), mark(end.insecure, "!"), end.reference);
    Ok(endpoints.into_iter().map(shown).collect())
}

fn rule(prefix: &str, location: &str) -> String {
    format!("[[registry]]\nprefix = {prefix:?}\nlocation = {location:?}\n")
}

#[test]
fn without_a_file_an_image_is_where_its_name_says() {
    for (reference, expected) in [
        ("alpine", "docker.io/library/alpine:latest"),
        ("a/b:1", "docker.io/a/b:1"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("quay.io/a/b", "quay.io/a/b:latest"),
        (&format!("quay.io/a:1@{}", digest()), &format!("quay.io/a@{}", digest())),
    ] {
        assert_eq!(ask("", reference).unwrap(), [expected], "{reference}");
    }
    assert!(Registries::default().endpoints("no image").is_err());
}

#[test]
fn the_longest_prefix_wins_and_its_rest_is_kept() {
    let conf = [
        rule("example.com", "a.io"),
        rule("example.com/team", "b.io/x"),
        rule("example.com/team/app:1", "c.io/app:2"),
        rule(&format!("example.com/team/app@{}", digest()), &format!("d.io/app@{}", digest())),
        rule("*.example.com", "e.io/sub"),
        rule("*.deep.example.com", "f.io"),
        rule("own.example.com", "g.io"),
        rule("example.com:5000", "h.io"),
    ]
    .concat();
    for (reference, expected) in [
        ("example.com/app", "a.io/app:latest".to_string()),
        ("EXAMPLE.com/app", "a.io/app:latest".to_string()),
        ("example.com/team/app:3", "b.io/x/app:3".to_string()),
        ("example.com/team/app:1", "c.io/app:2".to_string()),
        ("example.com/team/app:1.2", "b.io/x/app:1.2".to_string()),
        (&format!("example.com/team/app@{}", digest()), format!("d.io/app@{}", digest())),
        (&format!("example.com/team/app:3@{}", digest()), format!("d.io/app@{}", digest())),
        ("example.com/teams/app:1", "a.io/teams/app:1".to_string()),
        ("one.example.com/app:1", "e.io/sub/app:1".to_string()),
        ("a.b.example.com/app:1", "e.io/sub/app:1".to_string()),
        ("a.deep.example.com/app:1", "f.io/app:1".to_string()),
        ("own.example.com/app:1", "g.io/app:1".to_string()),
        ("example.com:5000/app:1", "h.io/app:1".to_string()),
    ] {
        assert_eq!(ask(&conf, reference).unwrap(), [expected], "{reference}");
    }
}

#[test]
fn a_rule_is_for_its_own_host_only() {
    let conf = [rule("example.com", "mirror.io"), rule("*.example.org", "mirror.io")].concat();
    for reference in [
        "evil.io/example.com/x:1",
        "evil.io/a.example.org/x:1",
        "example.com.evil.io/x:1",
        "a.example.org.evil.io/x:1",
        "notexample.com/x:1",
        "notexample.org/x:1",
        "example.org/x:1",
        "example.com:5000/x:1", // another server
        "a.example.org:5000/x:1",
    ] {
        assert_eq!(ask(&conf, reference).unwrap(), [reference]);
    }
}

#[test]
fn mirrors_come_first_and_serve_what_they_are_for() {
    let conf = "
        [[registry]]
        prefix = 'docker.io'
        location = 'docker.io'
        [[registry.mirror]]
        location = 'all.io/hub/'
        insecure = true
        [[registry.mirror]]
        location = 'pinned.io'
        pull-from-mirror = 'digest-only'
        [[registry.mirror]]
        location = 'tags.io:5000'
        pull-from-mirror = 'tag-only'
        [[registry]]
        location = 'quay.io'
        insecure = true
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = 'pinned.io'
    ";
    let digest = digest();
    let library = |host: &str| format!("{host}/library/alpine@{digest}");
    let tagged = ["~!all.io/hub/library/alpine:3", "~tags.io:5000/library/alpine:3", "docker.io/library/alpine:3"];
    assert_eq!(ask(conf, "alpine:3").unwrap(), tagged);
    let pinned = [library("~!all.io/hub"), library("~pinned.io"), library("docker.io")];
    assert_eq!(ask(conf, &format!("alpine:3@{digest}")).unwrap(), pinned);
    assert_eq!(ask(conf, "quay.io/a:1").unwrap(), ["!quay.io/a:1"]);
    let pinned = [format!("~pinned.io/a@{digest}"), format!("!quay.io/a@{digest}")];
    assert_eq!(ask(conf, &format!("quay.io/a@{digest}")).unwrap(), pinned);
}

#[test]
fn what_is_blocked_stays_blocked_however_it_is_written() {
    let conf = "
        [aliases]
        short = 'bad.io/x'
        [[registry]]
        prefix = 'bad.io'
        blocked = true
        [[registry]]
        prefix = '*.bad.org'
        blocked = true
        [[registry]]
        prefix = 'bad.io/but/good'
        [[registry]]
        prefix = 'quay.io/a/b:1'
        blocked = true
        [[registry]]
        prefix = 'docker.io/library/evil'
        blocked = true
    ";
    for (reference, prefix) in [
        ("bad.io/x", "bad.io"),
        ("BAD.io/x", "bad.io"),
        ("bad.io:443/x", "bad.io"),
        ("short", "bad.io"),
        ("a.bad.org/x", "*.bad.org"),
        ("a.bad.org:443/x", "*.bad.org"),
        ("quay.io/a/b:1", "quay.io/a/b:1"),
        (&format!("quay.io/a/b:1@{}", digest()), "quay.io/a/b:1"),
        ("evil", "docker.io/library/evil"),
        ("index.docker.io/evil", "docker.io/library/evil"),
    ] {
        let error = ask(conf, reference).unwrap_err();
        assert!(error.contains("blocked") && error.contains(&format!("{prefix:?}")), "{reference}: {error}");
    }
    assert_eq!(ask(conf, "bad.io/but/good:1").unwrap(), ["bad.io/but/good:1"]);
    assert_eq!(ask(conf, "quay.io/a/b:11").unwrap(), ["quay.io/a/b:11"]);
    assert!(ask(conf, "bad.io./x").is_err());
}

#[test]
fn a_short_name_is_looked_for_in_one_place() {
    let aliases = "[aliases]\nbusybox = 'quay.io/my/busybox'\n'a/b' = 'quay.io/b'\ngone = ''\n";
    assert_eq!(ask(aliases, "busybox:1").unwrap(), ["quay.io/my/busybox:1"]);
    assert_eq!(ask(aliases, "a/b").unwrap(), ["quay.io/b:latest"]);
    assert_eq!(ask(aliases, "gone:1").unwrap(), ["docker.io/library/gone:1"]);
    assert_eq!(ask(aliases, "docker.io/busybox:1").unwrap(), ["docker.io/library/busybox:1"]);
    let one = "unqualified-search-registries = ['own.io:5000']\nshort-name-mode = 'enforcing'\n";
    assert_eq!(ask(one, "busybox:1").unwrap(), ["own.io:5000/busybox:1"]);
    assert_eq!(ask(one, "docker.io/foo:1").unwrap(), ["docker.io/library/foo:1"]);
    assert_eq!(ask("unqualified-search-registries = ['docker.io']", "foo:1").unwrap(), ["docker.io/library/foo:1"]);
    let several = "unqualified-search-registries = ['own.io', 'docker.io']\n";
    assert!(ask(several, "busybox").unwrap_err().contains("full name"));
    assert_eq!(ask(several, "docker.io/foo:1").unwrap(), ["docker.io/library/foo:1"]);
    assert_eq!(ask(&format!("{several}{aliases}"), "busybox:1").unwrap(), ["quay.io/my/busybox:1"]);
}

#[test]
fn a_rule_makes_no_other_image_of_one() {
    let pinned = format!("h.io/app@{}", digest());
    for (prefix, location, reference) in [
        ("h.io/app", "m.io", "h.io/app:5000"),    // the tag would become a port
        ("h.io/app:1", "m.io/app", "h.io/app:1"), // the tag would be lost
        (&pinned, "m.io/app:1", &pinned),         // and here the digest
        ("h.io", "m.io/app:1", "h.io/app:1"),     // two tags
        ("*.h.io", "m.io/app:1", "a.h.io/x:1"),
    ] {
        let error = ask(&rule(prefix, location), reference).unwrap_err();
        assert!(error.contains(prefix), "{prefix} {location}: {error}");
    }
    let kept = ask(&rule("h.io/app:1", "m.io/app:2"), &format!("h.io/app:1@{}", digest())).unwrap();
    assert_eq!(kept, [format!("m.io/app@{}", digest())]);
}

#[test]
fn what_is_not_understood_is_refused_by_name_and_line() {
    for (conf, expected) in [
        ("\nsearch = ['a.io']", &["line 2", "search"][..]),
        ("[registries.search]\nregistries = ['a.io']", &["line 1", "registries"]),
        ("[[registry]]\nlocation = 'a.io'\n\nblock = true", &["line 4", "block"]),
        ("[[registry]]\nlocation = 'a.io'\n[[registry.mirror]]\nlocation = 'b.io'\nskip = 1", &["line 5", "skip"]),
        ("[[registry]]\nlocation = 'a.io'\nblocked = 'yes'", &["line 3"]),
        (
            "[[registry]]\nlocation = 'a.io'\n[[registry.mirror]]\nlocation = 'b.io'\npull-from-mirror = 'x'",
            &["line 5"],
        ),
        ("short-name-mode = 'guess'", &["line 1", "guess"]),
        ("credential-helpers = ['ecr-login']", &["credential-helpers", "ecr-login"]),
        ("[[registry]]\ninsecure = true", &["neither prefix nor location"]),
        ("[[registry]]\nlocation = 'https://a.io'", &["https://a.io", "scheme"]),
        ("[[registry]]\nprefix = 'library/x'\nblocked = true", &["library/x", "host"]),
        ("[[registry]]\nprefix = '*.a.io/x'\nlocation = 'b.io'", &["*.a.io/x"]),
        ("[[registry]]\nprefix = 'a.*'\nlocation = 'b.io'", &["a.*"]),
        ("[[registry]]\nlocation = 'a.io'\n[[registry]]\nlocation = 'A.io/'", &["two rules", "a.io"]),
        (
            "[[registry]]\nlocation = 'a.io'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'b.io'\npull-from-mirror = 'all'",
            &["a.io", "exclude"],
        ),
        ("unqualified-search-registries = ['a.io/x']", &["unqualified-search-registries", "a.io/x"]),
        ("[aliases]\n'a.io/x' = 'b.io/x'", &["alias", "a.io/x"]),
        ("[aliases]\nx = 'y'", &["alias", "x"]),
        ("[aliases]\nx = 'b.io/x:1'", &["alias", "x"]),
        ("a = [", &["line 1"]),
    ] {
        let error = Registries::parse(conf).expect_err(conf).to_string();
        assert!(
            error.starts_with("registries.conf: ")
                && !error.contains('\n')
                && expected.iter().all(|part| error.contains(part)),
            "{conf}: {error}"
        );
    }
    assert!(Registries::parse(&" ".repeat(MAX_FILE + 1)).is_err());
}

proptest! {
    #[test]
    fn any_file_and_any_name_end_in_an_answer(text: String, name: String) {
        let _ = Registries::parse(&text).unwrap_or_default().endpoints(&name);
    }

    #[test]
    fn any_rule_leads_to_its_location_or_nowhere(
        prefix in r"(\*\.)?[ab]\.[ab](:1)?(/[ab]){0,2}(:[ab])?", location in "m.io(/[ab]){0,2}(:[ab])?",
        name in r"([ab]\.){1,2}[ab](:1)?(/[ab]){1,3}(:[ab])?",
    ) {
        if let Ok(registries) = Registries::parse(&rule(&prefix, &location)) {
            let asked = Name::parse(&name).map(|name| name.versioned().to_string());
            if let Ok(ends) = registries.endpoints(&name) {
                prop_assert_eq!(ends.len(), 1);
                let there = &ends[0].reference;
                prop_assert!(Ok(there) == asked.as_ref().map_err(drop) || there.starts_with("m.io/"), "{}", there);
            }
        }
    }
}
