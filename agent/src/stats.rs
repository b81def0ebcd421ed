//! A container's counters, as the wire has them.

use nacre_jail::{BlockIoEntry, Stats};
use nacre_protocol::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats, PidsStats,
    StatsContainerResponse, ThrottlingData,
};

/// Names of cgroup v2 that hosts with cgroup v1 know by another: they read both from the same map.
const OLD_NAMES: &[(&str, &str)] =
    &[("file", "cache"), ("anon", "rss"), ("file_mapped", "mapped_file"), ("inactive_file", "total_inactive_file")];

/// The response that tells `stats`.
pub fn response(stats: &Stats) -> StatsContainerResponse {
    let cgroup = CgroupStats {
        cpu_stats: Some(cpu(stats)).into(),
        memory_stats: Some(memory(stats)).into(),
        pids_stats: Some(PidsStats { current: stats.pids.current, limit: stats.pids.limit, ..PidsStats::new() }).into(),
        blkio_stats: Some(block_io(stats)).into(),
        hugetlb_stats: huge_pages(stats),
        ..CgroupStats::new()
    };
    StatsContainerResponse { cgroup_stats: Some(cgroup).into(), ..StatsContainerResponse::new() }
}

fn cpu(stats: &Stats) -> CpuStats {
    let cpu = &stats.cpu;
    let usage = CpuUsage {
        total_usage: cpu.total,
        percpu_usage: cpu.per_cpu.clone(),
        usage_in_kernelmode: cpu.system,
        usage_in_usermode: cpu.user,
        ..CpuUsage::new()
    };
    let throttling = ThrottlingData {
        periods: cpu.periods,
        throttled_periods: cpu.throttled_periods,
        throttled_time: cpu.throttled,
        ..ThrottlingData::new()
    };
    CpuStats { cpu_usage: Some(usage).into(), throttling_data: Some(throttling).into(), ..CpuStats::new() }
}

fn memory(stats: &Stats) -> MemoryStats {
    let memory = &stats.memory;
    let usage = MemoryData {
        usage: memory.usage,
        max_usage: memory.max_usage,
        failcnt: memory.failures,
        limit: memory.limit,
        ..MemoryData::new()
    };
    let swap = MemoryData { usage: memory.swap_usage, limit: memory.swap_limit, ..MemoryData::new() };
    let mut counters = memory.counters.clone();
    for (new, old) in OLD_NAMES {
        if let Some(value) = memory.counters.get(*new) {
            counters.entry((*old).into()).or_insert(*value);
        }
    }
    MemoryStats {
        cache: memory.cache,
        usage: Some(usage).into(),
        swap_usage: Some(swap).into(),
        stats: counters,
        ..MemoryStats::new()
    }
}

fn block_io(stats: &Stats) -> BlkioStats {
    BlkioStats {
        io_service_bytes_recursive: stats.block_io.bytes.iter().map(entry).collect(),
        io_serviced_recursive: stats.block_io.operations.iter().map(entry).collect(),
        ..BlkioStats::new()
    }
}

fn entry(entry: &BlockIoEntry) -> BlkioStatsEntry {
    BlkioStatsEntry {
        major: entry.major,
        minor: entry.minor,
        op: entry.operation.clone(),
        value: entry.value,
        ..BlkioStatsEntry::new()
    }
}

fn huge_pages(stats: &Stats) -> std::collections::HashMap<String, HugetlbStats> {
    let size = |(size, pages): (&String, &nacre_jail::HugePages)| {
        let stats = HugetlbStats {
            usage: pages.usage,
            max_usage: pages.max_usage,
            failcnt: pages.failures,
            ..HugetlbStats::new()
        };
        (size.clone(), stats)
    };
    stats.huge_pages.iter().map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_counters_have_the_names_of_both_hierarchies() {
        let mut stats = Stats::default();
        stats.memory.counters = [("file".to_string(), 7), ("anon".to_string(), 8)].into();
        let counters = response(&stats).cgroup_stats.unwrap().memory_stats.unwrap().stats.clone();
        assert_eq!((counters["file"], counters["cache"], counters["rss"]), (7, 7, 8));
    }
}
