//! Signatures of manifests: ECDSA on P-256 with SHA-256, as `openssl dgst` and `cosign verify-blob` check them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::PublicKey;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::manifest;

/// The ends of the names of a file's signature in Base64, and of the bundle with it.
const SIGNATURE: &str = "sig";
const BUNDLE: &str = "sigstore.json";

/// Sigstore's format (https://docs.sigstore.dev/about/bundle).
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// The largest file that is signed or read.
const MAX_FILE: u64 = 64 << 20;

/// Signs `file` with the key in `key` (PKCS #8, PEM). Returns where signature and bundle are: beside the file.
///
/// # Errors
/// A key that is none on P-256, or a file that can't be read or written.
pub fn sign(file: &Path, key: &Path) -> Result<[PathBuf; 2]> {
    let signer = SigningKey::from_pkcs8_pem(&text(key)?).map_err(|_| {
        anyhow::anyhow!(
            "{}: no private key on P-256 in PKCS #8 (openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256)",
            key.display()
        )
    })?;
    let bytes = bounded(file)?;
    let signature: DerSignature = signer.sign(&bytes);
    let public = PublicKey::from(signer.verifying_key()).to_public_key_der().context("write the public key")?;
    let paths = [SIGNATURE, BUNDLE].map(|end| beside(file, end));
    manifest::publish(&paths[0], (STANDARD.encode(signature.as_bytes()) + "\n").as_bytes())?;
    manifest::publish_json(&paths[1], &bundle(&bytes, signature.as_bytes(), public.as_bytes()))?;
    Ok(paths)
}

fn bundle(bytes: &[u8], signature: &[u8], public: &[u8]) -> Value {
    json!({
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": { "publicKey": { "hint": STANDARD.encode(Sha256::digest(public)) } },
        "messageSignature": {
            "messageDigest": { "algorithm": "SHA2_256", "digest": STANDARD.encode(Sha256::digest(bytes)) },
            "signature": STANDARD.encode(signature),
        },
    })
}

/// Checks the signature beside `file` with the public key in `key` (PEM).
///
/// # Errors
/// A signature that is missing or another's, or a key that is none.
pub fn check(file: &Path, key: &Path) -> Result<()> {
    let verifier = VerifyingKey::from_public_key_pem(&text(key)?)
        .map_err(|_| anyhow::anyhow!("{}: no public key on P-256 (openssl pkey -pubout)", key.display()))?;
    let path = beside(file, SIGNATURE);
    let encoded = text(&path)?;
    let bytes = STANDARD.decode(encoded.trim()).with_context(|| format!("{}: is no Base64", path.display()))?;
    let signature =
        DerSignature::try_from(&bytes[..]).ok().with_context(|| format!("{}: is no signature", path.display()))?;
    if verifier.verify(&bounded(file)?, &signature).is_err() {
        bail!("{}: it is not what the holder of {} has signed", file.display(), key.display());
    }
    Ok(())
}

fn beside(file: &Path, end: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{end}"));
    name.into()
}

fn text(path: &Path) -> Result<String> {
    String::from_utf8(bounded(path)?).with_context(|| format!("{}: is no text", path.display()))
}

fn bounded(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).with_context(|| format!("read {}", path.display()))?.len();
    anyhow::ensure!(length <= MAX_FILE, "{}: it is larger than {} MiB", path.display(), MAX_FILE >> 20);
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
