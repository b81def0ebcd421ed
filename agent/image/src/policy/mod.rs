//! Which images may be used: the `policy.json` of containers(5), read strictly and judged here.
//!
//! A policy maps scopes (a tag, a repository, a host, …) to demands. The closest scope alone decides, and all its
//! demands must be met. A file that is not understood to the last field is refused as a whole, and a demand that can't
//! be judged here is met by no image.
//!
//! A signature names the digest of a manifest. Judged is the name the image was asked for by, not the mirror it came
//! from. That the manifest is the one which this name means is for the caller to see to: that its digest is the name's,
//! or stands in the index which has the name's digest.

mod certificate;
mod gpg;
mod identity;
mod json;
mod key;
mod log;
mod named;
mod payload;
mod requirement;
mod signers;
mod sigstore;

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod sigstore_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::time::SystemTime;

pub use named::{BadName, Named};

use json::quoted;
use payload::{Image, Kind};
use requirement::Requirement;
use sigstore::Demand;

/// The most bytes of a policy, and of the file of a key.
const MAX_POLICY: usize = 1 << 20;
const MAX_KEY: u64 = 64 << 10;

/// The longest signature. A bundle holds its payload, certificates and proofs from a log.
const MAX_SIGNATURE: usize = 1 << 20;

/// The most signatures of an image that are looked at.
const MAX_SIGNATURES: usize = 128;

/// The most signatures whose faults are told, and the most letters for each.
const MAX_TOLD: usize = 8;
const MAX_TOLD_LENGTH: usize = 400;

/// The transport of images from registries, the only one there is here.
const TRANSPORT: &str = "docker";

/// The transports of containers-transports(5). A policy for any other has a typing error.
const TRANSPORTS: [&str; 11] = [
    "atomic",
    "containers-storage",
    "dir",
    TRANSPORT,
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
];

/// Why a policy can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is larger than any sensible one.
    #[error("the image policy has more than {MAX_POLICY} bytes")]
    TooLarge,
    /// It is not to be understood, or a key of it is not.
    #[error("the image policy: {0}")]
    Malformed(String),
}

/// Why an image may not be used.
#[derive(Debug, thiserror::Error)]
#[error("{image}: the image policy for {scope} denies it: requirement {index} ({requirement}): {why}")]
pub struct Denied {
    image: String,
    scope: String,
    index: usize,
    requirement: &'static str,
    why: String,
}

/// A signature as it is found.
#[derive(Debug, Clone)]
pub enum Signature {
    /// Of the tag `sha256-….sig`: a layer, and its annotation `dev.cosignproject.cosign/signature`.
    Legacy {
        /// The layer's bytes, which are what is signed.
        payload: Vec<u8>,
        /// The signature.
        signature_base64: String,
        /// The layer's other annotations about it.
        proof: LegacyProof,
    },
    /// A Sigstore bundle, one of the manifest's referrers.
    Bundle(Vec<u8>),
    /// A signed OpenPGP message of a signature store.
    Gpg(Vec<u8>),
}

/// How a signature of a tag proves itself, if not by a key.
#[derive(Debug, Clone, Default)]
pub struct LegacyProof {
    /// `dev.sigstore.cosign/certificate`: the signer's certificate (PEM).
    pub certificate: Option<String>,
    /// `dev.sigstore.cosign/chain`: the certificates between it and an authority (PEM).
    pub chain: Option<String>,
    /// `dev.sigstore.cosign/bundle`: the entry of a log.
    pub bundle: Option<String>,
}

impl Signature {
    fn length(&self) -> usize {
        match self {
            Signature::Legacy { payload, signature_base64, proof: LegacyProof { certificate, chain, bundle } } => {
                let texts = [certificate, chain, bundle].map(|text| text.as_ref().map_or(0, String::len));
                texts.into_iter().chain([signature_base64.len()]).fold(payload.len(), usize::max)
            }
            Signature::Bundle(bytes) | Signature::Gpg(bytes) => bytes.len(),
        }
    }
}

/// Which signatures a policy asks for, so that they must be found before an image is judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those that are stored beside the image in its registry.
    pub sigstore: bool,
    /// Those of the image's signature store.
    pub gpg: bool,
}

/// A policy.
#[derive(Debug)]
pub struct Policy {
    default: Vec<Requirement>,
    scopes: BTreeMap<String, Vec<Requirement>>,
}

impl Policy {
    /// No image is good enough.
    pub fn reject_all() -> Policy {
        Policy { default: vec![Requirement::Reject], scopes: BTreeMap::new() }
    }

    /// Any image is good enough.
    pub fn accept_all() -> Policy {
        Policy { default: vec![Requirement::AcceptAnything], scopes: BTreeMap::new() }
    }

    /// Reads a policy, and the files of its keys.
    ///
    /// # Errors
    /// The policy, or one of its keys, is not understood.
    pub fn parse(json: &[u8]) -> Result<Policy, Error> {
        Policy::parse_with(json, &read_key)
    }

    /// Reads a policy whose keys come from elsewhere: `read` gives the PEM text for a `keyPath`.
    ///
    /// # Errors
    /// The policy, or one of its keys, is not understood.
    pub fn parse_with(json: &[u8], read: &dyn Fn(&str) -> io::Result<Vec<u8>>) -> Result<Policy, Error> {
        if json.len() > MAX_POLICY {
            return Err(Error::TooLarge);
        }
        parse(json, read).map_err(Error::Malformed)
    }

