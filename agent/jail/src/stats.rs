//! What a container uses, as its cgroup counts it.

use std::collections::HashMap;

/// One reading. What the kernel does not offer is zero or absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes.
    pub pids: Pids,
    /// Block devices.
    pub block_io: BlockIo,
    /// Huge pages, by size (`2MB`).
    pub huge_pages: HashMap<String, HugePages>,
}

/// Processor time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cpu {
    /// Used in all.
    pub total: u64,
    /// Used by programs.
    pub user: u64,
    /// Used by the kernel for them.
    pub system: u64,
    /// Used by processor, where the kernel counts so (cgroup v1).
    pub per_cpu: Vec<u64>,
    /// Enforcement periods that have passed.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Time spent waiting for the next period.
    pub throttled: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// In use, page cache included.
    pub usage: u64,
    /// The highest use seen.
    pub max_usage: u64,
    /// The limit; `u64::MAX` for none.
    pub limit: u64,
    /// How often the limit was hit.
    pub failures: u64,
    /// How many processes the kernel has killed for want of it.
    pub oom_kills: u64,
    /// Swap in use.
    pub swap_usage: u64,
    /// The limit of swap; `u64::MAX` for none.
    pub swap_limit: u64,
    /// Page cache.
    pub cache: u64,
    /// The kernel's own counters (`memory.stat`), by their names.
    pub counters: HashMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0 for no limit.
    pub limit: u64,
}

/// Block devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BlockIo {
    /// Bytes by device and operation.
    pub bytes: Vec<BlockIoEntry>,
    /// Requests by device and operation.
    pub operations: Vec<BlockIoEntry>,
}

/// One counter of one device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BlockIoEntry {
    /// The device's major number.
    pub major: u64,
    /// The device's minor number.
    pub minor: u64,
    /// `Read`, `Write`, …
    pub operation: String,
    /// The count.
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HugePages {
    /// In use.
    pub usage: u64,
    /// The highest use seen.
    pub max_usage: u64,
    /// How often the limit was hit.
    pub failures: u64,
}
