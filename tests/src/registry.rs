//! A registry on loopback: Debian's docker-registry, with TLS and, where asked for, a password.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How long it may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// The host's loopback, as a guest on QEMU's user network sees it.
pub const FROM_GUEST: &str = "10.0.2.2";

/// The node of a pod's network, as the pods see it: the bridge that CNI makes.
pub const FROM_POD: &str = "10.88.7.1";

/// A running registry. Dropping it ends it and removes what it holds.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Registry {
    /// Starts a registry; with `credentials`, one that wants them.
    ///
    /// # Errors
    /// A program that is missing, or a registry that does not come up.
    pub fn start(credentials: Option<(&str, &str)>) -> Result<Registry> {
        Registry::start_on("127.0.0.1", credentials)
    }

    /// Starts a registry that listens on all addresses of a network of the test's own.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_for_pods(credentials: Option<(&str, &str)>) -> Result<Registry> {
        Registry::start_on("0.0.0.0", credentials)
    }

    fn start_on(address: &str, credentials: Option<(&str, &str)>) -> Result<Registry> {
        let dir = tempfile::tempdir().context("make the registry's directory")?;
        certificate(dir.path())?;
        let port = free_port()?;
        let auth = match credentials {
            Some((user, password)) => {
                let output =
                    Command::new("htpasswd").args(["-Bbn", user, password]).output().context("run htpasswd")?;
                let file = dir.path().join("htpasswd");
                fs::write(&file, output.stdout).context("write the registry's passwords")?;
                format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display())
            }
            None => String::new(),
        };
        let at = dir.path().display();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {at}/data}}}}\n{auth}\
             http: {{addr: \"{address}:{port}\", tls: {{certificate: {at}/cert.pem, key: {at}/key.pem}}}}\n"
        );
        let path = dir.path().join("config.yml");
        fs::write(&path, config).context("write the registry's configuration")?;
        let log = fs::File::create(dir.path().join("log")).context("make the registry's log")?;
        let mut command = Command::new("docker-registry");
        let access = fs::File::create(dir.path().join("access")).context("make the registry's log")?;
        command.arg("serve").arg(path).stdin(Stdio::null()).stdout(access).stderr(log);
        // Tests run on threads of their own, which end before the registry does: no lifeline, but a drop.
        let child = command.spawn().context("start docker-registry")?;
        let mut registry = Registry { child, dir, port };
        registry.wait_until_up()?;
        Ok(registry)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + UP_WITHIN;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = self.child.try_wait().context("wait for docker-registry")?;
            if ended.is_some() || Instant::now() >= deadline {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                bail!("docker-registry does not come up: {log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The file with the certificate to trust.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    /// The certificate's text.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn ca_pem(&self) -> Result<String> {
        fs::read_to_string(self.ca()).context("read the registry's certificate")
    }

    /// `name` in this registry, as this host calls it.
    pub fn here(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// `name` in this registry, as a guest calls it.
    pub fn from_guest(&self, name: &str) -> String {
        format!("{FROM_GUEST}:{}/{name}", self.port)
    }

    /// `name` in this registry, as a pod of [`crate::containerd`]'s network calls it.
    pub fn from_pod(&self, name: &str) -> String {
        format!("{FROM_POD}:{}/{name}", self.port)
    }

    /// Pushes the image in the OCI layout `layout` as `name`.
    ///
    /// # Errors
    /// What skopeo says.
    pub fn push(&self, layout: &Path, name: &str, credentials: Option<(&str, &str)>) -> Result<()> {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]);
        if let Some((user, password)) = credentials {
            command.arg(format!("--dest-creds={user}:{password}"));
        }
        command.arg(format!("oci:{}:image", layout.display())).arg(format!("docker://{}", self.here(name)));
        let output = command.output().context("run skopeo")?;
        ensure!(output.status.success(), "push {name}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// How often each blob was fetched, by digest.
    ///
    /// # Errors
    /// A log that can't be read.
    pub fn fetched(&self) -> Result<BTreeMap<String, usize>> {
        let log = fs::read_to_string(self.dir.path().join("access")).context("read the registry's log")?;
        let blob = |line: &str| {
            let path = line.split("\"GET ").nth(1)?.split(' ').next()?;
            path.split_once("/blobs/").map(|(_, digest)| digest.to_string())
        };
        let mut fetched = BTreeMap::new();
        log.lines().filter_map(blob).for_each(|digest| *fetched.entry(digest).or_default() += 1);
        Ok(fetched)
    }

    /// The file in which the registry keeps the blob `digest` (`sha256:…`), for tests that spoil it.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let kept = format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2.min(hex.len())]);
        self.dir.path().join(kept)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// A certificate for this host by every name that it has here.
fn certificate(dir: &Path) -> Result<()> {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=nacre test registry", "-keyout", "key.pem", "-out", "cert.pem", "-addext"])
        .arg(format!("subjectAltName=DNS:localhost,IP:127.0.0.1,IP:{FROM_GUEST},IP:{FROM_POD}"))
        .current_dir(dir)
        .output()
        .context("run openssl")?;
    ensure!(output.status.success(), "make a certificate: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A port that nobody listens on just now: below those that the kernel gives to outgoing connections, and never the same twice here.
///
/// # Errors
/// A host without free ports.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let number = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Relaxed)) % 10_000;
        let port = 20_000 + number as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port from 20000 to 30000 is free")
}
