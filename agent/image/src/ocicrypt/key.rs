//! Private keys, and what they unwrap.

use std::fmt;

use p256::elliptic_curve::sec1::{FromSec1Point, ModulusSize, ToSec1Point};
use p256::elliptic_curve::{AffinePoint, CurveArithmetic, FieldBytesSize, PublicKey, SecretKey};
use p256::pkcs8::DecodePrivateKey as _;
use rsa::pkcs1::DecodeRsaPrivateKey as _;
use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

/// The longest file with a key.
const MAX_PEM: usize = 64 << 10;

/// A private key. It is wiped from memory when it is dropped.
pub struct PrivateKey(Inner);

enum Inner {
    Rsa(Box<rsa::PrivateKey>),
    P256(p256::SecretKey),
    P384(p384::SecretKey),
    P521(p521::SecretKey),
}

/// What RSA-OAEP hashes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Oaep {
    Sha1,
    Sha256,
}

/// A point on a curve, its numbers big-endian.
pub(super) struct Point<'a> {
    pub(super) curve: &'a str,
    pub(super) x: &'a [u8],
    pub(super) y: &'a [u8],
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Inner::Rsa(_) => "PrivateKey(RSA)",
            Inner::P256(_) => "PrivateKey(P-256)",
            Inner::P384(_) => "PrivateKey(P-384)",
            Inner::P521(_) => "PrivateKey(P-521)",
        })
    }
}

impl PrivateKey {
    /// A key from PEM: PKCS #1 or PKCS #8 for RSA, SEC 1 or PKCS #8 for the curves. Of what else is in the file, as the
    /// parameters that openssl writes before a key, nothing is read.
    pub fn from_pem(pem: &str) -> Result<PrivateKey> {
        let bad = |why: &str| Error::new(Kind::BadRequest, format!("read a private key: {why}"));
        if pem.len() > MAX_PEM {
            return Err(bad("it has more than 64 KiB"));
        }
        for label in ["RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY"] {
            if let Some(block) = block(pem, label) {
                return parse(label, block).map(PrivateKey).ok_or_else(|| {
                    bad("it is none of RSA with 2048 to 8192 bits, P-256, P-384 and P-521, or damaged, or has a password")
                });
            }
        }
        if pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
            return Err(bad("it has a password: give it without (openssl pkey -in FILE)"));
        }
        Err(bad("there is none in PEM (-----BEGIN PRIVATE KEY-----)"))
    }

    /// Undoes RSA-OAEP. `None` if this is not the key, or not of that type.
    pub(super) fn oaep(&self, hash: Oaep, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let Inner::Rsa(key) = &self.0 else { return None };
        let plain = match hash {
            Oaep::Sha1 => key.oaep_decrypt::<Sha1>(wrapped),
            Oaep::Sha256 => key.oaep_decrypt::<Sha256>(wrapped),
        };
        plain.ok().map(Zeroizing::new)
    }

    /// The secret that this key shares with whoever made the point. `None` if they are of different curves, or the
    /// point on none.
    pub(super) fn agree(&self, point: &Point<'_>) -> Option<Zeroizing<Vec<u8>>> {
        match (&self.0, point.curve) {
            (Inner::P256(key), "P-256") => agree(key, point),
            (Inner::P384(key), "P-384") => agree(key, point),
            (Inner::P521(key), "P-521") => agree(key, point),
            _ => None,
        }
    }
}

/// The first block of PEM with this label.
fn block<'a>(pem: &'a str, label: &str) -> Option<&'a str> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let block = pem.get(pem.find(&begin)?..)?;
    block.get(..block.find(&end)?.checked_add(end.len())?)
}

fn parse(label: &str, block: &str) -> Option<Inner> {
    match label {
        "RSA PRIVATE KEY" => rsa::PrivateKey::from_pkcs1_pem(block).ok().map(Box::new).map(Inner::Rsa),
        "EC PRIVATE KEY" => (p256::SecretKey::from_sec1_pem(block).ok().map(Inner::P256))
            .or_else(|| p384::SecretKey::from_sec1_pem(block).ok().map(Inner::P384))
            .or_else(|| p521::SecretKey::from_sec1_pem(block).ok().map(Inner::P521)),
        _ => (rsa::PrivateKey::from_pkcs8_pem(block).ok().map(Box::new).map(Inner::Rsa))
            .or_else(|| p256::SecretKey::from_pkcs8_pem(block).ok().map(Inner::P256))
            .or_else(|| p384::SecretKey::from_pkcs8_pem(block).ok().map(Inner::P384))
            .or_else(|| p521::SecretKey::from_pkcs8_pem(block).ok().map(Inner::P521)),
    }
}

fn agree<C>(key: &SecretKey<C>, point: &Point<'_>) -> Option<Zeroizing<Vec<u8>>>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
{
    // An uncompressed point (SEC 1 §2.3.3). JWKs hold both numbers at full length; parsing checks that, and the curve.
    let bytes = [&[4], point.x, point.y].concat();
    let public = (point.x.len() == point.y.len()).then(|| PublicKey::<C>::from_sec1_bytes(&bytes).ok())??;
    Some(Zeroizing::new(key.diffie_hellman(&public).raw_secret_bytes().to_vec()))
}
