//! Running other programs: their output is kept for the error, Ctrl-C ends them, and long ones show that they live.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// How many lines of a failed program's output are shown.
const LAST_LINES: usize = 20;

/// How often a long run says something, on a terminal and elsewhere.
const TICK: Duration = Duration::from_millis(500);
const TICK_IN_LOG: Duration = Duration::from_secs(30);

/// One line for the person who waits.
pub fn say(text: &str) {
    eprintln!("nacre-image: {text}");
}

/// Runs `command` to its end. Its output is the error's text when it fails.
///
/// # Errors
/// A program that is missing, or one that failed.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output(command)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}):\n{}", output.status, last_lines(&text));
    }
    Ok(output.stdout)
}

/// Runs `command`, whose failure is an answer: how it ended, and what it wrote.
///
/// # Errors
/// A program that is missing.
pub fn run_status(command: &mut Command) -> Result<(ExitStatus, String)> {
    let output = output(command)?;
    Ok((output.status, String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn output(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Their words are read, so they are those of no language.
    command.env("LC_ALL", "C").stdin(Stdio::null()).output().with_context(|| format!("start {name}"))
}

/// Set once a person has asked to stop.
///
/// # Errors
/// Those of sigaction(2).
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("listen for signals")?;
    }
    Ok(flag)
}

/// Runs a long `command`, its output in the file `log`, and shows how many lines it has written, as `what`.
///
/// # Errors
/// A program that failed, with its last lines; a stop that was asked for.
pub fn run_long(command: &mut Command, log: &Path, what: &str, stop: &AtomicBool) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let errors = file.try_clone().context("copy a descriptor")?;
    let started = Instant::now();
    // A group of its own, so that all of it can be ended and nothing writes behind our back.
    command.process_group(0);
    let mut child =
        command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().with_context(|| format!("start {name}"))?;
    let terminal = std::io::stderr().is_terminal();
    let mut next = started + if terminal { TICK } else { TICK_IN_LOG };
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {name}"))? {
            break status;
        }
        if stop.load(Relaxed) {
            end_group(&mut child);
            bail!("stopped on request");
        }
        if Instant::now() >= next {
            next = Instant::now() + if terminal { TICK } else { TICK_IN_LOG };
            let steps = std::fs::read(log).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count());
            let text = format!("{what}: {steps} steps, {} s", started.elapsed().as_secs());
            if terminal {
                eprint!("\r\x1b[Knacre-image: {text}");
                let _ = std::io::stderr().flush(); // a terminal that is gone shows nothing
            } else {
                say(&text);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if terminal {
        eprint!("\r\x1b[K");
    }
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        bail!("{name} failed ({status}):\n{}", last_lines(&text));
    }
    say(&format!("{what}: done in {} s", started.elapsed().as_secs()));
    Ok(())
}

/// Kills a child and all that it started, and returns when none of them is left.
fn end_group(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let _ = child.kill(); // it may have ended by itself
    let _ = child.wait();
    while group.is_some_and(|group| kill_process_group(group, Signal::KILL).is_ok()) {
        std::thread::sleep(Duration::from_millis(10)); // their end is seen by process 1, not by us
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.split_at(lines.len().saturating_sub(LAST_LINES)).1.join("\n")
}
