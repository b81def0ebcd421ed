//! What "simple signing" signs: a statement in JSON that names an image and the digest of its manifest.

use sha2::{Digest as _, Sha256};

use super::identity::Identity;
use super::json::{self, Fields, Result, Value, quoted};
use super::named::Named;

/// The image that a signature must be for.
pub(super) struct Image<'a> {
    /// As it is pulled.
    pub(super) named: &'a Named,
    pub(super) manifest: &'a [u8],
    /// The manifest's digest, in SHA-256 digits.
    pub(super) digest: String,
}

impl<'a> Image<'a> {
    pub(super) fn new(named: &'a Named, manifest: &'a [u8]) -> Image<'a> {
        Image { named, manifest, digest: hex::encode(Sha256::digest(manifest)) }
    }
}

/// Who signs: no statement passes for another's.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Cosign,
    Gpg,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Cosign => "cosign container image signature",
            Kind::Gpg => "atomic container signature",
        }
    }
}

/// Whether the statement, which has been signed, is for the image.
pub(super) fn verify(payload: &[u8], kind: Kind, identity: &Identity, image: &Image<'_>) -> Result<()> {
    let (digest, reference) = parse(payload, kind)?;
    if digest.strip_prefix("sha256:") != Some(&image.digest) {
        return Err(format!("it is for {}", quoted(&digest)));
    }
    let named = Named::parse(&reference).map_err(|error| error.to_string())?;
    identity.accepts(image.named, &named)
}

/// Digest and name that it is for.
fn parse(payload: &[u8], expected: Kind) -> Result<(String, String)> {
    let mut fields = json::parse(payload)?.object("payload")?;
    let mut critical = fields.object("critical")?;
    let mut image = critical.object("image")?;
    let mut identity = critical.object("identity")?;
    let (digest, reference) = (image.text("docker-manifest-digest")?, identity.text("docker-reference")?);
    let kind = critical.text("type")?;
    if kind != expected.name() {
        return Err(format!("payload.critical.type is {}", quoted(&kind)));
    }
    // What else was signed is the signer's own, but it has a form.
    match fields.need("optional")? {
        Value::Null => {}
        value => {
            let mut optional = value.object("payload.optional")?;
            optional.take("creator").map(|value| value.text("payload.optional.creator")).transpose()?;
            if optional.take("timestamp").is_some_and(|value| !matches!(value, Value::Integer(_))) {
                return Err("payload.optional.timestamp is not a whole number".into());
            }
        }
    }
    [image, identity, critical, fields].into_iter().try_for_each(Fields::done)?;
    Ok((digest, reference))
}
