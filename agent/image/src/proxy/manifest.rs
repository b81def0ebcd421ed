//! A manifest: checked, and one for this machine chosen from an index.

use oci_spec::image::Descriptor;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind, Result};
use crate::reference;

/// The largest manifest, and the largest index.
pub(super) const MAX_MANIFEST: u64 = 4 << 20;

/// An index in an index in an index is not looked into.
const MAX_NESTED: usize = 3;

/// The most entries of an index.
const MAX_ENTRIES: usize = 4096;

/// What a registry is asked for.
pub(super) const ACCEPTED: [&str; 4] = [OCI_MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST];

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An index of the image specification.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest as a source has it: its bytes, and what the source calls them.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: Option<String>,
}

/// One image's manifest.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// Of the bytes that the source has.
    pub(crate) digest: String,
    /// As the source has them, in OCI's form or Docker's: only so can the client check them.
    pub(crate) bytes: Vec<u8>,
    pub(super) config: Descriptor,
    /// The indices that led here, the first first.
    pub(super) way: Vec<Vec<u8>>,
}

/// What tells what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    manifests: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Manifest {
    /// The manifest for this machine that `name`, a tag or a digest, leads to; `fetch` gets what a tag or digest stands for.
    pub(crate) fn find(name: &str, mut fetch: impl FnMut(&str) -> Result<Found>) -> Result<Manifest> {
        let mut name = name.to_string();
        let mut way = Vec::new();
        for _ in 0..MAX_NESTED {
            let found = fetch(&name)?;
            let digest = format!("sha256:{}", hex::encode(Sha256::digest(&found.bytes)));
            if name.contains(':') && name != digest {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("the manifest {name}: the registry serves something else ({digest}): push the image again"),
                ));
            }
            let head: Head = serde_json::from_slice(&found.bytes)
                .map_err(|error| Error::bad_image(format!("the manifest {digest} makes no sense: {error}")))?;
            match Step::of(&found, &digest, head)? {
                Step::Image(config) => return Ok(Manifest { digest, bytes: found.bytes, config: *config, way }),
                Step::Next(next) => name = next,
            }
            way.push(found.bytes);
        }
        Err(Error::bad_image("an index leads to an index, again and again"))
    }

    /// What `GetLayerInfo` tells: the layers with their DiffIDs are the config's to know; here are the blobs.
    pub(crate) fn layer_info(&self) -> Result<Value> {
        let manifest: Value = serde_json::from_slice(&self.bytes)
            .map_err(|error| Error::bad_image(format!("the manifest makes no sense: {error}")))?;
        let layers = manifest.get("layers").and_then(Value::as_array).into_iter().flatten();
        let info = |layer: &Value| json!({ "digest": layer["digest"], "size": layer["size"], "media_type": layer["mediaType"] });
        Ok(layers.map(info).collect())
    }
}

/// What a document leads to.
enum Step {
    /// It is an image's, with this configuration.
    Image(Box<Descriptor>),
    /// It is an index; here is its entry for this machine.
    Next(String),
}

impl Step {
    fn of(found: &Found, digest: &str, head: Head) -> Result<Step> {
        if head.schema_version != 2 {
            let version = head.schema_version;
            return Err(Error::bad_image(format!(
                "the manifest {digest} is of version {version}, not 2: push the image again"
            )));
        }
        // What the document says of itself is signed with it; the header is the registry's word.
        let kind = head.media_type.as_ref().or(found.media_type.as_ref()).map_or("", String::as_str);
        match (kind, head.config, head.manifests) {
            (INDEX | DOCKER_LIST, None, Some(entries)) => choose(digest, &entries).map(Step::Next),
            (OCI_MANIFEST | DOCKER_MANIFEST, Some(config), None) => Ok(Step::Image(Box::new(config))),
            _ => Err(Error::bad_image(format!("the manifest {digest} is of type {kind:.100}, which is no image's"))),
        }
    }
}

/// The entry of an index for this machine.
fn choose(index: &str, entries: &[Entry]) -> Result<String> {
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    if entries.len() > MAX_ENTRIES {
        return Err(Error::bad_image(format!("the index {index} has more than {MAX_ENTRIES} entries")));
    }
    let fits = |entry: &&Entry| {
        let platform = entry.platform.as_ref();
        platform.is_some_and(|platform| platform.os == "linux" && platform.architecture == here)
    };
    // The first entry without a variant, or the baseline's; a higher variant may use what this machine has not.
    let plain = |entry: &&Entry| {
        let variant = entry.platform.as_ref().and_then(|platform| platform.variant.as_deref());
        matches!(variant, None | Some("" | "v1" | "v8"))
    };
    let found = entries.iter().filter(fits).find(plain).or_else(|| entries.iter().find(fits));
    let Some(entry) = found else {
        let has: Vec<String> = entries.iter().filter_map(|entry| entry.platform.as_ref()).take(16).map(shown).collect();
        let has = has.join(", ");
        return Err(Error::bad_image(format!(
            "there is no image for this machine (linux/{here}); the registry has {has}"
        )));
    };
    reference::sha256(&entry.digest)?;
    Ok(entry.digest.clone())
}

fn shown(platform: &Platform) -> String {
    format!("{:.20}/{:.20}", platform.os, platform.architecture)
}
