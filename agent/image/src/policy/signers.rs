//! Whose signatures are good: keys, or those for whom an authority vouches.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::certificate::Authorities;
use super::json::Result;
use super::key::Key;
use super::log::{Entry, Signed};

/// Who may sign.
#[derive(Debug)]
pub(super) enum Signers {
    /// The owners of these keys; if there are logs, one of them must have entered the signature.
    Keys { keys: Vec<Key>, logs: Option<Vec<Key>> },
    /// Whoever had this address, by the word of this OpenID provider, when a log entered the signature. Fulcio's certificates last for minutes.
    Fulcio { authorities: Authorities, issuer: String, email: String, logs: Vec<Key> },
    /// Whoever has this address, or this host, by the word of an authority.
    Pki { authorities: Authorities, email: Option<String>, host: Option<String> },
}

/// What a signature brings to prove itself.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// The signer's certificate, and those between it and an authority.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// Of a log.
    pub(super) entry: Option<Entry>,
}

/// What was signed.
pub(super) struct Message<'a> {
    /// The bytes that the signature is over.
    pub(super) bytes: &'a [u8],
    /// The statement, which is the bytes or in them.
    pub(super) payload: &'a [u8],
}

impl Signers {
    /// Whether one of them has made the signature.
    pub(super) fn verify(&self, message: &Message<'_>, signature: &[u8], proof: &Proof) -> Result<()> {
        let entered = |logs: &[Key], signer: &[u8]| {
            let entry = proof.entry.as_ref().ok_or("no log has entered it")?;
            entry.verify(logs, &Signed { payload: message.payload, signature, signer })
        };
        match self {
            Signers::Keys { keys, logs } => {
                let Some(key) = keys.iter().find(|key| key.verifies(message.bytes, signature)) else {
                    let with_certificate = !proof.certificates.is_empty();
                    let why = "it is made with a certificate, and not with a key of the policy";
                    return Err(if with_certificate { why } else { "no key of the policy made it" }.into());
                };
                logs.as_ref().map_or(Ok(()), |logs| entered(logs, key.der()).map(drop))
            }
            Signers::Fulcio { authorities, issuer, email, logs } => {
                let certificate = proof.certificates.first().ok_or("it has no certificate")?;
                let signer = authorities.verify(&proof.certificates, entered(logs, certificate)?)?;
                signer.is_vouched_for_by(issuer)?;
                signer.is_for_email(email)?;
                made_by(&signer.key()?, message, signature)
            }
            Signers::Pki { authorities, email, host } => {
                let signer = authorities.verify(&proof.certificates, SystemTime::now())?;
                email.as_ref().map_or(Ok(()), |email| signer.is_for_email(email))?;
                host.as_ref().map_or(Ok(()), |host| signer.is_for_host(host))?;
                made_by(&signer.key()?, message, signature)
            }
        }
    }
}

fn made_by(key: &Key, message: &Message<'_>, signature: &[u8]) -> Result<()> {
    match key.verifies(message.bytes, signature) {
        true => Ok(()),
        false => Err("the key of its certificate did not make it".into()),
    }
}

#[cfg(test)]
#[path = "signers_tests.rs"]
mod tests;
