//! Entries of Sigstore's transparency log, Rekor: that it has a signature, and since when, by the log's own word ("signed entry timestamp").

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::json::{self, Fields, Result, Value, quoted};
use super::key::Key;

/// What an entry must be about.
pub(super) struct Signed<'a> {
    /// The statement.
    pub(super) payload: &'a [u8],
    pub(super) signature: &'a [u8],
    /// The certificate or the public key that it was made with, in DER.
    pub(super) signer: &'a [u8],
}

/// An entry as a signature brings it. Nothing of it is believed before the log's key has verified it.
#[derive(Debug)]
pub(super) struct Entry {
    /// In base64.
    body: String,
    time: i64,
    index: i64,
    /// In hexadecimal digits.
    log: String,
    /// The log's signature.
    promise: Vec<u8>,
}

impl Entry {
    /// As the annotation `dev.sigstore.cosign/bundle` has it.
    pub(super) fn from_annotation(text: &str) -> Result<Entry> {
        let mut fields = json::parse(text.as_bytes())?.object("the log's entry")?;
        let promise = decode(&fields.text("SignedEntryTimestamp")?)?;
        let mut payload = fields.object("Payload")?;
        let (body, log) = (payload.text("body")?, payload.text("logID")?);
        let (time, index) = (number(&mut payload, "integratedTime")?, number(&mut payload, "logIndex")?);
        payload.done()?;
        fields.done()?;
        Ok(Entry { body, time, index, log, promise })
    }

    /// As a bundle's `tlogEntries` have it. What else is there, a proof of inclusion and how the body is made, says nothing new.
    pub(super) fn from_bundle(value: Value) -> Result<Entry> {
        let mut fields = value.object("tlogEntries[0]")?;
        let body = fields.text("canonicalizedBody")?;
        let log = hex::encode(decode(&fields.object("logId")?.text("keyId")?)?);
        let promise = decode(&fields.object("inclusionPromise")?.text("signedEntryTimestamp")?)?;
        let (time, index) = (number(&mut fields, "integratedTime")?, number(&mut fields, "logIndex")?);
        Ok(Entry { body, time, index, log, promise })
    }

    /// When the signature was entered, if one of these logs has it.
    pub(super) fn verify(&self, logs: &[Key], signed: &Signed<'_>) -> Result<SystemTime> {
        let body = decode(&self.body)?;
        let statement = self.canonical()?;
        if !logs.iter().any(|log| log.verifies(statement.as_bytes(), &self.promise)) {
            return Err("no log of the policy has entered it".into());
        }
        check_body(&body, signed)?;
        let since = u64::try_from(self.time).map_err(|_| "it was entered in the log before there was time")?;
        UNIX_EPOCH.checked_add(Duration::from_secs(since)).ok_or_else(|| "its time in the log makes no sense".into())
    }

    /// What the log signs: JSON in the one form of RFC 8785. The texts have no letter that would be written otherwise.
    fn canonical(&self) -> Result<String> {
        let Entry { body, time, index, log, .. } = self;
        if !log.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("the log's entry has an identifier that is none".into());
        }
        Ok(format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{log}","logIndex":{index}}}"#))
    }
}

/// Whether the entry is about this signature. The body is the log's own, which has fields that are not needed here.
fn check_body(body: &[u8], signed: &Signed<'_>) -> Result<()> {
    let mut fields = json::parse(body)?.object("the log's entry")?;
    let (kind, version) = (fields.text("kind")?, fields.text("apiVersion")?);
    let mut spec = fields.object("spec")?;
    let (signature, signer, mut hash) = match (kind.as_str(), version.as_str()) {
        ("hashedrekord", "0.0.1") => {
            let mut signature = spec.object("signature")?;
            let signer = signature.object("publicKey")?.text("content")?;
            (signature.text("content")?, signer, spec.object("data")?.object("hash")?)
        }
        ("dsse", "0.0.1") => {
            let mut signatures = spec.list("signatures")?.into_iter();
            let (Some(first), None) = (signatures.next(), signatures.next()) else {
                return Err("the log's entry has not one signature".into());
            };
            let mut first = first.object("the log's signature")?;
            (first.text("signature")?, first.text("verifier")?, spec.object("payloadHash")?)
        }
        _ => return Err(format!("the log's entry is of the kind {}, which is not known", quoted(&kind))),
    };
    let same_signer = der_of_pem(&decode(&signer)?).as_deref() == Some(signed.signer);
    let same_payload = hash.text("algorithm")? == "sha256"
        && hash.text("value")?.eq_ignore_ascii_case(&hex::encode(Sha256::digest(signed.payload)));
    if !same_signer || !same_payload || decode(&signature)? != signed.signature {
        return Err("the log's entry is about another signature".into());
    }
    Ok(())
}

/// Bundles write large numbers as text, and leave out what is zero.
fn number(fields: &mut Fields, name: &str) -> Result<i64> {
    let bad = format!("{} is no whole number", fields.place(name));
    match fields.take(name) {
        None => Ok(0),
        Some(Value::Integer(number)) => Ok(number),
        Some(Value::Text(text)) => text.parse().map_err(|_| bad),
        Some(_) => Err(bad),
    }
}

fn decode(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|_| "the log's entry has a text that is not base64".into())
}

/// What the one block of a PEM text holds, whatever it calls it.
pub(super) fn der_of_pem(pem: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?.trim();
    let (_, rest) = text.strip_prefix("-----BEGIN ")?.split_once("-----")?;
    let (body, end) = rest.split_once("-----END ")?;
    let label = end.strip_suffix("-----")?;
    let body: String = body.split_ascii_whitespace().collect();
    (!label.contains("-----")).then(|| STANDARD.decode(body).ok()).flatten()
}
