//! Makes the layers of an image ready to be attached to guests: pulled and verified as ever, then one file for each, named by its root hash.
//!
//! The files are the same whoever makes them, so any machine can tell whether they are right. What makes guests use them is the manifest, to which
//! each layer's root hash is added: who trusts that manifest, by its digest or its signature, trusts them.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nacre_protocol::disk::LAYER_ANNOTATION;
use oci_spec::image::ImageManifest;
use serde::Serialize;
use serde_json::Value;
use sha2::Digest as _;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::ocicrypt::Encrypted;
use crate::ready::{self, Known, Verity};
use crate::reference::{self, Sha256};
use crate::worker::{Pulled, Then, pull_now, tell};
use crate::{Event, Request, erofs, limited, verity};

/// The list of what is in the directory, as the guest's image may carry it in `/etc/nacre/layers`.
const LIST: &str = "layers";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Docker's types, and what OCI calls the same.
const TYPES: [(&str, &str); 6] = [
    ("application/vnd.docker.distribution.manifest.v2+json", MANIFEST),
    ("application/vnd.docker.container.image.v1+json", "application/vnd.oci.image.config.v1+json"),
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ),
];

/// What is said of a layer, and of all, a line of JSON each.
#[derive(Debug, Serialize)]
enum Said {
    /// A file was made.
    Sealed(Layer),
    /// All are there.
    Ready {
        /// The annotated manifest.
        manifest: PathBuf,
        manifest_digest: String,
        layers: Vec<Layer>,
        /// How guests come to know it.
        push: String,
    },
}

#[derive(Debug, Clone, Serialize)]
struct Layer {
    diff_id: String,
    root_hash: String,
    /// With its tree.
    bytes: u64,
    file: PathBuf,
}

/// Pulls what `request` says and makes its layers ready in `out`, the annotated manifest under the name `manifest`. The registry may be silent for
/// `silence`. The exit code is 0 when all is there.
pub fn run(request: Request, silence: Duration, out: &Path, manifest: &str) -> ExitCode {
    match seal(request, silence, out, manifest) {
        Ok(said) => {
            tell(&said);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell(&Event::Failed { kind: error.kind, message: error.message });
            ExitCode::FAILURE
        }
    }
}

fn seal(mut request: Request, silence: Duration, out: &Path, manifest: &str) -> Result<Said> {
    fs::create_dir_all(out).map_err(|error| Error::system(format!("create {}", out.display()), error))?;
    let mut known = read_list(out)?;
    // What is there already stands for its layer here as it does in a guest.
    request.attached = known.iter().map(|known| known.verity.serial()).collect();
    request.known = known.clone();
    let Pulled { image, manifest: bytes } = pull_now(&request, silence, Then::GoOn)?;
    let diff_ids =
        image.config.rootfs().diff_ids().iter().map(|id| reference::sha256(id)).collect::<Result<Vec<_>>>()?;
    let is_known =
        |verity: &Verity| known.iter().any(|known| known.verity == *verity && diff_ids.contains(&known.diff_id));
    if let Some(verity) = image.ready.values().find(|verity| !is_known(verity)) {
        return Err(Error::bad_image(format!(
            "the image says of a layer that it is {verity}, which is another's: seal one without annotations"
        )));
    }
    let encrypted = encrypted(&bytes, &diff_ids)?;
    for layer in image.layers.iter().filter(|layer| !image.ready.contains_key(*layer)) {
        let diff_id = diff_ids.iter().find(|id| layer.ends_with(hex::encode(id)));
        let Some(diff_id) = diff_id.filter(|id| !encrypted.contains(*id)) else { continue };
        let made = Known { diff_id: *diff_id, verity: make(layer, diff_id, out)? };
        known.retain(|other| other.diff_id != made.diff_id);
        known.push(made);
        tell(&Said::Sealed(shown(&made, out)));
    }
    let lines = known.iter().map(|known| format!("{known}\n")).collect::<BTreeSet<_>>();
    put(&out.join(LIST), lines.into_iter().collect::<String>().as_bytes())?;

    let of_image = |id: &Sha256| known.iter().find(|known| known.diff_id == *id && !encrypted.contains(id));
    let annotated = annotate(&bytes, diff_ids.iter().map(|id| of_image(id).map(|known| known.verity)))?;
    let path = out.join(manifest);
    put(&path, &annotated)?;
    Ok(Said::Ready {
        manifest_digest: format!("sha256:{}", hex::encode(sha2::Sha256::digest(&annotated))),
        layers: diff_ids.iter().filter_map(of_image).map(|known| shown(known, out)).collect(),
        push: format!("oras manifest push {} {}", tagged(&request.reference), path.display()),
        manifest: path,
    })
}

/// The layers of the list whose files are there.
fn read_list(out: &Path) -> Result<Vec<Known>> {
    let path = out.join(LIST);
    let mut known = match fs::exists(&path) {
        Ok(false) => return Ok(Vec::new()),
        _ => ready::parse(&limited::read_text(&path)?).map_err(|error| error.context(path.display()))?,
    };
    known.retain(|known| fs::metadata(file(&known.verity, out)).is_ok_and(|meta| meta.len() == known.verity.bytes()));
    Ok(known)
}

