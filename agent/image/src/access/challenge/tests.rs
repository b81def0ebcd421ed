use super::*;
use proptest::prelude::*;

/// `scheme name=value;name=value`
fn shown(headers: &[&str]) -> Vec<String> {
    let parameters = |all: &[(String, String)]| {
        all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(";")
    };
    parse(headers).iter().map(|one| format!("{} {}", one.scheme, parameters(&one.parameters))).collect()
}

#[test]
fn challenges_are_taken_apart() {
    for (headers, expected) in [
        (
            &[r#"Bearer realm="https://a.io/token",service="a.io",scope="repository:x:pull,push""#][..],
            &["bearer realm=https://a.io/token;service=a.io;scope=repository:x:pull,push"][..],
        ),
        (&["Basic realm=a", "BEARER Realm=\"b\""], &["basic realm=a", "bearer realm=b"]),
        (&[r#"Basic realm="a", Bearer realm="b", service=c"#], &["basic realm=a", "bearer realm=b;service=c"]),
        (
            &[r#"Newauth realm="apps", type=1, title="Login to \"apps\"", Basic realm="x""#],
            &[r#"newauth realm=apps;type=1;title=Login to "apps""#, "basic realm=x"],
        ),
        (&["Negotiate, Basic realm=a"], &["negotiate ", "basic realm=a"]),
        (&["Negotiate YII+/==, Basic realm=a"], &["negotiate =YII+/==", "basic realm=a"]),
        (&["Negotiate a="], &["negotiate =a="]),
        (&[" ,, Basic  realm = \"a\" ,, ,charset=\"UTF-8\" , Other"], &["basic realm=a;charset=UTF-8", "other "]),
        (&[r#"Bearer realm="a,b=\"c\\", x="""#], &[r#"bearer realm=a,b="c\;x="#]),
        (&["", " ", ","], &[]),
        (&["Basic realm=\"a"], &[]),
        (&["Basic realm=\"a\\"], &[]),
        (&["Basic realm=\"a\r\nX: y\""], &[]),
        (&["=", "\"x\"", "Basic=a", "Basic \u{e9}"], &[]),
        (&["Negotiate, Basic realm=\"a", "Bearer realm=b"], &["negotiate ", "bearer realm=b"]),
    ] {
        assert_eq!(shown(headers), expected, "{headers:?}");
    }
}

#[test]
fn a_header_has_bounds() {
    assert_eq!(parse(&["Basic, ".repeat(100).as_str()]).len(), MAX_CHALLENGES);
    assert!(parse(&[format!("Basic {}", "a=b,".repeat(100)).as_str()]).is_empty());
    assert!(parse(&[format!("Basic a=\"{}\"", "x".repeat(MAX_TEXT)).as_str()]).is_empty());
}

fn url(parameters: &[(&str, &str)], insecure: bool) -> Result<String> {
    let parameters = parameters.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    bearer_url(&Challenge { scheme: "bearer".to_string(), parameters }, "a/b", insecure)
}

#[test]
fn the_address_of_tokens_is_put_together() {
    let scope = "scope=repository%3Aa%2Fb%3Apull";
    for (realm, service, expected) in [
        ("https://a.io/token", Some("a.io"), format!("https://a.io/token?service=a.io&{scope}")),
        ("HTTPS://a.io:5000", None, format!("https://a.io:5000?{scope}")),
        ("https://[::1]/t?x=1", Some("my service"), format!("https://[::1]/t?x=1&service=my%20service&{scope}")),
        ("https://a.io/t?", None, format!("https://a.io/t?{scope}")),
        ("https://a.io/t?x&", None, format!("https://a.io/t?x&{scope}")),
        ("https://a.io/t", Some("a&scope=x#\u{e9}"), format!("https://a.io/t?service=a%26scope%3Dx%23%C3%A9&{scope}")),
    ] {
        let parameters: Vec<_> = [("realm", Some(realm)), ("service", service), ("scope", Some("repository:a/b:push"))]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        assert_eq!(url(&parameters, false).unwrap(), expected);
    }
    assert!(url(&[("realm", "http://a.io/token")], true).unwrap().starts_with("http://a.io/token?"));
}

#[test]
fn a_token_is_asked_for_at_plain_addresses_only() {
    for realm in [
        "",
        "a.io/token",
        "//a.io",
        "http://a.io/token",
        "file:///etc/passwd",
        "ftp://a.io",
        "https://",
        "https:///x",
        "https://?x",
        "https://u:p@a.io/",
        "https://a.io@evil.io/",
        "https://a.io#x",
        "https://a.io\\@evil.io/",
        "https://a.io/ x",
        "https://a.io/\r\nHost: b",
        "https://a.io:0/",
        "https://a.io:x/",
        "https://\u{e9}.io/",
        " https://a.io",
    ] {
        assert_eq!(url(&[("realm", realm)], false).expect_err(realm).kind, Kind::Unauthorized, "{realm}");
    }
    assert!(url(&[("service", "a")], false).is_err());
    assert!(url(&[("realm", "https://a.io"), ("realm", "https://b.io")], false).is_err());
    let basic = Challenge { scheme: "basic".to_string(), parameters: vec![("realm".into(), "https://a.io".into())] };
    assert!(bearer_url(&basic, "a", false).is_err());
}

proptest! {
    #[test]
    fn any_header_ends_in_an_answer(text: String, odd in "[a=\"\\\\, \u{e9}B]{0,40}", repository: String) {
        for challenge in parse(&[&text, &odd, &format!("Bearer realm=\"https://{text}\""), &format!("Bearer {odd}")]) {
            prop_assert!(!challenge.scheme.is_empty());
            if let Ok(url) = bearer_url(&challenge, &repository, true) {
                prop_assert!(url.is_ascii() && !url.contains([' ', '#', '\n']));
            }
        }
    }

    #[test]
    fn what_is_quoted_comes_out_as_it_went_in(value in "[ -~\u{e9}]{0,30}", token in "[a-z0-9]{1,9}") {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
        let header = format!("X a=\"{quoted}\", b={token}, Y c=\"{quoted}\"");
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        prop_assert_eq!(parse(&[&header]), [
            Challenge { scheme: "x".to_string(), parameters: vec![pair("a", &value), pair("b", &token)] },
            Challenge { scheme: "y".to_string(), parameters: vec![pair("c", &value)] },
        ]);
    }
}
