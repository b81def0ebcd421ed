//! Public keys, and signatures made with them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use spki::der::asn1::UintRef;
use spki::der::{AnyRef, Decode as _, Reader as _, SliceReader};
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// What an uncompressed point on a curve begins with.
const UNCOMPRESSED: u8 = 4;

type Algorithms = Vec<&'static dyn VerificationAlgorithm>;

/// A key that may have signed.
pub(super) struct Key {
    /// How such a key signs: its kind decides, never the signature.
    algorithms: Algorithms,
    bytes: Vec<u8>,
    /// All of it, as SubjectPublicKeyInfo.
    der: Vec<u8>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Key").field(&hex::encode(&self.bytes)).finish()
    }
}

impl Key {
    /// Reads the one PEM block `PUBLIC KEY`.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Key, &'static str> {
        let text = std::str::from_utf8(pem).map_err(|_| "it is no PEM text")?.trim();
        let body = text.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END)).ok_or("it is no PEM public key")?;
        let body: String = body.split_ascii_whitespace().collect();
        // A second block has hyphens in between, which base64 has not.
        Key::from_der(&STANDARD.decode(body).map_err(|_| "it is no PEM with one key")?)
    }

    /// Reads a SubjectPublicKeyInfo.
    pub(super) fn from_der(der: &[u8]) -> Result<Key, &'static str> {
        let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| "it is no public key (SubjectPublicKeyInfo)")?;
        let bytes = info.subject_public_key.as_bytes().ok_or("its bits are no whole bytes")?;
        let parameters = info.algorithm.parameters;
        let is_point = |length| bytes.len() == length && bytes.first() == Some(&UNCOMPRESSED);
        let algorithms: Algorithms = match info.algorithm.oid {
            EC => match parameters.and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok()) {
                Some(P256) if is_point(65) => vec![&ECDSA_P256_SHA256_ASN1],
                // containers/image hashes with SHA-256 whatever the curve, Sigstore's newer signers with SHA-384.
                Some(P384) if is_point(97) => vec![&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1],
                _ => return Err("its curve is not P-256 or P-384, or its point is compressed"),
            },
            ED if parameters.is_none() && bytes.len() == 32 => vec![&ED25519],
            RSA if parameters.is_none_or(AnyRef::is_null) => {
                let bits = modulus_bits(bytes).ok_or("it is no RSA key")?;
                if !(2048..=8192).contains(&bits) {
                    return Err("an RSA key must have 2048 to 8192 bits");
                }
                vec![&RSA_PKCS1_2048_8192_SHA256, &RSA_PSS_2048_8192_SHA256]
            }
            _ => return Err("it is not ECDSA, Ed25519 or RSA"),
        };
        Ok(Key { algorithms, bytes: bytes.to_vec(), der: der.to_vec() })
    }

    /// The key as SubjectPublicKeyInfo.
    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether this key signed the message.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let good = |algorithm| UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, signature).is_ok();
        self.algorithms.iter().copied().any(good)
    }
}

/// The length of an RSA key, which is a sequence of modulus and exponent.
fn modulus_bits(bytes: &[u8]) -> Option<usize> {
    let mut reader = SliceReader::new(bytes).ok()?;
    let parts = |reader: &mut SliceReader<'_>| -> spki::der::Result<usize> {
        let modulus = UintRef::decode(reader)?;
        UintRef::decode(reader)?;
        let top = modulus.as_bytes().first().map_or(0, |byte| byte.leading_zeros() as usize);
        Ok((modulus.as_bytes().len() * 8).saturating_sub(top))
    };
    let bits = reader.sequence(parts).ok()?;
    reader.finish().ok()?;
    Some(bits)
}
