//! `nacre run`, from the command line to the exit code.
//!
//! Everything that is made belongs to a value of this function: the pod's directory, the VM, the terminal's mode. However it ends, they go
//! in reverse order.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nacre_protocol::nacre::SetRegistryAccessRequest;
use nacre_protocol::nacre::pull_status::Phase as PullPhase;
use tokio::time::Instant as Deadline;

use crate::attach::{Attachment, attach};
use crate::blob_cache::store::Store;
use crate::cli::Run;
use crate::failure::Stopped;
use crate::guest::{Guest, ProcessId};
use crate::layout::Layout;
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::signals::Signals;
use crate::size::Size;
use crate::state::{Phase, Pod, Pods};
use crate::streams::Log;
use crate::timings::{Timings, Watch, ms};
use crate::vmm::{self, Machine, Nic, Vm, VmSpec, guest_calls};
use crate::{accelerator, blob_cache, detach, ready, spec, terminal, volumes};

/// The largest file of certificates or credentials.
const MAX_FILE: u64 = 1 << 20;

/// How long creation may take beside the pull.
const CREATE_WITHIN: Duration = Duration::from_secs(60);

/// Runs a container. Returns its exit code.
///
/// # Errors
/// What failed, and what to do.
pub async fn run(pods: &Pods, run: &Run) -> Result<i32> {
    let begun = Instant::now();
    let mut signals = Signals::listen()?;
    let access = registry_access(run)?;
    let layout = Layout::find(run.kernel.as_deref(), run.guest_image.as_deref())?;
    let name = run.name.clone().or_else(detach::name);
    let mut pod = pods.create(name.as_deref(), &run.image.to_string(), run.detach && !run.rm)?;
    let mut progress = Progress::new(run.quiet);
    let mut timings = Timings::default();

    let cache = open_cache(run, pod.dir())?;

    let up = tokio::select! {
        up = bring_up(run, (&layout, cache.is_some()), &mut pod, &access, &mut progress, &mut timings) => up,
        signal = signals.stop() => Err(Stopped(signal).into()),
    };
    let (mut vm, guest) = up?;
    timings.total_ms = ms(begun.elapsed());
    if let Some((served, filled)) = cache.as_ref().map(blob_cache::Server::bytes) {
        progress.say(&format!("blobs: {} from the host, {} kept there", Size::of(served), Size::of(filled)));
    }
    if let Some(path) = &run.timings_json {
        timings.write(path)?;
    }
    drop(progress);
    pod.update(|status| status.phase = Phase::Running)?;
    let log = Log::create(pod.dir())?;
    if run.detach {
        detach::running()?;
    }
    let id = ProcessId { container: pod.name().into(), exec: pod.name().into() };
    let attachment = Attachment { interactive: run.interactive, terminal: run.tty, log: Some(log) };
    let code = tokio::select! {
        code = attach(&guest, &id, attachment, &mut signals) => code?,
        how = vm.ended() => bail!("{how}"),
    };
    drop(vm);
    pod.update(|status| (status.phase, status.exit_code) = (Phase::Exited, Some(code)))?;
    Ok(code)
}

/// From nothing to a program that runs.
async fn bring_up(
    run: &Run,
    (layout, has_cache): (&Layout, bool),
    pod: &mut Pod,
    access: &SetRegistryAccessRequest,
    progress: &mut Progress,
    timings: &mut Timings,
) -> Result<(Vm, Guest)> {
    let choice = accelerator::choose(run.accel)?;
    progress.now(&format!("boot: {choice}"));
    let mut watch = Watch::start();
    let scratch = run.scratch.map(|size| Scratch::create(&run.scratch_dir, size)).transpose()?;
    let mut disks: Vec<_> = scratch.iter().map(Scratch::disk).collect();
    if let Some(layers) = &run.layers {
        let room = vmm::MAX_DISKS - disks.len();
        disks.extend(ready::disks(layers, room)?);
    }
    let vm_spec = VmSpec {
        layout: layout.clone(),
        dir: pod.dir().to_path_buf(),
        machine: Machine::Microvm,
        accelerator: choice.accelerator,
        cpus: run.cpus.whole(),
        memory: run.memory,
        nics: vec![Nic::user()],
        disks,
        kernel_args: kernel_args(run, has_cache),
    };
    let deadline = Deadline::now() + run.boot_timeout;
    let vm = Vm::boot(&vm_spec, deadline).await?;
    timings.vm_ms = watch.lap();
    let guest = Guest::connect(vm.vsock(), deadline).await?;
    timings.boot(&guest.boot_times().await?);
    timings.accelerator = choice.accelerator.name().into();
    progress.say(&format!("boot: {:.2} s, {choice}", timings.vm_ms / 1e3));

    watch.lap();
    // First, for images may be pulled as soon as there is a sandbox.
    guest.set_registry_access(access).await?;
    guest.set_up_pod(pod.name()).await?;
    timings.network_ms = watch.lap();
    volumes::copy(&guest, pod.name(), &run.volumes).await?;

    watch.lap();
    let terminal = run.tty.then(terminal::size).flatten();
    let container = spec::container(pod.name(), run, terminal)?;
    create(run, pod.name(), &guest, &container, progress, timings).await?;
    let made = watch.lap();
    timings.create_ms = (made - timings.pull_ms).max(0.0);
    guest.start(pod.name()).await?;
    timings.start_ms = watch.lap();
    progress.say(&format!("start: {:.2} s", (timings.create_ms + timings.start_ms) / 1e3));
    Ok((vm, guest))
}

