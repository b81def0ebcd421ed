//! The files of proc(5), as numbers with the names that the metrics have. A field that is missing or is no number is left out.

/// Bytes of a kibibyte, procfs's favourite unit.
const KIB: f64 = 1024.0;

const CPU: &[&str] = &["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];

const NETWORK: &[&str] = &[
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];

const DISK: &[&str] = &[
    "reads",
    "merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
    "discards",
    "discards_merged",
    "sectors_discarded",
    "time_discarding",
    "flushes",
    "time_flushing",
];

/// What `/proc/PID/stat` says.
#[derive(Debug, Default, PartialEq)]
pub struct Stat {
    /// Threads.
    pub threads: f64,
    /// Seconds in user mode.
    pub user: f64,
    /// Seconds in the kernel.
    pub system: f64,
    /// Address space.
    pub virtual_bytes: f64,
    /// Memory in use.
    pub resident_bytes: f64,
    /// utime, stime, cutime and cstime in clock ticks.
    pub times: [(&'static str, f64); 4],
}

/// Parse `/proc/PID/stat`. The name in parentheses may hold anything, so fields are counted from its end.
pub fn stat(text: &str) -> Stat {
    let fields: Vec<f64> = match text.rsplit_once(')') {
        Some((_, rest)) => rest.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect(),
        None => Vec::new(),
    };
    // Numbered as proc(5) does; the first after the name is the third.
    let field = |number: usize| number.checked_sub(3).and_then(|i| fields.get(i)).copied().unwrap_or(0.0);
    let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
    Stat {
        threads: field(20),
        user: field(14) / ticks,
        system: field(15) / ticks,
        virtual_bytes: field(23),
        resident_bytes: field(24) * rustix::param::page_size() as f64,
        times: [("utime", field(14)), ("stime", field(15)), ("cutime", field(16)), ("cstime", field(17))],
    }
}

/// `Name: number unit` lines, names in lower case.
pub fn colon_numbers(text: &str) -> Vec<(String, f64)> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), rest.split_ascii_whitespace().next()?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// `name number` lines.
pub fn pairs(text: &str) -> Vec<(String, f64)> {
    let line = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.into(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// `/proc/meminfo` in bytes, with names in snake case: `SReclaimable` is `s_reclaimable`.
pub fn meminfo(text: &str) -> Vec<(String, f64)> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let mut words = rest.split_ascii_whitespace();
        let number: f64 = words.next()?.parse().ok()?;
        Some((snake_case(name), if words.next() == Some("kB") { number * KIB } else { number }))
    };
    text.lines().filter_map(line).collect()
}

fn snake_case(name: &str) -> String {
    match name {
        "Hugepagesize" => return "hugepagesize".into(),
        "DirectMap4M" | "DirectMap2M" | "DirectMap1G" => return name.replace("DirectMap", "direct_map_"),
        "DirectMap4k" => return "direct_map_4k".into(),
        "AnonHugePages" => return "anon_hugepages".into(),
        "ShmemHugePages" => return "shmem_hugepages".into(),
        "ShmemPmdMapped" => return "shmem_pmd_mapped".into(),
        "HugePages_Total" | "HugePages_Free" | "HugePages_Rsvd" | "HugePages_Surp" => return name.to_ascii_lowercase(),
        _ => {}
    }
    let letters: Vec<char> = name.chars().filter(|c| *c != ')').collect();
    let mut snake = String::with_capacity(name.len() + 4);
    for (i, c) in letters.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|i| letters.get(i));
        let after = letters.get(i + 1);
        // A capital begins a word, unless it goes on with an abbreviation.
        let begins = before.is_some_and(char::is_ascii_lowercase) || after.is_some_and(char::is_ascii_lowercase);
        if i > 0 && c.is_ascii_uppercase() && begins && !snake.ends_with('_') {
            snake.push('_');
        }
        snake.push(if *c == '(' { '_' } else { c.to_ascii_lowercase() });
    }
    snake
}

/// Numbers by their names.
type Named<const N: usize> = [(String, f64); N];

