//! What a policy demands of an image, read from `policy.json` field by field.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::certificate::Authorities;
use super::gpg::Keyring;
use super::identity::Identity;
use super::json::{Fields, Result, Value, quoted};
use super::key::Key;
use super::signers::Signers;

/// One demand.
#[derive(Debug)]
pub(super) enum Requirement {
    /// Nothing.
    AcceptAnything,
    /// No image is good enough.
    Reject,
    /// A signature by one of the signers, for the image.
    SigstoreSigned { signers: Signers, identity: Identity },
    /// A message signed by a key of one of the files, for the image.
    SignedBy { keyrings: Vec<Keyring>, identity: Identity },
    /// A demand that is well formed and can't be judged here. No image meets it.
    Unsupported(String),
}

/// Reads key files.
pub(super) type ReadKey<'a> = &'a dyn Fn(&str) -> std::io::Result<Vec<u8>>;

/// Where keys or certificates come from.
enum Source {
    Path(String),
    Data(Vec<u8>),
}

impl Requirement {
    /// Reads a list of demands; an empty one would demand nothing without saying so.
    pub(super) fn parse_list(value: Value, what: &str, read: ReadKey<'_>) -> Result<Vec<Requirement>> {
        let list = value.list(what)?;
        if list.is_empty() {
            return Err(format!("{what} is an empty list: say insecureAcceptAnything or reject"));
        }
        let parse = |(index, value)| Requirement::parse(value, &format!("{what}[{index}]"), read);
        list.into_iter().enumerate().map(parse).collect()
    }

    fn parse(value: Value, what: &str, read: ReadKey<'_>) -> Result<Requirement> {
        let mut fields = value.object(what)?;
        let requirement = match fields.text("type")?.as_str() {
            "insecureAcceptAnything" => Requirement::AcceptAnything,
            "reject" => Requirement::Reject,
            "sigstoreSigned" => sigstore_signed(&mut fields, read)?,
            "signedBy" => signed_by(&mut fields, read)?,
            "signedBaseLayer" => {
                let place = fields.place("baseLayerIdentity");
                Identity::parse(fields.need("baseLayerIdentity")?, &place)?;
                Requirement::Unsupported("signedBaseLayer is not supported".into())
            }
            other => return Err(format!("{what}: the type {} is not known", quoted(other))),
        };
        fields.done()?;
        Ok(requirement)
    }

    /// Its type, as policies write it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Requirement::AcceptAnything => "insecureAcceptAnything",
            Requirement::Reject => "reject",
            Requirement::SigstoreSigned { .. } => "sigstoreSigned",
            Requirement::SignedBy { .. } => "signedBy",
            Requirement::Unsupported(_) => "unsupported",
        }
    }
}

fn sigstore_signed(fields: &mut Fields, read: ReadKey<'_>) -> Result<Requirement> {
    let identity = signed_identity(fields)?;
    let what = fields.what().to_string();
    let keys = |sources: Vec<Source>| -> Result<Vec<Key>> {
        sources.into_iter().map(|source| key(source, &what, read, Key::from_pem)).collect()
    };
    let own = sources(fields, "key", &["Path", "Paths", "Data", "Datas"])?.map(keys).transpose()?;
    let logs = sources(fields, "rekorPublicKey", &["Path", "Paths", "Data", "Datas"])?.map(keys).transpose()?;
    let fulcio = fields.take("fulcio").map(|value| fulcio(value, &fields.place("fulcio"), read)).transpose()?;
    let pki = fields.take("pki").map(|value| pki(value, &fields.place("pki"), read)).transpose()?;
    let signers = match (own, fulcio, pki, logs) {
        (Some(keys), None, None, logs) => Signers::Keys { keys, logs },
        (None, Some((authorities, issuer, email)), None, Some(logs)) => {
            Signers::Fulcio { authorities, issuer, email, logs }
        }
        (None, Some(_), None, None) => return Err(format!("{what}: fulcio needs a Rekor key")),
        (None, None, Some((authorities, email, host)), None) => Signers::Pki { authorities, email, host },
        (None, None, Some(_), Some(_)) => return Err(format!("{what}: pki takes no Rekor key")),
        (None, None, None, _) => {
            return Err(format!("{what} has neither keyPath, keyPaths, keyData, keyDatas, fulcio nor pki"));
        }
        _ => return Err(format!("{what} has more than one of keys, fulcio and pki")),
    };
    Ok(Requirement::SigstoreSigned { signers, identity })
}