/// Has the guest pull the image and make the container, and shows how far it is.
async fn create(
    run: &Run,
    id: &str,
    guest: &Guest,
    spec: &oci_spec::runtime::Spec,
    progress: &mut Progress,
    timings: &mut Timings,
) -> Result<()> {
    let limit = run.pull_timeout + CREATE_WITHIN;
    let image = run.image.to_string();
    let created = guest.create(id, &image, spec, limit);
    tokio::pin!(created);
    let mut seen = 0;
    let mut watching = true;
    loop {
        tokio::select! {
            result = &mut created => {
                result.with_context(|| format!("run {image}"))?;
                return Ok(());
            }
            status = guest.watch_pull(id, seen, limit), if watching => {
                let status = status?;
                seen = status.revision;
                match status.phase.enum_value_or_default() {
                    PullPhase::DONE => {
                        watching = false;
                        timings.pull_ms = status.elapsed_ns as f64 / 1e6;
                        timings.manifest_digest.clone_from(&status.manifest_digest);
                        timings.layers = status.layers_total;
                        timings.image_bytes = status.bytes_total;
                        let size = status.bytes_total.max(1).to_string().parse::<Size>();
                        let size = size.map_or_else(|_| String::new(), |size| format!("{size}, "));
                        progress.say(&format!(
                            "pull: {:.2} s, {size}{} layers, {}",
                            timings.pull_ms / 1e3, status.layers_total, status.manifest_digest,
                        ));
                    }
                    PullPhase::FAILED => watching = false,
                    _ => progress.pull(&status),
                }
            }
        }
    }
}

fn kernel_args(run: &Run, has_cache: bool) -> Vec<String> {
    let timeout = format!("agent.image_pull_timeout={}", run.pull_timeout.as_secs());
    let cache = has_cache.then(|| format!("nacre.blob_cache_port={}", blob_cache::PORT));
    [timeout].into_iter().chain(cache).collect()
}

/// The cache of blobs, if one is asked for, where the guest can call it.
fn open_cache(run: &Run, dir: &Path) -> Result<Option<blob_cache::Server>> {
    if run.blob_cache.is_none() && run.blob_sources.is_empty() {
        return Ok(None);
    }
    let kept = run.blob_cache.as_deref().map(|dir| (dir, run.blob_cache_size));
    let store = Store::open(kept, &run.blob_sources)?;
    let tell = Box::new(|text: &str| eprintln!("nacre: {text}"));
    blob_cache::Server::start(&guest_calls(dir, blob_cache::PORT), store, tell).map(Some)
}

fn registry_access(run: &Run) -> Result<SetRegistryAccessRequest> {
    let mut access = SetRegistryAccessRequest {
        registry: run.image.registry().into(),
        skip_tls_verification: run.tls_skip_verify,
        ..SetRegistryAccessRequest::new()
    };
    if let Some(path) = &run.tls_ca {
        access.ca_pem = read(path, "--tls-ca")?;
    }
    if let Some(path) = &run.creds_file {
        let text = read(path, "--creds-file")?;
        let pair = text.trim_end_matches(['\r', '\n']).split_once(':');
        let (user, password) =
            pair.with_context(|| format!("--creds-file {}: write USER:PASSWORD into it", path.display()))?;
        (access.username, access.password) = (user.into(), password.into());
    }
    Ok(access)
}

fn read(path: &Path, option: &str) -> Result<String> {
    let act = || format!("{option} {}", path.display());
    if std::fs::metadata(path).with_context(act)?.len() > MAX_FILE {
        bail!("{}: it is larger than {} MiB", act(), MAX_FILE >> 20);
    }
    std::fs::read_to_string(path).with_context(act)
}
