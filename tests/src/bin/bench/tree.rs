//! What a command and all that it starts cost: wall clock, processor time, and memory at its highest.

use std::collections::HashMap;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, WaitOptions};

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Clock ticks in a second (`USER_HZ`).
const TICKS: f64 = 100.0;

/// What is looked at. Not both at once: looking at memory keeps a processor busy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Look {
    Clocks,
    Memory,
}

/// What a run cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall_ms: f64,
    pub(crate) cpu_ms: f64,
    /// 0 where only clocks were looked at.
    pub(crate) peak_kib: f64,
}

/// Runs `command`, which may have a part of its work done by the process `daemon`. What it leaves behind is waited for, too.
pub(crate) fn run(command: &mut Command, daemon: Option<u32>, look: Look) -> Result<Cost> {
    rustix::process::set_child_subreaper(Pid::from_raw(1)).context("adopt what is left behind")?;
    let cpu = || children_cpu_ms() + daemon.map_or(0.0, cpu_of);
    let (before, begun) = (cpu(), Instant::now());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("start {command:?}"))?;
    let (pid, done) = (child.id(), AtomicBool::new(look == Look::Clocks));
    let (output, peak_kib) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut peak = 0.0f64;
            while !done.load(Relaxed) {
                peak = peak.max(tree_pss(&[Some(pid), daemon].into_iter().flatten().collect::<Vec<_>>()));
                std::thread::sleep(LOOK_EVERY); // memory that grows tells nobody
            }
            peak
        });
        let output = child.wait_with_output();
        done.store(true, Relaxed);
        (output, watching.join().unwrap_or(f64::NAN))
    });
    let wall = begun.elapsed();
    let output = output.context("wait for a command")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    // The processor time of those that were left behind is known once they are reaped. A daemon of ours lives on.
    while !matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(None) | Err(_)) {}
    Ok(Cost { wall_ms: crate::ms(wall), cpu_ms: cpu() - before, peak_kib })
}

/// The processor time of all children that have been reaped.
fn children_cpu_ms() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ticks(&stat, [13, 14])
}

fn cpu_of(pid: u32) -> f64 {
    ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default(), [11, 12])
}

/// Fields of proc_pid_stat(5), counted from the one after the name.
fn ticks(stat: &str, places: [usize; 2]) -> f64 {
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
    let field = |place: usize| fields.get(place).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    places.into_iter().map(field).sum::<f64>() * 1e3 / TICKS
}

/// The proportional set size of these processes and all below them, in KiB.
fn tree_pss(roots: &[u32]) -> f64 {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let (mut todo, mut sum) = (roots.to_vec(), 0.0);
    while let Some(pid) = todo.pop() {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let pss =
            rollup.lines().find_map(|line| line.strip_prefix("Pss:")).and_then(|text| text.split_whitespace().next());
        sum += pss.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        todo.extend(children.get(&pid).into_iter().flatten());
    }
    sum
}
