//! The agent as a process on this machine, over a unix socket.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use nacre_protocol::agent::{CreateContainerRequest, SetPolicyRequest};
use nacre_protocol::health::CheckRequest;
use nacre_tests::agent::{Client, Process, limit};
use nacre_tests::suite;
use tokio::io::AsyncReadExt as _;

use crate::{Measured, ms, succeed};

/// The names of the rows.
pub(crate) const NAMES: [&str; 10] = [
    "agent.rpc_round_trip",
    "agent.stdio_rpc",
    "agent.stdio_passthrough",
    "agent.exec",
    "agent.exec_policy",
    "agent.create_100",
    "agent.pss_0",
    "agent.pss_100",
    "agent.wakeups_idle",
    "agent.binary",
];

/// How often each is measured.
const CALLS: usize = 500;
const EXECS: usize = 50;
const STREAMS: usize = 5;
const CROWDS: usize = 5;

/// How many containers there are, and how many clients make them at once.
const CONTAINERS: usize = 100;
const CLIENTS: usize = 16;

/// What is read of a container's output, in MiB: by calls, and over a connection.
const STREAM: u64 = 64;
const PASSED: u64 = 1024;

/// How long the agent is left alone.
const IDLE: Duration = Duration::from_secs(10);

/// How long its threads may outlive what they did.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// A policy that looks at what is executed.
const POLICY: &str = r#"
package agent_policy
import rego.v1
default AllowRequestsFailingPolicy := true
default ExecProcessRequest := false
ExecProcessRequest if {
    input.container_id == "sleeper"
    input.process.Args == ["busybox", "true"]
    every variable in input.process.Env { startswith(variable, "PATH=") }
}
"#;

/// Measures the rows that are `wanted`.
pub(crate) async fn measure(dist: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<Measured>> {
    let program = dist.join("bin/nacre-agent");
    let agent = Process::start(&program)?;
    let client = agent.connect().await?;
    let mut all = Vec::new();
    if wanted("agent.binary") {
        let length = fs::metadata(&program).context("look at the agent")?.len();
        all.push(Measured::one("agent.binary", "bytes", length as f64));
    }
    if wanted("agent.pss_0") {
        all.push(Measured::one("agent.pss_0", "KiB", crate::agent_pss(&client).await?));
    }
    if wanted("agent.wakeups_idle") {
        all.push(Measured::one("agent.wakeups_idle", "1/s", wakeups(agent.pid()?).await?));
    }
    // What comes needs a container's root, whose copying leaves its trace in memory.
    let root = suite::root_file_system(&client, "bench").await?;
    if wanted("agent.rpc_round_trip") {
        all.push(round_trip(&client).await?);
    }
    if wanted("agent.stdio_rpc") {
        all.push(stdio(&client, &root).await?);
    }
    if wanted("agent.stdio_passthrough") {
        all.push(passthrough(&agent, &client, &root).await?);
    }
    if wanted("agent.exec") || wanted("agent.exec_policy") {
        all.extend(execs(&client, &root).await?);
    }
    drop(agent); // else it would have half of what memory the next ones share with it
    if wanted("agent.create_100") || wanted("agent.pss_100") {
        all.extend(crowd(&program).await?);
    }
    Ok(all)
}

async fn round_trip(client: &Client) -> Result<Measured> {
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let begun = Instant::now();
        client.health.check(limit(), &CheckRequest::new()).await.context("check")?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Measured::many("agent.rpc_round_trip", "µs", &mut times))
}

/// Until only the agent's first thread is left: those that blocked end when they have not been needed for a while.
async fn settle(pid: u32) -> Result<()> {
    let threads =
        || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{pid}/task")).context("list threads")?.count()) };
    let end = Instant::now() + SETTLED_WITHIN;
    while threads()? > 1 {
        ensure!(Instant::now() < end, "the agent has {} threads, and does nothing", threads()?);
        tokio::time::sleep(Duration::from_millis(100)).await; // the kernel tells nobody
    }
    Ok(())
}

/// How often the agent's threads were run while nobody asked anything.
async fn wakeups(pid: u32) -> Result<f64> {
    let switches = || -> Result<u64> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("list the agent's threads")?;
        let of = |status: String| {
            let lines = status.lines().filter(|line| line.contains("ctxt_switches:"));
            lines.filter_map(|line| line.split_ascii_whitespace().last()?.parse::<u64>().ok()).sum::<u64>()
        };
        Ok(tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).map(of).sum())
    };
    let before = switches()?;
    tokio::time::sleep(IDLE).await; // that is what is measured
    Ok(switches()?.saturating_sub(before) as f64 / IDLE.as_secs_f64())
}

/// A container's output by calls for at most 32 KiB each, which is what Kata's hosts ask for.
async fn stdio(client: &Client, root: &str) -> Result<Measured> {
    let mut speeds = Vec::new();
    let command = format!("busybox dd if=/dev/zero bs=1M count={STREAM} 2>/dev/null");
    for _ in 0..STREAMS {
        suite::create_in(client, root, "stream", &["busybox", "sh", "-c", &command], false).await?;
        let begun = Instant::now();
        suite::start(client, "stream").await?;
        let length = suite::read_out(client, "stream", "stream").await?.len() as u64;
        let time = begun.elapsed().as_secs_f64();
        ensure!(length == STREAM << 20, "{length} bytes were read");
        suite::wait(client, "stream", "stream").await?;
        suite::remove(client, "stream").await?;
        speeds.push(STREAM as f64 / time);
    }
    Ok(Measured::many("agent.stdio_rpc", "MiB/s", &mut speeds))
}

