//! Whether an image is the one that was asked for, and may be used: judged before anything of it is.
//!
//! Signatures come by our own server of the proxy's protocol, whoever fetches the image: the protocol has no word for them. What it says is only a
//! stranger's word: what was signed, and that it leads to the image, is checked here.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::access::lookaside::{self, Lookaside};
use crate::error::{Error, Kind, Result};
use crate::policy::{LegacyProof, Named, Policy, Signature, Wanted};
use crate::registry::{Access, Found};
use crate::stream::{LEAST, Patience, Watched};
use crate::{Request, limited, reference};

/// The most that is read of signatures.
const MAX_ANSWER: u64 = 64 << 20;

/// The most signatures of a manifest in a store that is a directory.
const MAX_LOCAL: usize = 64;

/// How many silences of the registry all signatures may take.
const PATIENCE: u32 = 4;

/// What the server has found.
#[derive(Deserialize)]
struct Evidence {
    /// From the index to the image's own.
    manifests: Vec<String>,
    legacy: Vec<Legacy>,
    bundles: Vec<String>,
    gpg: Vec<String>,
}

#[derive(Deserialize)]
struct Legacy {
    payload: String,
    signature: String,
    /// A certificate, its chain, and the entry of a log.
    proof: [Option<String>; 3],
}

/// The entries of an index.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
}

/// Whether the image is named as it must be here.
///
/// # Errors
/// [`Kind::Denied`].
pub(crate) fn judge_name(request: &Request) -> Result<()> {
    if request.require_digest && !request.reference.contains('@') {
        return Err(Error::new(
            Kind::Denied,
            format!("{}: images must be named by digest here (NAME@sha256:…)", request.reference),
        ));
    }
    Ok(())
}

/// Judges the image that was `found`: that its name leads to it, and that the policy admits it.
///
/// # Errors
/// [`Kind::Denied`] with the rule that is not met; [`Kind::Corrupt`] if the name leads to another image.
pub(crate) fn judge(request: &Request, found: &Found, silence: Duration) -> Result<()> {
    let pinned = request.reference.split_once('@').map(|(_, digest)| digest);
    let policy = request.policy.as_ref();
    if reference::is_local(&request.reference) {
        let reason = "an image policy is about registries, and this is none";
        let denied = || Error::new(Kind::Denied, format!("{}: {reason}", request.reference));
        return policy.map_or(Ok(()), |_| Err(denied()));
    }
    if !found.as_served && (policy.is_some() || pinned.is_some()) {
        let reason = "skopeo has converted its manifest, so that nothing vouches for it: use Nacre's own client";
        return Err(Error::new(Kind::Denied, format!("{}: {reason}", request.reference)));
    }
    let bad = |error: &dyn std::fmt::Display| Error::new(Kind::BadRequest, error.to_string());
    let policy = policy.map(|text| Policy::parse(text.as_bytes())).transpose().map_err(|error| bad(&error))?;
    let policy = policy.unwrap_or_else(Policy::accept_all);
    let named = Named::parse(&request.reference).map_err(|error| bad(&error))?;
    let denied = |error: crate::policy::Denied| Error::new(Kind::Denied, error.to_string());
    let wanted = policy.wanted(&named);
    if wanted == Wanted::default() && pinned.is_none_or(|digest| digest == found.manifest_digest) {
        return policy.judge(&named, &found.bytes, &[]).map_err(denied);
    }
    let store = if wanted.gpg { store(request, &named)? } else { None };
    let evidence = find(request, wanted.sigstore, store.as_deref(), silence)?;
    let manifests = evidence.manifests.iter().map(|text| decode(text)).collect::<Result<Vec<_>>>()?;
    check_way(request, found, &manifests)?;
    let mut signatures = signatures(&evidence)?;
    if let Some(dir) = store.as_deref().and_then(|store| store.strip_prefix("file://")) {
        signatures.extend(local(dir, &manifests)?);
    }
    // Either the index is vouched for, or the image that it leads to.
    let mut result = Ok(());
    for manifest in manifests.iter().rev() {
        result = policy.judge(&named, manifest, &signatures).map_err(denied);
        if result.is_ok() {
            return result;
        }
    }
    result
}

/// Where signatures of the image by GPG are ([`lookaside::place`]).
fn store(request: &Request, named: &Named) -> Result<Option<String>> {
    let (lookaside, scopes) = (Lookaside::parse(&request.lookaside)?, named.pulled().scopes());
    let store = lookaside.store(scopes.iter().map(String::as_str));
    Ok(store.map(|store| format!("{store}/{}", named.path())))
}

/// The signatures of a store that is a directory here.
fn local(dir: &str, manifests: &[Vec<u8>]) -> Result<Vec<Signature>> {
    let mut found = Vec::new();
    for manifest in manifests {
        let hex = hex::encode(Sha256::digest(manifest));
        for number in 1..=MAX_LOCAL {
            let path = lookaside::place(dir, &hex, number);
            if !Path::new(&path).exists() {
                break;
            }
            found.push(Signature::Gpg(limited::read(Path::new(&path), limited::MAX_TEXT)?));
        }
    }
    Ok(found)
}

