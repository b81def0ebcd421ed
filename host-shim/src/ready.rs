//! Layers that are attached to the guest ready-made, as `nacre-pull seal` has written them.
//!
//! The manifest says which they are, largest first if the machine has no room for all: the guest pulls the others. Nothing here is checked, for the
//! guest believes none of it. All pods of a host read the same files, so the host's memory has them once.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::disk::{LAYER_ANNOTATION, layer_serial};
use serde_json::Value;

use crate::vmm::Disk;

/// The manifest's name, where a directory is given.
const MANIFEST: &str = "manifest.json";

/// The largest manifest.
const MAX_MANIFEST: u64 = 4 << 20;

/// The disks for the layers that `path`, a manifest or the directory of one, names: at most `room`.
///
/// # Errors
/// A manifest that can't be read, that names no ready-made layer, or a file that is missing.
pub fn disks(path: &Path, room: usize) -> Result<Vec<Disk>> {
    let manifest = if path.is_dir() { path.join(MANIFEST) } else { path.to_path_buf() };
    let act = || format!("read {} (nacre-pull seal writes it)", manifest.display());
    let mut text = String::new();
    File::open(&manifest).with_context(act)?.take(MAX_MANIFEST).read_to_string(&mut text).with_context(act)?;
    let names = root_hashes(&serde_json::from_str(&text).with_context(act)?);
    ensure!(
        !names.is_empty(),
        "{} names no ready-made layer: it is not what nacre-pull seal writes",
        manifest.display()
    );
    let dir = manifest.parent().unwrap_or(Path::new("."));
    let mut files = names.into_iter().map(|name| file(dir, name)).collect::<Result<Vec<_>>>()?;
    files.sort_by_key(|(bytes, _, _)| std::cmp::Reverse(*bytes));
    let disk = |(_, name, path): (u64, String, PathBuf)| Disk { path, serial: layer_serial(&name), read_only: true };
    Ok(files.into_iter().take(room).map(disk).collect())
}

/// The root hashes that a manifest names, none twice.
fn root_hashes(manifest: &Value) -> Vec<String> {
    let layers = manifest.get("layers").and_then(Value::as_array);
    let annotation = |layer: &Value| {
        let text = layer.get("annotations")?.get(LAYER_ANNOTATION)?.as_str()?;
        let name = text.strip_prefix("sha256:")?.split(';').next()?;
        let is_digest = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_digest.then(|| name.to_string())
    };
    let mut names: Vec<_> = layers.into_iter().flatten().filter_map(annotation).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn file(dir: &Path, name: String) -> Result<(u64, String, PathBuf)> {
    let path = dir.join(format!("{name}.erofs"));
    let size = path.metadata().with_context(|| format!("look at the layer {}", path.display()))?.len();
    // QEMU would take it for a name that is relative to its own directory, which is ours.
    Ok((size, name, std::path::absolute(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_layers_of_the_manifest_are_attached_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["0a", "0b", "0c", "0d"].map(|byte| byte.repeat(32));
        for (name, size) in names.iter().zip([4096, 3 * 4096, 2 * 4096, 9 * 4096]) {
            std::fs::write(dir.path().join(format!("{name}.erofs")), vec![0; size]).unwrap();
        }
        let layer =
            |name: &str| serde_json::json!({ "annotations": { LAYER_ANNOTATION: format!("sha256:{name};blocks=1") } });
        let write = |layers: Vec<Value>| {
            let manifest = serde_json::json!({ "layers": layers });
            std::fs::write(dir.path().join(MANIFEST), manifest.to_string()).unwrap();
        };
        write([&*names[0], &names[1], &names[2], &names[1], "../../etc"].map(layer).to_vec());
        let serials =
            |room| -> Vec<String> { disks(dir.path(), room).unwrap().into_iter().map(|disk| disk.serial).collect() };
        assert_eq!(serials(9), ["0b".repeat(10), "0c".repeat(10), "0a".repeat(10)]);
        assert_eq!(serials(1), ["0b".repeat(10)]);
        assert_eq!(disks(&dir.path().join(MANIFEST), 9).unwrap().len(), 3);

        write(vec![layer(&"0e".repeat(32))]);
        assert!(format!("{:#}", disks(dir.path(), 9).unwrap_err()).contains("0e0e"));
        write(vec![]);
        assert!(disks(dir.path(), 9).unwrap_err().to_string().contains("names no ready-made layer"));
    }
}
