//! A container's counters, as the wire has them.

use std::collections::HashMap;

use nacre_jail::{BlockIoEntry, Memory, Stats};
use nacre_protocol::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats, PidsStats,
    StatsContainerResponse, ThrottlingData,
};

/// Counters that cgroup v2 and v1 name differently. A host reads the names of its own kernel, whichever the guest's has.
const NAMES: &[(&str, &str)] = &[
    ("file", "cache"),
    ("anon", "rss"),
    ("anon_thp", "rss_huge"),
    ("file_mapped", "mapped_file"),
    ("file_dirty", "dirty"),
    ("file_writeback", "writeback"),
    ("inactive_file", "total_inactive_file"),
];

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
    MemoryStats {
        cache: memory.cache,
        usage: Some(usage).into(),
        swap_usage: Some(swap).into(),
        stats: counters(memory),
        ..MemoryStats::new()
    }
}

/// The kernel's counters by the names of both hierarchies, and what hosts with cgroup v2 look for among them.
fn counters(memory: &Memory) -> HashMap<String, u64> {
    let mut counters = memory.counters.clone();
    for (new, old) in NAMES {
        for (from, to) in [(*new, *old), (*old, *new)] {
            if let Some(value) = memory.counters.get(from) {
                counters.entry(to.into()).or_insert(*value);
            }
        }
    }
    counters.insert("usage".into(), memory.usage);
    counters.insert("usage_limit".into(), memory.limit);
    // cgroup v1 counts memory and swap in one.
    if memory.counters.contains_key("anon") {
        counters.insert("swap_usage".into(), memory.swap_usage);
        counters.insert("swap_limit".into(), memory.swap_limit);
    }
    counters
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

fn huge_pages(stats: &Stats) -> HashMap<String, HugetlbStats> {
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
        let told = |names: [&str; 3]| {
            let counters = names.into_iter().map(String::from).zip(7..).collect();
            let memory = Memory { usage: 1, limit: 2, swap_usage: 3, counters, ..Memory::default() };
            let stats = response(&Stats { memory, ..Stats::default() });
            let counters = stats.cgroup_stats.unwrap().memory_stats.unwrap().stats.clone();
            assert_eq!(["file", "cache", "anon", "rss"].map(|name| counters[name]), [7, 7, 8, 8]);
            assert_eq!((counters["total_inactive_file"], counters["usage"], counters["usage_limit"]), (9, 1, 2));
            counters.get("swap_usage").copied()
        };
        assert_eq!(told(["file", "anon", "inactive_file"]), Some(3));
        assert_eq!(told(["cache", "rss", "total_inactive_file"]), None); // memory and swap in one
    }
}
