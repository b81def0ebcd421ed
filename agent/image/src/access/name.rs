//! Names of images and places, taken apart and checked.

use std::fmt;
use std::net::Ipv6Addr;

use crate::error::{Error, Kind, Result};
use crate::reference::{self, DEFAULT_REGISTRY, DEFAULT_REGISTRY_ALIAS, MAX_PATH, MAX_TAG};

/// The most bytes of a host's name (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;

/// An image's name. The text is `host/path:tag`, or `host/path@digest` if there is a digest: it says all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// The host and its port; `None` if the name is a short one.
    pub(super) host: Option<String>,
    pub(super) path: String,
    pub(super) tag: Option<String>,
    pub(super) digest: Option<String>,
}

fn bad(text: &str, reason: &str) -> Error {
    let shown: String = text.chars().take(200).collect();
    Error::new(Kind::BadRequest, format!("{shown:?} {reason}"))
}

impl Name {
    /// Hosts become lower case, Docker's registry gets its one name, and its official images their directory.
    pub(super) fn parse(text: &str) -> Result<Name> {
        reference::check(text)?;
        let (host, rest) = match text.split_once('/') {
            Some((first, rest)) if looks_like_host(first) => (Some(host(first)?), rest),
            _ => (None, text),
        };
        let mut name = Name { host, ..tail(rest)? };
        if name.host.as_deref() == Some(DEFAULT_REGISTRY) {
            name.make_official();
        }
        Ok(name)
    }

    /// The name on `host`, if it is a short one.
    pub(super) fn on(mut self, host: &str) -> Name {
        if self.host.is_none() {
            self.host = Some(host.to_string());
            if host == DEFAULT_REGISTRY {
                self.make_official();
            }
        }
        self
    }

    fn make_official(&mut self) {
        if !self.path.contains('/') {
            self.path.insert_str(0, "library/");
        }
    }

    /// Says which one it is, as programs do that are asked for no version.
    pub(super) fn versioned(mut self) -> Name {
        if self.digest.is_none() {
            self.tag.get_or_insert_with(|| "latest".to_string());
        }
        self
    }

    /// `host/path`
    pub(super) fn repository(&self) -> String {
        self.host.iter().map(|host| format!("{host}/")).chain([self.path.clone()]).collect()
    }

    /// All the texts that a rule may be about: with its tag and its digest, and with its digest alone.
    pub(super) fn forms(&self) -> Vec<String> {
        let (repository, part) = (self.repository(), |mark, part: &Option<String>| {
            part.as_ref().map_or_else(String::new, |part| format!("{mark}{part}"))
        });
        let (tag, digest) = (part(':', &self.tag), part('@', &self.digest));
        let mut forms = vec![format!("{repository}{tag}{digest}")];
        if !tag.is_empty() && !digest.is_empty() {
            forms.push(format!("{repository}{digest}"));
        }
        forms
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository())?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// Where images are: `host[:port][/path[:tag][@digest]]`, in its one form.
pub(super) fn place(text: &str) -> Result<String> {
    if text.contains("://") {
        return Err(bad(text, "must be written without a scheme (host/path)"));
    }
    let text = text.strip_suffix('/').unwrap_or(text);
    let (first, rest) = text.split_once('/').map_or((text, None), |(first, rest)| (first, Some(rest)));
    if !looks_like_host(first) {
        return Err(bad(text, "begins with no host (it needs a dot or a port)"));
    }
    let host = host(first)?;
    let Some(rest) = rest else { return Ok(host) };
    tail(rest)?;
    Ok(format!("{host}/{rest}"))
}

/// What stands before a slash is a host if it could be nothing else.
fn looks_like_host(text: &str) -> bool {
    text.contains(['.', ':']) || text.eq_ignore_ascii_case("localhost")
}

/// `path[:tag][@digest]`
fn tail(text: &str) -> Result<Name> {
    let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
    let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let whole = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|c| legal(*c))
            && bytes.last().is_some_and(|c| legal(*c))
            && bytes.iter().all(|c| legal(*c) || b"._-".contains(c))
    };
    if path.len() > MAX_PATH || !path.split('/').all(whole) {
        return Err(bad(text, "is no image's name (lower case letters, digits, and '.', '_', '-' between them)"));
    }
    let inner = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    if tag.is_some_and(|tag| {
        tag.is_empty() || tag.len() > MAX_TAG || tag.starts_with(['.', '-']) || !tag.bytes().all(inner)
    }) {
        return Err(bad(text, "has a tag that is none"));
    }
    if let Some(digest) = digest {
        reference::sha256(digest).map_err(|error| bad(text, &format!("has a digest that is none: {error}")))?;
    }
    Ok(Name { host: None, path: path.to_string(), tag: tag.map(str::to_string), digest: digest.map(str::to_string) })
}

