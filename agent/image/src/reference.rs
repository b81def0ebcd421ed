//! The name of an image, as far as it must be understood here.

use crate::error::{Error, Kind, Result, quoted};

/// The longest reference.
pub(crate) const MAX_LENGTH: usize = 1024;

/// What a reference without a registry means, and what some clients write for it.
pub(crate) const DEFAULT_REGISTRY: &str = "docker.io";
pub(crate) const DEFAULT_REGISTRY_ALIAS: &str = "index.docker.io";

/// The longest path of a repository, and the longest tag (distribution specification, "Pulling manifests").
pub(crate) const MAX_PATH: usize = 255;
pub(crate) const MAX_TAG: usize = 128;

/// The bytes of a SHA-256 digest.
pub(crate) type Sha256 = [u8; 32];

/// Whether it names an image on this machine, for the command line: `oci:PATH[:NAME]`, `oci-archive:PATH[:NAME]` or skopeo's `dir:PATH`.
pub(crate) fn is_local(reference: &str) -> bool {
    ["oci:/", "oci-archive:/", "dir:/"].iter().any(|start| reference.starts_with(start))
}

/// Refuses what can't be the name of an image, before any of it reaches another program.
pub(crate) fn check(reference: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-/:@[]+".contains(c);
    if is_local(reference) && !reference.contains(['\0', '\n']) {
        return Ok(());
    }
    let first = reference.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[');
    if !first || reference.len() > MAX_LENGTH || !reference.chars().all(legal) {
        let shown: String = reference.chars().take(80).collect();
        return Err(Error::new(Kind::BadRequest, format!("{shown:?} is no image reference (registry/name:tag)")));
    }
    if let Some((_, digest)) = reference.split_once('@') {
        sha256(digest).map_err(|error| Error::new(Kind::BadRequest, format!("{reference}: {error}")))?;
    }
    Ok(())
}

/// The registry of an image: what stands before the first slash, if it looks like a host.
pub fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if is_host(host) => host,
        _ => DEFAULT_REGISTRY,
    }
}

/// Whether the first part of a reference is a host, and not the start of a path on the default registry.
pub(crate) fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

/// What to open. A digest says all, and skopeo refuses a tag beside it, so the tag goes.
pub(crate) fn transport(reference: &str) -> String {
    if is_local(reference) {
        return reference.into();
    }
    let Some((name, digest)) = reference.split_once('@') else {
        return format!("docker://{reference}");
    };
    let (path, last) = name.rsplit_once('/').map_or(("", name), |(path, last)| (path, last));
    let last = last.split_once(':').map_or(last, |(last, _)| last);
    let slash = if path.is_empty() { "" } else { "/" };
    format!("docker://{path}{slash}{last}@{digest}")
}

/// The bytes of a `sha256:` digest.
pub(crate) fn sha256(digest: &str) -> Result<Sha256> {
    let text = digest.strip_prefix("sha256:").filter(|text| !text.contains(|c: char| c.is_ascii_uppercase()));
    text.and_then(|text| hex::decode(text).ok())
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Error::bad_image(format!("{} is no sha256 digest", quoted(digest))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_plain_text_without_surprises() {
        let pinned = format!("ghcr.io/a@sha256:{}", "0a".repeat(32));
        for good in ["alpine", "10.0.2.2:5000/a/b:1", "[::1]:5000/a", &pinned] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "-o", "a b", "a\nb", "/a", "a;b", "a@sha256:00", "a@", &"a".repeat(1025)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_registry_of_a_reference_is_a_host() {
        assert_eq!(registry("alpine"), "docker.io");
        assert_eq!(registry("library/alpine"), "docker.io");
        assert_eq!(registry("localhost:5000/a"), "localhost:5000");
    }

    #[test]
    fn a_tag_beside_a_digest_is_left_out() {
        assert_eq!(transport("h:5000/a:1"), "docker://h:5000/a:1");
        assert_eq!(transport("h:5000/a:1@sha256:0"), "docker://h:5000/a@sha256:0");
        assert_eq!(transport("h:5000/a@sha256:0"), "docker://h:5000/a@sha256:0");
        assert_eq!(transport("a:1@sha256:0"), "docker://a@sha256:0");
    }
}
