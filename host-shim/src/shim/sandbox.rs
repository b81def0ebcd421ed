//! A pod's VM: booted in the background while containerd goes on, and watched until it ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nacre_protocol::agent::{CreateSandboxRequest, Storage};
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::Config;
use super::error::{self, Error};
use super::mounts::SHM;
use super::sizing::Sized;
use crate::accelerator;
use crate::guest::Guest;
use crate::layout::Layout;
use crate::network::{Interface, Network};
use crate::vmm::{Backend, Nic, Vm, VmSpec};

/// How long a guest may take to end in order.
const END_WITHIN: Duration = Duration::from_secs(2);

/// What a sandbox is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub id: String,
    /// The pod's directory.
    pub dir: PathBuf,
    /// The shim's configuration, with what the pod overrides.
    pub config: Arc<Config>,
    /// What boots.
    pub layout: Layout,
    /// The machine's size.
    pub size: Sized,
    /// The pod's host name.
    pub hostname: String,
    /// The lines of its resolv.conf(5).
    pub dns: Vec<String>,
    /// The pod's network; without one it has the VMM's own.
    pub network: Option<Network>,
    /// The size of the memory that its containers share, in bytes.
    pub shm: u64,
}

/// Where the VM is in its life.
#[derive(Debug, Clone)]
enum State {
    Booting,
    Up(Guest, Option<u32>),
    /// It is gone: why.
    Ended(String),
}

/// A pod's VM.
#[derive(Debug, Clone)]
pub struct Sandbox {
    state: watch::Receiver<State>,
    stop: Arc<watch::Sender<bool>>,
}

impl Sandbox {
    /// Begins to boot. Returns at once.
    pub fn start(settings: Settings) -> Sandbox {
        let (tell, state) = watch::channel(State::Booting);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            let how = live(settings, &tell, stopped).await;
            tell.send_replace(State::Ended(how));
        });
        Sandbox { state, stop: Arc::new(stop) }
    }

    /// The guest, once it is up.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn guest(&self) -> error::Result<Guest> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                State::Booting => {}
                State::Up(guest, _) => return Ok(guest.clone()),
                State::Ended(how) => return Err(Error::Unavailable(how.clone())),
            }
            if state.changed().await.is_err() {
                return Err(Error::Unavailable("the VM is gone".into()));
            }
        }
    }

    /// The guest, if it is up now.
    pub fn guest_now(&self) -> Option<Guest> {
        match &*self.state.borrow() {
            State::Up(guest, _) => Some(guest.clone()),
            State::Booting | State::Ended(_) => None,
        }
    }

    /// The VMM's process, once the guest is up.
    pub fn vmm(&self) -> Option<u32> {
        match &*self.state.borrow() {
            State::Up(_, vmm) => *vmm,
            State::Booting | State::Ended(_) => None,
        }
    }

    /// Waits until there is no VM any more, and says why.
    pub async fn ended(&self) -> String {
        let mut state = self.state.clone();
        loop {
            if let State::Ended(how) = &*state.borrow_and_update() {
                return how.clone();
            }
            if state.changed().await.is_err() {
                return "the VM is gone".into();
            }
        }
    }

    /// Ends the VM, and returns when it is gone.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        self.ended().await;
    }
}

/// From its boot to its end.
async fn live(settings: Settings, tell: &watch::Sender<State>, mut stopped: watch::Receiver<bool>) -> String {
    let up = tokio::select! {
        up = bring_up(&settings) => up,
        _ = stopped.wait_for(|stop| *stop) => return "the pod was stopped".into(),
    };
    let (mut vm, guest) = match up {
        Ok(up) => up,
        Err(error) => return format!("{error:#}"),
    };
    tell.send_replace(State::Up(guest.clone(), vm.pid()));
    tokio::select! {
        how = vm.ended() => return how,
        _ = stopped.wait_for(|stop| *stop) => {}
    }
    if guest.destroy_sandbox(END_WITHIN).await.is_ok() {
        let _ = tokio::time::timeout(END_WITHIN, vm.ended()).await; // it is dropped, however
    }
    "the pod was stopped".into()
}

async fn bring_up(settings: &Settings) -> Result<(Vm, Guest)> {
    let config = &settings.config;
    let asked = config.vm.accelerator;
    let choice =
        tokio::task::spawn_blocking(move || accelerator::choose(asked)).await.context("try the accelerator")??;
    let pull_timeout = format!("agent.image_pull_timeout={}", config.images.pull_timeout);
    let spec = VmSpec {
        layout: settings.layout.clone(),
        dir: settings.dir.clone(),
        machine: config.vm.machine,
        accelerator: choice.accelerator,
        cpus: settings.size.cpus,
        memory: settings.size.memory,
        nics: nics(settings.network.as_ref()),
        disks: Vec::new(),
        kernel_args: config.guest.kernel_args.iter().cloned().chain([pull_timeout]).collect(),
    };
    let deadline = Instant::now() + config.boot_within();
    let vm = Vm::boot(&spec, deadline).await?;
    let guest = Guest::connect(vm.vsock(), deadline).await?;
    match &settings.network {
        Some(network) => set_network(&guest, network).await?,
        None => guest.set_user_network().await?,
    }
    guest.create_sandbox(&request(settings)).await?;
    Ok((vm, guest))
}

async fn set_network(guest: &Guest, network: &Network) -> Result<()> {
    for interface in network.interfaces_for_guest() {
        guest.set_interface(interface).await?;
    }
    guest.set_routes(network.routes_for_guest()).await?;
    match network.neighbours_for_guest() {
        Some(neighbours) => guest.add_neighbours(&neighbours).await,
        None => Ok(()),
    }
}

fn nics(network: Option<&Network>) -> Vec<Nic> {
    let Some(network) = network else { return vec![Nic::user()] };
    let nic = |interface: &Interface| Nic { mac: interface.mac(), backend: Backend::Tap(interface.tap.clone()) };
    network.interfaces.iter().map(nic).collect()
}

fn request(settings: &Settings) -> CreateSandboxRequest {
    let shm = Storage {
        driver: "ephemeral".into(),
        source: "shm".into(),
        fstype: "tmpfs".into(),
        options: ["noexec", "nosuid", "nodev", "mode=1777"]
            .map(String::from)
            .into_iter()
            .chain([format!("size={}", settings.shm)])
            .collect(),
        mount_point: SHM.into(),
        ..Storage::new()
    };
    CreateSandboxRequest {
        sandbox_id: settings.id.clone(),
        hostname: settings.hostname.clone(),
        dns: settings.dns.clone(),
        storages: vec![shm],
        ..Default::default()
    }
}
