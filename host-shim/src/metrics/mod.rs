//! Prometheus metrics of a pod on its host: of the shim, of the VMM, and those of the agent and the guest with them.
//!
//! Names are Kata's, so that its dashboards keep working; ours begin with `nacre_`. Nothing is collected but when somebody asks.

pub mod http;
pub mod monitor;
mod procfs;
pub mod usage;

use anyhow::{Context as _, Result};
use prometheus::{Encoder as _, GaugeVec, Opts, Registry, TextEncoder};

/// The socket in a pod's directory, as Kata calls it.
pub const SOCKET: &str = "shim-monitor.sock";

/// What a pod's metrics are taken from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The shim's process.
    pub shim: u32,
    /// The VMM's, while there is one.
    pub vmm: Option<u32>,
    /// What the agent says, in the same format.
    pub agent: Option<String>,
}

/// The metrics of a pod (exposition format 0.0.4).
///
/// # Errors
/// A metric that can't be written; a process that is gone has none.
pub fn gather(sources: &Sources) -> Result<String> {
    let registry = Registry::new();
    process(&registry, "kata_shim", sources.shim)?;
    if let Some(vmm) = sources.vmm {
        process(&registry, "kata_hypervisor", vmm)?;
    }
    let overhead: u64 = [Some(sources.shim), sources.vmm].into_iter().flatten().filter_map(usage::private).sum();
    let name = "kata_shim_pod_overhead_memory_in_bytes";
    let gauge = gauge(&registry, name, "What the pod takes of the host's memory beside the guest's own", &[])?;
    gauge.with_label_values::<&str>(&[]).set(overhead as f64);
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text).context("write metrics")?;
    let mut text = String::from_utf8(text).context("write metrics")?;
    text.push_str(sources.agent.as_deref().unwrap_or_default());
    Ok(text)
}

fn process(registry: &Registry, prefix: &str, pid: u32) -> Result<()> {
    let Some(process) = procfs::Process::read(pid) else { return Ok(()) };
    for (name, help, value) in
        [("threads", "Threads", process.threads), ("fds", "Open descriptors", process.descriptors)]
    {
        gauge(registry, &format!("{prefix}_{name}"), help, &[])?.with_label_values::<&str>(&[]).set(value);
    }
    for (name, help, items) in [
        ("proc_status", "Memory and context switches (proc(5), /proc/PID/status), in bytes and times", &process.status),
        ("proc_stat", "Times of the processor (proc(5), /proc/PID/stat), in clock ticks", &process.stat),
        ("io_stat", "Input and output (proc(5), /proc/PID/io), in bytes and calls", &process.io),
    ] {
        let family = gauge(registry, &format!("{prefix}_{name}"), help, &["item"])?;
        for (item, value) in items {
            family.with_label_values(&[item.as_str()]).set(*value);
        }
    }
    Ok(())
}

fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
    let family = GaugeVec::new(Opts::new(name, help), labels).with_context(|| format!("metric {name}"))?;
    registry.register(Box::new(family.clone())).with_context(|| format!("metric {name}"))?;
    Ok(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_metrics_have_katas_names() {
        let agent = "# TYPE kata_agent_threads gauge\nkata_agent_threads 3\n";
        let sources = Sources { shim: std::process::id(), vmm: Some(1), agent: Some(agent.into()) };
        let text = gather(&sources).unwrap();
        for expected in [
            "# TYPE kata_shim_threads gauge\n",
            "kata_shim_proc_status{item=\"vmrss\"} ",
            "kata_shim_proc_stat{item=\"utime\"} ",
            "kata_shim_io_stat{item=\"rchar\"} ",
            "kata_hypervisor_fds ",
            "kata_shim_pod_overhead_memory_in_bytes ",
            "kata_agent_threads 3\n",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        let gone = gather(&Sources { shim: u32::MAX, ..Sources::default() }).unwrap();
        assert!(!gone.contains("kata_shim_threads") && !gone.contains("kata_hypervisor"), "{gone}");
    }
}
