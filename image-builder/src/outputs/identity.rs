//! Identities: what other builders draw at random is derived here from what it names, so that same content has same bytes.

use std::fmt;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::cpio;
use crate::tree::Tree;

/// A UUID, in the order in which it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// Reads what [`fmt::Display`] writes; case does not count.
    pub fn parse(text: &str) -> Option<Guid> {
        let guid = Guid(hex::decode(text.replace('-', "")).ok()?.try_into().ok()?);
        guid.to_string().eq_ignore_ascii_case(text).then_some(guid)
    }

    /// From and to the bytes in a partition table, whose first three fields are little-endian.
    pub fn swapped(self) -> Guid {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        let mut bytes = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[8..].copy_from_slice(&rest);
        Guid(bytes)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = hex::encode(self.0);
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| text.get(part).unwrap_or_default());
        f.write_str(&parts.join("-"))
    }
}

/// 32 bytes for `purpose`, of what `seed` stands for.
pub fn derive(purpose: &str, seed: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(purpose).chain_update([0]).chain_update(seed).finalize().into()
}

/// The same as a UUID of version 8, whose content is its maker's affair (RFC 9562).
pub fn uuid(purpose: &str, seed: &[u8]) -> Guid {
    let [mut bytes, _] = halves(derive(purpose, seed));
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Guid(bytes)
}

/// The first and the last 16 bytes.
pub fn halves(digest: [u8; 32]) -> [[u8; 16]; 2] {
    let (mut first, mut last) = ([0; 16], [0; 16]);
    first.copy_from_slice(&digest[..16]);
    last.copy_from_slice(&digest[16..]);
    [first, last]
}

/// What stands for a whole tree.
///
/// # Errors
/// A file of 4 GiB or more.
pub fn of_tree(tree: &Tree) -> Result<[u8; 32]> {
    Ok(Sha256::digest(cpio::archive(tree).context("tell the tree's identity")?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_and_read() {
        let text = "01234567-89ab-4def-8123-456789abcdef";
        let guid = Guid::parse(text).unwrap();
        assert_eq!(guid.to_string(), text);
        assert_eq!(hex::encode(guid.swapped().0), "67452301ab89ef4d8123456789abcdef");
        assert_eq!(guid.swapped().swapped(), guid);
        for bad in ["", "0123456789ab4def8123456789abcdef", "01234567-89ab-4def-8123-456789abcde", "x"] {
            assert_eq!(Guid::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_identity_is_of_its_purpose_and_of_its_seed() {
        let id = uuid("disk", b"seed").to_string();
        assert_eq!((id.as_bytes()[14], id.len()), (b'8', 36));
        assert_ne!(uuid("disk", b"other").to_string(), id);
        assert_ne!(uuid("root", b"seed").to_string(), id);
    }
}
