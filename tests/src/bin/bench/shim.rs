//! Pods under a real containerd: how long they take, and what they cost the host.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nacre_tests::cri::{Cri, Pod};
use nacre_tests::node::Node;

use crate::{Measured, ms};

/// The names of the rows.
pub(crate) const NAMES: [&str; 10] = [
    "shim.run_pod",
    "shim.create_to_running",
    "shim.next_container",
    "shim.exec",
    "shim.pss",
    "vmm.pss",
    "shim.wakeups_idle",
    PODS[0].0,
    PODS[1].0,
    PODS[2].0,
];

/// Pods at once.
const PODS: [(&str, usize); 3] = [("shim.pods_1", 1), ("shim.pods_5", 5), ("shim.pods_20", 20)];

/// How often a pod is made, and how often one is asked.
const RUNS: usize = 5;
const EXECS: usize = 25;

/// How long a shim is watched at rest.
const IDLE: Duration = Duration::from_secs(10);

/// Measures the rows that are `wanted`. The calling thread is in another network afterwards.
pub(crate) async fn measure(wanted: impl Fn(&str) -> bool) -> Result<Vec<Measured>> {
    let Some(node) = Node::start()? else { return Ok(Vec::new()) };
    let mut cri = Cri::connect(node.socket()).await?;
    let mut all = one_pod(&node, &mut cri).await?;
    for (name, pods) in PODS.into_iter().filter(|(name, _)| wanted(name)) {
        all.push(Measured::one(name, "s", at_once(&node, &cri, pods).await?));
    }
    Ok(all)
}

async fn one_pod(node: &Node, cri: &mut Cri) -> Result<Vec<Measured>> {
    let logs = node.dir.path().join("logs");
    let [mut run, mut first, mut next, mut exec, mut shim, mut vmm, mut idle] = [const { Vec::new() }; 7];
    for number in 0..RUNS {
        let begun = Instant::now();
        let pod = cri.run_pod(&format!("bench{number}"), &logs, |_| {}).await?;
        run.push(ms(begun.elapsed()));
        let container = container(node, cri, &pod, "one").await?;
        first.push(ms(begun.elapsed()));
        let begun = Instant::now();
        self::container(node, cri, &pod, "two").await?;
        next.push(ms(begun.elapsed()));
        for _ in 0..EXECS / RUNS {
            let begun = Instant::now();
            cri.exec(&container, "true").await?;
            exec.push(ms(begun.elapsed()));
        }
        let [pid] = node.processes("containerd-shim-nacre-v2").try_into().ok().context("one shim is expected")?;
        let [machine] = node.processes("qemu-system-x86_64").try_into().ok().context("one VM is expected")?;
        if number == 0 {
            let before = switches(pid)?;
            tokio::time::sleep(IDLE).await; // it is what happens meanwhile that counts
            let after = switches(pid)?;
            let runs = after.iter().map(|(thread, runs)| runs - before.get(thread).unwrap_or(&0.0));
            idle.push(runs.sum::<f64>() / IDLE.as_secs_f64());
        }
        shim.push(pss(pid)?);
        vmm.push(pss(machine)?);
        cri.remove_pod(&pod).await?;
    }
    Ok(vec![
        Measured::many("shim.run_pod", "ms", &mut run),
        Measured::many("shim.create_to_running", "ms", &mut first),
        Measured::many("shim.next_container", "ms", &mut next),
        Measured::many("shim.exec", "ms", &mut exec),
        Measured::many("shim.pss", "KiB", &mut shim),
        Measured::many("vmm.pss", "KiB", &mut vmm),
        Measured::many("shim.wakeups_idle", "1/s", &mut idle),
    ])
}

/// The seconds until as many pods as that run, each with a container; for each pod.
async fn at_once(node: &Node, cri: &Cri, pods: usize) -> Result<f64> {
    let logs = node.dir.path().join("logs");
    let begun = Instant::now();
    let all = (0..pods).map(|number| {
        let (mut cri, logs) = (cri.clone(), logs.clone());
        async move {
            let pod = cri.run_pod(&format!("many{pods}-{number}"), &logs, |_| {}).await?;
            container(node, &mut cri, &pod, "one").await?;
            anyhow::Ok(pod)
        }
    });
    let running = futures::future::try_join_all(all).await?;
    let each = begun.elapsed().as_secs_f64() / pods as f64;
    for pod in running {
        cri.clone().remove_pod(&pod).await?;
    }
    Ok(each)
}

async fn container(node: &Node, cri: &mut Cri, pod: &Pod, name: &str) -> Result<String> {
    let id = cri.create(pod, name, &node.image(), "sleep 1000", |_| {}).await?;
    cri.start(&id).await?;
    Ok(id)
}

/// What a process's memory amounts to, in KiB.
fn pss(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read a process's memory")?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("there is no Pss")?;
    pss.trim().trim_end_matches(" kB").parse().context("read Pss")
}

/// How often each of a process's threads has run.
fn switches(pid: u32) -> Result<HashMap<OsString, f64>> {
    let mut switches = HashMap::new();
    for task in fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).context("list threads")? {
        let task = task.context("list threads")?;
        let status = fs::read_to_string(task.path().join("status")).context("read a thread's status")?;
        let counts = status.lines().filter(|line| line.contains("voluntary_ctxt_switches:"));
        switches.insert(
            task.file_name(),
            counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum(),
        );
    }
    Ok(switches)
}
