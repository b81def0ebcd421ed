//! A process as proc(5) shows it.

use std::fs;

/// Numbers by name.
type Items = Vec<(String, f64)>;

/// What is measured of a process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) threads: f64,
    pub(super) descriptors: f64,
    pub(super) status: Items,
    pub(super) stat: Items,
    pub(super) io: Items,
}

/// The fields of `/proc/PID/stat` that are times, from 0 behind the name.
const TIMES: [(usize, &str); 5] = [(11, "utime"), (12, "stime"), (13, "cutime"), (14, "cstime"), (19, "starttime")];

impl Process {
    /// The process `pid`; nothing where it is gone.
    pub(super) fn read(pid: u32) -> Option<Process> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let status = read("status").ok()?;
        let stat = read("stat").ok()?;
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let times = TIMES.iter().filter_map(|(at, name)| Some(((*name).to_string(), fields.get(*at)?.parse().ok()?)));
        let all = items(&status);
        Some(Process {
            threads: all.iter().find(|(name, _)| name == "threads").map_or(0.0, |(_, value)| *value),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0.0, |all| all.count() as f64),
            status: all.into_iter().filter(|(name, _)| name.starts_with("vm") || name.ends_with("switches")).collect(),
            stat: times.collect(),
            io: read("io").map(|io| items(&io)).unwrap_or_default(),
        })
    }
}

/// Lines of a name, a number and perhaps a unit; kilobytes become bytes.
fn items(text: &str) -> Items {
    let item = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let mut words = rest.split_ascii_whitespace();
        let value: f64 = words.next()?.parse().ok()?;
        let scale = if words.next() == Some("kB") { 1024.0 } else { 1.0 };
        Some((name.to_ascii_lowercase(), value * scale))
    };
    text.lines().filter_map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kilobytes_are_bytes() {
        assert_eq!(
            items("VmRSS:\t  12 kB\nName: a b\nThreads: 3\n"),
            [("vmrss".into(), 12288.0), ("threads".into(), 3.0)]
        );
    }
}
