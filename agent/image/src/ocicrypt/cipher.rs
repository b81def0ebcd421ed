//! AES-256 in counter mode, with an HMAC-SHA256 of what it makes.
//!
//! The HMAC is known at the end only: what comes before is not to be trusted until the last read has succeeded.

use std::fmt;
use std::io::{self, Read};

use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit as _, StreamCipher as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::error::{Error, Kind};

/// A reader of a layer's plain bytes. It works in its reader's buffer, without one of its own: a big one makes it fast.
pub struct Decrypter<R> {
    ciphertext: R,
    cipher: Ctr128BE<Aes256>,
    hmac: Hmac<Sha256>,
    expected: [u8; 32],
    verdict: Option<bool>,
}

impl<R> fmt::Debug for Decrypter<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decrypter").field("verdict", &self.verdict).finish_non_exhaustive()
    }
}

impl<R: Read> Decrypter<R> {
    pub(super) fn new(ciphertext: R, key: &[u8; 32], nonce: [u8; 16], expected: [u8; 32]) -> Decrypter<R> {
        // One key for both: that is the format.
        let cipher = Ctr128BE::new(key.into(), &nonce.into());
        let hmac = hmac_of(key);
        Decrypter { ciphertext, cipher, hmac, expected, verdict: None }
    }

    fn judge(&mut self) -> io::Result<usize> {
        let (hmac, expected) = (&self.hmac, &self.expected);
        // The comparison takes the same time whatever differs.
        if *self.verdict.get_or_insert_with(|| hmac.clone().verify(expected.into()).is_ok()) {
            return Ok(0);
        }
        Err(Error::new(Kind::Corrupt, "the encrypted layer is not what its HMAC says: it was changed, or cut off")
            .into())
    }
}

/// A key as short as SHA-256's block is taken as it is, filled up with zeros (RFC 2104).
fn hmac_of(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = zeroize::Zeroizing::new([0; 64]);
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    Hmac::new((&*block).into())
}

impl<R: Read> Read for Decrypter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.verdict.is_some() {
            return self.judge();
        }
        let n = self.ciphertext.read(buffer)?;
        if n == 0 {
            return self.judge();
        }
        let piece = buffer.get_mut(..n).unwrap_or_default();
        self.hmac.update(piece);
        self.cipher.try_apply_keystream(piece).map_err(io::Error::other)?;
        Ok(n)
    }
}
