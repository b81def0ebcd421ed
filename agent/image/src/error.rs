//! Why a pull ended.

use serde::{Deserialize, Serialize};

/// Whose fault it was, and so what a caller may do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The request makes no sense.
    BadRequest,
    /// The registry has no such image.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry's certificate is signed by nobody that is trusted.
    UntrustedCertificate,
    /// The registry can't be reached.
    Unreachable,
    /// The registry stopped sending.
    Stalled,
    /// What came is not what its digest says.
    Corrupt,
    /// The image breaks the rules, or a limit.
    BadImage,
    /// The store is full.
    NoSpace,
    /// Something here failed.
    Internal,
}

/// An error with its kind.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    /// A failure of the system at `act`. A full disk is told apart, for it has another remedy.
    pub(crate) fn system(act: impl std::fmt::Display, error: impl Into<std::io::Error>) -> Error {
        let error = error.into();
        if error.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) {
            return Error::new(Kind::NoSpace, format!("{act}: the image store is full: give the VM more memory"));
        }
        Error::new(Kind::Internal, format!("{act}: {error}"))
    }
}

/// Sorts what skopeo says. Its texts are its own and its libraries'; what is not known stays as it is.
pub(crate) fn from_proxy(act: &str, text: &str) -> Error {
    let lower = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let (kind, advice) =
        if has(&["x509:", "certificate signed by unknown", "tls: failed to verify", "server gave http response"]) {
            (Kind::UntrustedCertificate, "is the registry's CA given?")
        } else if has(&[
            "unauthorized",
            "authentication required",
            "access to the resource is denied",
            "denied:",
            "invalid username/password",
        ]) {
            (Kind::Unauthorized, "are the credentials right, and may they pull this image?")
        } else if has(&["manifest unknown", "name unknown", "not found", "repository name not known"]) {
            (Kind::NotFound, "are the image's name and tag right?")
        } else if has(&[
            "connection refused",
            "no such host",
            "i/o timeout",
            "network is unreachable",
            "no route to host",
            "dial tcp",
        ]) {
            (Kind::Unreachable, "is the registry up, and does the guest reach it?")
        } else if has(&["does not match", "digest", "verification error"]) {
            (Kind::Corrupt, "the registry does not serve what the manifest names")
        } else if has(&["no image found", "unsupported", "choose an image for"]) {
            (Kind::BadImage, "is there an image for this platform?")
        } else if has(&["unexpected eof", "connection reset", "expected"]) {
            (Kind::Stalled, "the registry ended the transfer early; try again")
        } else {
            (Kind::Internal, "the registry client failed")
        };
    Error::new(kind, format!("{act}: {advice} ({})", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_registry_client_says_is_sorted() {
        for (text, kind) in [
            ("reading manifest 1 in h:5000/x: manifest unknown: manifest unknown", Kind::NotFound),
            ("reading manifest 1 in h:5000/x: unauthorized: authentication required", Kind::Unauthorized),
            ("pinging container registry h: x509: certificate signed by unknown authority", Kind::UntrustedCertificate),
            ("pinging container registry h: dial tcp 1.2.3.4:443: connect: connection refused", Kind::Unreachable),
            ("corrupted blob, expecting sha256:aa, got sha256:bb: does not match", Kind::Corrupt),
            ("something else", Kind::Internal),
        ] {
            assert_eq!(from_proxy("open", text).kind, kind, "{text}");
        }
    }
}
