//! The name of an image, as far as it must be understood here.

use crate::error::{Error, Kind, Result};

/// The longest reference.
const MAX_LENGTH: usize = 1024;

/// What a reference without a registry means.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Refuses what can't be the name of an image, before any of it reaches another program.
pub(crate) fn check(reference: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-/:@[]+".contains(c);
    let first = reference.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[');
    if !first || reference.len() > MAX_LENGTH || !reference.chars().all(legal) {
        let shown: String = reference.chars().take(80).collect();
        return Err(Error::new(Kind::BadRequest, format!("{shown:?} is no image reference (registry/name:tag)")));
    }
    Ok(())
}

/// The registry: what stands before the first slash, if it looks like a host.
pub(crate) fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => DEFAULT_REGISTRY,
    }
}

/// The bytes of a `sha256:` digest.
pub(crate) fn sha256(digest: &str) -> Result<[u8; 32]> {
    let bytes = digest.strip_prefix("sha256:").and_then(|text| hex::decode(text).ok());
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Error::new(Kind::BadImage, format!("{digest:?} is no sha256 digest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_plain_text_without_surprises() {
        for good in ["alpine", "10.0.2.2:5000/a/b:1", "[::1]:5000/a", "ghcr.io/a@sha256:00"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "-o", "a b", "a\nb", "/a", "a;b", &"a".repeat(1025)] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert_eq!(registry("alpine"), "docker.io");
        assert_eq!(registry("localhost:5000/a"), "localhost:5000");
    }
}
