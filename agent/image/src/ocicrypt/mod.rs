//! Encrypted layers, as ocicrypt makes them: from a layer's annotations to its plain bytes.
//!
//! A layer is encrypted with a key of its own. Its annotations hold that key, wrapped for each reader: for a private key
//! ([`jwe`]) or by a key provider ([`provider`]). [`Encrypted::unlock`] unwraps it with the first of the [`Keys`] that
//! fits, and a [`Decrypter`] reads the layer with it.

mod cipher;
mod jwe;
mod key;
pub mod provider;
mod secret;
mod service;

#[cfg(test)]
mod tests;

pub use cipher::Decrypter;
pub use key::PrivateKey;
pub use provider::{Parameters, Unwrap};

use std::collections::HashMap;
use std::fmt;
use std::io::Read;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result, quoted};
use secret::Secret;

/// What the media types of encrypted layers end with.
const SUFFIX: &str = "+encrypted";

/// What the annotations of wrapped keys start with; how they are wrapped follows.
const KEYS: &str = "org.opencontainers.image.enc.keys.";

/// The annotation that says how the layer is encrypted, in the clear.
const PUBLIC: &str = "org.opencontainers.image.enc.pubopts";

/// The only cipher there is.
const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";

/// The longest annotation.
const MAX_ANNOTATION: usize = 64 << 10;

/// The most wrapped keys of a layer.
const MAX_WRAPPED: usize = 64;

/// The longest name of a key provider.
const MAX_NAME: usize = 128;

/// What may open a layer.
#[derive(Default)]
pub struct Keys {
    /// Keys that are here.
    pub private: Vec<PrivateKey>,
    /// Whoever unwraps what key providers have wrapped.
    pub provider: Option<Box<dyn Unwrap>>,
    /// What key providers are told.
    pub parameters: Parameters,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("private", &self.private).finish_non_exhaustive()
    }
}

/// An encrypted layer, as its descriptor tells of it.
#[derive(Debug, Clone)]
pub struct Encrypted {
    plain_type: String,
    hmac: [u8; 32],
    nonce: Option<[u8; 16]>,
    wrapped: Vec<Wrapped>,
}

/// A layer's key, wrapped.
#[derive(Debug, Clone)]
struct Wrapped {
    scheme: Scheme,
    /// As it was in the annotation.
    text: String,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Scheme {
    Jwe,
    Provider(String),
    /// One that is not understood here: OpenPGP, PKCS #7, PKCS #11.
    Other(String),
}

/// What a wrapped key holds.
pub struct PrivateOptions {
    /// The key of the cipher and of the HMAC.
    pub symkey: Zeroizing<[u8; 32]>,
    /// The digest of the blob that was to be encrypted. skopeo takes it before it compresses the blob anew, as it does
    /// when it copies uncompressed layers, so it need be the digest of nothing that can be seen here. Whoever can forge
    /// the HMAC has the key and can forge this, too: nothing is lost by letting it be.
    pub digest: Option<String>,
    /// Where the cipher starts, unless the public options say.
    pub nonce: Option<[u8; 16]>,
}

impl fmt::Debug for PrivateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateOptions").finish_non_exhaustive()
    }
}

/// The public options as JSON.
#[derive(Deserialize)]
struct Public {
    cipher: String,
    hmac: Secret,
    #[serde(default)]
    cipheroptions: Option<CipherOptions>,
}

/// The private options as JSON.
#[derive(Deserialize)]
struct Private {
    symkey: Secret,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    cipheroptions: Option<CipherOptions>,
}

#[derive(Deserialize)]
struct CipherOptions {
    nonce: Option<Secret>,
}

impl Encrypted {
    /// What a layer's descriptor says of its encryption: nothing, unless its media type does.
    pub fn of(media_type: &str, annotations: &HashMap<String, String>) -> Result<Option<Encrypted>> {
        let Some(plain_type) = media_type.strip_suffix(SUFFIX) else { return Ok(None) };
        let public = annotations.get(PUBLIC).ok_or_else(|| broken(format!("it has no annotation {PUBLIC}")))?;
        let (hmac, nonce) = public_options(&decode(PUBLIC, public)?)?;
        let mut wrapped = Vec::new();
        for (name, value) in sorted(annotations) {
            let scheme = scheme(name)?;
            bounded(name, value)?;
            for text in value.split(',') {
                if wrapped.len() == MAX_WRAPPED {
                    return Err(broken(format!("it has more than {MAX_WRAPPED} wrapped keys")));
                }
                wrapped.push(Wrapped { scheme: scheme.clone(), text: text.into(), bytes: decode(name, text)? });
            }
        }
        if wrapped.is_empty() {
            return Err(broken("it has no wrapped key"));
        }
        Ok(Some(Encrypted { plain_type: plain_type.into(), hmac, nonce, wrapped }))
    }

    /// The media type of what the encryption hides.
    pub fn plain_type(&self) -> &str {
        &self.plain_type
    }

