//! Why a pull ended.

use std::io;

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
    UntrustedCa,
    /// The registry can't be reached.
    Unreachable,
    /// The registry stopped sending.
    Stalled,
    /// What came is not what its digest says.
    Corrupt,
    /// The image is encrypted and no key opens it.
    Locked,
    /// The image breaks the rules, or a limit.
    BadImage,
    /// The image policy does not allow it.
    Denied,
    /// The store is full.
    NoSpace,
    /// Something here failed.
    Internal,
}

/// An error with its kind.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Whose fault it was.
    pub kind: Kind,
    /// What failed, and what to do.
    pub message: String,
}

/// The longest message. Strangers' texts come into it, also by way of a parser's errors, and other programs pass it on.
const MAX_MESSAGE: usize = 4 << 10;

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: bounded(message.into()) }
    }

    pub(crate) fn bad_image(message: impl Into<String>) -> Error {
        Error::new(Kind::BadImage, message)
    }

    /// A failure of the system at `act`. A full disk is told apart, for it has another remedy.
    pub(crate) fn system(act: impl std::fmt::Display, error: impl Into<io::Error>) -> Error {
        let error = error.into();
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Error::new(
                Kind::NoSpace,
                format!("{act}: the image store is full: give the VM more memory, or a larger scratch disk"),
            );
        }
        Error::new(Kind::Internal, format!("{act}: {error}"))
    }

    /// As our own server of the proxy's protocol says it, in at most `limit` bytes of text.
    pub(crate) fn to_wire(&self, limit: usize) -> String {
        let message = self.message.chars().scan(0, |length, c| {
            *length += c.len_utf8();
            (*length <= limit).then_some(c)
        });
        serde_json::json!({ "kind": self.kind, "message": message.collect::<String>() }).to_string()
    }

    /// What our own server said, wherever the client's library has put it.
    pub(crate) fn from_wire(text: &str) -> Option<Error> {
        #[derive(Deserialize)]
        struct Wire {
            kind: Kind,
            message: String,
        }
        let start = text.find("{\"kind\":")?;
        let Wire { kind, message } = serde_json::Deserializer::from_str(text.get(start..)?).into_iter().next()?.ok()?;
        Some(Error::new(kind, message))
    }

    /// The same error, with what it is about.
    pub(crate) fn context(self, what: impl std::fmt::Display) -> Error {
        Error { message: bounded(format!("{what}: {}", self.message)), ..self }
    }

    /// What a reader of ours failed with: an error of ours that came through it, or the data's fault.
    pub(crate) fn reading(act: &str, error: io::Error) -> Error {
        match error.downcast::<Error>() {
            Ok(own) => own,
            Err(error) => Error::bad_image(format!("{act}: {error}")),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::other(error)
    }
}

fn bounded(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    message
}

/// A stranger's text for a message: short, and on one line. (A precision does nothing to `{:?}`.)
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(100).collect::<String>())
}

/// What skopeo and its libraries say, in lower case, and what it means. The first row that fits counts; the order
/// matters, for texts quote each other.
const MEANINGS: [(Kind, &str, &[&str]); 8] = [
    (
        Kind::UntrustedCa,
        "nobody this guest trusts has signed the registry's certificate: give its CA (--tls-ca FILE)",
        &["x509:", "tls: failed to verify", "certificate signed by unknown", "tls: bad certificate"],
    ),
    (
        Kind::Unreachable,
        "the registry speaks no TLS: is the address right?",
        &["server gave http response to https client", "first record does not look like a tls handshake"],
    ),
    (
        Kind::Unauthorized,
        "the registry refuses: are the user name and password right, and may they pull this image?",
        &["unauthorized", "authentication required", "access to the resource is denied", "denied:", "forbidden"],
    ),
    (
        Kind::NotFound,
        "the registry has no such image: are its name and tag right?",
        &["manifest unknown", "name unknown", "repository name not known", "blob unknown", "404", "not found"],
    ),
    (
        Kind::Unreachable,
        "the registry can't be reached: is it up, and does the guest's network lead there?",
        &["connection refused", "no such host", "network is unreachable", "no route to host", "dial tcp", "lookup "],
    ),
    (
        Kind::BadImage,
        "there is no image for this machine",
        &["no image found", "choose an image for", "unsupported", "unknown mime", "invalid character"],
    ),
    (
        Kind::Corrupt,
        "the registry serves something else than the manifest names: push the image again",
        &["does not match", "corrupted", "verification error", "digest mismatch"],
    ),
    (
        Kind::Stalled,
        "the registry ended the transfer early: try again",
        &["unexpected eof", "connection reset", "broken pipe", "expected ", "timeout", "eof"],
    ),
];

