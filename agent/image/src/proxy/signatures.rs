//! What is stored beside an image in its registry to vouch for it: cosign's signatures under the tag `sha256-….sig`, and Sigstore's bundles that
//! refer to it (distribution specification, "Listing Referrers"). Nothing is judged here.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::body::Source;
use super::manifest::Manifest;
use super::registry::Registry;
use crate::error::{Error, Kind, Result};

/// The most signatures of an image, and the largest of them.
const MOST: usize = 128;
const MAX_SIGNATURE: u64 = 1 << 20;

/// A layer that is what cosign signed; its signature is an annotation.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// A Sigstore bundle.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    digest: String,
    artifact_type: Option<String>,
}

/// The manifests on the way to the image, the index first, and all signatures of them, as JSON with base64.
pub(super) fn of(registry: &Registry, manifest: &Manifest) -> Result<Value> {
    let (mut legacy, mut bundles) = (Vec::new(), Vec::new());
    for bytes in manifest.way.iter().chain([&manifest.bytes]) {
        let hex = hex::encode(Sha256::digest(bytes));
        for layer in document(registry, &format!("sha256-{hex}.sig"))?.layers {
            let Some(signature) = layer.annotations.get(SIGNATURE).filter(|_| layer.media_type == PAYLOAD) else {
                continue;
            };
            let payload = STANDARD.encode(blob(registry, &layer)?);
            legacy.push(json!({ "payload": payload, "signature": signature }));
            enough(legacy.len())?;
        }
        let listed = match registry.referrers(&format!("sha256:{hex}"), BUNDLE)? {
            Some(bytes) => parse(&bytes)?,
            None => document(registry, &format!("sha256-{hex}"))?,
        };
        let is_bundle = |referrer: &Referrer| referrer.artifact_type.as_deref() == Some(BUNDLE);
        for referrer in listed.manifests.into_iter().filter(is_bundle) {
            crate::reference::sha256(&referrer.digest)?;
            for layer in
                document(registry, &referrer.digest)?.layers.into_iter().filter(|layer| layer.media_type == BUNDLE)
            {
                bundles.push(json!(STANDARD.encode(blob(registry, &layer)?)));
                enough(bundles.len())?;
            }
        }
    }
    let way: Vec<String> = manifest.way.iter().chain([&manifest.bytes]).map(|bytes| STANDARD.encode(bytes)).collect();
    Ok(json!({ "manifests": way, "legacy": legacy, "bundles": bundles }))
}

fn enough(count: usize) -> Result<()> {
    if count <= MOST { Ok(()) } else { Err(Error::bad_image(format!("the image has more than {MOST} signatures"))) }
}

/// What a tag or digest stands for; nothing, if there is none.
fn document(registry: &Registry, name: &str) -> Result<Document> {
    match registry.manifest(name) {
        Err(error) if error.kind == Kind::NotFound => Ok(Document { layers: Vec::new(), manifests: Vec::new() }),
        found => parse(&found?.bytes),
    }
}

fn parse(bytes: &[u8]) -> Result<Document> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::bad_image(format!("a list of signatures makes no sense: {error}")))
}

fn blob(registry: &Registry, layer: &Layer) -> Result<Vec<u8>> {
    crate::reference::sha256(&layer.digest)?;
    if layer.size > MAX_SIGNATURE {
        return Err(Error::bad_image(format!("a signature has {} bytes, more than {MAX_SIGNATURE}", layer.size)));
    }
    let mut bytes = Vec::new();
    let read = registry.open(&layer.digest, 0)?.reader.take(layer.size).read_to_end(&mut bytes);
    read.map_err(|error| Error::new(Kind::Stalled, format!("read a signature: try again [{error}]")))?;
    Ok(bytes)
}