    /// Unwraps the layer's key with whichever of the keys fits first.
    pub fn unlock(&self, keys: &Keys) -> Result<PrivateOptions> {
        let (mut bad, mut tried, mut said) = (None, 0, Vec::new());
        for wrapped in &self.wrapped {
            let opened = match (&wrapped.scheme, &keys.provider) {
                (Scheme::Jwe, _) => {
                    tried = tried.max(keys.private.len());
                    jwe::open(&wrapped.bytes, &keys.private)
                }
                (Scheme::Provider(name), Some(provider)) => {
                    provider.unwrap(name, &wrapped.text, &keys.parameters).map(Some).or_else(|error| {
                        said.push(format!("key provider {name}: {}", error.message));
                        Ok(None)
                    })
                }
                (Scheme::Provider(_), None) | (Scheme::Other(_), _) => Ok(None),
            };
            match opened.and_then(|options| options.map(|options| private_options(&options)).transpose()) {
                Ok(Some(options)) => return Ok(options),
                Ok(None) => {}
                Err(error) => bad = bad.or(Some(error)),
            }
        }
        Err(bad.unwrap_or_else(|| self.locked(tried, &said)))
    }

    /// A reader of the plain layer.
    pub fn decrypter<R: Read>(&self, options: &PrivateOptions, ciphertext: R) -> Result<Decrypter<R>> {
        let nonce = self.nonce.or(options.nonce).ok_or_else(|| broken("it has no nonce"))?;
        Ok(Decrypter::new(ciphertext, &options.symkey, nonce, self.hmac))
    }

    fn locked(&self, tried: usize, said: &[String]) -> Error {
        let mut schemes: Vec<_> = self.wrapped.iter().map(|wrapped| wrapped.scheme.to_string()).collect();
        schemes.dedup();
        let schemes = schemes.join(", ");
        let mut message = match tried {
            0 if said.is_empty() => "the layer is encrypted and no key was given that could open it".to_string(),
            0 => "the layer is encrypted and its key was not handed out".to_string(),
            _ => format!("the layer is encrypted and no key fits ({tried} tried)"),
        };
        message += &format!("; its key is wrapped by: {schemes}");
        said.iter().for_each(|said| message += &format!("; {said}"));
        Error::new(Kind::Locked, message)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheme::Jwe => write!(f, "jwe"),
            Scheme::Provider(name) => write!(f, "key provider {name}"),
            Scheme::Other(name) => write!(f, "{name} (not supported)"),
        }
    }
}

fn broken(why: impl fmt::Display) -> Error {
    Error::bad_image(format!("the layer's encryption is broken: {why}"))
}

/// The annotations of wrapped keys: in order, so that errors are the same each time.
fn sorted(annotations: &HashMap<String, String>) -> Vec<(&str, &str)> {
    let keys = annotations.iter().filter(|(name, _)| name.starts_with(KEYS));
    let mut sorted: Vec<_> = keys.map(|(name, value)| (name.as_str(), value.as_str())).collect();
    sorted.sort_unstable();
    sorted
}

fn scheme(annotation: &str) -> Result<Scheme> {
    let name = annotation.strip_prefix(KEYS).unwrap_or_default();
    let provider = name.strip_prefix("provider.");
    let short = provider.unwrap_or(name);
    if short.is_empty() || short.len() > MAX_NAME || !short.chars().all(|c| c.is_ascii_graphic()) {
        return Err(broken(format!("{} names no way to wrap a key", quoted(annotation))));
    }
    Ok(match provider {
        Some(provider) => Scheme::Provider(provider.into()),
        None if name == "jwe" => Scheme::Jwe,
        None => Scheme::Other(name.into()),
    })
}

fn bounded(name: &str, value: &str) -> Result<()> {
    if value.len() > MAX_ANNOTATION {
        return Err(broken(format!("annotation {name} has more than {} KiB", MAX_ANNOTATION >> 10)));
    }
    Ok(())
}

fn decode(name: &str, value: &str) -> Result<Vec<u8>> {
    bounded(name, value)?;
    BASE64_STANDARD.decode(value).map_err(|error| broken(format!("annotation {name} is no base64: {error}")))
}

fn public_options(json: &[u8]) -> Result<([u8; 32], Option<[u8; 16]>)> {
    let bad = |error| broken(format!("its public options: {error}"));
    let public: Public = serde_json::from_slice(json).map_err(bad)?;
    if public.cipher != CIPHER {
        return Err(broken(format!("cipher {} is not known, only {CIPHER}", quoted(&public.cipher))));
    }
    let hmac = public.hmac.array().ok_or_else(|| broken("its HMAC has not 32 bytes"))?;
    Ok((*hmac, nonce(public.cipheroptions)?))
}

fn private_options(json: &[u8]) -> Result<PrivateOptions> {
    // serde's message could quote the key.
    let bad = |error: serde_json::Error| broken(format!("its private options: byte {} makes no sense", error.column()));
    let private: Private = serde_json::from_slice(json).map_err(bad)?;
    let symkey = private.symkey.array().ok_or_else(|| broken("its key has not 32 bytes"))?;
    let digest = Some(private.digest).filter(|digest| !digest.is_empty());
    if let Some(digest) = &digest {
        crate::reference::sha256(digest).map_err(|error| broken(format!("its private options: {error}")))?;
    }
    Ok(PrivateOptions { symkey, digest, nonce: nonce(private.cipheroptions)? })
}

fn nonce(options: Option<CipherOptions>) -> Result<Option<[u8; 16]>> {
    let Some(nonce) = options.and_then(|options| options.nonce) else { return Ok(None) };
    let nonce = nonce.array().ok_or_else(|| broken("its nonce has not 16 bytes"))?;
    Ok(Some(*nonce))
}
