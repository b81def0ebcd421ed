//! The life of a shim: from the sandbox that comes first to the moment when nothing is left.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use anyhow::Context as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedInputStream};
use oci_spec::runtime::LinuxNamespaceType;
use tokio::sync::{Mutex, Notify};

use super::bundle::{Bundle, Namespace};
use super::cgroup::Groups;
use super::config::Config;
use super::containerd::Containerd;
use super::error::{Error, Result};
use super::group::{self, Role};
use super::holdings::Holdings;
use super::log::Log;
use super::pod::{Create, Pod};
use super::sandbox::{Sandbox, Settings};
use super::sizing;
use crate::guest::USER_NAME_SERVER;
use crate::layout::Layout;
use crate::metrics::usage::{self, Used};

/// By which containerd's options are known, and their field with a path.
const OPTIONS: &str = "runtimeoptions.v1.Options";
const CONFIG_PATH: u32 = 2;

/// What a pod's containers share of memory, unless the sandbox's mounts say otherwise: Kubernetes' 64 MiB.
const SHM: u64 = 64 << 20;

/// The largest resolv.conf that is read, in bytes.
const MAX_RESOLV_CONF: u64 = 64 << 10;

/// A shim's state.
#[derive(Debug)]
pub struct Life {
    pod: OnceLock<Arc<Pod>>,
    /// One pod is made at a time, and taken down once.
    holdings: Mutex<Option<Holdings>>,
    containerd: Containerd,
    log: Log,
    over: Notify,
}

impl Life {
    /// A shim that has no pod yet.
    pub fn new(containerd: Containerd, log: Log) -> Arc<Life> {
        Arc::new(Life { pod: OnceLock::new(), holdings: Mutex::new(None), containerd, log, over: Notify::new() })
    }

    /// The pod.
    ///
    /// # Errors
    /// None was made.
    pub fn pod(&self) -> Result<&Arc<Pod>> {
        self.pod.get().ok_or_else(|| Error::NotFound("pod".into()))
    }

    /// Makes a sandbox, or a container.
    ///
    /// # Errors
    /// Why there is none; then nothing of it is left.
    pub async fn create(&self, create: Create, options: &Any) -> Result<()> {
        match group::role(&create.bundle.annotations()) {
            Role::Container(_) => self.pod()?.create(&create).await,
            Role::Sandbox => self.make_pod(&create, options).await?.create_sandbox(&create),
            Role::Single => {
                let pod = self.make_pod(&create, options).await?;
                let made = pod.create(&create).await;
                if made.is_err() {
                    self.take_down(&pod).await;
                }
                made
            }
        }
    }

