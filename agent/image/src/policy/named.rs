//! The full name of an image: `busybox` is `docker.io/library/busybox`.

use std::fmt;
use std::net::Ipv6Addr;

use crate::reference::{self, DEFAULT_REGISTRY, DEFAULT_REGISTRY_ALIAS, MAX_LENGTH, MAX_PATH, MAX_TAG};

/// An image's name: where its repository is, and which of its images is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text names no image.
#[derive(Debug, thiserror::Error)]
#[error("{name:?} is no image name: {why}")]
pub struct BadName {
    name: String,
    why: &'static str,
}

impl Named {
    /// Reads a name as it is written: no tag is added.
    ///
    /// A host in capitals is refused. It would lead to the same registry, past the scope that is written for it.
    ///
    /// # Errors
    /// Not the name of an image.
    pub fn parse(text: &str) -> Result<Named, BadName> {
        let bad = |why| BadName { name: text.chars().take(200).collect(), why };
        if text.len() > MAX_LENGTH {
            return Err(bad("it is too long"));
        }
        let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
        if digest.is_some_and(|digest| reference::sha256(digest).is_err()) {
            return Err(bad("its digest is not sha256: and 64 digits"));
        }
        if rest.len() == 64 && rest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad("it is the identifier of an image somewhere"));
        }
        let host = reference::registry(rest);
        let path = rest.strip_prefix(host).and_then(|rest| rest.strip_prefix('/')).unwrap_or(rest);
        let (path, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
        if !is_valid_host(host) {
            return Err(bad("its registry is not a host, or not in lower case"));
        }
        if !is_valid_path(path) {
            return Err(bad("its repository is not lower case words between slashes"));
        }
        if !tag.is_none_or(is_valid_tag) {
            return Err(bad("its tag has characters that tags have not"));
        }
        let host = if host == DEFAULT_REGISTRY_ALIAS { DEFAULT_REGISTRY } else { host };
        let library = if host == DEFAULT_REGISTRY && !path.contains('/') { "library/" } else { "" };
        Ok(Named {
            host: host.into(),
            path: format!("{library}{path}"),
            tag: tag.map(Into::into),
            digest: digest.map(Into::into),
        })
    }

    /// What a pull of this name asks for: the digest, else the tag, else the tag `latest`. A tag beside a digest
    /// decides nothing, so it must not lead to another scope either.
    pub(crate) fn pulled(&self) -> Named {
        let tag = match (&self.tag, &self.digest) {
            (_, Some(_)) => None,
            (None, None) => Some("latest".to_string()),
            (tag, None) => tag.clone(),
        };
        Named { tag, ..self.clone() }
    }

    /// The repository's path on its host.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Host and path: the repository.
    pub(super) fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    pub(super) fn is_same_repository(&self, other: &Named) -> bool {
        self.host == other.host && self.path == other.path
    }

    /// Whether it says no more than the repository.
    pub(super) fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    pub(super) fn has_tag(&self) -> bool {
        self.tag.is_some()
    }

    /// The repository alone.
    pub(super) fn without_tag(&self) -> Named {
        Named { tag: None, digest: None, ..self.clone() }
    }

    /// The same tag and digest in another repository, which is written out in full; `None` if that makes no name.
    pub(super) fn moved_to(&self, repository: &str) -> Option<Named> {
        let moved = Named::parse(repository).ok().filter(|named| named.is_name_only())?;
        let full = moved.repository() == repository;
        full.then(|| Named { tag: self.tag.clone(), digest: self.digest.clone(), ..moved })
    }

    /// The scopes that hold for it, the closest first: itself, its repository, what that is in, the host, and the
    /// domains the host is in.
    pub(crate) fn scopes(&self) -> Vec<String> {
        let mut scopes = vec![self.to_string()];
        let mut name = Some(self.repository());
        while let Some(scope) = name {
            name = scope.rsplit_once('/').map(|(parent, _)| parent.to_string());
            scopes.push(scope);
        }
        let mut domain = self.host.split(':').next().unwrap_or_default();
        while let Some((_, parent)) = domain.split_once('.') {
            scopes.push(format!("*.{parent}"));
            domain = parent;
        }
        scopes
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// Whether a scope can hold for any image: one that can't is a mistake, and would leave open what it was to close.
pub(super) fn is_scope(text: &str) -> bool {
    if let Some(domain) = text.strip_prefix("*.") {
        return !domain.contains(':') && is_valid_host(domain);
    }
    let is_full = |named: Named| !named.is_name_only() && named.pulled().to_string() == text;
    text.is_empty() || is_namespace(text) || Named::parse(text).is_ok_and(is_full)
}

/// Whether the text is a host, or a host and the start of a path.
pub(super) fn is_namespace(text: &str) -> bool {
    let (host, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
    let host_is_good = reference::is_host(host) && is_valid_host(host) && host != DEFAULT_REGISTRY_ALIAS;
    host_is_good && path.is_none_or(is_valid_path)
}

fn is_valid_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, rest)) => match rest.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None => return false,
        },
        None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
    };
    let is_number = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_label = |label: &str| {
        let legal = label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        legal && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    // An address has many spellings; one is enough.
    let is_address = || name.parse::<Ipv6Addr>().is_ok_and(|address| address.to_string() == name);
    let good = if text.starts_with('[') { is_address() } else { name.split('.').all(is_label) };
    good && port.is_none_or(is_number)
}

fn is_valid_path(text: &str) -> bool {
    text.len() <= MAX_PATH && text.split('/').all(is_valid_component)
}

/// Words of small letters and digits, one dot, one or two underscores or any hyphens between them.
fn is_valid_component(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = text.starts_with(is_word) && text.ends_with(is_word);
    ends && text.split(is_word).all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|byte| byte == b'-'))
}

fn is_valid_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let legal = text.chars().all(|c| is_word(c) || c == '.' || c == '-');
    legal && text.starts_with(is_word) && text.len() <= MAX_TAG
}