/// `/proc/loadavg`: the load, and the tasks.
pub fn load(text: &str) -> (Named<3>, Named<2>) {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let number = |i: usize| words.get(i).and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let tasks = words.get(3).and_then(|word| word.split_once('/')).unwrap_or_default();
    let tasks = [("cur".into(), tasks.0.parse().unwrap_or(0.0)), ("max".into(), tasks.1.parse().unwrap_or(0.0))];
    ([("load1".into(), number(0)), ("load5".into(), number(1)), ("load15".into(), number(2))], tasks)
}

type Labelled = Vec<(String, &'static str, f64)>;

/// The `cpu` lines of `/proc/stat`; their sum is called `total`.
pub fn cpu_times(text: &str) -> Labelled {
    let mut times = Vec::new();
    for line in text.lines() {
        let Some((cpu, rest)) = line.strip_prefix("cpu").and_then(|rest| rest.split_once(' ')) else { continue };
        let cpu = if cpu.is_empty() { "total" } else { cpu };
        label(&mut times, cpu, CPU, rest);
    }
    times
}

/// `/proc/net/dev`.
pub fn network(text: &str) -> Labelled {
    let mut numbers = Vec::new();
    for (interface, rest) in text.lines().filter_map(|line| line.split_once(':')) {
        label(&mut numbers, interface.trim(), NETWORK, rest);
    }
    numbers
}

/// `/proc/diskstats`.
pub fn disks(text: &str) -> Labelled {
    let mut numbers = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace().skip(2); // the device's numbers
        let Some(disk) = fields.next() else { continue };
        label(&mut numbers, disk, DISK, &fields.collect::<Vec<_>>().join(" "));
    }
    numbers
}

fn label(into: &mut Labelled, whose: &str, names: &'static [&'static str], numbers: &str) {
    let numbers = numbers.split_ascii_whitespace().map(str::parse);
    into.extend(names.iter().zip(numbers).filter_map(|(name, number)| Some((whose.to_string(), *name, number.ok()?))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c)) S 1 1 1 0 -1 4194560 0 0 0 0 200 100 5 6 20 0 3 0 100 4096 2 0";
        let stat = stat(text);
        assert_eq!((stat.threads, stat.virtual_bytes), (3.0, 4096.0));
        assert_eq!(stat.times, [("utime", 200.0), ("stime", 100.0), ("cutime", 5.0), ("cstime", 6.0)]);
        assert_eq!(super::stat("nonsense").threads, 0.0);
    }

    #[test]
    fn memory_has_the_names_of_the_dashboards() {
        for (kernel, metric) in [
            ("MemTotal", "mem_total"),
            ("SReclaimable", "s_reclaimable"),
            ("NFS_Unstable", "nfs_unstable"),
            ("Active(anon)", "active_anon"),
            ("HugePages_Total", "hugepages_total"),
            ("Committed_AS", "committed_as"),
            ("DirectMap4k", "direct_map_4k"),
            ("AnonHugePages", "anon_hugepages"),
            ("KReclaimable", "k_reclaimable"),
            ("WritebackTmp", "writeback_tmp"),
        ] {
            assert_eq!(snake_case(kernel), metric);
        }
        assert_eq!(
            meminfo("MemTotal:  2 kB\nHugePages_Free: 3\nbad\n"),
            [("mem_total".to_string(), 2048.0), ("hugepages_free".to_string(), 3.0)]
        );
    }

    #[test]
    fn tables_are_read_by_column() {
        let times = cpu_times("cpu  1 2 3\ncpu0 4 5\nintr 9\n");
        assert_eq!(times.len(), 5);
        assert_eq!(times[3], ("0".to_string(), "user", 4.0));
        let net = network("Inter-|\n face |\n eth0: 1 2\n");
        assert_eq!(net, [("eth0".into(), "recv_bytes", 1.0), ("eth0".into(), "recv_packets", 2.0)]);
        let disk = disks(" 254       0 vda 10 20\n");
        assert_eq!(disk, [("vda".into(), "reads", 10.0), ("vda".into(), "merged", 20.0)]);
        assert_eq!(load("0.5 0.25 0 2/30 99\n").1[1], ("max".to_string(), 30.0));
    }
}
