//! The commands other than `run`, and what all have in common: a runtime, and an exit code.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::CommandFactory as _;
use nacre_protocol::convert;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::attach::{Attachment, attach};
use crate::cli::{Args, Command, Exec};
use crate::guest::{Guest, ProcessId};
use crate::metrics::monitor;
use crate::shim::journal;
use crate::signals::Signals;
use crate::state::{Phase, Pods, Status};
use crate::{detach, doctor, failure, run, spec, streams, terminal};

/// How long a running guest may take to answer.
const REACH: Duration = Duration::from_secs(10);

/// How often a state is looked at that nothing announces.
const LOOK: Duration = Duration::from_millis(50);

/// SIGKILL and SIGTERM.
const KILL: i32 = 9;
const TERM: i32 = 15;

/// Runs the command line. Returns the exit code.
pub fn main(args: Args) -> i32 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error.into()),
    };
    let result = runtime.block_on(dispatch(args));
    // A thread may be reading standard input, which nothing can wake.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| report(&error))
}

fn report(error: &anyhow::Error) -> i32 {
    eprintln!("nacre: {error:#}");
    failure::code(error)
}

async fn dispatch(args: Args) -> Result<i32> {
    let pods = || Pods::open(args.state_dir.clone());
    match args.command {
        Command::Run(command) if command.detach && !detach::is_background() => {
            let name = match &command.name {
                Some(name) => name.clone(),
                None => format!("pod-{}", std::process::id()),
            };
            detach::start(&name)
        }
        Command::Run(command) => run::run(&pods()?, &command).await,
        Command::Exec(command) => exec(&pods()?, &command).await,
        Command::Ps { json } => list(&pods()?, json),
        Command::Logs { name, follow } => logs(&pods()?, &name, follow).await,
        Command::Stop { name, time } => stop(&pods()?, &name, Duration::from_secs(time)).await,
        Command::Rm { name, force } => {
            let pods = pods()?;
            if force && pods.find(&name)?.1.phase != Phase::Exited {
                stop(&pods, &name, Duration::ZERO).await?;
                if pods.find(&name).is_err() {
                    return Ok(0);
                }
            }
            pods.remove(&name).map(|()| 0)
        }
        Command::Monitor { listen, pods } => {
            let mut signals = Signals::listen()?;
            tokio::select! {
                served = monitor::serve(listen, pods.unwrap_or_else(journal::root)) => served.map(|()| 0),
                signal = signals.stop() => Ok(128 + signal),
            }
        }
        Command::Doctor { json } => examine(json),
        Command::Version { json } => version(json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "nacre", &mut std::io::stdout());
            Ok(0)
        }
    }
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("write to standard output")
}

fn examine(json: bool) -> Result<i32> {
    let findings = doctor::examine();
    let text = if json {
        serde_json::to_string_pretty(&findings).context("write JSON")? + "\n"
    } else {
        doctor::render(&findings)
    };
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")?;
    Ok(i32::from(!doctor::is_well(&findings)))
}

async fn connect(dir: &Path, status: &Status) -> Result<Guest> {
    if status.phase != Phase::Running {
        bail!("the pod {} does not run", status.name);
    }
    Guest::connect(&dir.join("vm.vsock"), Instant::now() + REACH).await
}

async fn exec(pods: &Pods, command: &Exec) -> Result<i32> {
    let mut signals = Signals::listen()?;
    let (dir, status) = pods.find(&command.name)?;
    let guest = connect(&dir, &status).await?;
    let size = command.tty.then(terminal::size).flatten();
    let process = convert::process_from_oci(&spec::exec(command, size)?)?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    let id = ProcessId { container: status.name, exec: format!("exec-{}-{time}", std::process::id()) };
    guest.exec(&id, &process).await?;
    let attachment = Attachment { interactive: command.interactive, terminal: command.tty, log: None };
    attach(&guest, &id, attachment, &mut signals).await
}

fn list(pods: &Pods, json: bool) -> Result<i32> {
    let pods = pods.list()?;
    if json {
        say(&serde_json::to_string_pretty(&pods).context("write JSON")?)?;
        return Ok(0);
    }
    say(&format!("{:<32}  {:<10}  {:>8}  {}", "NAME", "STATUS", "AGE", "IMAGE"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    for pod in pods {
        let status = match (pod.phase, pod.exit_code) {
            (Phase::Starting, _) => "starting".to_string(),
            (Phase::Running, _) => "running".to_string(),
            (Phase::Exited, code) => format!("exited {}", code.unwrap_or_default()),
        };
        let age = now.saturating_sub(pod.started);
        say(&format!("{:<32}  {status:<10}  {age:>7}s  {}", pod.name, pod.image))?;
    }
    Ok(0)
}

async fn logs(pods: &Pods, name: &str, follow: bool) -> Result<i32> {
    let (dir, _) = pods.find(name)?;
    let path = streams::path(&dir);
    let mut at = 0;
    loop {
        // Looked at before the log: what was written before the end is then certainly read.
        let running = pods.find(name).is_ok_and(|(_, status)| status.phase != Phase::Exited);
        if let Ok(mut file) = File::open(&path) {
            file.seek(SeekFrom::Start(at)).context("read the log")?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).context("read the log")?;
            at += bytes.len() as u64;
            std::io::stdout().write_all(&bytes).context("write to standard output")?;
        }
        if !follow || !running {
            return Ok(0);
        }
        sleep(LOOK).await;
    }
}

async fn stop(pods: &Pods, name: &str, patience: Duration) -> Result<i32> {
    let (dir, status) = pods.find(name)?;
    if status.phase == Phase::Exited {
        return Ok(0);
    }
    let Ok(guest) = connect(&dir, &status).await else { return end_process(pods, &status).await };
    let id = ProcessId { container: name.into(), exec: name.into() };
    for (signal, patience) in [(TERM, patience), (KILL, REACH)] {
        let _ = guest.signal(&id, signal).await; // it may have just ended
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if pods.find(name).map_or(true, |(_, status)| status.phase == Phase::Exited) {
                return Ok(0);
            }
            sleep(LOOK).await;
        }
    }
    end_process(pods, &status).await
}

/// A pod whose guest does not answer ends with its process.
async fn end_process(pods: &Pods, status: &Status) -> Result<i32> {
    let pid = i32::try_from(status.pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.context("the pod's process has no number")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("end the pod's process")?;
    let deadline = Instant::now() + REACH;
    while Instant::now() < deadline {
        if pods.find(&status.name).map_or(true, |(_, status)| status.phase == Phase::Exited) {
            return Ok(0);
        }
        sleep(LOOK).await;
    }
    bail!("the pod {} did not end within {} s", status.name, REACH.as_secs())
}

fn version(json: bool) -> Result<i32> {
    let version = env!("CARGO_PKG_VERSION");
    let layout = crate::layout::Layout::find(None, None);
    let kernel = layout.as_ref().ok().map(|layout| layout.kernel.clone());
    let image = layout.as_ref().ok().map(|layout| layout.image.clone());
    if json {
        say(&json!({ "nacre": version, "kernel": kernel, "image": image }).to_string())?;
        return Ok(0);
    }
    say(&format!("nacre {version}"))?;
    match layout {
        Ok(layout) => say(&format!("kernel {}\nimage {}", layout.kernel.display(), layout.image.display()))?,
        Err(error) => say(&format!("guest: {error:#}"))?,
    }
    Ok(0)
}