/// A host and its port, in lower case.
pub(super) fn host(text: &str) -> Result<String> {
    let lower = text.to_ascii_lowercase();
    let (name, port) = split_port(&lower);
    let label = |label: &str| {
        let legal = label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        !label.is_empty() && legal && !label.starts_with('-') && !label.ends_with('-')
    };
    let known = match name.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => name.len() <= MAX_HOST && name.split('.').all(label),
    };
    let digits =
        |port: &str| port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if !known || port.is_some_and(|port| !digits(port)) {
        return Err(bad(text, "is no host (name, or name:port)"));
    }
    Ok(if lower == DEFAULT_REGISTRY_ALIAS { DEFAULT_REGISTRY.to_string() } else { lower })
}

/// A host's name, and its port if there is one.
pub(super) fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        // Colons are a part of an IPv6 address, too.
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_has_one_form() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, form) in [
            ("alpine", "alpine"),
            ("library/alpine:3", "library/alpine:3"),
            ("docker.io/alpine", "docker.io/library/alpine"),
            ("index.docker.io/a/b:1", "docker.io/a/b:1"),
            ("GHCR.io/a", "ghcr.io/a"),
            ("LOCALHOST/a", "localhost/a"),
            ("localhost:5000", "localhost:5000"),
            ("[::1]:5000/a:B", "[::1]:5000/a:B"),
            (&format!("h:5000/a:1@{digest}"), &format!("h:5000/a@{digest}")),
        ] {
            assert_eq!(Name::parse(text).unwrap().to_string(), form, "{text}");
        }
        assert_eq!(Name::parse("localhost:5000").unwrap().tag.as_deref(), Some("5000"));
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_name() {
        for text in [
            "h.io/../a",
            "h.io/a/./b",
            "h.io/a//b",
            "h.io/a/",
            "h.io//a",
            "h.io./a",
            "h..io/a",
            "h.io:0/a",
            "h.io:/a",
            "h.io:99999/a",
            "h.io:+1/a",
            "-h.io/a",
            "h.io/A",
            "h.io/a:",
            "h.io/a:.x",
            "h.io/a:b:c",
            "h.io/a+b",
            "[::1/a",
            "[x:]:1/a",
            "h.io/",
            "u:p@h.io/a",
            "h.io/a@sha256:0",
        ] {
            assert!(Name::parse(text).is_err(), "{text}");
        }
        for text in ["https://h.io", "host", "host/a", "h.io/../a", "h.io//", "h.io/a?b", "h.io/a@sha256:0", ""] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_form_of_a_name_is_its_own_form(text in "([a-cA-C.:]{1,6}/)?[a-c./:@-]{1,12}") {
            if let Ok(name) = Name::parse(&text) {
                prop_assert_eq!(Name::parse(&name.to_string()).unwrap(), name);
            }
        }

        #[test]
        fn any_text_ends_in_an_answer(text: String) {
            let _ = (Name::parse(&text), place(&text), host(&text));
        }
    }
}
