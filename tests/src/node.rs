//! A node: a containerd that has our shim, a network of its own with Debian's CNI plugins, and a registry that its pods reach.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;

use crate::containerd::{self, Setup};
use crate::dist;
use crate::image::{Compression, Image, busybox};
use crate::registry::Registry;

/// What it takes, besides what pulls take.
const PROGRAMS: &[&str] = &["containerd", "ctr", "ip", "htpasswd"];

/// Where Debian has CNI's plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// The image of containerd's sandboxes. Nothing of it runs.
const PAUSE: &str = "nacre.test/pause:1";

/// The image that pods run.
pub const IMAGE: &str = "box:1";

/// Who the registry knows.
const USER: (&str, &str) = ("pod", "open sesame");

/// A node. Dropping it ends all that runs on it, and removes what it has.
#[derive(Debug)]
pub struct Node {
    /// The registry with [`IMAGE`].
    pub registry: Registry,
    /// Everything that the node keeps.
    pub dir: tempfile::TempDir,
    containerd: Child,
    setup: Setup,
    network: Network,
}

/// A network namespace with a name. It goes with the value.
#[derive(Debug)]
struct Network(String);

impl Network {
    /// Makes one, and moves the calling thread there: what it starts from now on is there, too.
    fn enter() -> Result<Network> {
        let network =
            Network(format!("nacre-node-{}-{}", std::process::id(), rustix::thread::gettid().as_raw_nonzero()));
        run("ip", &["netns", "add", &network.0])?;
        run("ip", &["-n", &network.0, "link", "set", "lo", "up"])?;
        let path = Path::new("/run/netns").join(&network.0);
        let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("enter the node's network")?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "del", &self.0]); // what is left of it shows in the next test
    }
}

impl Node {
    /// Starts a node, or says why there is none here. The calling thread is in its network from then on.
    ///
    /// # Errors
    /// Whatever does not come up.
    pub fn start() -> Result<Option<Node>> {
        let Some(dist) = dist::for_pulls() else { return Ok(None) };
        if !dist::root() || !dist::have(PROGRAMS) {
            return Ok(None);
        }
        let network = Network::enter()?;
        let dir = tempfile::tempdir().context("make the node's directory")?;
        let registry = Registry::start_for_pods(Some(USER))?;
        let setup = set_up(dir.path(), &dist, &registry)?;
        let containerd = containerd::start_with(dir.path(), &setup)?;
        let node = Node { registry, dir, containerd, setup, network };
        node.add_images()?;
        Ok(Some(node))
    }

    fn add_images(&self) -> Result<()> {
        let layout = self.dir.path().join("image");
        let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin", "FROM=image"] });
        Image::new(config).layer(busybox()?.finish()?, Compression::Gzip).write(&layout)?;
        self.registry.push(&layout, IMAGE, Some(USER))?;
        // containerd makes a snapshot of an image that it has; the guest pulls its own.
        // One name in each namespace: of several the CRI tells the first, whichever was asked for.
        let images = [("k8s.io", self.image()), ("k8s.io", PAUSE.into()), ("default", self.registry.from_guest(IMAGE))];
        for (namespace, name) in images {
            let archive = self.dir.path().join("image.tar");
            let to = format!("oci-archive:{}:{name}", archive.display());
            run("skopeo", &["copy", "--quiet", &format!("oci:{}:image", layout.display()), &to])?;
            let imported = self.ctr(namespace, ["images", "import", &archive.display().to_string()])?;
            ensure!(imported.status.success(), "import {name}: {}", String::from_utf8_lossy(&imported.stderr));
            fs::remove_file(&archive).context("remove the archive")?;
        }
        Ok(())
    }

    /// What pods call [`IMAGE`].
    pub fn image(&self) -> String {
        self.registry.from_pod(IMAGE)
    }

    /// Runs `ctr`.
    ///
    /// # Errors
    /// A `ctr` that can't be run.
    pub fn ctr(&self, namespace: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Output> {
        let mut command = self.ctr_command(namespace);
        command.args(args).stdin(Stdio::null()).output().context("run ctr")
    }

    /// `ctr`, to be told what to do.
    pub fn ctr_command(&self, namespace: &str) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", namespace]);
        command
    }

