//! What there is to know of containers, in JSON or in columns.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nacre_jail::{BlockIoEntry, Container, Stats, Status};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::{Events, Format, List};
use super::directory::{Entry, Remembered, Root};

/// Prints one line, or reports that nobody reads it.
fn print(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write to standard output")
}

fn print_pretty(value: &impl Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value).context("write JSON")?)
}

/// The state of the specification, with what runc adds to it, in the order in which it has them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    oci_version: String,
    id: String,
    pid: i32,
    status: String,
    bundle: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<PathBuf>,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<HashMap<String, String>>,
    owner: String,
}

fn state_of(entry: &Entry) -> Result<State> {
    let Remembered { bundle, created, owner, spec, record, broken, .. } = entry.load()?;
    if let Some(broken) = broken {
        bail!("{broken}");
    }
    let (status, pid) = match record {
        None if entry.is_locked() => ("creating".into(), 0),
        None => (Status::Stopped.to_string(), 0),
        Some(record) => {
            let pid = record.pid();
            let container = Container::open(entry.id(), record, &spec, &bundle)?;
            let status = container.status();
            container.leave();
            let status = status?;
            (status.to_string(), if status == Status::Stopped { 0 } else { pid })
        }
    };
    let rootfs = spec.root().as_ref().map(|root| bundle.join(root.path()));
    let (oci_version, annotations) = (spec.version().clone(), spec.annotations().clone());
    let (id, owner) = (entry.id().to_string(), owner.to_string());
    Ok(State { oci_version, id, pid, status, bundle, rootfs, created, annotations, owner })
}

pub fn state(root: &Root, id: &str) -> Result<()> {
    print_pretty(&state_of(&root.find(id)?)?)
}

pub fn list(root: &Root, args: &List) -> Result<()> {
    let entries = root.all()?;
    if args.quiet {
        return entries.iter().try_for_each(|entry| print(entry.id()));
    }
    // One that is being removed meanwhile is not there.
    let states: Vec<State> = entries.iter().filter_map(|entry| state_of(entry).ok()).collect();
    if args.format == Format::Json {
        return print(&serde_json::to_string(&states).context("write JSON")?);
    }
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from)];
    rows.extend(states.into_iter().map(|state| {
        [state.id, state.pid.to_string(), state.status, state.bundle.display().to_string(), state.created, state.owner]
    }));
    print_columns(&rows)
}

/// The widest column.
const MAX_WIDTH: usize = 256;

fn print_columns<const N: usize>(rows: &[[String; N]]) -> Result<()> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    // A container chooses how long its commands are; a column is padded up to a bound.
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:0$}", width.min(MAX_WIDTH)));
        print(cells.collect::<Vec<_>>().join("   ").trim_end())?;
    }
    Ok(())
}

pub fn ps(root: &Root, id: &str, format: Format, ps_args: &[String]) -> Result<()> {
    let (container, ..) = root.find(id)?.open()?;
    let pids = container.pids();
    container.leave();
    let mut pids = pids?;
    pids.sort_unstable();
    if format == Format::Json {
        return print(&serde_json::to_string(&pids).context("write JSON")?);
    }
    if !ps_args.is_empty() {
        return ps_of_the_host(&pids, ps_args);
    }
    let mut rows = vec![["UID", "PID", "PPID", "STAT", "TIME", "CMD"].map(String::from)];
    rows.extend(pids.iter().filter_map(|pid| process_row(*pid)));
    print_columns(&rows)
}

/// What ps(1) prints, but for the processes of others.
fn ps_of_the_host(pids: &[i32], args: &[String]) -> Result<()> {
    let output = std::process::Command::new("ps").args(args).output().context("run ps")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let Some(column) = heading.split_whitespace().position(|name| name == "PID") else {
        bail!("ps prints no column PID with these arguments");
    };
    print(heading)?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    lines.filter(ours).try_for_each(print)
}

