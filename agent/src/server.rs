//! The agent proper: listens first, brings up the rest, serves until the pod is destroyed or somebody asks it to end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nacre_protocol::address::{Address, CID_ANY, CID_HOST};
use nacre_protocol::connect;
use nacre_sys::heap;
use rustix::process::{Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use ttrpc::asynchronous::Server;

use crate::args;
use crate::boot::Boot;
use crate::check;
use crate::config::{self, Config};
use crate::console::{self, Consoles};
use crate::device::{Devices, cdi};
use crate::helpers::Helpers;
use crate::last_words::Left;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::passthrough::Connections;
use crate::policy::Policy;
use crate::rpc::{self, Services};
use crate::sandbox::{Sandbox, Settings};
use crate::storage::extensions;
use crate::storage::group::Group;
use crate::storage::place::Place;
use crate::storage::pull::{self, Pulls, WorkerCommand};
use crate::storage::rules::Rules;
use crate::{init, last_words, log, network};

/// Where layers and what containers write to their images are kept: on the guest's /run, which is tmpfs, unless the place is made another.
const PLACE: &str = "/run/nacre";
const STORE: &str = "/run/nacre/images";
const SCRATCH: &str = "/run/nacre/scratch";

/// Where the guest's cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The guest's own console.
const CONSOLE: &str = "/dev/console";

/// How long the host may take to answer the guest's call.
const CALL_WITHIN: Duration = Duration::from_secs(10);

/// How long the last answer may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Descriptors that containers may have: the kernel's default ceiling.
const DESCRIPTORS: u64 = 1 << 20;

/// Threads for calls that block. Containers are made and removed there, a few at a time.
const BLOCKING_THREADS: usize = 16;

/// How long such a thread waits for more to do. What came in a burst has ended then, and its memory goes back with the thread's.
const IDLE_THREAD: Duration = Duration::from_secs(2);

/// How the agent was started.
#[derive(Debug)]
pub struct Start {
    /// When.
    pub boot: Boot,
    /// By whom: `Some` as process 1's child, with what went wrong until then.
    pub guest: Option<Vec<String>>,
    /// What a plain process was told.
    pub settings: args::Settings,
}

/// Serve until the end.
pub fn run(mut start: Start) -> anyhow::Result<()> {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let sealed = start.guest.as_ref().and_then(|_| config::sealed::of_image(Path::new("/")));
    let (mut config, mut complaints) = match sealed {
        Some(own) => config::parse_sealed(&own, &line),
        None => config::parse(&line),
    };
    // Process 1 has its environment from the kernel's command line: it is no person's.
    let environment = |key| start.guest.is_none().then(|| std::env::var(key).ok()).flatten();
    complaints.extend(config.override_log(environment("KATA_AGENT_LOG_LEVEL").as_deref()));
    log::start(config.log);
    for complaint in complaints {
        match complaint.level {
            tracing::Level::WARN => tracing::warn!("{complaint}"),
            _ => tracing::debug!("{complaint}"),
        }
    }
    for complaint in start.guest.iter().flatten() {
        tracing::error!("{complaint}");
    }
    if start.guest.is_none() {
        let path = start.settings.last_words.as_deref().unwrap_or(Path::new(last_words::FILE));
        let Left { restarts, words } = inherit(path);
        (start.boot.restarts, start.boot.last_words) = (restarts, words);
    }
    let (kata, ours) = (environment("KATA_AGENT_SERVER_ADDR"), environment("NACRE_SERVER_ADDR"));
    config.override_server(kata.as_deref(), ours.as_deref(), start.settings.listen.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(IDLE_THREAD)
        .on_thread_stop(heap::trim)
        .build()
        .context("start the async runtime")?;
    let result = runtime.block_on(async {
        let served = serve(start, config).await;
        if let Err(error) = &served {
            tracing::error!("{error:#}");
        }
        log::end().await;
        served
    });
    // A call that blocks for good must not keep the guest from powering off.
    runtime.shutdown_background();
    result
}

/// What the agent before this one has left, said in the log.
fn inherit(path: &Path) -> Left {
    let left = last_words::inherit(path).unwrap_or_else(|error| {
        tracing::debug!("have the last words kept in {path:?}: {error}");
        Left::default()
    });
    if left.restarts > 0 {
        let words = if left.words.is_empty() { "none" } else { &left.words };
        tracing::error!(
            restarts = left.restarts,
            "the agent before this one has ended out of order; its last words: {words}"
        );
    }
    left
}

async fn serve(start: Start, config: Config) -> anyhow::Result<()> {
    let boot = Arc::new(start.boot);
    let is_guest = start.guest.is_some();
    let store = start.settings.store.unwrap_or_else(|| STORE.into());
    let (policy, unusable) = Policy::of_image(Path::new("/"));
    // A plain process has a root that is not its own.
    let rules = if is_guest { Rules::of_image(Path::new("/"), &config) } else { Rules::default() };
    let group = if is_guest { Group::below(CGROUPS) } else { Group::default() };
    let worker = WorkerCommand { alone: is_guest, ..WorkerCommand::find() };
    let (setup, place) = Place::later();
    let settings = pull::Settings { store, place, timeout: config.image_pull_timeout, worker, group, rules };
    let scratch = PathBuf::from(SCRATCH);
    let streams = side(start.settings.passfd.as_deref(), config.passfd_listener_port, "stdio")?;
    let connections = streams.map(Connections::listen);
    let cdi = cdi::Settings::new(config.cdi_timeout, config.visible_cdi_devices);
    let devices = Arc::new(Devices::new(config.hotplug_timeout).with_cdi(cdi));
    let shared = Settings { pipe_size: config.container_pipe_size, scratch, connections, devices: devices.clone() };
    let sandbox = Sandbox::new(shared, Pulls::new(settings));
    let (ready, is_ready) = watch::channel(false);
    let allows_all = policy.allows_all();
    let consoles = Arc::new(Consoles::new(policy.clone()));
    let helpers =
        if is_guest { Helpers::of_image(Path::new("/"), config.launch_process_timeout) } else { Helpers::default() };
    let helpers = Arc::new(helpers);
    let services = Services {
        policy,
        ready: is_ready,
        sandbox: sandbox.clone(),
        boot: boot.clone(),
        metrics: Metrics::new(),
        consoles: consoles.clone(),
        helpers: helpers.clone(),
        init_daemon: is_guest,
        devices,
    };
    let address = &config.server_addr;
    let listener = connect::listen(address).with_context(|| format!("listen on {address}"))?;
    let mut server = rpc::register(Server::new().add_listener(listener), Arc::new(services));
    server.start().await.with_context(|| format!("serve on {address}"))?;
    boot.listening();
    tracing::info!(%address, "listening");
    if let Some(fault) = unusable {
        tracing::error!("POLICY: {}", crate::chain(&fault));
    }
    if allows_all {
        tracing::warn!("POLICY: ALLOW ALL: this is a development image, the host may ask for anything");
    }
    if let Some(listener) = side(start.settings.log.as_deref(), config.log_vport, "the log")? {
        tokio::spawn(log::serve(listener));
    }
    let wanted = config.extensions.clone();
    tokio::task::spawn_blocking(move || initialise(is_guest, &wanted)).await.context("initialise")??;
    helpers.start();
    boot.ready();
    ready.send_replace(true);
    tracing::info!("ready");
    offer_consoles(consoles, start.settings.console.as_deref(), &config)?;
    if let Some(port) = config.ready_port {
        tokio::spawn(call_host(port));
    }
    // Only now, for the host waits for that call. Pulls wait for this.
    let (wanted, size) = (config.image_store, config.image_store_size);
    tokio::task::spawn_blocking(move || match is_guest {
        true => setup.run(Path::new(PLACE), wanted, size),
        false => setup.as_it_is(), // the machine is somebody else's
    });
    let ended = until_the_end(&sandbox).await;
    helpers.end().await;
    ended?;
    server.shutdown().await.context("stop the server")
}

/// Offer shells where a person says, or where the kernel command line does if the image allows it. The policy judges each.
fn offer_consoles(consoles: Arc<Consoles>, setting: Option<&str>, config: &Config) -> anyhow::Result<()> {
    let (wanted, port) = (config.debug_console, config.debug_console_vport);
    let may = setting.is_some() || wanted && console::allowed(Path::new("/"));
    if may && (setting.is_some() || port.is_some()) {
        if let Some(listener) = side(setting, port, "the debug console")? {
            tokio::spawn(consoles.serve(listener));
        }
    } else if may {
        tokio::spawn(async move { consoles.serve_terminal(Path::new(CONSOLE)).await });
    } else if wanted {
        tracing::warn!("kernel command line: agent.debug_console ignored: the guest's image does not allow it");
    }
    Ok(())
}

/// Listen for `purpose` where a person says, or at the port that the kernel command line names.
fn side(setting: Option<&str>, port: Option<u32>, purpose: &'static str) -> anyhow::Result<Option<Listener>> {
    let address = match (setting, port) {
        (Some(text), _) => text.parse().with_context(|| format!("{purpose} at {text}"))?,
        (None, Some(port)) => Address::Vsock { cid: CID_ANY, port },
        (None, None) => return Ok(None),
    };
    let listening = Listener::bind(&address, purpose);
    // The rest of the agent does without.
    Ok(listening.inspect_err(|error| tracing::error!(%address, "listen for {purpose}: {error}")).ok())
}

/// What can be done after the host can already connect. A guest that is not what was measured must not go on.
fn initialise(is_guest: bool, wanted: &[(String, String)]) -> anyhow::Result<()> {
    let files = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, files) {
        tracing::debug!("raise the number of descriptors to {DESCRIPTORS}: {error}");
    }
    if !is_guest {
        return Ok(()); // the machine is somebody else's
    }
    check::at_boot(Path::new("/"))?;
    match init::mount_usr() {
        Ok(found) => tracing::debug!(found, "/usr.squashfs"),
        Err(error) => tracing::error!("{}", crate::chain(&error)),
    }
    if let Err(error) = network::bring_up_loopback() {
        tracing::error!("{}", crate::chain(&error));
    }
    let mounted = extensions::mount_all(wanted)?;
    tracing::debug!(mounted, "extensions");
    Ok(())
}

/// Tell the host that it can dial now.
async fn call_host(port: u32) {
    let host = Address::Vsock { cid: CID_HOST, port };
    match connect::call_out(&host, Instant::now() + CALL_WITHIN).await {
        Ok(()) => tracing::debug!(%host, "called"),
        Err(error) => tracing::warn!(%host, "call the host: {error}"),
    }
}

async fn until_the_end(sandbox: &Arc<Sandbox>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        () = sandbox.stopped() => {
            // The answer to DestroySandbox is on its way, and ttRPC can't tell when it has left.
            tokio::time::sleep(LAST_WORDS).await;
            return Ok(());
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("asked to end");
    sandbox.destroy().await.context("destroy the sandbox")
}
