//! Signatures of cosign: what was signed, by which key, for which image.
//!
//! Nothing in a signature is believed before a key of the policy has verified it, but for where its parts are.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::Signature;
use super::identity::Identity;
use super::json::{self, Fields, Result, quoted};
use super::key::Key;
use super::named::Named;
use super::payload::{self, Image, Kind};

const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const STATEMENT_MEDIA_TYPE: &str = "application/vnd.in-toto+json";
/// The claim that an image is signed. Other statements about an image (where it came from, what is in it) have other
/// types, and may be signed with the same key.
const PREDICATE_TYPE: &str = "https://sigstore.dev/cosign/sign/v1";

/// Whether the signature is by one of the keys, and for the image.
pub(super) fn verify(signature: &Signature, keys: &[Key], identity: &Identity, image: &Image<'_>) -> Result<()> {
    match signature {
        Signature::Legacy { payload, signature_base64 } => {
            signed(keys, payload, &decode(signature_base64, "the signature")?)?;
            payload::verify(payload, Kind::Cosign, identity, image)
        }
        Signature::Bundle(bundle) => verify_bundle(bundle, keys, identity, image),
        Signature::Gpg(_) => Err("it is made by GPG".into()),
    }
}

fn signed(keys: &[Key], message: &[u8], signature: &[u8]) -> Result<()> {
    match keys.iter().any(|key| key.verifies(message, signature)) {
        true => Ok(()),
        false => Err("no key of the policy made it".into()),
    }
}

fn decode(text: &str, what: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|_| format!("{what} is not base64"))
}

fn parse_name(text: &str) -> Result<Named> {
    Named::parse(text).map_err(|error| error.to_string())
}

fn verify_bundle(bundle: &[u8], keys: &[Key], identity: &Identity, image: &Image<'_>) -> Result<()> {
    let mut fields = json::parse(bundle)?.object("bundle")?;
    let kind = fields.text("mediaType")?;
    if kind != BUNDLE_TYPE {
        return Err(format!("the bundle's type {} is not known", quoted(&kind)));
    }
    check_material(fields.object("verificationMaterial")?)?;
    let envelope = fields.take("dsseEnvelope");
    let message = fields.take("messageSignature");
    fields.done()?;
    match (envelope, message) {
        (Some(envelope), None) => verify_envelope(envelope.object("bundle.dsseEnvelope")?, keys, identity, image),
        (None, Some(message)) => verify_message(message.object("bundle.messageSignature")?, keys, identity, image),
        _ => Err("the bundle has not one of dsseEnvelope and messageSignature".into()),
    }
}

/// A bundle made with a key names it by a hint, which proves nothing. Proofs of logs and clocks are for policies that
/// ask for them.
fn check_material(mut fields: Fields) -> Result<()> {
    if fields.take("certificate").or_else(|| fields.take("x509CertificateChain")).is_some() {
        return Err("it is made with a certificate, and not with a key".into());
    }
    let mut key = fields.object("publicKey")?;
    key.take("hint").map(|value| value.text("the hint of the key")).transpose()?;
    key.done()?;
    fields.take("tlogEntries");
    fields.take("timestampVerificationData");
    fields.done()
}

/// A signed statement (DSSE and in-toto).
fn verify_envelope(mut fields: Fields, keys: &[Key], identity: &Identity, image: &Image<'_>) -> Result<()> {
    let payload = decode(&fields.text("payload")?, "bundle.dsseEnvelope.payload")?;
    let kind = fields.text("payloadType")?;
    let mut signatures = fields.list("signatures")?.into_iter();
    let (Some(first), None) = (signatures.next(), signatures.next()) else {
        return Err("bundle.dsseEnvelope has not one signature".into());
    };
    fields.done()?;
    let mut first = first.object("bundle.dsseEnvelope.signatures[0]")?;
    let signature = decode(&first.text("sig")?, "bundle.dsseEnvelope.signatures[0].sig")?;
    first.take("keyid");
    first.done()?;
    if kind != STATEMENT_MEDIA_TYPE {
        return Err(format!("the payload's type {} is not known", quoted(&kind)));
    }
    signed(keys, &pre_authentication_encoding(&kind, &payload), &signature)?;
    verify_statement(&payload, identity, image)
}

/// What is signed of an envelope: its type too, so that no payload passes for another kind.
fn pre_authentication_encoding(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// A statement may have fields that are not known here; those it needs must be right.
fn verify_statement(payload: &[u8], identity: &Identity, image: &Image<'_>) -> Result<()> {
    let mut fields = json::parse(payload)?.object("statement")?;
    for (name, expected) in [("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)] {
        let found = fields.text(name)?;
        if found != expected {
            return Err(format!("statement.{name} is {}, not {expected:?}", quoted(&found)));
        }
    }
    let mut refused = None;
    for subject in fields.list("subject")? {
        let mut subject = subject.object("statement.subject")?;
        let digest = subject.object("digest")?.text("sha256")?;
        if digest != image.digest {
            refused.get_or_insert(format!("it is for the sha256 {}", quoted(&digest)));
            continue;
        }
        let name = subject.take("name").map(|value| value.text("statement.subject.name")).transpose()?;
        let found = name.filter(|name| !name.is_empty()).map(|name| parse_name(&name));
        let judged = found.unwrap_or_else(|| Ok(image.named.without_tag()));
        match judged.and_then(|named| identity.accepts(image.named, &named)) {
            Ok(()) => return Ok(()),
            Err(why) => refused = Some(why),
        }
    }
    Err(refused.unwrap_or_else(|| "the statement has no subject".into()))
}

/// A signature over the manifest itself.
fn verify_message(mut fields: Fields, keys: &[Key], identity: &Identity, image: &Image<'_>) -> Result<()> {
    let signature = decode(&fields.text("signature")?, "bundle.messageSignature.signature")?;
    let mut digest = fields.object("messageDigest")?;
    let (algorithm, named) = (digest.text("algorithm")?, decode(&digest.text("digest")?, "the message's digest")?);
    digest.done()?;
    fields.done()?;
    let found = match algorithm.as_str() {
        "SHA2_256" => Sha256::digest(image.manifest).to_vec(),
        "SHA2_384" => Sha384::digest(image.manifest).to_vec(),
        "SHA2_512" => Sha512::digest(image.manifest).to_vec(),
        other => return Err(format!("the digest {} is not known", quoted(other))),
    };
    if found != named {
        return Err("it is for another manifest".into());
    }
    signed(keys, image.manifest, &signature)?;
    identity.accepts(image.named, &image.named.without_tag())
}
