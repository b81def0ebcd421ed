//! Image references, completed the way people expect: `alpine` is `docker.io/library/alpine:latest`.
//!
//! Only what the host must know is parsed: the registry, to find its credentials. Whether the rest is well formed is
//! for the guest and the registry to say, but nothing that is surely wrong is sent there.

use std::fmt;
use std::str::FromStr;

/// The registry that a reference without one means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Longer names are refused by registries.
const MAX_LENGTH: usize = 4096;

/// A complete image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is no image reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("image reference {text:?}: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Host, or host and port, of the registry.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        // With a digest a tag says nothing more, and some registry clients refuse both.
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, tag) => write!(f, ":{}", tag.as_deref().unwrap_or("latest")),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError { text: text.chars().take(200).collect(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > MAX_LENGTH {
        return Err("it is too long");
    }
    let text = text.strip_prefix("docker://").unwrap_or(text);
    if text.contains("://") {
        return Err("write it without a scheme, as in registry.example/name:tag");
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(checked_digest(digest)?)),
        None => (text, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(checked_tag(tag)?)),
        _ => (name, None),
    };
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest.to_owned()),
        Some(_) => (DEFAULT_REGISTRY, name.to_owned()),
        None => (DEFAULT_REGISTRY, format!("library/{name}")),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let repository = match repository.split_once('/') {
        None if registry == DEFAULT_REGISTRY => format!("library/{repository}"),
        _ => repository,
    };
    check_repository(&repository)?;
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

/// The first part names a registry if it cannot be a part of a repository's name.
fn is_registry(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    let good = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    if repository.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("names of repositories are lower case");
    }
    if repository.split('/').all(good) { Ok(()) } else { Err("the repository's name is malformed") }
}

fn checked_tag(tag: &str) -> Result<String, &'static str> {
    let good = tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if good && (1..=128).contains(&tag.len()) && !tag.starts_with(['.', '-']) {
        Ok(tag.to_owned())
    } else {
        Err("the tag is malformed")
    }
}

fn checked_digest(digest: &str) -> Result<String, &'static str> {
    let hex = |text: &str, len| text.len() == len && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    match digest.split_once(':') {
        Some(("sha256", text)) if hex(text, 64) => Ok(digest.to_owned()),
        Some(("sha512", text)) if hex(text, 128) => Ok(digest.to_owned()),
        _ => Err("the digest is malformed (sha256: and 64 hexadecimal digits)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_completed() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let cases = [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("alpine:3.22", "docker.io/library/alpine:3.22".to_owned()),
            ("docker.io/alpine", "docker.io/library/alpine:latest".to_owned()),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest".to_owned()),
            ("team/app", "docker.io/team/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("10.0.2.2:5000/a/b:1", "10.0.2.2:5000/a/b:1".to_owned()),
            ("registry.example:443/app", "registry.example:443/app:latest".to_owned()),
            ("docker://quay.io/a/b", "quay.io/a/b:latest".to_owned()),
            (&format!("quay.io/a/b:tag@{digest}"), format!("quay.io/a/b@{digest}")),
        ];
        for (text, complete) in cases {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), complete, "{text}");
        }
    }

    #[test]
    fn the_registry_is_known() {
        for (text, registry) in [("alpine", "docker.io"), ("10.0.2.2:5000/x", "10.0.2.2:5000"), ("a/b", "docker.io")] {
            assert_eq!(text.parse::<Reference>().unwrap().registry(), registry);
        }
    }

    #[test]
    fn what_is_surely_wrong_is_refused() {
        let long = "a".repeat(5000);
        for text in
            ["", "Alpine", "a b", "alpine:", "alpine:-x", "alpine@sha256:12", "https://x.y/z", "a//b", "x.y/", &long]
        {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