/// Has a server of our own find how the name leads to the image and what vouches for it: if `signed`, beside it in its registry; and in `store`.
fn find(request: &Request, signed: bool, store: Option<&str>, silence: Duration) -> Result<Evidence> {
    let access = Access::prepare(request)?;
    let command = access.server(silence)?;
    let name = reference::transport(&request.reference);
    let store = store.filter(|store| store.starts_with("https://")).unwrap_or_default();
    let question = [name.as_str(), if signed { "signed" } else { "" }, store].map(String::from);
    let answer = ask(command, &question, silence)?; // by the first thread, for the others may start nothing
    drop(access);
    serde_json::from_slice(&answer)
        .map_err(|error| Error::new(Kind::BadImage, format!("the image's signatures make no sense: {error}")))
}

fn signatures(evidence: &Evidence) -> Result<Vec<Signature>> {
    let legacy = evidence.legacy.iter().map(|signature| {
        let payload = decode(&signature.payload)?;
        let [certificate, chain, bundle] = signature.proof.clone();
        let proof = LegacyProof { certificate, chain, bundle };
        Ok(Signature::Legacy { payload, signature_base64: signature.signature.clone(), proof })
    });
    let bundles = evidence.bundles.iter().map(|bundle| decode(bundle).map(Signature::Bundle));
    let gpg = evidence.gpg.iter().map(|message| decode(message).map(Signature::Gpg));
    legacy.chain(bundles).chain(gpg).collect()
}

fn decode(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|error| Error::new(Kind::Internal, format!("an answer makes no sense: {error}")))
}

/// Whether these manifests lead from the name to the image that was found.
fn check_way(request: &Request, found: &Found, manifests: &[Vec<u8>]) -> Result<()> {
    let digest_of = |bytes: &Vec<u8>| format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
    let other = || Error::new(Kind::Corrupt, "the registry has another image by now: try again");
    let digests: Vec<String> = manifests.iter().map(digest_of).collect();
    if digests.last() != Some(&found.manifest_digest) {
        return Err(other());
    }
    if let Some((_, asked)) = request.reference.split_once('@')
        && !digests.iter().any(|digest| digest == asked)
    {
        return Err(other());
    }
    for (manifest, next) in manifests.iter().zip(digests.iter().skip(1)) {
        let index: Index = serde_json::from_slice(manifest)
            .map_err(|error| Error::bad_image(format!("the image's index makes no sense: {error}")))?;
        if !index.manifests.iter().any(|entry| entry.digest == *next) {
            return Err(other());
        }
    }
    Ok(())
}

/// Has a server of our own, started as `command`, find what vouches for an image.
fn ask(mut command: Command, question: &[String; 3], silence: Duration) -> Result<Vec<u8>> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let fail = |error: rustix::io::Errno| Error::system("start the registry client", error);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(fail)?;
    let (read, write) = std::io::pipe().map_err(|error| Error::system("make a pipe", error))?;
    command.stdin(Stdio::from(theirs)).stdout(Stdio::from(write)).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| Error::system("start the registry client", error))?;
    drop(command); // which holds the pipe's other end
    let packet = serde_json::json!({ "method": "FindEvidence", "args": question }).to_string();
    std::fs::File::from(ours.try_clone().map_err(|error| Error::system("ask the registry client", error))?)
        .write_all(packet.as_bytes())
        .map_err(|error| Error::system("ask the registry client", error))?;
    let watched = Watched::new(std::fs::File::from(OwnedFd::from(read)), Patience::new(silence * PATIENCE, LEAST));
    let mut answer = Vec::new();
    let result = watched.take(MAX_ANSWER).read_to_end(&mut answer);
    drop(ours);
    let _ = child.kill(); // it has said all it has to say
    let _ = child.wait();
    result.map_err(|error| Error::reading("fetch signatures", error))?;
    match Error::from_wire(std::str::from_utf8(&answer).unwrap_or_default()) {
        Some(error) => Err(error.context("fetch signatures")),
        None => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_must_lead_from_the_name_to_the_image() {
        let image = b"{}".to_vec();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&image)));
        let index = format!(r#"{{"manifests":[{{"digest":"{digest}"}}]}}"#).into_bytes();
        let index_digest = format!("sha256:{}", hex::encode(Sha256::digest(&index)));
        let found = Found {
            manifest_digest: digest.clone(),
            bytes: image.clone(),
            as_served: true,
            manifest: serde_json::from_value(serde_json::json!({ "schemaVersion": 2, "layers": [], "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2 } }))
            .unwrap(),
            config: Default::default(),
        };
        let request = |name: &str| Request { reference: name.into(), ..crate::client::tests::request() };
        assert!(check_way(&request("h/a:1"), &found, &[index.clone(), image.clone()]).is_ok());
        assert!(check_way(&request(&format!("h/a@{index_digest}")), &found, &[index.clone(), image.clone()]).is_ok());
        assert!(check_way(&request(&format!("h/a@{index_digest}")), &found, std::slice::from_ref(&image)).is_err());
        assert!(check_way(&request("h/a:1"), &found, &[b"{\"manifests\":[]}".to_vec(), image]).is_err());
        assert!(check_way(&request("h/a:1"), &found, &[index]).is_err());
        assert!(check_way(&request("h/a:1"), &found, &[]).is_err());
    }
}
