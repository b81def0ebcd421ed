//! Images, made here: an OCI layout from files in memory.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// An image in the making.
#[derive(Debug, Default)]
pub struct Image {
    layers: Vec<(Vec<u8>, Compression)>,
    config: Value,
}

/// A layer's archive in the making.
#[expect(missing_debug_implementations, reason = "tar's builder has none")]
pub struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }
}

impl Layer {
    fn header(mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    /// Adds a file.
    ///
    /// # Errors
    /// A path that tar can't hold.
    pub fn file(mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<Layer> {
        self.0
            .append_data(&mut Layer::header(mode, bytes.len() as u64), path, bytes)
            .with_context(|| path.to_string())?;
        Ok(self)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// A path that tar can't hold.
    pub fn directory(mut self, path: &str, mode: u32) -> Result<Layer> {
        let mut header = Layer::header(mode, 0);
        header.set_entry_type(tar::EntryType::Directory);
        self.0.append_data(&mut header, path, &[][..]).with_context(|| path.to_string())?;
        Ok(self)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// A path that tar can't hold.
    pub fn symlink(mut self, path: &str, target: &str) -> Result<Layer> {
        let mut header = Layer::header(0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        self.0.append_link(&mut header, path, target).with_context(|| path.to_string())?;
        Ok(self)
    }

    /// The archive.
    ///
    /// # Errors
    /// None that can happen in memory.
    pub fn finish(self) -> Result<Vec<u8>> {
        self.0.into_inner().context("finish a layer")
    }
}

/// Debian's static busybox with the names that tests use: the smallest userland there is.
///
/// # Errors
/// busybox-static is not installed.
pub fn busybox() -> Result<Layer> {
    let bytes = fs::read("/bin/busybox").context("read /bin/busybox (package busybox-static)")?;
    let mut layer = Layer::default().directory("bin/", 0o755)?.file("bin/busybox", 0o755, &bytes)?;
    for name in [
        "sh", "cat", "echo", "ls", "true", "false", "sleep", "id", "pwd", "stty", "tty", "uname", "head", "wc", "env",
        "dd", "ps", "grep", "touch", "sync", "hostname", "nslookup", "wget", "ip",
    ] {
        layer = layer.symlink(&format!("bin/{name}"), "busybox")?;
    }
    layer.directory("tmp/", 0o1777)
}

/// What an image was written as.
#[derive(Debug, Clone)]
pub struct Written {
    /// The manifest's digest.
    pub manifest: String,
    /// The layers' digests, as the registry knows them.
    pub layers: Vec<String>,
    /// Compressed bytes of all layers.
    pub bytes: u64,
}

impl Image {
    /// An image with this `config` (the inner one: Cmd, Env, User, …).
    pub fn new(config: Value) -> Image {
        Image { layers: Vec::new(), config }
    }

    /// Adds a layer.
    #[must_use]
    pub fn layer(mut self, archive: Vec<u8>, compression: Compression) -> Image {
        self.layers.push((archive, compression));
        self
    }

    /// Writes the image as an OCI layout into `dir`.
    ///
    /// # Errors
    /// A directory that can't be written.
    pub fn write(&self, dir: &Path) -> Result<Written> {
        fs::create_dir_all(dir.join("blobs/sha256")).context("make the layout")?;
        let blob = |bytes: &[u8]| -> Result<(String, u64)> {
            let hex = hex::encode(Sha256::digest(bytes));
            fs::write(dir.join("blobs/sha256").join(&hex), bytes).context("write a blob")?;
            Ok((format!("sha256:{hex}"), bytes.len() as u64))
        };
        let mut written = Written { manifest: String::new(), layers: Vec::new(), bytes: 0 };
        let (mut diff_ids, mut descriptors) = (Vec::new(), Vec::new());
        for (archive, compression) in &self.layers {
            let (bytes, suffix) = compress(archive, *compression)?;
            let (digest, size) = blob(&bytes)?;
            let kind = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            diff_ids.push(format!("sha256:{}", hex::encode(Sha256::digest(archive))));
            descriptors.push(json!({ "mediaType": kind, "digest": digest, "size": size }));
            written.layers.push(digest);
            written.bytes += size;
        }
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let (digest, size) = blob(config.to_string().as_bytes())?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "layers": descriptors,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size },
        });
        let (digest, size) = blob(manifest.to_string().as_bytes())?;
        let name = json!({ "org.opencontainers.image.ref.name": "image" });
        let entry = json!({ "mediaType": kind, "digest": digest, "size": size, "annotations": name });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        fs::write(dir.join("index.json"), index.to_string()).context("write the index")?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("write the layout")?;
        written.manifest = digest;
        Ok(written)
    }
}

/// Gives the image in the OCI layout `layout` another manifest, as one does who annotates it.
///
/// # Errors
/// A layout that can't be read or written.
pub fn replace_manifest(layout: &Path, manifest: &[u8]) -> Result<()> {
    let hex = hex::encode(Sha256::digest(manifest));
    fs::write(layout.join("blobs/sha256").join(&hex), manifest).context("write a manifest")?;
    let path = layout.join("index.json");
    let mut index: Value =
        serde_json::from_slice(&fs::read(&path).context("read the index")?).context("read the index")?;
    index["manifests"][0]["digest"] = format!("sha256:{hex}").into();
    index["manifests"][0]["size"] = manifest.len().into();
    fs::write(path, index.to_string()).context("write the index")
}

fn compress(archive: &[u8], compression: Compression) -> Result<(Vec<u8>, &'static str)> {
    Ok(match compression {
        Compression::None => (archive.to_vec(), ""),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(archive).context("compress a layer")?;
            (encoder.finish().context("compress a layer")?, "+gzip")
        }
        Compression::Zstd => (zstd::encode_all(archive, 3).context("compress a layer")?, "+zstd"),
    })
}
