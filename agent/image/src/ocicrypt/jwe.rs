//! JSON Web Encryption (RFC 7516), as far as ocicrypt writes it: JSON, for one reader (flattened) or several (general),
//! RSA-OAEP or ECDH-ES with A256KW for the key, A256GCM for the content.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use aes_kw::KwAes256;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::broken;
use super::key::{Oaep, Point, PrivateKey};
use crate::error::{Result, quoted};

/// The most readers.
const MAX_RECIPIENTS: usize = 64;

/// How the content's key is wrapped with an agreed one; the derivation of the latter names it.
const ECDH: &str = "ECDH-ES+A256KW";

#[derive(Deserialize)]
struct Jwe {
    #[serde(default)]
    protected: String,
    #[serde(default)]
    unprotected: Header,
    #[serde(default)]
    header: Header,
    encrypted_key: Option<String>,
    recipients: Option<Vec<Recipient>>,
    iv: String,
    ciphertext: String,
    tag: String,
    aad: Option<String>,
}

#[derive(Deserialize)]
struct Recipient {
    #[serde(default)]
    header: Header,
    encrypted_key: Option<String>,
}

/// What is understood of a header. The rest may be left out of account (RFC 7516 §4), unless it is critical.
#[derive(Default, Deserialize)]
struct Header {
    alg: Option<String>,
    enc: Option<String>,
    epk: Option<Epk>,
    apu: Option<String>,
    apv: Option<String>,
    zip: Option<IgnoredAny>,
    crit: Option<IgnoredAny>,
}

/// The sender's half of an agreed key.
#[derive(Deserialize)]
struct Epk {
    kty: String,
    crv: String,
    x: String,
    #[serde(default)]
    y: String,
}

/// What stands about a reader in the three headers there are.
struct Headers<'a>([&'a Header; 3]);

impl<'a> Headers<'a> {
    /// A parameter. In two headers it would have two meanings (RFC 7516 §7.2.1).
    fn one<T: ?Sized>(&self, name: &str, get: impl Fn(&'a Header) -> Option<&'a T>) -> Result<Option<&'a T>> {
        let mut found = self.0.iter().filter_map(|header| get(header));
        match (found.next(), found.next()) {
            (value, None) => Ok(value),
            _ => Err(broken(format!("JWE: {name} stands in two headers"))),
        }
    }
}

/// The content, if one of the keys is for one of the readers.
pub(super) fn open(json: &[u8], keys: &[PrivateKey]) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let jwe: Jwe = serde_json::from_slice(json).map_err(|error| broken(format!("JWE: {error}")))?;
    let protected: Header = match jwe.protected.as_str() {
        "" => Header::default(),
        text => serde_json::from_slice(&decode("protected", text)?)
            .map_err(|error| broken(format!("JWE: protected header: {error}")))?,
    };
    // go-jose repeats the first reader outside of the list: the list counts.
    let recipients = match &jwe.recipients {
        Some(list) => list.iter().map(|one| (&one.header, &one.encrypted_key)).collect(),
        None => vec![(&jwe.header, &jwe.encrypted_key)],
    };
    if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
        return Err(broken(format!("JWE: it has {} readers; there may be {MAX_RECIPIENTS}", recipients.len())));
    }
    for (header, wrapped) in recipients {
        let headers = Headers([&protected, &jwe.unprotected, header]);
        let wrapped = decode("encrypted_key", wrapped.as_deref().unwrap_or_default())?;
        if let Some(key) = unwrap(&headers, &wrapped, keys)? {
            return content(&jwe, &key).map(Some);
        }
    }
    Ok(None)
}

/// The content's key. One whose algorithm is not known is somebody else's.
fn unwrap(headers: &Headers<'_>, wrapped: &[u8], keys: &[PrivateKey]) -> Result<Option<Zeroizing<Vec<u8>>>> {
    if headers.0.iter().any(|header| header.zip.is_some() || header.crit.is_some()) {
        return Err(broken("JWE: compression and critical extensions are not supported"));
    }
    let enc = headers.one("enc", |header| header.enc.as_deref())?;
    if enc != Some("A256GCM") {
        return Err(broken(format!(
            "JWE: the content is encrypted by {}, not A256GCM",
            quoted(enc.unwrap_or_default())
        )));
    }
    match headers.one("alg", |header| header.alg.as_deref())? {
        Some("RSA-OAEP") => Ok(keys.iter().find_map(|key| key.oaep(Oaep::Sha1, wrapped))),
        Some("RSA-OAEP-256") => Ok(keys.iter().find_map(|key| key.oaep(Oaep::Sha256, wrapped))),
        Some(ECDH) => agreed(headers, wrapped, keys),
        Some(_) => Ok(None),
        None => Err(broken("JWE: a reader has no alg")),
    }
}

fn agreed(headers: &Headers<'_>, wrapped: &[u8], keys: &[PrivateKey]) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let epk = headers.one("epk", |header| header.epk.as_ref())?.ok_or_else(|| broken("JWE: a reader has no epk"))?;
    if epk.kty != "EC" {
        return Ok(None);
    }
    let (x, y) = (decode("epk.x", &epk.x)?, decode("epk.y", &epk.y)?);
    let point = Point { curve: &epk.crv, x: &x, y: &y };
    let party = |name, text: Option<&str>| decode(name, text.unwrap_or_default());
    let apu = party("apu", headers.one("apu", |header| header.apu.as_deref())?)?;
    let apv = party("apv", headers.one("apv", |header| header.apv.as_deref())?)?;
    Ok(keys.iter().filter_map(|key| key.agree(&point)).find_map(|shared| {
        let mut key = Zeroizing::new([0; 32]);
        let wrapping = derive(&shared, &apu, &apv);
        let length = KwAes256::new((&*wrapping).into()).unwrap_key(wrapped, &mut *key).ok()?.len();
        Some(Zeroizing::new(key.get(..length)?.to_vec()))
    }))
}

/// The Concat KDF with SHA-256 (RFC 7518 §4.6.2): one round, for 256 bits are wanted.
fn derive(shared: &[u8], apu: &[u8], apv: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(1u32.to_be_bytes());
    hash.update(shared);
    for part in [ECDH.as_bytes(), apu, apv] {
        hash.update((part.len() as u32).to_be_bytes()); // an annotation is much shorter than 4 GiB
        hash.update(part);
    }
    hash.update(256u32.to_be_bytes());
    Zeroizing::new(hash.finalize().into())
}

fn content(jwe: &Jwe, key: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let cipher = Aes256Gcm::new_from_slice(key).map_err(|_| broken("JWE: its content's key has not 32 bytes"))?;
    let iv: [u8; 12] = decode("iv", &jwe.iv)?.try_into().map_err(|_| broken("JWE: its iv has not 12 bytes"))?;
    let tag: [u8; 16] = decode("tag", &jwe.tag)?.try_into().map_err(|_| broken("JWE: its tag has not 16 bytes"))?;
    let sealed = [decode("ciphertext", &jwe.ciphertext)?.as_slice(), &tag].concat();
    let aad = match &jwe.aad {
        Some(aad) => format!("{}.{aad}", jwe.protected),
        None => jwe.protected.clone(),
    };
    let opened = cipher.decrypt(&iv.into(), Payload { msg: &sealed, aad: aad.as_bytes() });
    opened.map(Zeroizing::new).map_err(|_| broken("JWE: a key fits, and its content was changed"))
}

fn decode(name: &str, text: &str) -> Result<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|error| broken(format!("JWE: {name} is no base64url: {error}")))
}
