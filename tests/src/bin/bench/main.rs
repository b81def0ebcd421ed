//! `make bench`: sizes, boot, memory and speed, measured now; beside a named peer where there is one, turn by turn in the same run.

mod agent;
mod guest;
mod jail;
mod limiter;
mod pull;
mod shim;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nacre_protocol::agent::GetMetricsRequest;
use nacre_protocol::health::CheckRequest;
use nacre_protocol::nacre::{BootTimes, GetBootTimesRequest};
use nacre_shim::layout::Layout;
use nacre_tests::agent::{Client, Guest, Machine, Process, limit};
use nacre_tests::suite;
use serde::Serialize;

/// How often each is measured.
const BOOTS: usize = 9;
const RUNS: usize = 25;

/// Measures Nacre.
#[derive(Debug, Parser)]
struct Args {
    /// The directory with what was built
    #[arg(long)]
    dist: PathBuf,
    /// Only names that begin so
    #[arg(long, default_value = "")]
    only: String,
    /// Where the results go
    #[arg(long, default_value = "target/bench/results.json")]
    out: PathBuf,
}

/// One measurement. Values are medians; `spread` is the distance between the quartiles.
#[derive(Debug, Serialize)]
struct Measured {
    name: &'static str,
    unit: &'static str,
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    spread: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

impl Measured {
    fn one(name: &'static str, unit: &'static str, value: f64) -> Measured {
        Measured { name, unit, value, spread: None, peer: None, peer_value: None, ratio: None }
    }

    fn many(name: &'static str, unit: &'static str, values: &mut [f64]) -> Measured {
        let (value, spread) = median(values);
        Measured { spread: Some(spread), ..Measured::one(name, unit, value) }
    }

    fn beside(self, peer: &'static str, values: &mut [f64]) -> Measured {
        let (value, _) = median(values);
        Measured { peer: Some(peer), peer_value: Some(value), ratio: Some(self.value / value), ..self }
    }
}

/// The median, and the distance between the quartiles.
fn median(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |part: usize| values.get(values.len() * part / 4).or(values.last()).copied().unwrap_or(f64::NAN);
    (at(2), at(3) - at(1))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    let mut all = Vec::new();
    let wanted = |names: &[&str]| names.iter().any(|name| name.starts_with(&args.only));
    if wanted(&agent::NAMES) {
        all.extend(runtime.block_on(agent::measure(&args.dist, |name| name.starts_with(&args.only)))?);
    }
    if wanted(&["size.initrd", "size.disk", "size.kernel", "size.kernel_compressed"]) {
        all.extend(sizes(&args.dist)?);
    }
    if wanted(&["boot.kernel_to_init", "boot.kernel_to_check", "mem.agent_idle_pss", "mem.host_overhead"]) {
        all.extend(runtime.block_on(boots(&args.dist))?);
    }
    if wanted(&["boot.disk_kernel_to_check"]) {
        all.push(runtime.block_on(disk_boots(&args.dist))?);
    }
    if wanted(&["container.run_true"]) {
        all.push(runtime.block_on(run_true(&args.dist))?);
    }
    if wanted(&pull::NAMES) {
        all.extend(pull::measure(&args.dist, |name| name.starts_with(&args.only))?);
    }
    if wanted(&guest::NAMES) {
        all.extend(guest::measure(&args.dist, |name| name.starts_with(&args.only))?);
    }
    if wanted(&shim::NAMES) {
        all.extend(runtime.block_on(shim::measure(|name| name.starts_with(&args.only)))?);
    }
    // Last, for it parts this process's mounts from the host's.
    if wanted(&jail::NAMES) {
        all.extend(jail::measure(&args.dist, |name| name.starts_with(&args.only))?);
    }
    all.retain(|measured| measured.name.starts_with(&args.only));
    show(&all);
    let text = serde_json::to_string_pretty(&all).context("write the results")? + "\n";
    fs::create_dir_all(args.out.parent().unwrap_or(Path::new("."))).context("make the results' directory")?;
    fs::write(&args.out, text).with_context(|| format!("write {}", args.out.display()))
}

#[expect(clippy::print_stdout, reason = "showing is what it is for")]
fn show(all: &[Measured]) {
    println!(
        "{:<32} {:>12} {:>10} {:<6} {:<26} {:>10} {:>7}",
        "name", "median", "spread", "unit", "peer", "median", "ratio"
    );
    for m in all {
        let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
        println!(
            "{:<32} {:>12.2} {:>10} {:<6} {:<26} {:>10} {:>7}",
            m.name,
            m.value,
            number(m.spread),
            m.unit,
            m.peer.unwrap_or(""),
            number(m.peer_value),
            number(m.ratio)
        );
    }
}

fn sizes(dist: &Path) -> Result<Vec<Measured>> {
    let size = |name, path: &str| -> Result<Measured> {
        let meta = fs::metadata(dist.join(path)).with_context(|| format!("look at {path}"))?;
        Ok(Measured::one(name, "bytes", meta.len() as f64))
    };
    Ok(vec![
        size("size.initrd", "share/nacre/minimal.initrd")?,
        size("size.disk", "share/nacre/confidential.disk")?,
        size("size.kernel", "share/nacre/vmlinux")?,
        size("size.kernel_compressed", "share/nacre/bzImage")?,
    ])
}

/// When a guest was ready by its clock, from the start of its kernel; the last step, from its call to an answered `Check`, is added from the host's.
async fn answered(guest: &Guest) -> Result<(Client, BootTimes, f64)> {
    let called = Instant::now();
    let client = guest.connect().await?;
    client.health.check(limit(), &CheckRequest::new()).await.context("check")?;
    let answered = called.elapsed();
    let times = client.own.get_boot_times(limit(), &GetBootTimesRequest::new()).await.context("ask for times")?;
    let ready = times.ready_ns as f64 / 1e6 + ms(answered);
    Ok((client, times, ready))
}

/// Boots from a disk whose root is verified as it is read.
async fn disk_boots(dist: &Path) -> Result<Measured> {
    let share = dist.join("share/nacre");
    let mut to_check = Vec::new();
    for _ in 0..BOOTS {
        let layout = Layout::of(share.join("vmlinux"), share.join("kata.disk"))?;
        let guest = Guest::boot_layout(layout, Machine::default()).await?;
        to_check.push(answered(&guest).await?.2);
    }
    Ok(Measured::many("boot.disk_kernel_to_check", "ms", &mut to_check))
}

async fn boots(dist: &Path) -> Result<Vec<Measured>> {
    let (mut to_init, mut to_check, mut pss, mut host) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BOOTS {
        let guest = Guest::boot(dist).await?;
        let (client, times, ready) = answered(&guest).await?;
        to_init.push(times.init_ns as f64 / 1e6);
        to_check.push(ready);
        pss.push(agent_pss(&client).await?);
        host.push(host_overhead()?);
    }
    Ok(vec![
        Measured::many("boot.kernel_to_init", "ms", &mut to_init),
        Measured::many("boot.kernel_to_check", "ms", &mut to_check),
        Measured::many("mem.agent_idle_pss", "KiB", &mut pss),
        Measured::many("mem.host_overhead", "KiB", &mut host),
    ])
}

/// The agent and the process that guards it, in KiB.
async fn agent_pss(client: &Client) -> Result<f64> {
    let metrics =
        client.agent.get_metrics(limit(), &GetMetricsRequest::new()).await.context("ask for metrics")?.metrics;
    let lines = metrics.lines().filter(|line| line.starts_with("nacre_agent_pss_bytes{"));
    let bytes: f64 = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum();
    ensure!(bytes > 0.0, "the guest does not tell the agent's memory");
    Ok(bytes / 1024.0)
}

/// What this process and its VM take of the host beside the guest's own memory, which is shared: private and file pages, in KiB.
fn host_overhead() -> Result<f64> {
    let mut kib = 0.0;
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").context("list processes")?.filter_map(Result::ok) {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("PPid:") == Some(&own) || field("Pid:") == Some(&own) {
            let size =
                |name: &str| field(name).and_then(|text| text.split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
            kib += size("RssAnon:") + size("RssFile:");
        }
    }
    Ok(kib)
}

