//! A pull inside a guest of an image that is several times as large as the guest's memory, onto its scratch disk; beside the same pull into
//! the memory of a guest that has enough.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nacre_tests::dist;
use nacre_tests::image::{Compression, Image, Layer, busybox};
use nacre_tests::registry::Registry;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::Measured;

/// The row's name.
pub(crate) const NAME: &str = "pull.guest_2g";

/// Layers, and files of a mebibyte in each.
const LAYERS: u64 = 4;
const FILES: u64 = 512;

/// Measures it, once: it takes minutes where there is no KVM.
pub(crate) fn measure(dist: &Path) -> Result<Option<Measured>> {
    if !dist::have(dist::PULLING) {
        return Ok(None);
    }
    let dir = tempfile::tempdir_in("/var/tmp").context("make a directory")?;
    let registry = Registry::start(None)?;
    let layout = dir.path().join("layout");
    let written = image()?.write(&layout)?;
    eprintln!("{NAME}: {}", json!({ "layers": written.layers.len(), "bytes": written.bytes }));
    registry.push(&layout, "large:1", None)?;
    fs::remove_dir_all(&layout).context("remove an image")?;
    let run = |machine: &[&str]| pull(dist, dir.path(), &registry, machine);
    let ours = run(&["--memory", "512M", "--scratch", "6G"])?;
    let memory = run(&["--memory", "4G"])?;
    Ok(Some(Measured::many(NAME, "ms", &mut [ours]).beside("into memory (4 GiB)", &mut [memory])))
}

/// Milliseconds that the pull takes.
fn pull(dist: &Path, dir: &Path, registry: &Registry, machine: &[&str]) -> Result<f64> {
    let times = dir.join("times");
    let mut command = Command::new(dist.join("bin/nacre"));
    command.arg("--state-dir").arg(dir.join("pods")).args(["run", "--quiet", "--tls-ca"]).arg(registry.ca());
    command.args(machine).arg("--timings-json").arg(&times).arg(registry.from_guest("large:1")).arg("true");
    let output = command.stdin(Stdio::null()).output().context("start nacre")?;
    ensure!(output.status.success(), "nacre run: {}", String::from_utf8_lossy(&output.stderr));
    let times: Value =
        serde_json::from_slice(&fs::read(&times).context("read the times")?).context("read the times")?;
    times["pull_ms"].as_f64().context("there is no time of the pull")
}

/// 2 GiB that shrink to a half: as programs and their data do.
fn image() -> Result<Image> {
    let mut image = Image::new(json!({ "Env": ["PATH=/bin"] })).layer(busybox()?.finish()?, Compression::Gzip);
    for layer in 0..LAYERS {
        let mut archive = Layer::default();
        for file in 0..FILES {
            archive = archive.file(&format!("d{layer}/f{file}"), 0o644, &half(layer * FILES + file))?;
        }
        image = image.layer(archive.finish()?, Compression::Gzip);
    }
    Ok(image)
}

/// A mebibyte of numbers and zeros by turns.
fn half(seed: u64) -> Vec<u8> {
    let block = |block: u64| -> [u8; 32] { Sha256::digest((seed << 32 | block).to_le_bytes()).into() };
    (0..16_384).flat_map(|number| block(number).into_iter().chain([0; 32])).collect()
}
