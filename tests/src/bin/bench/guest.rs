//! Images inside guests: one that is several times as large as the guest's memory, pulled onto its scratch disk and into the memory of a guest
//! that has enough; the same image with its layers ready-made, beside one that holds a single program; and an image from the host's cache, beside
//! the registry's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nacre_tests::image::{Compression, Image, Layer, busybox, replace_manifest};
use nacre_tests::registry::Registry;
use nacre_tests::{demo_image, dist};
use serde_json::{Value, json};

use crate::{Measured, pull, succeed};

/// The names of the rows.
pub(crate) const NAMES: [&str; 3] = [LARGE, READY, CACHED];
const LARGE: &str = "pull.guest_2g";
const READY: &str = "pull.ready_made";
const CACHED: &str = "pull.cached";

/// How often what takes seconds is measured.
const RUNS: usize = 5;

/// Layers, and files of a mebibyte in each.
const LAYERS: u64 = 4;
const FILES: u64 = 512;

/// Where all is done.
struct Bench<'a> {
    dist: &'a Path,
    dir: tempfile::TempDir,
    registry: Registry,
}

/// Measures the rows that are `wanted`.
pub(crate) fn measure(dist: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<Measured>> {
    if !dist::have(dist::PULLING) {
        return Ok(Vec::new());
    }
    let dir = tempfile::tempdir_in("/var/tmp").context("make a directory")?;
    let bench = Bench { dist, dir, registry: Registry::start(None)? };
    let mut all = Vec::new();
    if wanted(LARGE) || wanted(READY) {
        let layout = bench.push("large:1", &large()?)?;
        if wanted(READY) {
            all.push(bench.ready_made(&layout)?);
        }
        if wanted(LARGE) {
            all.push(bench.larger_than_memory()?);
        }
    }
    if wanted(CACHED) {
        all.push(bench.cached()?);
    }
    Ok(all)
}

impl Bench<'_> {
    fn push(&self, name: &str, image: &Image) -> Result<PathBuf> {
        let layout = self.dir.path().join(name.replace(':', "-"));
        let written = image.write(&layout)?;
        eprintln!("{name}: {}", json!({ "layers": written.layers.len(), "bytes": written.bytes }));
        self.registry.push(&layout, name, None)?;
        Ok(layout)
    }

    /// What `nacre run` says of its times.
    fn run(&self, image: &str, options: &[&str]) -> Result<Value> {
        let times = self.dir.path().join("times");
        let mut command = Command::new(self.dist.join("bin/nacre"));
        command.arg("--state-dir").arg(self.dir.path().join("pods")).args(["run", "--quiet", "--tls-ca"]);
        command.arg(self.registry.ca()).args(options).arg("--timings-json").arg(&times);
        succeed(command.arg(self.registry.from_guest(image)).arg("true"))?;
        serde_json::from_slice(&fs::read(&times).context("read the times")?).context("read the times")
    }

    /// The pull of it, once: it takes minutes where there is no KVM.
    fn larger_than_memory(&self) -> Result<Measured> {
        let pull = |options: &[&str]| time(&self.run("large:1", options)?, "pull_ms");
        let ours = pull(&["--memory", "512M", "--scratch", "6G"])?;
        let memory = pull(&["--memory", "4G"])?;
        Ok(Measured::many(LARGE, "ms", &mut [ours]).beside("into memory (4 GiB)", &mut [memory]))
    }

    /// From the command to a program that runs, in guests of 512 MiB.
    fn ready_made(&self, layout: &Path) -> Result<Measured> {
        let layers = self.dir.path().join("layers").display().to_string();
        let mut seal = Command::new(self.dist.join("bin/nacre-pull"));
        succeed(seal.args(["seal", "--out", &layers]).arg(format!("oci:{}:image", layout.display())))?;
        replace_manifest(layout, &fs::read(Path::new(&layers).join("manifest.json")).context("read a manifest")?)?;
        self.registry.push(layout, "ready:1", None)?;
        self.push("small:1", &Image::new(config()).layer(busybox()?.finish()?, Compression::Gzip))?;
        let start = |image, options: &[&str]| time(&self.run(image, options)?, "total_ms");
        let (mut ready, mut small) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            ready.push(start("ready:1", &["--memory", "512M", "--layers", &layers])?);
            small.push(start("small:1", &["--memory", "512M"])?);
        }
        Ok(Measured::many(READY, "ms", &mut ready).beside("a single program, pulled", &mut small))
    }

    fn cached(&self) -> Result<Measured> {
        let mut image = Image::new(config()).layer(busybox()?.finish()?, Compression::Gzip);
        for packages in pull::PYTHON {
            image = image.layer(demo_image::layer(packages, &demo_image::cache())?, Compression::Gzip);
        }
        self.push("python:1", &image)?;
        let cache = self.dir.path().join("cache").display().to_string();
        let pull = |options: &[&str]| time(&self.run("python:1", options)?, "pull_ms");
        let memory = ["--memory", "1G"];
        let shared = [&memory[..], &["--blob-cache", &cache]].concat();
        pull(&shared)?; // this one fills it
        let (mut ours, mut registry) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            ours.push(pull(&shared)?);
            registry.push(pull(&memory)?);
        }
        Ok(Measured::many(CACHED, "ms", &mut ours).beside("from the registry", &mut registry))
    }
}

fn time(times: &Value, name: &str) -> Result<f64> {
    times[name].as_f64().with_context(|| format!("there is no {name}"))
}

fn config() -> Value {
    json!({ "Env": ["PATH=/bin"] })
}

/// 2 GiB that shrink to a half: as programs and their data do.
fn large() -> Result<Image> {
    let mut image = Image::new(config()).layer(busybox()?.finish()?, Compression::Gzip);
    for layer in 0..LAYERS {
        let mut archive = Layer::default();
        for file in 0..FILES {
            archive =
                archive.file(&format!("d{layer}/f{file}"), 0o644, &pull::half_noise(layer * FILES + file, 1 << 20))?;
        }
        image = image.layer(archive.finish()?, Compression::Gzip);
    }
    Ok(image)
}