    /// containerd's socket.
    pub fn socket(&self) -> PathBuf {
        containerd::socket(self.dir.path())
    }

    /// The process of containerd.
    pub fn containerd(&self) -> u32 {
        self.containerd.id()
    }

    /// Kills containerd, and starts it anew.
    ///
    /// # Errors
    /// A containerd that does not come up.
    pub fn restart_containerd(&mut self) -> Result<()> {
        self.containerd.kill().context("kill containerd")?;
        self.containerd.wait().context("wait for containerd")?;
        self.containerd = containerd::start_with(self.dir.path(), &self.setup)?;
        Ok(())
    }

    /// The directories of pods that the shim keeps.
    pub fn pods(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("shim")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// The processes on this node that run a program with `name` in its command line.
    pub fn processes(&self, name: &str) -> Vec<u32> {
        let own = self.dir.path().to_string_lossy().into_owned();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.split('\0').next().is_some_and(|program| program.ends_with(name)) && line.contains(&own)
        })
        .collect()
    }

    /// What containerd and its shims have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    #[expect(clippy::print_stdout, reason = "the test harness shows what a test that failed prints")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("containerd's log:\n{}", self.log());
        }
        for name in ["containerd-shim-nacre-v2", "qemu-system-x86_64"] {
            for pid in self.processes(name) {
                let _ = run("kill", &["-9", &pid.to_string()]); // it may have ended
            }
        }
        let _ = self.containerd.kill(); // it may have ended
        let _ = self.containerd.wait();
        // Snapshots and sandboxes are mounts below the directory.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = self.dir.path().to_string_lossy().into_owned();
        for point in
            mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).filter(|point| point.starts_with(&own))
        {
            let _ = run("umount", &["-l", point]); // another mount's end may have taken it along
        }
        let _ = &self.network; // it goes last
    }
}

/// Writes what containerd, CNI and the shim are told.
fn set_up(dir: &Path, dist: &Path, registry: &Registry) -> Result<Setup> {
    let path = |name: &str| dir.join(name).display().to_string();
    let share = dist.join("share/nacre");
    let known = json!({ "username": USER.0, "password": USER.1 });
    let [pods, guests] = [registry.from_pod(""), registry.from_guest("")];
    let auth = json!({ "auths": { pods.trim_end_matches('/'): known, guests.trim_end_matches('/'): known } });
    fs::write(dir.join("auth.json"), auth.to_string()).context("write the credentials")?;
    let shim = format!(
        "annotations = [\"vm.memory\"]\n[guest]\nkernel = {:?}\nimage = {:?}\n[vm]\nmemory = \"256M\"\n[images]\nca-file = {:?}\nauth-file = {:?}\n",
        share.join("vmlinux"),
        share.join("minimal.initrd"),
        registry.ca(),
        path("auth.json"),
    );
    fs::write(dir.join("shim.toml"), shim).context("write the shim's configuration")?;
    let cni = json!({
        "cniVersion": "0.4.0", "name": "nacre-test", "type": "bridge", "bridge": "nacre0", "isGateway": true,
        "ipam": { "type": "host-local", "dataDir": path("ipam"), "routes": [{ "dst": "0.0.0.0/0" }],
                  "ranges": [[{ "subnet": "10.88.7.0/24" }]] },
    });
    fs::create_dir_all(dir.join("cni")).context("make CNI's directory")?;
    fs::write(dir.join("cni/10-nacre.conf"), cni.to_string()).context("write CNI's configuration")?;
    let cri = format!(
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {PAUSE:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {PLUGINS:?}\nconf_dir = {:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"nacre\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nacre]\nruntime_type = \"io.containerd.nacre.v2\"\n\
         privileged_without_host_devices = true\npod_annotations = [\"dev.nacre.*\"]\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nacre.options]\nConfigPath = {:?}\n",
        path("cni"),
        path("shim.toml"),
    );
    let programs = format!("{}:{}", dist.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let environment =
        [("PATH", programs), ("NACRE_SHIM_STATE_DIR", path("shim")), ("NACRE_SHIM_CONFIG", path("shim.toml"))];
    Ok(Setup { cri: Some(cri), environment: environment.map(|(name, value)| (name.into(), value)).into() })
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
