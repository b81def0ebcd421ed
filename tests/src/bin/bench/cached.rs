//! Ten pods of one image, one after the other, that share a cache of blobs on the host: what the first has fetched, the others have from there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::dist;
use nacre_tests::registry::Registry;
use serde_json::{Value, json};

use crate::{Measured, pull};

/// How many pods there are.
const PODS: usize = 10;

/// The name of the row: the pulls of the others, beside the first one's.
pub(crate) const NAME: &str = "pull.cached";

/// Measures it.
pub(crate) fn measure(dist: &Path) -> Result<Vec<Measured>> {
    if !dist::have(&["qemu-system-x86_64", "docker-registry", "skopeo", "openssl"]) {
        return Ok(Vec::new());
    }
    let dir = tempfile::tempdir().context("make a directory")?;
    let (layout, registry) = (dir.path().join("layout"), Registry::start(None)?);
    let written = pull::packages(&pull::SMALL, &layout)?;
    registry.push(&layout, "app:1", None)?;
    let mut times = (0..PODS).map(|_| pod(dist, dir.path(), &registry)).collect::<Result<Vec<_>>>()?;
    let fetched = registry.fetched()?;
    eprintln!("{NAME}: {}", json!({ "bytes": written.bytes, "ms": times, "fetches": fetched.values().sum::<usize>() }));
    ensure!(fetched.values().all(|times| *times == 1), "a blob was fetched more than once: {fetched:?}");
    let mut others = times.split_off(1);
    Ok(vec![Measured::many(NAME, "ms", &mut others).beside("the first, from a registry", &mut times)])
}

/// How long the pull of a new pod takes, in milliseconds.
fn pod(dist: &Path, dir: &Path, registry: &Registry) -> Result<f64> {
    let (cache, times) = (dir.join("cache"), dir.join("times"));
    let mut command = Command::new(dist.join("bin/nacre"));
    command.arg("--state-dir").arg(dir.join("s")).args(["run", "-q", "--accel", "tcg", "--tls-ca"]).arg(registry.ca());
    command
        .arg("--blob-cache")
        .arg(cache)
        .arg("--timings-json")
        .arg(&times)
        .arg(registry.from_guest("app:1"))
        .arg("true");
    let output = command.output().context("start nacre")?;
    ensure!(output.status.success(), "nacre run: {}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read(&times).context("read the times")?;
    let times: Value = serde_json::from_slice(&text).context("read the times")?;
    times.get("pull_ms").and_then(Value::as_f64).context("there is no time of the pull")
}
