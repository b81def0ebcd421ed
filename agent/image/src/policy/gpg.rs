//! Signatures by GPG: an OpenPGP message that holds what was signed, and whose keys may have made it.
//!
//! The library verifies numbers and says nothing of what they mean: which kind a signature is of, when it or a key ends, and whether a key was
//! revoked is judged here. A key is trusted because the policy names it, whatever name it bears itself.

use std::io::Read as _;
use std::time::{Duration, SystemTime};

use pgp::composed::{Deserializable as _, Message, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails as _, VerifyingKey};

/// The longest statement that is signed.
const MAX_PAYLOAD: u64 = 1 << 20;

/// The most keys of a file, and the most signatures of a message.
const MAX_KEYS: usize = 256;
const MAX_SIGNATURES: usize = 8;

/// A file of keys.
#[derive(Debug)]
pub(super) struct Keyring(Vec<SignedPublicKey>);

impl Keyring {
    /// Reads keys as `gpg --export` writes them, with or without `--armor`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Keyring, String> {
        let bad = |error: pgp::errors::Error| format!("it is no GPG public key: {error}");
        let (keys, _) = SignedPublicKey::from_reader_many(bytes).map_err(bad)?;
        let keys = keys.take(MAX_KEYS + 1).collect::<Result<Vec<_>, _>>().map_err(bad)?;
        match keys.len() {
            0 => Err("it holds no GPG public key".into()),
            1..=MAX_KEYS => Ok(Keyring(keys)),
            _ => Err(format!("it holds more than {MAX_KEYS} keys")),
        }
    }
}

/// What the message says, if one of the keys, that is good `now`, has signed it.
pub(super) fn verify(message: &[u8], keyrings: &[Keyring], now: SystemTime) -> Result<Vec<u8>, String> {
    let bad = |error: pgp::errors::Error| format!("it is no signed OpenPGP message: {error}");
    let mut message = Message::from_bytes(message).map_err(bad)?;
    if message.is_compressed() {
        message = message.decompress().map_err(bad)?;
    }
    if !message.is_signed() {
        return Err("it is no signed OpenPGP message".into());
    }
    let mut payload = Vec::new();
    let read = (&mut message).take(MAX_PAYLOAD + 1).read_to_end(&mut payload);
    read.map_err(|error| format!("it is no whole OpenPGP message: {error}"))?;
    if payload.len() as u64 > MAX_PAYLOAD {
        return Err(format!("it signs more than {MAX_PAYLOAD} bytes"));
    }
    let mut why = "no key of the policy made it".to_string();
    for key in keyrings.iter().flat_map(|keyring| &keyring.0) {
        match signed_by(&message, key, now) {
            Some(Ok(())) => return Ok(payload),
            Some(Err(fault)) => why = fault,
            None => {}
        }
    }
    Err(why)
}

/// Whether the key, or one of those that it vouches for, signed the message; and if so, what is wrong with it.
fn signed_by(message: &Message<'_>, key: &SignedPublicKey, now: SystemTime) -> Option<Result<(), String>> {
    let primary = &key.primary_key;
    let usable = check_primary(key, now);
    let by = |signer: &dyn VerifyingKey| {
        (0..MAX_SIGNATURES).find_map(|index| message.verify_nested_explicit(index, signer).ok())
    };
    if let Some(signature) = by(primary) {
        return Some(usable.and_then(|()| check_signature(signature, now)));
    }
    key.public_subkeys.iter().find_map(|subkey| {
        let signature = by(&subkey.key)?;
        let usable = usable.clone().and_then(|()| check_subkey(subkey, key, now));
        Some(usable.and_then(|()| check_signature(signature, now)))
    })
}

/// Of a document, with a hash that nobody can forge, and not ended.
fn check_signature(signature: &Signature, now: SystemTime) -> Result<(), String> {
    if signature.typ() != Some(SignatureType::Binary) {
        return Err("it is no signature of a document".into());
    }
    if !is_strong(signature) {
        return Err("its hash is weak: SHA-256, SHA-384 and SHA-512 are taken".into());
    }
    let made = signature.created().ok_or("it does not say when it was made")?;
    match signature.signature_expiration_time() {
        Some(life) if has_ended(made.into(), life.into(), now) => Err("it has expired".into()),
        _ => Ok(()),
    }
}

fn check_primary(key: &SignedPublicKey, now: SystemTime) -> Result<(), String> {
    let (primary, details) = (&key.primary_key, &key.details);
    let name = primary.fingerprint();
    if details.revocation_signatures.iter().any(|revocation| revocation.verify_key(primary).is_ok()) {
        return Err(format!("the key {name} that made it was revoked"));
    }
    let direct = details.direct_signatures.iter().filter(|signature| signature.verify_key(primary).is_ok());
    let users = details.users.iter().flat_map(|user| {
        let own = |signature: &&Signature| {
            signature.typ() != Some(SignatureType::CertRevocation)
                && signature.verify_certification(primary, pgp::types::Tag::UserId, &user.id).is_ok()
        };
        user.signatures.iter().filter(own)
    });
    let newest = direct.chain(users).filter(|own| is_strong(own)).max_by_key(|own| own.created());
    let newest = newest.ok_or_else(|| format!("the key {name} that made it does not sign itself"))?;
    match newest.key_expiration_time() {
        Some(life) if has_ended(primary.created_at().into(), life.into(), now) => {
            Err(format!("the key {name} that made it has expired"))
        }
        _ => Ok(()),
    }
}

/// The newest binding decides, and both keys must have signed it.
fn check_subkey(subkey: &SignedPublicSubKey, key: &SignedPublicKey, now: SystemTime) -> Result<(), String> {
    let (primary, name) = (&key.primary_key, subkey.key.fingerprint());
    let bound = |signature: &&Signature| signature.verify_subkey_binding(primary, &subkey.key).is_ok();
    let (revoked, bindings): (Vec<_>, Vec<_>) = subkey
        .signatures
        .iter()
        .filter(bound)
        .partition(|signature| signature.typ() == Some(SignatureType::SubkeyRevocation));
    if !revoked.is_empty() {
        return Err(format!("the key {name} that made it was revoked"));
    }
    let newest = bindings.into_iter().filter(|binding| is_strong(binding)).max_by_key(|binding| binding.created());
    let newest = newest.ok_or_else(|| format!("the key {name} that made it belongs to no other"))?;
    let back = newest.embedded_signature().filter(|_| newest.key_flags().sign());
    if back.is_none_or(|back| back.verify_primary_key_binding(&subkey.key, primary).is_err()) {
        return Err(format!("the key {name} that made it is not for signing"));
    }
    match newest.key_expiration_time() {
        Some(life) if has_ended(subkey.key.created_at().into(), life.into(), now) => {
            Err(format!("the key {name} that made it has expired"))
        }
        _ => Ok(()),
    }
}

fn is_strong(signature: &Signature) -> bool {
    let strong = [HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512];
    signature.hash_alg().is_some_and(|hash| strong.contains(&hash))
}

/// A life of no time is one without an end (RFC 9580, 5.2.3.13).
fn has_ended(begun: SystemTime, life: Duration, now: SystemTime) -> bool {
    !life.is_zero() && begun.checked_add(life).is_some_and(|end| end <= now)
}

#[cfg(test)]
#[path = "gpg_tests.rs"]
mod tests;