fn file(verity: &Verity, out: &Path) -> PathBuf {
    out.join(format!("{}.erofs", verity.root_hash()))
}

fn shown(known: &Known, out: &Path) -> Layer {
    let (diff_id, verity) = (format!("sha256:{}", hex::encode(known.diff_id)), known.verity);
    Layer { diff_id, root_hash: verity.root_hash(), bytes: verity.bytes(), file: file(&verity, out) }
}

/// Which layers are encrypted. They get no ready-made form, for the host could read it.
fn encrypted(manifest: &[u8], diff_ids: &[Sha256]) -> Result<HashSet<Sha256>> {
    let manifest: ImageManifest = serde_json::from_slice(manifest).map_err(nonsense)?;
    let mut encrypted = HashSet::new();
    for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
        let annotations = layer.annotations().clone().unwrap_or_default();
        if Encrypted::of(layer.media_type().as_ref(), &annotations)?.is_some() {
            encrypted.insert(*diff_id);
        }
    }
    Ok(encrypted)
}

/// Makes the file of an unpacked layer.
fn make(layer: &Path, diff_id: &Sha256, out: &Path) -> Result<Verity> {
    let fail = |error| Error::system(format!("write into {}", out.display()), error);
    let image = NamedTempFile::new_in(out).map_err(fail)?;
    // File systems of one overlay want names of their own.
    let uuid = std::array::from_fn(|place| diff_id.get(place).copied().unwrap_or_default());
    let blocks = erofs::write(layer, image.as_file(), uuid)?;
    let verity = Verity { root: verity::append(image.as_file(), blocks).map_err(fail)?, blocks };
    keep(image, &file(&verity, out))?;
    Ok(verity)
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |error| Error::system(format!("write {}", path.display()), error);
    let mut new = NamedTempFile::new_in(path.parent().unwrap_or(Path::new("."))).map_err(fail)?;
    new.write_all(bytes).map_err(fail)?;
    keep(new, path)
}

/// The file appears whole or not at all.
fn keep(file: NamedTempFile, path: &Path) -> Result<()> {
    let keep = || {
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path).map(drop).map_err(|error| error.error)
    };
    keep().map_err(|error| Error::system(format!("write {}", path.display()), error))
}

/// The manifest in OCI's words, with what is to be on each layer's disk.
fn annotate(manifest: &[u8], layers: impl Iterator<Item = Option<Verity>>) -> Result<Vec<u8>> {
    let mut manifest: Value = serde_json::from_slice(manifest).map_err(nonsense)?;
    to_oci(&mut manifest);
    manifest.pointer_mut("/config").into_iter().for_each(to_oci);
    let descriptors = manifest.pointer_mut("/layers").and_then(Value::as_array_mut).into_iter().flatten();
    for (descriptor, verity) in descriptors.zip(layers) {
        to_oci(descriptor);
        let Some(fields) = descriptor.as_object_mut() else { continue };
        // What somebody else said of it was not looked at.
        fields.get_mut("annotations").and_then(Value::as_object_mut).map(|all| all.remove(LAYER_ANNOTATION));
        let Some(verity) = verity else { continue };
        let annotations = fields.entry("annotations").or_insert_with(|| Value::Object(Default::default()));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(LAYER_ANNOTATION.into(), verity.to_string().into());
        }
    }
    if let Some(fields) = manifest.as_object_mut() {
        fields.entry("mediaType").or_insert_with(|| MANIFEST.into());
    }
    serde_json::to_vec_pretty(&manifest).map_err(nonsense)
}

/// Docker's manifests have no annotations.
fn to_oci(object: &mut Value) {
    if let Some(kind) = object.get_mut("mediaType")
        && let Some((_, oci)) = TYPES.iter().find(|(docker, _)| kind.as_str() == Some(docker))
    {
        *kind = (*oci).into();
    }
}

fn nonsense(error: serde_json::Error) -> Error {
    Error::bad_image(format!("the manifest makes no sense: {error}"))
}

/// The reference, without a digest: the manifest has a new one.
fn tagged(reference: &str) -> &str {
    reference.split_once('@').map_or(reference, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_manifest_says_of_its_layers_what_was_made_of_them_and_nothing_else() {
        let verity = Verity { root: [7; 32], blocks: 3 };
        let foreign = json!({ LAYER_ANNOTATION: "sha256:00;blocks=1", "kept": "k" });
        let manifest = json!({ "layers": [{ "annotations": foreign.clone() }, { "annotations": foreign }, {}] });
        let annotated = annotate(manifest.to_string().as_bytes(), [None, Some(verity), None].into_iter()).unwrap();
        let annotated: Value = serde_json::from_slice(&annotated).unwrap();
        let expected = [
            json!({ "annotations": { "kept": "k" } }),
            json!({ "annotations": { "kept": "k", LAYER_ANNOTATION: verity.to_string() } }),
            json!({}),
        ];
        assert_eq!(annotated["layers"], Value::from(expected.to_vec()));
    }
}
