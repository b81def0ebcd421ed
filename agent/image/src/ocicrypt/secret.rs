//! Bytes in JSON that leave no trace in memory.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use zeroize::Zeroizing;

/// The most bytes.
const MAX: usize = 64 << 10;

/// Bytes, from base64 as Go writes them or from an array of numbers as Rust does.
pub(super) struct Secret(pub(super) Zeroizing<Vec<u8>>);

impl Secret {
    /// The bytes, if they are so many.
    pub(super) fn array<const N: usize>(&self) -> Option<Zeroizing<[u8; N]>> {
        self.0.as_slice().try_into().ok().map(Zeroizing::new)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        deserializer.deserialize_any(Bytes)
    }
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "base64, or an array of bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
        // The length is known before, so that no copy is left behind when the buffer grows.
        let mut bytes = Zeroizing::new(Vec::with_capacity(base64::decoded_len_estimate(text.len())));
        BASE64_STANDARD.decode_vec(text, &mut bytes).map_err(|_| E::custom("no base64"))?;
        Ok(Secret(bytes))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Secret, A::Error> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX));
        while let Some(byte) = numbers.next_element()? {
            if bytes.len() == MAX {
                return Err(A::Error::custom("too many bytes"));
            }
            bytes.push(byte);
        }
        Ok(Secret(bytes))
    }
}
