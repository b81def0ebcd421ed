//! What a process of the host's has used (proc(5)).

use std::fs;

/// Clock ticks in a second: what every Linux says to user space (time(7), `USER_HZ`).
const TICKS: u64 = 100;

/// What a process has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Processor time in nanoseconds.
    pub cpu: u64,
    /// Memory of its own and its share of what it shares, in bytes.
    pub memory: u64,
}

/// What the process `pid` has used; nothing where it is gone.
pub fn of(pid: u32) -> Option<Used> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_ascii_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Used { cpu: ticks * (1_000_000_000 / TICKS), memory: memory(pid, &["Pss:"])? })
}

/// What the process `pid` has of memory beside what it shares without a file: a VMM's share is the guest's memory. In bytes.
pub fn private(pid: u32) -> Option<u64> {
    memory(pid, &["Pss_Anon:", "Pss_File:"])
}

fn memory(pid: u32, names: &[&str]) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |line: &str| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
    let all = names.iter().map(|name| rollup.lines().find_map(|line| line.strip_prefix(name)).and_then(kib));
    Some(all.sum::<Option<u64>>()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_memory_and_one_that_is_gone_none() {
        assert!(of(std::process::id()).unwrap().memory > 0);
        assert_eq!(of(u32::MAX), None);
    }
}