fn signed_by(fields: &mut Fields, read: ReadKey<'_>) -> Result<Requirement> {
    let identity = signed_identity(fields)?;
    let kind = fields.text("keyType")?;
    let what = fields.what().to_string();
    let sources = sources(fields, "key", &["Path", "Paths", "Data"])?.ok_or(format!("{what} has no key"))?;
    match kind.as_str() {
        "GPGKeys" => {
            let keyring = |source| key(source, &what, read, Keyring::parse);
            let keyrings = sources.into_iter().map(keyring).collect::<Result<Vec<_>>>()?;
            Ok(Requirement::SignedBy { keyrings, identity })
        }
        "signedByGPGKeys" | "X509Certificates" | "signedByX509CAs" => {
            Ok(Requirement::Unsupported(format!("signedBy with the keyType {kind} is not supported")))
        }
        other => Err(format!("{what}: the keyType {} is not known", quoted(other))),
    }
}

fn signed_identity(fields: &mut Fields) -> Result<Identity> {
    let place = fields.place("signedIdentity");
    fields.take("signedIdentity").map_or(Ok(Identity::MatchRepoDigestOrExact), |value| Identity::parse(value, &place))
}

/// Authorities, the OpenID provider and the address.
fn fulcio(value: Value, what: &str, read: ReadKey<'_>) -> Result<(Authorities, String, String)> {
    let mut fields = value.object(what)?;
    let authorities = authorities(&mut fields, "ca", read)?.ok_or(format!("{what} has no CA"))?;
    let mut text = |name: &str| filled(fields.text(name)?, &fields.place(name));
    let (issuer, email) = (text("oidcIssuer")?, text("subjectEmail")?);
    fields.done()?;
    Ok((authorities, issuer, email))
}

/// Authorities, the address and the host.
fn pki(value: Value, what: &str, read: ReadKey<'_>) -> Result<(Authorities, Option<String>, Option<String>)> {
    let mut fields = value.object(what)?;
    let roots = authorities(&mut fields, "caRoots", read)?.ok_or(format!("{what} has no root CA"))?;
    let between = authorities(&mut fields, "caIntermediates", read)?;
    let mut text = |name: &str| {
        let place = fields.place(name);
        fields.take(name).map(|value| filled(value.text(&place)?, &place)).transpose()
    };
    let (email, host) = (text("subjectEmail")?, text("subjectHostname")?);
    if email.is_none() && host.is_none() {
        return Err(format!("{what} has neither subjectEmail nor subjectHostname"));
    }
    fields.done()?;
    Ok((roots.with(between), email, host))
}

fn authorities(fields: &mut Fields, prefix: &str, read: ReadKey<'_>) -> Result<Option<Authorities>> {
    let what = fields.what().to_string();
    let mut found = sources(fields, prefix, &["Path", "Data"])?.unwrap_or_default();
    found.pop().map(|source| key(source, &what, read, Authorities::parse)).transpose()
}

/// The one field of those whose names are the prefix and a suffix: a path or base64, or a list of them.
fn sources(fields: &mut Fields, prefix: &str, suffixes: &[&str]) -> Result<Option<Vec<Source>>> {
    let mut found = None;
    for suffix in suffixes {
        let name = format!("{prefix}{suffix}");
        let place = fields.place(&name);
        let Some(value) = fields.take(&name) else { continue };
        if found.is_some() {
            return Err(format!("{place} is one source of keys too many"));
        }
        let values = if suffix.ends_with('s') { value.list(&place)? } else { vec![value] };
        if values.is_empty() {
            return Err(format!("{place} is an empty list"));
        }
        let source = |value: Value| {
            let text = filled(value.text(&place)?, &place)?;
            match suffix.starts_with("Path") {
                true => Ok(Source::Path(text)),
                false => STANDARD.decode(text).map(Source::Data).map_err(|_| format!("{place} is not base64")),
            }
        };
        found = Some(values.into_iter().map(source).collect::<Result<Vec<_>>>()?);
    }
    Ok(found)
}

fn key<K, E: std::fmt::Display>(
    source: Source,
    what: &str,
    read: ReadKey<'_>,
    parse: impl Fn(&[u8]) -> std::result::Result<K, E>,
) -> Result<K> {
    let (name, bytes) = match source {
        Source::Path(path) => {
            let bytes = read(&path).map_err(|error| format!("{what}: read the key {}: {error}", quoted(&path)))?;
            (format!("the key {}", quoted(&path)), bytes)
        }
        Source::Data(bytes) => ("its key data".to_string(), bytes),
    };
    parse(&bytes).map_err(|why| format!("{what}: {name}: {why}"))
}

fn filled(text: String, place: &str) -> Result<String> {
    if text.is_empty() { Err(format!("{place} is empty")) } else { Ok(text) }
}