/// A process as /proc has it (proc(5)); one that has ended meanwhile has no row.
fn process_row(pid: i32) -> Option<[String; 6]> {
    const TICKS_PER_SECOND: u64 = 100; // USER_HZ, fixed on x86
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let stat = read("stat")?;
    let (head, tail) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    let status = read("status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?;
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let seconds = ticks / TICKS_PER_SECOND;
    let command = read("cmdline").unwrap_or_default().replace('\0', " ");
    let name = head.split_once('(')?.1;
    Some([
        uid.to_string(),
        pid.to_string(),
        fields.get(1)?.to_string(),
        fields.first()?.to_string(),
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
        if command.is_empty() { format!("[{name}]") } else { command.trim_end().to_string() },
    ])
}

pub fn stats(root: &Root, id: &str) -> Result<()> {
    let (container, ..) = root.find(id)?.open()?;
    let read = container.stats();
    container.leave();
    print_pretty(&data_of(&read?))
}

pub fn events(root: &Root, args: &Events) -> Result<()> {
    let (container, ..) = root.find(&args.id)?.open()?;
    let result = follow(&container, args);
    container.leave();
    result
}

/// A reading now and after each interval, and a line when the kernel has killed for memory, until the container ends.
fn follow(container: &Container, args: &Events) -> Result<()> {
    if container.status()? == Status::Stopped {
        bail!("container with id {} is not running", args.id);
    }
    let mut kills = None;
    loop {
        let read = container.stats()?;
        if kills.is_some_and(|before| read.memory.oom_kills > before) {
            print_event("oom", &args.id, None)?;
        }
        kills = Some(read.memory.oom_kills);
        print_event("stats", &args.id, Some(data_of(&read)))?;
        if args.stats || ended_within(container, args.interval)? {
            return Ok(());
        }
    }
}

fn print_event(kind: &str, id: &str, data: Option<Value>) -> Result<()> {
    /// In the order in which runc has it.
    #[derive(Serialize)]
    struct Event<'a> {
        r#type: &'a str,
        id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<Value>,
    }
    print(&serde_json::to_string(&Event { r#type: kind, id, data }).context("write JSON")?)
}

fn ended_within(container: &Container, time: Duration) -> Result<bool> {
    let limit = rustix::time::Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    let pidfd = container.init().pidfd();
    let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)));
    Ok(ready.context("wait for the container")? > 0)
}

/// A reading in the form of runc's `events`.
fn data_of(stats: &Stats) -> Value {
    let entries = |entries: &[BlockIoEntry]| -> Vec<Value> {
        let entry =
            |e: &BlockIoEntry| json!({ "major": e.major, "minor": e.minor, "op": e.operation, "value": e.value });
        entries.iter().map(entry).collect()
    };
    let huge: Map<String, Value> = stats
        .huge_pages
        .iter()
        .map(|(size, pages)| {
            (size.clone(), json!({ "usage": pages.usage, "max": pages.max_usage, "failcnt": pages.failures }))
        })
        .collect();
    let (cpu, memory) = (&stats.cpu, &stats.memory);
    let swap = json!({ "limit": memory.swap_limit, "usage": memory.swap_usage, "max": 0, "failcnt": 0 });
    json!({
        "cpu": {
            "usage": { "total": cpu.total, "percpu": cpu.per_cpu, "kernel": cpu.system, "user": cpu.user },
            "throttling": {
                "periods": cpu.periods, "throttledPeriods": cpu.throttled_periods, "throttledTime": cpu.throttled,
            },
        },
        "cpuset": {},
        "memory": {
            "cache": memory.cache,
            "usage": { "limit": memory.limit, "usage": memory.usage, "max": memory.max_usage, "failcnt": memory.failures },
            "swap": swap,
            "raw": memory.counters,
        },
        "pids": { "current": stats.pids.current, "limit": stats.pids.limit },
        "blkio": {
            "ioServiceBytesRecursive": entries(&stats.block_io.bytes),
            "ioServicedRecursive": entries(&stats.block_io.operations),
        },
        "hugetlb": huge,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// The document of features.md and features-linux.md.
pub fn features() -> Result<()> {
    let capabilities: Vec<String> = nacre_jail::features::capabilities();
    print_pretty(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": nacre_jail::features::mount_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
                    "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
                "archs": [
                    "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32",
                    "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64",
                    "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_X32",
                    "SCMP_ARCH_X86", "SCMP_ARCH_X86_64",
                ],
                "knownFlags": [
                    "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC",
                    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                ],
                "supportedFlags": [
                    "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC",
                    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                ],
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
        },
        "annotations": { "org.nacre.jail.version": env!("CARGO_PKG_VERSION") },
    }))
}