    /// Which signatures of this image must be found before it is judged.
    pub fn wanted(&self, named: &Named) -> Wanted {
        let (_, requirements) = self.requirements(&named.pulled());
        Wanted {
            sigstore: requirements.iter().any(|requirement| matches!(requirement, Requirement::SigstoreSigned { .. })),
            gpg: requirements.iter().any(|requirement| matches!(requirement, Requirement::SignedBy { .. })),
        }
    }

    /// Judges the image that was asked for by this name and has this manifest.
    ///
    /// # Errors
    /// The image may not be used.
    pub fn judge(&self, named: &Named, manifest: &[u8], signatures: &[Signature]) -> Result<(), Denied> {
        let pulled = named.pulled();
        let (scope, requirements) = self.requirements(&pulled);
        let image = Image::new(&pulled, manifest);
        for (index, requirement) in requirements.iter().enumerate() {
            check(requirement, &image, signatures).map_err(|why| Denied {
                image: pulled.to_string(),
                scope: scope.clone(),
                index: index + 1,
                requirement: requirement.name(),
                why,
            })?;
        }
        Ok(())
    }

    /// The closest scope and what it demands.
    fn requirements(&self, pulled: &Named) -> (String, &[Requirement]) {
        let scopes = pulled.scopes().into_iter().chain([String::new()]);
        for scope in scopes {
            if let Some(requirements) = self.scopes.get(&scope) {
                let shown = if scope.is_empty() { format!("all of {TRANSPORT}") } else { format!("scope {scope}") };
                return (shown, requirements);
            }
        }
        ("everything (default)".into(), &self.default)
    }
}

fn parse(json: &[u8], read: requirement::ReadKey<'_>) -> json::Result<Policy> {
    let mut fields = json::parse(json)?.object("policy")?;
    let default = Requirement::parse_list(fields.need("default")?, "default", read)?;
    let mut scopes = BTreeMap::new();
    if let Some(transports) = fields.take("transports") {
        for (transport, value) in transports.object("transports")? {
            if !TRANSPORTS.contains(&transport.as_str()) {
                return Err(format!("the transport {} is not known", quoted(&transport)));
            }
            for (scope, list) in value.object(&transport)? {
                let what = format!("{transport} {}", quoted(&scope));
                if transport == TRANSPORT && !named::is_scope(&scope) {
                    return Err(format!(
                        "{what}: no image has such a name: write it in full, as docker.io/library/busybox"
                    ));
                }
                let requirements = Requirement::parse_list(list, &what, read)?;
                // What is said of other transports must be right, and then concerns nobody here.
                if transport == TRANSPORT {
                    scopes.insert(scope, requirements);
                }
            }
        }
    }
    fields.done()?;
    Ok(Policy { default, scopes })
}

/// The PEM text of the key at an absolute path, or at a `file://` address of one.
fn read_key(path: &str) -> io::Result<Vec<u8>> {
    let path = path.strip_prefix("file://").unwrap_or(path);
    if !path.starts_with('/') {
        return Err(io::Error::other("it is no absolute path"));
    }
    // Opening a FIFO may wait for ever.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_KEY + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_KEY {
        return Err(io::Error::other("it is too large"));
    }
    Ok(bytes)
}

fn check(requirement: &Requirement, image: &Image<'_>, signatures: &[Signature]) -> Result<(), String> {
    match requirement {
        Requirement::AcceptAnything => Ok(()),
        Requirement::Reject => Err("no image may be used".into()),
        Requirement::Unsupported(why) => Err(why.clone()),
        Requirement::SigstoreSigned { signers, identity } => one_of(signatures, |signature| match signature {
            Signature::Gpg(_) => None,
            other => Some(sigstore::verify(other, &Demand { signers, identity, image })),
        }),
        Requirement::SignedBy { keyrings, identity } => {
            let now = SystemTime::now();
            one_of(signatures, |signature| {
                let Signature::Gpg(message) = signature else { return None };
                let payload = gpg::verify(message, keyrings, now);
                Some(payload.and_then(|payload| payload::verify(&payload, Kind::Gpg, identity, image)))
            })
        }
    }
}

/// Whether one of the signatures is good; `verify` knows those that are of another kind.
fn one_of(signatures: &[Signature], verify: impl Fn(&Signature) -> Option<Result<(), String>>) -> Result<(), String> {
    let mut faults = Vec::new();
    for signature in signatures.iter().take(MAX_SIGNATURES) {
        let verdict = match signature.length() {
            0..=MAX_SIGNATURE => verify(signature),
            _ => Some(Err("it is too large".into())),
        };
        match verdict {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => faults.push(why),
            None => {}
        }
    }
    if faults.is_empty() {
        return Err("the image has no signature".into());
    }
    let told = faults.iter().enumerate().take(MAX_TOLD);
    // A signature is a stranger's text; it must not begin lines of its own.
    let told = told.map(|(index, why)| {
        let line: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TOLD_LENGTH).collect();
        format!("{}: {line}", index + 1)
    });
    let told = told.collect::<Vec<_>>().join("; ");
    let more = if faults.len() > MAX_TOLD { "; …" } else { "" };
    Err(format!("none of {} signatures is good: {told}{more}", faults.len()))
}
