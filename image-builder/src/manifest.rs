//! Digests, and the JSON beside each output.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
pub use nacre_manifest::{Input, Kernel, Manifest, Output};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// SHA-256 of `bytes`, in hex.
pub fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// SHA-256 of a file, in hex.
///
/// # Errors
/// A file that can't be read.
pub fn digest_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(|| format!("read {}", path.display()))? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Describes the file `path`.
///
/// # Errors
/// A file that can't be read.
pub fn output(path: &Path) -> Result<Output> {
    Ok(Output {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        bytes: fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len(),
        sha256: digest_file(path)?,
    })
}

/// Writes `bytes` to `path` so that nobody ever sees a part, and not at all when they are there already: what depends on the file by its
/// time stays up to date.
///
/// # Errors
/// A directory that can't be written.
pub fn publish(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let write = || {
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(dir)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.persist(path)?;
        anyhow::Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// As pretty JSON with a final newline.
///
/// # Errors
/// As [`publish`].
pub fn publish_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("write JSON")?;
    text.push('\n');
    publish(path, text.as_bytes())
}
