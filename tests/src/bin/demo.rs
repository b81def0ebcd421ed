//! `make run`: a registry, an image, a VM that pulls it, and how long each step took.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nacre_tests::demo_image;
use nacre_tests::registry::Registry;
use serde::Deserialize;

/// Boots a VM that pulls a demo image from a registry of its own and runs it.
#[derive(Debug, Parser)]
struct Args {
    /// The directory with what was built
    #[arg(long)]
    dist: PathBuf,
}

/// What `nacre run --timings-json` writes.
#[derive(Debug, Deserialize)]
struct Timings {
    accelerator: String,
    guest_kernel: String,
    manifest_digest: String,
    layers: u32,
    image_bytes: u64,
    kernel_to_init_ms: f64,
    init_to_listening_ms: f64,
    listening_to_ready_ms: f64,
    vm_ms: f64,
    network_ms: f64,
    pull_ms: f64,
    create_ms: f64,
    start_ms: f64,
    total_ms: f64,
}

#[expect(clippy::print_stdout, reason = "showing is what a demo is for")]
fn main() -> Result<()> {
    let args = Args::parse();
    // Ctrl-C is for nacre, which has the same terminal; what is ours goes when it has ended.
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::new(AtomicBool::new(false)))?;
    let dir = tempfile::tempdir().context("make a directory")?;
    eprintln!("==> demo image: three layers of Debian packages");
    let layout = dir.path().join("image");
    let written = demo_image::write(&layout, &demo_image::cache())?;
    eprintln!("==> registry: docker-registry with TLS on loopback");
    let registry = Registry::start(None)?;
    registry.push(&layout, "demo:1", None)?;

    let timings = dir.path().join("timings.json");
    let image = registry.from_guest("demo:1");
    eprintln!("==> nacre run --tls-ca {} {image}", registry.ca().display());
    let output = Command::new(args.dist.join("bin/nacre"))
        .args(["run", "--tls-ca"])
        .arg(registry.ca())
        .arg("--timings-json")
        .arg(&timings)
        .arg(&image)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("start nacre (make host builds it)")?;
    ensure!(output.status.success(), "nacre run failed ({})", output.status);
    let text = std::fs::read_to_string(&timings).context("read the times")?;
    let times: Timings = serde_json::from_str(&text).context("read the times")?;
    ensure!(
        times.manifest_digest == written.manifest,
        "the guest verified {}, not {}",
        times.manifest_digest,
        written.manifest
    );

    let host = Command::new("uname").arg("-r").output().context("run uname")?;
    println!("\nHost kernel      {}", String::from_utf8_lossy(&host.stdout).trim());
    println!("Guest kernel     {} ({})", times.guest_kernel, times.accelerator.to_uppercase());
    println!("Verified digest  {}", times.manifest_digest);
    println!("\nThe container says:");
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        println!("  {line}");
    }
    let pull = format!("pull: {} layers, {:.1} MB", times.layers, times.image_bytes as f64 / 1e6);
    println!("\n{:<34} {:>9}", "Step", "ms");
    for (step, ms) in [
        ("kernel → init", times.kernel_to_init_ms),
        ("init → agent answering", times.init_to_listening_ms),
        ("agent answering → guest ready", times.listening_to_ready_ms),
        ("all of boot, with QEMU", times.vm_ms),
        ("network", times.network_ms),
        (pull.as_str(), times.pull_ms),
        ("create", times.create_ms),
        ("start", times.start_ms),
        ("everything", times.total_ms),
    ] {
        println!("{step:<34} {ms:>9.1}");
    }
    println!("\nWith internet access: {} run docker.io/library/alpine", args.dist.join("bin/nacre").display());
    Ok(())
}
