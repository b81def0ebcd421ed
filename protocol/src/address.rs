//! Where an agent listens: `vsock://CID:PORT`, `unix:///path`, `unix://@name` and `hvsock:///path:PORT`.
//!
//! Text from a command line or a kernel parameter is parsed here once. The grammar is the one of Kata's clients: a CID of `-1`, or none,
//! stands for any.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The longest address that is parsed, in bytes. A unix socket's path is at most 107 bytes (unix(7)); hybrid paths add a port.
pub const MAX_LENGTH: usize = 256;

/// The vsock CID that stands for "any" when binding (VMADDR_CID_ANY, vsock(7)).
pub const CID_ANY: u32 = u32::MAX;

/// The vsock CID of a guest's host (VMADDR_CID_HOST, vsock(7)).
pub const CID_HOST: u32 = 2;

/// An agent's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// AF_VSOCK, through the kernel.
    Vsock {
        /// Context id of the VM, or [`CID_ANY`].
        cid: u32,
        /// Port.
        port: u32,
    },
    /// A unix socket by path.
    Unix(PathBuf),
    /// A unix socket in the abstract namespace, without the leading `@`.
    Abstract(String),
    /// A VMM's unix socket that leads to a guest's vsock port after a `CONNECT` line.
    Hybrid {
        /// The VMM's socket.
        path: PathBuf,
        /// The guest's port.
        port: u32,
    },
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text is longer than [`MAX_LENGTH`].
    #[error("address of {0} bytes is too long (at most {MAX_LENGTH})")]
    TooLong(usize),
    /// No known scheme.
    #[error("address {0:?}: expected vsock://CID:PORT, unix:///PATH, unix://@NAME or hvsock:///PATH:PORT")]
    Scheme(String),
    /// A number does not parse.
    #[error("address {address:?}: {what} {text:?} is not a number below 2^32")]
    Number {
        /// The whole address.
        address: String,
        /// `cid` or `port`.
        what: &'static str,
        /// The text in its place.
        text: String,
    },
    /// A path is relative, empty or holds a NUL.
    #[error("address {0:?}: the path must be absolute and without NUL")]
    Path(String),
    /// An abstract name is empty or holds a NUL.
    #[error("address {0:?}: the abstract name must not be empty or hold NUL")]
    Name(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.len() > MAX_LENGTH {
            return Err(AddressError::TooLong(text.len()));
        }
        if let Some(rest) = text.strip_prefix("vsock://") {
            let (cid, port) = rest.rsplit_once(':').ok_or_else(|| AddressError::Scheme(text.into()))?;
            let cid = match cid {
                "" | "-1" => CID_ANY,
                cid => number(text, "cid", cid)?,
            };
            return Ok(Self::Vsock { cid, port: number(text, "port", port)? });
        }
        if let Some(name) = text.strip_prefix("unix://@") {
            if name.is_empty() || name.contains('\0') {
                return Err(AddressError::Name(text.into()));
            }
            return Ok(Self::Abstract(name.into()));
        }
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Unix(absolute(text, path)?));
        }
        if let Some(rest) = text.strip_prefix("hvsock://") {
            let (path, port) = rest.rsplit_once(':').ok_or_else(|| AddressError::Scheme(text.into()))?;
            return Ok(Self::Hybrid { path: absolute(text, path)?, port: number(text, "port", port)? });
        }
        Err(AddressError::Scheme(text.into()))
    }
}

fn number(address: &str, what: &'static str, text: &str) -> Result<u32, AddressError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let error = || AddressError::Number { address: address.into(), what, text: text.into() };
    if digits { text.parse().map_err(|_| error()) } else { Err(error()) }
}

fn absolute(address: &str, path: &str) -> Result<PathBuf, AddressError> {
    if path.starts_with('/') && path.len() > 1 && !path.contains('\0') {
        Ok(path.into())
    } else {
        Err(AddressError::Path(address.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid: CID_ANY, port } => write!(f, "vsock://-1:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Abstract(name) => write!(f, "unix://@{name}"),
            Self::Hybrid { path, port } => write!(f, "hvsock://{}:{port}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_parses_and_prints_back() {
        for (text, address) in [
            ("vsock://-1:1024", Address::Vsock { cid: CID_ANY, port: 1024 }),
            ("vsock://3:1024", Address::Vsock { cid: 3, port: 1024 }),
            ("unix:///run/a.sock", Address::Unix("/run/a.sock".into())),
            ("unix://@/tmp/kata-agent.socket", Address::Abstract("/tmp/kata-agent.socket".into())),
            (
                "hvsock:///run/vm:with:colons.vsock:1024",
                Address::Hybrid { path: "/run/vm:with:colons.vsock".into(), port: 1024 },
            ),
        ] {
            assert_eq!(text.parse(), Ok(address.clone()), "{text}");
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("vsock://:1024".parse(), Ok(Address::Vsock { cid: CID_ANY, port: 1024 }));
    }

    #[test]
    fn a_bad_address_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "expected vsock://"),
            ("tcp://1.2.3.4:5", "expected vsock://"),
            ("vsock://3", "expected vsock://"),
            ("vsock://x:1", "cid \"x\" is not a number"),
            ("vsock://3:4294967296", "port \"4294967296\" is not a number"),
            ("vsock://3:+1", "port \"+1\" is not a number"),
            ("unix://relative", "must be absolute"),
            ("unix://@", "must not be empty"),
            ("hvsock:///a.sock", "expected vsock://"),
            ("hvsock://a:1", "must be absolute"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        assert_eq!("x".repeat(300).parse::<Address>(), Err(AddressError::TooLong(300)));
    }

    proptest! {
        #[test]
        fn what_parses_prints_back_to_the_same_address(text in "(vsock://|unix://|unix://@|hvsock://)?[-@/:a-z0-9.\\x00]{0,40}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }
    }
}
