//! How long each stage of a run took.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nacre_protocol::nacre::BootTimes;
use serde::Serialize;

/// Milliseconds by stage, and what was found on the way.
#[derive(Debug, Default, Serialize)]
pub struct Timings {
    /// What made the guest's processor.
    pub accelerator: String,
    /// The guest kernel's release.
    pub guest_kernel: String,
    /// The digest of the manifest that the guest verified.
    pub manifest_digest: String,
    /// Layers of the image.
    pub layers: u32,
    /// Compressed bytes of the image.
    pub image_bytes: u64,
    /// From the start of the guest's clock to its first process.
    pub kernel_to_init_ms: f64,
    /// From there to an agent that listens.
    pub init_to_listening_ms: f64,
    /// From there to an agent that is ready.
    pub listening_to_ready_ms: f64,
    /// From the start of QEMU to the guest's call, on the host's clock.
    pub vm_ms: f64,
    /// Address, route and names.
    pub network_ms: f64,
    /// From the reference to unpacked layers.
    pub pull_ms: f64,
    /// From there to a container at its start gate.
    pub create_ms: f64,
    /// From there to a program that runs.
    pub start_ms: f64,
    /// From the start of this process to there.
    pub total_ms: f64,
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl Timings {
    /// Takes over what the guest says of its boot.
    pub fn boot(&mut self, times: &BootTimes) {
        let between = |from: u64, to: u64| ms(Duration::from_nanos(to.saturating_sub(from)));
        self.guest_kernel.clone_from(&times.kernel_release);
        self.kernel_to_init_ms = between(0, times.init_ns);
        self.init_to_listening_ms = between(times.init_ns, times.listening_ns);
        self.listening_to_ready_ms = between(times.listening_ns, times.ready_ns);
    }

    /// Writes them to `path`.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("write the times")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}

/// Measures one stage after the other.
#[derive(Debug)]
pub struct Watch(Instant);

impl Watch {
    /// Starts now.
    pub fn start() -> Watch {
        Watch(Instant::now())
    }

    /// The time since the last lap, in milliseconds.
    pub fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let time = ms(now - self.0);
        self.0 = now;
        time
    }
}
