//! Metrics of agent and guest, as Prometheus text (format 0.0.4).
//!
//! The names are Kata's, so that its dashboards keep working; ours begin with `nacre_`. Everything is read from procfs when it is
//! asked for: nothing is kept but how often that was, and how long requests took.

mod calls;
mod procfs;
mod text;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nacre_protocol::nacre::BootTimes;

pub use calls::Calls;

use text::{Kind, Text};

/// procfs could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {path:?}")]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// What only the agent knows.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// When the guest's stages were reached.
    pub boot: BootTimes,
    /// Compressed bytes of all images pulled.
    pub pull_bytes: u64,
    /// Containers there are.
    pub containers: usize,
    /// How often each helper has been started.
    pub helpers: Vec<(String, u64)>,
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    proc: PathBuf,
    scrapes: AtomicU64,
    /// How long requests take.
    pub calls: Calls,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// Metrics of the running kernel.
    pub fn new() -> Metrics {
        Metrics::of(Path::new("/proc"))
    }

    fn of(proc: &Path) -> Metrics {
        Metrics { proc: proc.into(), scrapes: AtomicU64::new(0), calls: Calls::default() }
    }

    /// All metrics as they are now. Blocks.
    pub fn render(&self, facts: &Facts) -> Result<String, Error> {
        let mut text = Text::default();
        let scrapes = self.scrapes.fetch_add(1, Relaxed) + 1;
        text.family("kata_agent_scrape_count", Kind::Counter, "Metrics scrape count");
        text.sample(&[], scrapes as f64);
        self.agent(&mut text)?;
        self.guest(&mut text)?;
        ours(&mut text, facts);
        self.calls.write(&mut text);
        Ok(text.into_string())
    }

    fn agent(&self, text: &mut Text) -> Result<(), Error> {
        let stat = procfs::stat(&self.read("self/stat")?);
        let one = |text: &mut Text, name, help, value| {
            text.family(name, Kind::Gauge, help);
            text.sample(&[], value);
        };
        one(text, "kata_agent_threads", "Agent process threads", stat.threads);
        one(text, "kata_agent_total_time", "Agent process total time, in seconds", stat.user + stat.system);
        one(text, "kata_agent_total_vm", "Agent process total virtual memory, in bytes", stat.virtual_bytes);
        one(text, "kata_agent_total_rss", "Agent process total resident memory, in bytes", stat.resident_bytes);
        text.family("kata_agent_proc_stat", Kind::Gauge, "Agent process statistics, in clock ticks");
        for (item, value) in stat.times {
            text.sample(&[("item", item)], value);
        }
        let items = procfs::colon_numbers(&self.read("self/status")?);
        let wanted = |item: &str| item.starts_with("vm") || item.starts_with("rss") || item.contains("ctxt_switches");
        let items = items.into_iter().filter(|(item, _)| wanted(item) || item == "hugetlbpages");
        text.items("kata_agent_proc_status", "Agent process status", items);
        // As the first process of a guest the agent is two, which share most of their pages.
        text.family(
            "nacre_agent_pss_bytes",
            Kind::Gauge,
            "Proportional set size of the agent, and of process 1 that guards it",
        );
        for (process, file) in [("agent", "self/smaps_rollup"), ("init", "1/smaps_rollup")] {
            let sizes = procfs::colon_numbers(&self.read_optional(file)?);
            if let Some((_, kib)) = sizes.into_iter().find(|(item, _)| item == "pss") {
                text.sample(&[("process", process)], kib * 1024.0);
            }
        }
        let io = procfs::colon_numbers(&self.read_optional("self/io")?);
        text.items("kata_agent_io_stat", "Agent process I/O statistics", io);
        Ok(())
    }

    fn guest(&self, text: &mut Text) -> Result<(), Error> {
        let (load, tasks) = procfs::load(&self.read("loadavg")?);
        text.items("kata_guest_load", "Guest system load", load);
        text.items("kata_guest_tasks", "Guest system tasks", tasks);
        text.family("kata_guest_cpu_time", Kind::Gauge, "Guest CPU time, in clock ticks");
        for (cpu, item, value) in procfs::cpu_times(&self.read("stat")?) {
            text.sample(&[("cpu", &cpu), ("item", item)], value);
        }
        text.items(
            "kata_guest_vm_stat",
            "Guest virtual memory statistics",
            procfs::pairs(&self.read_optional("vmstat")?),
        );
        text.items("kata_guest_meminfo", "Guest memory, in bytes", procfs::meminfo(&self.read("meminfo")?));
        text.family("kata_guest_netdev_stat", Kind::Gauge, "Guest network device statistics");
        for (interface, item, value) in procfs::network(&self.read_optional("net/dev")?) {
            text.sample(&[("interface", &interface), ("item", item)], value);
        }
        let disks = self.read_optional("diskstats")?;
        text.family("kata_guest_diskstat", Kind::Gauge, "Guest disk statistics");
        for (disk, item, value) in procfs::disks(&disks) {
            text.sample(&[("disk", &disk), ("item", item)], value);
        }
        Ok(())
    }

    /// A file that a kernel may be built without, or that is another user's.
    fn read_optional(&self, name: &str) -> Result<String, Error> {
        match self.read(name) {
            Err(error) if matches!(error.source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                Ok(String::new())
            }
            other => other,
        }
    }

    fn read(&self, name: &str) -> Result<String, Error> {
        let path = self.proc.join(name);
        fs::read_to_string(&path).map_err(|source| Error { path, source })
    }
}

fn ours(text: &mut Text, facts: &Facts) {
    text.family(
        "nacre_boot_seconds",
        Kind::Gauge,
        "When a stage of the guest's start was reached, since its kernel started",
    );
    let stages = [("init", facts.boot.init_ns), ("listening", facts.boot.listening_ns), ("ready", facts.boot.ready_ns)];
    for (stage, nanoseconds) in stages {
        text.sample(&[("stage", stage)], nanoseconds as f64 / 1e9);
    }
    text.family("nacre_agent_restarts_total", Kind::Counter, "Agents that have ended out of order before this one");
    text.sample(&[], facts.boot.restarts.into());
    text.family("nacre_helper_starts_total", Kind::Counter, "How often a helper process has been started");
    for (helper, starts) in &facts.helpers {
        text.sample(&[("helper", helper)], *starts as f64);
    }
    text.family("nacre_containers", Kind::Gauge, "Containers there are");
    text.sample(&[], facts.containers as f64);
    text.family("nacre_pull_bytes_total", Kind::Counter, "Compressed bytes of all images pulled");
    text.sample(&[], facts.pull_bytes as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_of_this_machine_are_prometheus_text() {
        let metrics = Metrics::new();
        metrics.render(&Facts::default()).unwrap();
        let text = metrics.render(&Facts { containers: 3, ..Facts::default() }).unwrap();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(name.starts_with("kata_") || name.starts_with("nacre_"), "{line}");
        }
        for part in [
            "kata_agent_scrape_count 2\n",
            "kata_agent_proc_status{item=\"vmrss\"} ",
            "kata_guest_cpu_time{cpu=\"total\",item=\"user\"} ",
            "kata_guest_meminfo{item=\"mem_total\"} ",
            "kata_guest_netdev_stat{interface=\"lo\",item=\"recv_bytes\"} ",
            "nacre_containers 3\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Metrics::of(Path::new("/nonexistent")).render(&Facts::default()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/self/stat"));
    }
}
