//! What is stored beside an image in its registry to vouch for it: cosign's signatures under the tag `sha256-….sig`, and Sigstore's bundles that
//! refer to it (distribution specification, "Listing Referrers"). Nothing is judged here.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::body::Source;
use super::lookaside::Store;
use super::manifest::Manifest;
use super::registry::Registry;
use crate::error::{Error, Kind, Result};

/// The most documents that are asked for, the largest signature, and the most bytes of all signatures.
const MOST: usize = 128;
const MAX_SIGNATURE: u64 = 1 << 20;
const MAX_ALL: u64 = 8 << 20;

/// A layer that is what cosign signed; its signature is an annotation.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// How it proves itself, if not by a key: a certificate, those that lead to an authority, and the entry of a log.
const PROOF: [&str; 3] = ["dev.sigstore.cosign/certificate", "dev.sigstore.cosign/chain", "dev.sigstore.cosign/bundle"];

/// A Sigstore bundle.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// What cosign says that its bundles are, in the list that it keeps itself where the registry keeps none: the type of their configuration.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

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

/// The manifests on the way to the image, the index first, and all signatures of them: those in the registry, if `signed`, and those in `store`. As JSON
/// with base64.
pub(super) fn of(registry: &Registry, manifest: &Manifest, signed: bool, store: Option<&Store>) -> Result<Value> {
    let (legacy, bundles, gpg) = (Vec::new(), Vec::new(), Vec::new());
    let mut found = Search { registry, asked: 0, bytes: 0, legacy, bundles, gpg };
    let way: Vec<&Vec<u8>> = manifest.way.iter().chain([&manifest.bytes]).collect();
    for bytes in &way {
        let hex = hex::encode(Sha256::digest(bytes));
        if signed {
            found.add_legacy(&hex)?;
            found.add_bundles(&hex)?;
        }
        if let Some(store) = store {
            found.add_stored(&hex, store)?;
        }
    }
    let way: Vec<String> = way.iter().map(|bytes| STANDARD.encode(bytes)).collect();
    Ok(json!({ "manifests": way, "legacy": found.legacy, "bundles": found.bundles, "gpg": found.gpg }))
}

/// What has been found, and how much was asked for: a registry can have no end of it.
struct Search<'a> {
    registry: &'a Registry,
    asked: usize,
    bytes: u64,
    legacy: Vec<Value>,
    bundles: Vec<Value>,
    gpg: Vec<Value>,
}

impl Search<'_> {
    fn add_legacy(&mut self, hex: &str) -> Result<()> {
        for layer in self.document(&format!("sha256-{hex}.sig"))?.layers {
            let Some(signature) = layer.annotations.get(SIGNATURE).filter(|_| layer.media_type == PAYLOAD) else {
                continue;
            };
            let payload = STANDARD.encode(self.blob(&layer)?);
            let proof = PROOF.map(|name| layer.annotations.get(name));
            self.legacy.push(json!({ "payload": payload, "signature": signature, "proof": proof }));
        }
        Ok(())
    }

    fn add_bundles(&mut self, hex: &str) -> Result<()> {
        self.count()?;
        let listed = match self.registry.referrers(&format!("sha256:{hex}"), BUNDLE)? {
            Some(bytes) => parse(&bytes)?,
            None => self.document(&format!("sha256-{hex}"))?,
        };
        let may_be = |referrer: &Referrer| matches!(referrer.artifact_type.as_deref(), None | Some(BUNDLE | EMPTY));
        for referrer in listed.manifests.into_iter().filter(may_be) {
            crate::reference::sha256(&referrer.digest)?;
            for layer in self.document(&referrer.digest)?.layers.into_iter().filter(|layer| layer.media_type == BUNDLE)
            {
                let bundle = self.blob(&layer)?;
                self.bundles.push(json!(STANDARD.encode(bundle)));
            }
        }
        Ok(())
    }

    /// They are numbered, and end where there is no next one.
    fn add_stored(&mut self, hex: &str, store: &Store) -> Result<()> {
        for number in 1.. {
            self.count()?;
            let Some(message) = store.signature(hex, number, MAX_SIGNATURE)? else { break };
            self.take(message.len() as u64)?;
            self.gpg.push(json!(STANDARD.encode(message)));
        }
        Ok(())
    }

    /// What a tag or digest stands for; nothing, if there is none.
    fn document(&mut self, name: &str) -> Result<Document> {
        self.count()?;
        match self.registry.manifest(name) {
            Err(error) if error.kind == Kind::NotFound => Ok(Document { layers: Vec::new(), manifests: Vec::new() }),
            found => parse(&found?.bytes),
        }
    }

    fn blob(&mut self, layer: &Layer) -> Result<Vec<u8>> {
        crate::reference::sha256(&layer.digest)?;
        self.count()?;
        self.take(layer.size)?;
        let mut bytes = Vec::new();
        let read = self.registry.open(&layer.digest, 0)?.reader.take(layer.size).read_to_end(&mut bytes);
        read.map_err(|error| Error::new(Kind::Stalled, format!("read a signature: try again [{error}]")))?;
        Ok(bytes)
    }

    fn take(&mut self, size: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(size);
        if size <= MAX_SIGNATURE && self.bytes <= MAX_ALL {
            return Ok(());
        }
        Err(Error::bad_image(format!("the image's signatures have more than {MAX_SIGNATURE} or {MAX_ALL} bytes")))
    }

    fn count(&mut self) -> Result<()> {
        self.asked += 1;
        if self.asked <= MOST {
            Ok(())
        } else {
            Err(Error::bad_image(format!("the image has more than {MOST} signatures")))
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Document> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::bad_image(format!("a list of signatures makes no sense: {error}")))
}