/// The life of `true`: create, start, wait, remove, over the wire; beside runc, which makes the same container from a command line.
async fn run_true(dist: &Path) -> Result<Measured> {
    let agent = Process::start(&dist.join("bin/nacre-agent"))?;
    let client = agent.connect().await?;
    let root = suite::root_file_system(&client, "bench").await?;
    let bundle = tempfile::tempdir().context("make a bundle")?;
    let runc = bundle_for_runc(bundle.path(), &["busybox", "true"])?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..RUNS {
        let begun = Instant::now();
        suite::life_of_true(&client, &format!("bench{number}"), &root).await?;
        ours.push(ms(begun.elapsed()));
        if runc {
            let begun = Instant::now();
            let output = Command::new("runc")
                .args(["run", "--bundle"])
                .arg(bundle.path())
                .arg(format!("bench{number}"))
                .output();
            let output = output.context("start runc")?;
            ensure!(output.status.success(), "runc: {}", String::from_utf8_lossy(&output.stderr));
            theirs.push(ms(begun.elapsed()));
        }
    }
    let measured = Measured::many("container.run_true", "ms", &mut ours);
    Ok(if runc { measured.beside("runc run", &mut theirs) } else { measured })
}

/// `false` when runc is not installed.
fn bundle_for_runc(dir: &Path, args: &[&str]) -> Result<bool> {
    if Command::new("runc").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(false);
    }
    let bin = dir.join("rootfs/bin");
    fs::create_dir_all(&bin).context("make a bundle")?;
    fs::copy("/bin/busybox", bin.join("busybox")).context("copy busybox")?;
    let spec = suite::spec_json("bench", "rootfs", args, false);
    fs::write(dir.join("config.json"), spec.to_string()).context("write a bundle")?;
    Ok(true)
}
