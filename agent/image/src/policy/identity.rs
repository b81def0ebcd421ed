//! Whether what a signature says it is for is the image that is asked for.
//!
//! cosign signs the name of a repository and no tag, and its newer bundles sign no name at all; then the repository in
//! which the bundle was found stands for it. Only `matchRepository` and `exactRepository` can accept either.

use super::json::{Result, Value, quoted};
use super::named::{Named, is_namespace};

/// `signedIdentity` of a requirement.
#[derive(Debug)]
pub(super) enum Identity {
    /// The same name, with its tag or digest.
    MatchExact,
    /// The same name and tag; of an image that is asked for by digest the repository is enough, for the digest is
    /// signed too.
    MatchRepoDigestOrExact,
    /// The same repository.
    MatchRepository,
    /// This name, whatever is asked for.
    ExactReference(Named),
    /// This repository, whatever is asked for.
    ExactRepository(Named),
    /// As [`Identity::MatchRepoDigestOrExact`], once the start of the name is replaced: for mirrors.
    Remap { prefix: String, signed_prefix: String },
}

impl Identity {
    pub(super) fn parse(value: Value, what: &str) -> Result<Identity> {
        let mut fields = value.object(what)?;
        let kind = fields.text("type")?;
        let identity = match kind.as_str() {
            "matchExact" => Identity::MatchExact,
            "matchRepoDigestOrExact" => Identity::MatchRepoDigestOrExact,
            "matchRepository" => Identity::MatchRepository,
            "exactReference" => {
                let text = fields.text("dockerReference")?;
                let named = Named::parse(&text).map_err(|error| format!("{what}: {error}"))?;
                if named.is_name_only() {
                    return Err(format!("{what}: dockerReference {} has neither tag nor digest", quoted(&text)));
                }
                Identity::ExactReference(named)
            }
            "exactRepository" => {
                let text = fields.text("dockerRepository")?;
                Identity::ExactRepository(Named::parse(&text).map_err(|error| format!("{what}: {error}"))?)
            }
            "remapIdentity" => {
                let (prefix, signed_prefix) = (fields.text("prefix")?, fields.text("signedPrefix")?);
                if let Some(bad) = [&prefix, &signed_prefix].into_iter().find(|text| !is_namespace(text)) {
                    return Err(format!("{what}: {} is neither a host nor a host and a path", quoted(bad)));
                }
                Identity::Remap { prefix, signed_prefix }
            }
            other => return Err(format!("{what}: the type {} is not known", quoted(other))),
        };
        fields.done()?;
        Ok(identity)
    }

    /// Whether a signature for `signed` is one for `image`, which has either a tag or a digest.
    pub(super) fn accepts(&self, image: &Named, signed: &Named) -> Result<()> {
        let (name, good) = match self {
            Identity::MatchExact => ("matchExact", is_exact(image, signed)),
            Identity::MatchRepoDigestOrExact => ("matchRepoDigestOrExact", is_repo_digest_or_exact(image, signed)),
            Identity::MatchRepository => ("matchRepository", image.is_same_repository(signed)),
            Identity::ExactReference(named) => ("exactReference", is_exact(named, signed)),
            Identity::ExactRepository(named) => ("exactRepository", named.is_same_repository(signed)),
            Identity::Remap { prefix, signed_prefix } => {
                let moved = remap(image, prefix, signed_prefix);
                ("remapIdentity", moved.is_some_and(|moved| is_repo_digest_or_exact(&moved, signed)))
            }
        };
        if good {
            return Ok(());
        }
        let by_repository = matches!(self, Identity::MatchRepository | Identity::ExactRepository(_));
        let advice = if signed.is_name_only() && !by_repository {
            ", a repository without a tag, as cosign does: use matchRepository or exactRepository"
        } else {
            ""
        };
        Err(format!("it is for {signed}{advice} ({name})"))
    }
}

fn is_exact(wanted: &Named, signed: &Named) -> bool {
    !wanted.is_name_only() && wanted == signed
}

fn is_repo_digest_or_exact(image: &Named, signed: &Named) -> bool {
    match image.has_tag() {
        true => is_exact(image, signed),
        false => !image.is_name_only() && !signed.is_name_only() && image.is_same_repository(signed),
    }
}

/// The image under the name it was signed by; one that is not under the prefix keeps its name.
fn remap(image: &Named, prefix: &str, signed_prefix: &str) -> Option<Named> {
    let repository = image.repository();
    match repository.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/')) {
        Some(rest) => image.moved_to(&format!("{signed_prefix}{rest}")),
        None => Some(image.clone()),
    }
}