    async fn make_pod(&self, create: &Create, options: &Any) -> Result<Arc<Pod>> {
        let mut kept = self.holdings.lock().await;
        if self.pod.get().is_some() {
            return Err(Error::AlreadyExists(format!("pod {}", create.id)));
        }
        let annotations = create.bundle.annotations();
        let config = Config::find(config_path(options)?.as_deref().map(Path::new))?.with_annotations(&annotations)?;
        let spec = create.bundle.spec.clone();
        let netns = network_of(&create.bundle)?;
        let mut dns = name_servers(&create.bundle)?;
        if netns.is_none() && dns.is_empty() {
            dns.push(USER_NAME_SERVER.into());
        }
        let layout = Layout::find(config.guest.kernel.as_deref(), config.guest.image.as_deref())?;
        let size = sizing::size(&spec, &annotations, &config.vm)?;
        let groups = Groups::of(spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref()))?;
        let (mut holdings, network) = Holdings::take(&create.id, groups, netns, &self.log)?;
        let config = Arc::new(config);
        let settings = Settings {
            id: create.id.clone(),
            dir: holdings.dir(),
            config: config.clone(),
            layout,
            size,
            hostname: spec.hostname().clone().unwrap_or_default(),
            dns,
            network,
            shm: SHM,
        };
        let sandbox = Sandbox::start(settings);
        let pod = Pod::new(&create.id, sandbox, config, spec, self.containerd.clone(), self.log.clone());
        // A pod without metrics is a pod.
        if let Err(error) = holdings.serve_metrics(pod.clone()) {
            self.log.warn(&format!("pod {}: {error:#}", create.id));
        }
        *kept = Some(holdings);
        Ok(self.pod.get_or_init(|| pod).clone())
    }

    /// Removes a container or a process of one; with the sandbox, or the last container that has a pod of its own, all that the pod had.
    ///
    /// # Errors
    /// One that runs, or is not there.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<(u32, SystemTime)> {
        let pod = self.pod()?;
        let ended = pod.delete(id, exec).await?;
        if exec.is_empty() && id == pod.id {
            self.take_down(pod).await;
        }
        Ok(ended)
    }

    async fn take_down(&self, pod: &Pod) {
        pod.sandbox.stop().await;
        if let Some(holdings) = self.holdings.lock().await.take() {
            holdings.release(&self.log);
        }
    }

    /// Processor time in nanoseconds and memory in bytes that the pod has used on the host.
    pub fn used(&self) -> (u64, u64) {
        let vmm = self.pod.get().and_then(|pod| pod.sandbox.vmm());
        let all = vmm.into_iter().chain([std::process::id()]);
        all.filter_map(usage::of).fold((0, 0), |(cpu, memory), used: Used| (cpu + used.cpu, memory + used.memory))
    }

    /// Ends the shim, if nothing is left: containerd asks for it whenever a container was removed.
    pub fn shut_down(&self) {
        if self.pod.get().is_none_or(|pod| pod.is_empty()) {
            self.over.notify_one();
        }
    }

    /// Returns when the shim is to end.
    pub async fn over(&self) {
        self.over.notified().await;
    }

    /// The end, whatever there is still.
    pub async fn end(&self) {
        if let Some(pod) = self.pod.get() {
            self.take_down(pod).await;
        }
    }
}

/// The path in containerd's options (`ConfigPath` of its configuration).
fn config_path(options: &Any) -> Result<Option<String>> {
    if options.type_url != OPTIONS {
        return Ok(None);
    }
    let mut input = CodedInputStream::from_bytes(&options.value);
    let mut path = None;
    let mut read = || -> protobuf::Result<()> {
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            let (field, wire) = (tag >> 3, tag & 7);
            if (field, wire) == (CONFIG_PATH, 2) {
                path = Some(input.read_string()?);
            } else if wire == 2 {
                input.read_bytes()?;
            } else {
                input.read_raw_varint64()?;
            }
        }
        Ok(())
    };
    read().map_err(|error| super::error::invalid("options", error))?;
    Ok(path.filter(|path| !path.is_empty()))
}

/// The pod's network namespace. A container that `ctr` gives none has the VMM's own network, for it has to pull its image.
fn network_of(bundle: &Bundle) -> Result<Option<PathBuf>> {
    match bundle.namespace(LinuxNamespaceType::Network) {
        Namespace::Host => Err(Error::Unimplemented("network: a pod in a VM can't have the host's network".into())),
        Namespace::New => Ok(None),
        Namespace::At(path) => Ok(Some(path)),
    }
}

/// The lines of the resolv.conf that is mounted into the sandbox.
fn name_servers(bundle: &Bundle) -> Result<Vec<String>> {
    let mounts = bundle.spec.mounts().as_deref().unwrap_or_default();
    let Some(mount) = mounts.iter().find(|mount| mount.destination() == Path::new("/etc/resolv.conf")) else {
        return Ok(Vec::new());
    };
    let Some(path) = mount.source() else { return Ok(Vec::new()) };
    let read = || -> anyhow::Result<String> {
        use std::io::Read as _;
        let mut text = String::new();
        std::fs::File::open(path)?.take(MAX_RESOLV_CONF).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().with_context(|| format!("read {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    Ok(lines.map(String::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_options_name_the_configuration() {
        let options = |value: &[u8]| Any { type_url: OPTIONS.into(), value: value.into(), ..Any::default() };
        // type_url = "x", config_path = "/c"
        assert_eq!(config_path(&options(b"\x0a\x01x\x12\x02/c")).unwrap().as_deref(), Some("/c"));
        assert_eq!(config_path(&options(b"")).unwrap(), None);
        assert!(config_path(&options(b"\x12\x7f/")).is_err());
        assert_eq!(config_path(&Any { type_url: "other".into(), ..Any::default() }).unwrap(), None);
    }
}