/// A container's output over a connection of the host's.
async fn passthrough(agent: &Process, client: &Client, root: &str) -> Result<Measured> {
    let mut speeds = Vec::new();
    let command = format!("busybox dd if=/dev/zero bs=1M count={PASSED} 2>/dev/null");
    for port in (1u32..).take(STREAMS) {
        let mut stream = agent.pass(port).await?;
        let request = CreateContainerRequest {
            container_id: "passed".into(),
            OCI: Some(suite::spec("passed", root, &["busybox", "sh", "-c", &command], false)?).into(),
            stdout_port: port,
            ..Default::default()
        };
        client.agent.create_container(limit(), &request).await?;
        let begun = Instant::now();
        suite::start(client, "passed").await?;
        let (mut buffer, mut length) = (vec![0; 1 << 20], 0);
        loop {
            match stream.read(&mut buffer).await.context("read a stream")? {
                0 => break,
                read => length += read as u64,
            }
        }
        let time = begun.elapsed().as_secs_f64();
        ensure!(length == PASSED << 20, "{length} bytes were read");
        suite::remove(client, "passed").await?;
        speeds.push(PASSED as f64 / time);
    }
    Ok(Measured::many("agent.stdio_passthrough", "MiB/s", &mut speeds))
}

/// From the call to the program's end; beside runc, which does the same from a command line.
async fn execs(client: &Client, root: &str) -> Result<[Measured; 2]> {
    suite::create_in(client, root, "sleeper", &["busybox", "sleep", "1000"], false).await?;
    suite::start(client, "sleeper").await?;
    let run = async |prefix: &str| -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for number in 0..EXECS {
            let (name, begun) = (format!("{prefix}{number}"), Instant::now());
            suite::exec(client, "sleeper", &name, &["busybox", "true"]).await.context("exec")?;
            ensure!(suite::wait(client, "sleeper", &name).await? == 0, "true is not true");
            times.push(ms(begun.elapsed()));
        }
        Ok(times)
    };
    let mut free = run("free").await?;
    client.agent.set_policy(limit(), &SetPolicyRequest { policy: POLICY.into(), ..SetPolicyRequest::new() }).await?;
    let mut ruled = run("ruled").await?;
    suite::remove(client, "sleeper").await?;
    let (exec, policy) =
        (Measured::many("agent.exec", "ms", &mut free), Measured::many("agent.exec_policy", "ms", &mut ruled));
    Ok(match runc()? {
        None => [exec, policy],
        Some(mut theirs) => [exec.beside("runc exec", &mut theirs), policy.beside("runc exec", &mut theirs)],
    })
}

/// `None` when runc is not installed.
fn runc() -> Result<Option<Vec<f64>>> {
    let bundle = tempfile::tempdir().context("make a bundle")?;
    if !crate::bundle_for_runc(bundle.path(), &["busybox", "sleep", "1000"])? {
        return Ok(None);
    }
    let runc = |args: &[&str]| {
        let mut command = Command::new("runc");
        command.args(args).current_dir(&bundle).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    // Its container would hold a pipe open.
    let started = runc(&["run", "--detach", "benchexec"]).status().context("start runc")?;
    ensure!(started.success(), "runc run: {started}");
    let mut times = Vec::new();
    for _ in 0..EXECS {
        let begun = Instant::now();
        succeed(&mut runc(&["exec", "benchexec", "busybox", "true"]))?;
        times.push(ms(begun.elapsed()));
    }
    succeed(&mut runc(&["delete", "--force", "benchexec"]))?;
    Ok(Some(times))
}

/// A hundred containers, made and started by several clients at once; and what the agent's memory is with them, once it is idle.
async fn crowd(program: &Path) -> Result<[Measured; 2]> {
    let (mut times, mut before, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..CROWDS {
        let agent = Process::start(program)?;
        let client = agent.connect().await?;
        let root = suite::root_file_system(&client, "bench").await?;
        let clients = try_join_all((0..CLIENTS).map(|_| agent.connect())).await?;
        settle(agent.pid()?).await?;
        before.push(crate::agent_pss(&client).await?);
        let begun = Instant::now();
        let share = async |(first, client): (usize, &Client)| -> Result<()> {
            for number in (first..CONTAINERS).step_by(CLIENTS) {
                let id = format!("crowd{number}");
                suite::create_in(client, &root, &id, &["busybox", "sleep", "1000"], false).await?;
                suite::start(client, &id).await?;
            }
            Ok(())
        };
        try_join_all(clients.iter().enumerate().map(share)).await?;
        times.push(ms(begun.elapsed()));
        settle(agent.pid()?).await?;
        memory.push(crate::agent_pss(&client).await?);
    }
    let memory = Measured::many("agent.pss_100", "KiB", &mut memory).beside("before the first", &mut before);
    Ok([Measured::many("agent.create_100", "ms", &mut times), memory])
}
