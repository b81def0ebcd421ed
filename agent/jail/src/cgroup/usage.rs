//! What a container has used, as its cgroup counts it.

use std::collections::HashMap;
use std::fs;

use cgroups_rs::manager::{FsManager, Manager as _};

use super::{Cgroup, chain, counters_in, is_unified};
use crate::error::Error;
use crate::stats::{BlockIo, BlockIoEntry, Cpu, HugePages, Memory, Pids, Stats};

impl Cgroup {
    /// What it has used so far.
    pub(crate) fn stats(&self) -> Result<Stats, Error> {
        let base = self.path.to_string_lossy();
        let manager = FsManager::new(&base).map_err(|error| Error::Cgroup {
            path: self.path.clone(),
            act: "read",
            reason: chain(&error),
        })?;
        let read = manager.stats();
        let cpu = if is_unified() {
            self.cpu_of_v2()
        } else {
            let accounted = read.cpu.cpu_acct.unwrap_or_default();
            let throttled = read.cpu.cpu_throttling.unwrap_or_default();
            Cpu {
                total: accounted.total_usage,
                // cpuacct.stat counts in ticks of 10 ms, these files in nanoseconds.
                user: self.number("cpuacct", "cpuacct.usage_user"),
                system: self.number("cpuacct", "cpuacct.usage_sys"),
                per_cpu: accounted.usage_percpu,
                periods: throttled.periods,
                throttled_periods: throttled.throttled_periods,
                throttled: throttled.throttled_time,
            }
        };
        let swap = read.memory.memory_swap.unwrap_or_default();
        let memory = read.memory.memory.unwrap_or_default();
        let entries = |stats: Vec<cgroups_rs::stats::BlkioStat>| {
            stats
                .into_iter()
                .map(|s| BlockIoEntry { major: s.major, minor: s.minor, operation: s.op, value: s.value })
                .collect()
        };
        Ok(Stats {
            cpu,
            memory: Memory {
                usage: memory.usage,
                max_usage: memory.max_usage,
                limit: u64::try_from(memory.limit).unwrap_or(u64::MAX),
                failures: memory.fail_cnt,
                oom_kills: self.oom_kills(),
                swap_usage: swap.usage,
                swap_limit: u64::try_from(swap.limit).unwrap_or(u64::MAX),
                cache: read.memory.cache,
                counters: self.counters("memory", "memory.stat"),
            },
            pids: Pids { current: read.pids.current, limit: u64::try_from(read.pids.limit).unwrap_or(0) },
            block_io: if is_unified() {
                self.block_io_of_v2()
            } else {
                BlockIo {
                    bytes: entries(read.blkio.io_service_bytes_recursive),
                    operations: entries(read.blkio.io_serviced_recursive),
                }
            },
            huge_pages: read
                .hugetlb
                .into_iter()
                .map(|(size, s)| (size, HugePages { usage: s.usage, max_usage: s.max_usage, failures: s.fail_cnt }))
                .collect(),
        })
    }

    /// `cpu.stat`, whose times are microseconds (Documentation/admin-guide/cgroup-v2.rst); cgroups-rs reads it for cgroup v1 alone.
    fn cpu_of_v2(&self) -> Cpu {
        const NS: u64 = 1_000;
        let counters = self.counters("cpu", "cpu.stat");
        let get = |name: &str| counters.get(name).copied().unwrap_or(0);
        Cpu {
            total: get("usage_usec") * NS,
            user: get("user_usec") * NS,
            system: get("system_usec") * NS,
            per_cpu: Vec::new(),
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled: get("throttled_usec") * NS,
        }
    }

    /// `io.stat`: a line a device, `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
    fn block_io_of_v2(&self) -> BlockIo {
        let mut io = BlockIo::default();
        for line in self.read("io", "io.stat").lines() {
            let mut words = line.split_ascii_whitespace();
            let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
            let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
            for (name, value) in words.filter_map(|word| word.split_once('=')) {
                let (list, operation) = match name {
                    "rbytes" => (&mut io.bytes, "Read"),
                    "wbytes" => (&mut io.bytes, "Write"),
                    "dbytes" => (&mut io.bytes, "Discard"),
                    "rios" => (&mut io.operations, "Read"),
                    "wios" => (&mut io.operations, "Write"),
                    "dios" => (&mut io.operations, "Discard"),
                    _ => continue,
                };
                let value = value.parse().unwrap_or(0);
                list.push(BlockIoEntry { major, minor, operation: operation.into(), value });
            }
        }
        io
    }

    fn oom_kills(&self) -> u64 {
        let file = if is_unified() { "memory.events" } else { "memory.oom_control" };
        self.counters("memory", file).get("oom_kill").copied().unwrap_or(0)
    }

    fn number(&self, controller: &str, file: &str) -> u64 {
        self.read(controller, file).trim().parse().unwrap_or(0)
    }

    fn read(&self, controller: &str, file: &str) -> String {
        let path = self.base(controller).map(|base| base.join(file));
        path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
    }

    fn counters(&self, controller: &str, file: &str) -> HashMap<String, u64> {
        counters_in(&self.read(controller, file))
    }
}