/// Sorts what the server of the protocol says. Ours says it itself; skopeo's texts are its own and its libraries'; one that is not known is passed on as it is.
pub(crate) fn from_proxy(act: &str, text: &str) -> Error {
    if let Some(error) = Error::from_wire(text) {
        return error.context(act);
    }
    let lower = text.to_lowercase();
    let known = MEANINGS.iter().find(|(_, _, words)| words.iter().any(|word| lower.contains(word)));
    let (kind, meaning) = known.map_or((Kind::Internal, "the registry client failed"), |(kind, text, _)| (*kind, text));
    let said: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(1000).collect();
    Error::new(kind, format!("{act}: {meaning} [{said}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_registry_client_says_is_sorted() {
        for (text, kind) in [
            ("reading manifest 1 in h:5000/x: manifest unknown: manifest unknown", Kind::NotFound),
            ("reading manifest 1 in h:5000/x: unauthorized: authentication required", Kind::Unauthorized),
            ("pinging container registry h: x509: certificate signed by unknown authority", Kind::UntrustedCa),
            ("pinging container registry h: dial tcp 1.2.3.4:443: connect: connection refused", Kind::Unreachable),
            ("http: server gave HTTP response to HTTPS client", Kind::Unreachable),
            ("corrupted blob, expecting sha256:aa, got sha256:bb", Kind::Corrupt),
            ("reading blob: unexpected EOF", Kind::Stalled),
            ("creating temp directory: mkdir /var/tmp/x: permission denied", Kind::Internal),
            ("something else", Kind::Internal),
        ] {
            assert_eq!(from_proxy("open", text).kind, kind, "{text}");
        }
    }

    #[test]
    fn what_our_own_server_says_comes_through_the_clients_library() {
        let said = Error::new(Kind::NotFound, "no such {image}").to_wire(100);
        let error = from_proxy("open x", &format!("failed to invoke method OpenImage: {said}"));
        assert_eq!((error.kind, error.message.as_str()), (Kind::NotFound, "open x: no such {image}"));
    }

    #[test]
    fn a_message_is_one_line_whatever_the_client_says() {
        assert!(!from_proxy("open x", "a\nb\r\nc").message.contains(['\n', '\r']));
    }

    #[test]
    fn a_message_is_short_whatever_it_quotes() {
        let long = "ä\n".repeat(1 << 20);
        assert!(quoted(&long).len() < 400 && !quoted(&long).contains('\n'));
        let parser = serde_json::from_str::<u32>(&serde_json::json!(long).to_string()).unwrap_err();
        let error = Error::bad_image(parser.to_string());
        assert!(error.message.len() <= MAX_MESSAGE && error.context(long).message.len() <= MAX_MESSAGE);
        let json = serde_json::json!({ "kind": "Internal", "message": "m".repeat(1 << 20) }).to_string();
        assert_eq!(Error::from_wire(&json).unwrap().message.len(), MAX_MESSAGE);
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        assert_eq!(Error::system("write", rustix::io::Errno::NOSPC).kind, Kind::NoSpace);
        assert_eq!(Error::system("write", rustix::io::Errno::IO).kind, Kind::Internal);
    }
}
