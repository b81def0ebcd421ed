//! What a container has used, in the words in which containerd's shims say it (`io.containerd.cgroups.v1.Metrics`).

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryStat, Metrics, NetworkStat, PidsStat,
    Throttle,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use nacre_protocol::agent::{BlkioStatsEntry, CgroupStats, MemoryData, StatsContainerResponse};

/// By which containerd knows the message.
const TYPE: &str = "io.containerd.cgroups.v1.Metrics";

/// The guest's figures, as containerd is told.
pub fn metrics(response: &StatsContainerResponse) -> Any {
    let mut metrics = response.cgroup_stats.as_ref().map(of_cgroup).unwrap_or_default();
    metrics.network = response
        .network_stats
        .iter()
        .map(|device| NetworkStat {
            name: device.name.clone(),
            rx_bytes: device.rx_bytes,
            rx_packets: device.rx_packets,
            rx_errors: device.rx_errors,
            rx_dropped: device.rx_dropped,
            tx_bytes: device.tx_bytes,
            tx_packets: device.tx_packets,
            tx_errors: device.tx_errors,
            tx_dropped: device.tx_dropped,
            ..NetworkStat::default()
        })
        .collect();
    any(&metrics)
}

/// Processor time in nanoseconds and memory in bytes of what a pod has on the host.
pub fn of_host(cpu: u64, memory: u64) -> Any {
    let usage = CPUUsage { total: cpu, ..CPUUsage::default() };
    let entry = MemoryEntry { usage: memory, ..MemoryEntry::default() };
    any(&Metrics {
        cpu: MessageField::some(CPUStat { usage: MessageField::some(usage), ..CPUStat::default() }),
        memory: MessageField::some(MemoryStat {
            usage: MessageField::some(entry),
            rss: memory,
            ..MemoryStat::default()
        }),
        ..Metrics::default()
    })
}

fn any(metrics: &Metrics) -> Any {
    // Its fields are numbers and names of ours: it can always be written.
    Any { type_url: TYPE.into(), value: metrics.write_to_bytes().unwrap_or_default(), ..Any::default() }
}

fn of_cgroup(stats: &CgroupStats) -> Metrics {
    let usage = &stats.cpu_stats.cpu_usage;
    let throttling = &stats.cpu_stats.throttling_data;
    let cpu = CPUStat {
        usage: MessageField::some(CPUUsage {
            total: usage.total_usage,
            kernel: usage.usage_in_kernelmode,
            user: usage.usage_in_usermode,
            per_cpu: usage.percpu_usage.clone(),
            ..CPUUsage::default()
        }),
        throttling: MessageField::some(Throttle {
            periods: throttling.periods,
            throttled_periods: throttling.throttled_periods,
            throttled_time: throttling.throttled_time,
            ..Throttle::default()
        }),
        ..CPUStat::default()
    };
    let pids = PidsStat { current: stats.pids_stats.current, limit: stats.pids_stats.limit, ..PidsStat::default() };
    Metrics {
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory(stats)),
        pids: MessageField::some(pids),
        blkio: MessageField::some(blkio(stats)),
        hugetlb: stats
            .hugetlb_stats
            .iter()
            .map(|(size, stats)| HugetlbStat {
                pagesize: size.clone(),
                usage: stats.usage,
                max: stats.max_usage,
                failcnt: stats.failcnt,
                ..HugetlbStat::default()
            })
            .collect(),
        ..Metrics::default()
    }
}

fn memory(stats: &CgroupStats) -> MemoryStat {
    let memory = &stats.memory_stats;
    let figure = |name: &str| memory.stats.get(name).copied().unwrap_or(0);
    // cgroup v2 has no totals of their own: its figures are such.
    let total = |name: &str| memory.stats.get(&format!("total_{name}")).copied().unwrap_or_else(|| figure(name));
    let first = |names: [&str; 2]| names.into_iter().map(figure).find(|value| *value > 0).unwrap_or(0);
    MemoryStat {
        cache: memory.cache,
        rss: first(["rss", "anon"]),
        mapped_file: first(["mapped_file", "file_mapped"]),
        pg_fault: figure("pgfault"),
        pg_maj_fault: figure("pgmajfault"),
        inactive_file: figure("inactive_file"),
        active_file: figure("active_file"),
        inactive_anon: figure("inactive_anon"),
        active_anon: figure("active_anon"),
        total_rss: first(["total_rss", "anon"]),
        total_cache: total("cache"),
        total_inactive_file: total("inactive_file"),
        total_active_file: total("active_file"),
        usage: entry(memory.usage.as_ref()),
        swap: entry(memory.swap_usage.as_ref()),
        kernel: entry(memory.kernel_usage.as_ref()),
        ..MemoryStat::default()
    }
}

fn entry(data: Option<&MemoryData>) -> MessageField<MemoryEntry> {
    let entry = |data: &MemoryData| MemoryEntry {
        limit: data.limit,
        usage: data.usage,
        max: data.max_usage,
        failcnt: data.failcnt,
        ..MemoryEntry::default()
    };
    MessageField::from_option(data.map(entry))
}

fn blkio(stats: &CgroupStats) -> BlkIOStat {
    let blkio = &stats.blkio_stats;
    let all = |entries: &[BlkioStatsEntry]| entries.iter().map(blkio_entry).collect();
    BlkIOStat {
        io_service_bytes_recursive: all(&blkio.io_service_bytes_recursive),
        io_serviced_recursive: all(&blkio.io_serviced_recursive),
        io_queued_recursive: all(&blkio.io_queued_recursive),
        io_service_time_recursive: all(&blkio.io_service_time_recursive),
        io_wait_time_recursive: all(&blkio.io_wait_time_recursive),
        io_merged_recursive: all(&blkio.io_merged_recursive),
        io_time_recursive: all(&blkio.io_time_recursive),
        sectors_recursive: all(&blkio.sectors_recursive),
        ..BlkIOStat::default()
    }
}

fn blkio_entry(entry: &BlkioStatsEntry) -> BlkIOEntry {
    BlkIOEntry {
        op: entry.op.clone(),
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
        ..BlkIOEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn figures_of_either_cgroup_version_arrive() {
        let mut response = StatsContainerResponse::new();
        let stats = response.cgroup_stats.mut_or_insert_default();
        stats.cpu_stats.mut_or_insert_default().cpu_usage.mut_or_insert_default().total_usage = 7;
        let memory = stats.memory_stats.mut_or_insert_default();
        memory.usage.mut_or_insert_default().limit = 9;
        memory.stats = HashMap::from([("anon".into(), 3), ("inactive_file".into(), 4)]);
        let any = metrics(&response);
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let seen = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((seen.cpu.usage.total, seen.memory.usage.limit), (7, 9));
        assert_eq!((seen.memory.rss, seen.memory.total_inactive_file), (3, 4));
    }
}
