//! A containerd of one's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Where its socket is below its directory.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("socket")
}

/// What a containerd is to be.
#[derive(Debug, Default)]
pub struct Setup {
    /// Its CRI, as its configuration has it; without, there is none.
    pub cri: Option<String>,
    /// What is added to its environment, and its shims'.
    pub environment: Vec<(String, String)>,
}

/// Starts one that keeps all it has below `dir`, and returns once it answers. It is the caller's to end.
///
/// # Errors
/// A containerd that is not installed or does not come up.
pub fn start(dir: &Path) -> Result<Child> {
    start_with(dir, &Setup::default())
}

/// As [`start`], for a containerd that is to be more.
///
/// # Errors
/// As [`start`].
pub fn start_with(dir: &Path, setup: &Setup) -> Result<Child> {
    let path = |name: &str| dir.join(name).display().to_string();
    let disabled = if setup.cri.is_some() { "" } else { "\"io.containerd.grpc.v1.cri\", " };
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [{disabled}\
         \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
         \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.aufs\"]\n\
         [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n{}\n",
        path("root"),
        path("state"),
        path("socket"),
        path("ttrpc"),
        setup.cri.as_deref().unwrap_or_default(),
    );
    fs::write(dir.join("config.toml"), config).context("write containerd's configuration")?;
    let _ = fs::remove_file(socket(dir)); // one that was killed has left it
    let log = fs::File::options().append(true).create(true).open(dir.join("log")).context("make containerd's log")?;
    let mut command = Command::new("containerd");
    command.arg("--config").arg(dir.join("config.toml")).stdout(Stdio::null()).stderr(log);
    command.envs(setup.environment.iter().cloned());
    let mut daemon = command.spawn().context("start containerd")?;
    // ctr waits for the daemon as long as its time allows.
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(socket(dir)).args(["--connect-timeout", "20s", "version"]).stdin(Stdio::null());
    let answered = ctr.output().context("start ctr");
    if !answered.as_ref().is_ok_and(|output| output.status.success()) {
        let _ = daemon.kill(); // it may have ended
        let _ = daemon.wait();
    }
    let output = answered?;
    ensure!(output.status.success(), "containerd does not come up: {}", String::from_utf8_lossy(&output.stderr));
    Ok(daemon)
}
