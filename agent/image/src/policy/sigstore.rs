//! Signatures of cosign: what was signed, by which key, for which image.
//!
//! Nothing in a signature is believed before a key of the policy has verified it, but for where its parts are.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::Signature;
use super::identity::Identity;
use super::json::{self, Fields, Result, Value, quoted};
use super::named::Named;
use super::payload::{self, Image, Kind};
use super::signers::{Message, Proof, Signers};
use super::{certificate, log};

const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const STATEMENT_MEDIA_TYPE: &str = "application/vnd.in-toto+json";
/// The claim that an image is signed. Other statements about an image (where it came from, what is in it) have other
/// types, and may be signed with the same key.
const PREDICATE_TYPE: &str = "https://sigstore.dev/cosign/sign/v1";

/// What a signature must be: by one of the signers, and for the image.
pub(super) struct Demand<'a> {
    pub(super) signers: &'a Signers,
    pub(super) identity: &'a Identity,
    pub(super) image: &'a Image<'a>,
}

/// Whether the signature is what is demanded.
pub(super) fn verify(signature: &Signature, demand: &Demand<'_>) -> Result<()> {
    match signature {
        Signature::Legacy { payload, signature_base64, proof } => {
            let certificates = certificate::brought(proof.certificate.as_deref(), proof.chain.as_deref())?;
            let entry = proof.bundle.as_deref().map(log::Entry::from_annotation).transpose()?;
            let (signature, message) =
                (decode(signature_base64, "the signature")?, Message { bytes: payload, payload });
            demand.signers.verify(&message, &signature, &Proof { certificates, entry })?;
            payload::verify(payload, Kind::Cosign, demand.identity, demand.image)
        }
        Signature::Bundle(bundle) => verify_bundle(bundle, demand),
        Signature::Gpg(_) => Err("it is made by GPG".into()),
    }
}

fn decode(text: &str, what: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|_| format!("{what} is not base64"))
}

fn parse_name(text: &str) -> Result<Named> {
    Named::parse(text).map_err(|error| error.to_string())
}

fn verify_bundle(bundle: &[u8], demand: &Demand<'_>) -> Result<()> {
    let mut fields = json::parse(bundle)?.object("bundle")?;
    let kind = fields.text("mediaType")?;
    if kind != BUNDLE_TYPE {
        return Err(format!("the bundle's type {} is not known", quoted(&kind)));
    }
    let proof = proof(fields.object("verificationMaterial")?)?;
    let envelope = fields.take("dsseEnvelope");
    let message = fields.take("messageSignature");
    fields.done()?;
    match (envelope, message) {
        (Some(envelope), None) => verify_envelope(envelope.object("bundle.dsseEnvelope")?, &proof, demand),
        (None, Some(message)) => verify_message(message.object("bundle.messageSignature")?, &proof, demand),
        _ => Err("the bundle has not one of dsseEnvelope and messageSignature".into()),
    }
}

/// A bundle made with a key names it by a hint, which proves nothing. A time by another clock than a log's is not looked at.
fn proof(mut fields: Fields) -> Result<Proof> {
    let mut certificates = Vec::new();
    if let Some(value) = fields.take("certificate") {
        certificates.push(raw(value)?);
    } else if let Some(value) = fields.take("x509CertificateChain") {
        let chain = value.object("the certificates")?.list("certificates")?;
        certificates = chain.into_iter().take(certificate::MAX_CHAIN).map(raw).collect::<Result<_>>()?;
    } else {
        let mut key = fields.object("publicKey")?;
        key.take("hint").map(|value| value.text("the hint of the key")).transpose()?;
        key.done()?;
    }
    let entries = fields.take("tlogEntries").map(|entries| entries.list("tlogEntries")).transpose()?;
    // One that has no promise is of use to nobody here, and no fault of a signature that needs none.
    let entry = entries.unwrap_or_default().into_iter().next().and_then(|entry| log::Entry::from_bundle(entry).ok());
    fields.take("timestampVerificationData");
    fields.done()?;
    Ok(Proof { certificates, entry })
}

fn raw(value: Value) -> Result<CertificateDer<'static>> {
    let bytes = decode(&value.object("the certificate")?.text("rawBytes")?, "the certificate")?;
    Ok(CertificateDer::from(bytes))
}

/// A signed statement (DSSE and in-toto).
fn verify_envelope(mut fields: Fields, proof: &Proof, demand: &Demand<'_>) -> Result<()> {
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
    let bytes = pre_authentication_encoding(&kind, &payload);
    demand.signers.verify(&Message { bytes: &bytes, payload: &payload }, &signature, proof)?;
    verify_statement(&payload, demand)
}

/// What is signed of an envelope: its type too, so that no payload passes for another kind.
fn pre_authentication_encoding(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// A statement may have fields that are not known here; those it needs must be right.
fn verify_statement(payload: &[u8], Demand { identity, image, .. }: &Demand<'_>) -> Result<()> {
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
fn verify_message(mut fields: Fields, proof: &Proof, Demand { signers, identity, image }: &Demand<'_>) -> Result<()> {
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
    let message = Message { bytes: image.manifest, payload: image.manifest };
    signers.verify(&message, &signature, proof)?;
    identity.accepts(image.named, &image.named.without_tag())
}
