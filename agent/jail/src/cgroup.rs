//! A container's cgroup: made, limited, read, frozen, emptied and removed. A value of this type owns its directory.
//!
//! The files are written through cgroups-rs. The judgement of what a limit means on either hierarchy is here, because "no limit" (−1) must
//! be settable again after a limit was.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cgroup::Cgroup as Directory;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::freezer::FreezerController;
use cgroups_rs::fs::hierarchies;
use cgroups_rs::fs::hugetlb::HugeTlbController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{ControllIdentifier, Controller, MaxValue, Subsystem};
use cgroups_rs::manager::{FsManager, Manager as _};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::Error;
use crate::stats::{BlockIo, BlockIoEntry, Cpu, HugePages, Memory, Pids, Stats};

/// How long the kernel may take to end what was killed, in milliseconds.
const EMPTY_WITHIN_MS: i32 = 5_000;

/// Where the container's processes are counted.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: Directory,
}

/// The path below the hierarchy's root that `cgroups_path` stands for.
pub(crate) fn path_of(id: &str, cgroups_path: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(asked) = cgroups_path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Path::new("nacre").join(id));
    };
    let systemd: Vec<&str> = asked.to_str().unwrap_or_default().split(':').collect();
    let asked = match systemd[..] {
        [slice, "", name] if slice.ends_with(".slice") => Path::new(slice).join(name),
        [slice, prefix, name] if slice.ends_with(".slice") => Path::new(slice).join(format!("{prefix}-{name}.scope")),
        _ => asked.to_path_buf(),
    };
    let mut path = PathBuf::new();
    for component in asked.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::spec("linux.cgroupsPath", format!("{} leaves the hierarchy", asked.display())));
            }
        }
    }
    if path.as_os_str().is_empty() {
        return Err(Error::spec("linux.cgroupsPath", "the root of the hierarchy can't be a container's"));
    }
    Ok(path)
}

/// A directory in which a container's processes are.
#[derive(Debug)]
pub(crate) struct View {
    /// What the hierarchy is called below `/sys/fs/cgroup`; nothing on cgroup v2.
    pub(crate) names: Vec<String>,
    /// The container's directory in it.
    pub(crate) directory: PathBuf,
    /// Whether it is cgroup v2.
    pub(crate) unified: bool,
}

/// Where a container whose cgroup is `path` is, hierarchy by hierarchy.
pub(crate) fn views(path: &Path) -> Result<Vec<View>, Error> {
    let base = Path::new(hierarchies::UNIFIED_MOUNTPOINT);
    if hierarchies::is_cgroup2_unified_mode() {
        return Ok(vec![View { names: Vec::new(), directory: base.join(path), unified: true }]);
    }
    let directory = Directory::load(hierarchies::auto(), path);
    let view = |subsystem: &Subsystem| {
        let directory = subsystem.to_controller().path().to_path_buf();
        let name = directory.strip_prefix(base).ok()?.components().next()?.as_os_str().to_str()?;
        let names = name.split(',').map(String::from).collect();
        Some(View { names, directory, unified: false })
    };
    let mut views: Vec<View> = directory.subsystems().iter().filter_map(view).collect();
    views.dedup_by(|a, b| a.directory == b.directory);
    Ok(views)
}

impl Cgroup {
    /// Makes the cgroup `path` and sets its limits. A cgroup that exists and has processes is not taken over.
    pub(crate) fn create(
        path: &Path,
        resources: Option<&LinuxResources>,
        _nodes: &[oci_spec::runtime::LinuxDevice],
    ) -> Result<Cgroup, Error> {
        let fail = |act, reason: String| Error::Cgroup { path: path.to_path_buf(), act, reason };
        let directory = Directory::load(hierarchies::auto(), path);
        if directory.exists() && !directory.procs().is_empty() {
            return Err(fail("create", "it exists and has processes".into()));
        }
        directory.create().map_err(|error| fail("create", chain(&error)))?;
        let cgroup = Cgroup { path: path.to_path_buf(), directory };
        if !cgroup.directory.v2() {
            cgroup.inherit_cpuset()?;
        }
        if let Some(resources) = resources {
            cgroup.update(resources)?;
        }
        Ok(cgroup)
    }

    /// Takes up the cgroup `path` that another process made.
    pub(crate) fn open(path: &Path) -> Result<Cgroup, Error> {
        Ok(Cgroup { path: path.to_path_buf(), directory: Directory::load(hierarchies::auto(), path) })
    }

    /// The cgroup, below the hierarchy's root.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        let read = |file: PathBuf| fs::read_to_string(file).unwrap_or_default();
        if self.directory.v2() {
            let path = Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path).join("cgroup.freeze");
            return read(path).trim() == "1";
        }
        let controller = self.directory.controller_of::<FreezerController>();
        controller.is_some_and(|freezer| read(freezer.path().join("freezer.state")).trim() == "FROZEN")
    }

    /// For `CLONE_INTO_CGROUP`: the directory, on cgroup v2.
    pub(crate) fn directory(&self) -> Result<Option<OwnedFd>, Error> {
        if !self.directory.v2() {
            return Ok(None);
        }
        let path = Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path);
        File::open(&path)
            .map(|file| Some(file.into()))
            .map_err(|source| Error::system(format!("open {}", path.display()), source))
    }

    /// For cgroup v1: the files to which a process writes `0` to enter, one for each hierarchy.
    pub(crate) fn entrances(&self) -> Result<Vec<OwnedFd>, Error> {
        if self.directory.v2() {
            return Ok(Vec::new());
        }
        let open = |subsystem: &Subsystem| {
            let path = subsystem.to_controller().path().join("cgroup.procs");
            OpenOptions::new()
                .write(true)
                .open(&path)
                .map(OwnedFd::from)
                .map_err(|source| Error::system(format!("open {}", path.display()), source))
        };
        self.directory.subsystems().iter().map(open).collect()
    }

    /// cgroup v1 only: a new cpuset has neither processors nor memory nodes, and takes no process until it has.
    fn inherit_cpuset(&self) -> Result<(), Error> {
        let Some(cpuset) = self.directory.controller_of::<CpuSetController>() else { return Ok(()) };
        let leaf = cpuset.path();
        let missing: Vec<&Path> = leaf.ancestors().take_while(|dir| reads_empty(&dir.join("cpuset.cpus"))).collect();
        for dir in missing.into_iter().rev() {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let from = dir.parent().unwrap_or(dir).join(file);
                let to = dir.join(file);
                fs::read(&from)
                    .and_then(|value| fs::write(&to, value))
                    .map_err(|source| Error::system(format!("copy {} to {}", from.display(), to.display()), source))?;
            }
        }
        Ok(())
    }

    /// Sets what `resources` name and leaves the rest. −1 lifts a limit.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        if let Some(memory) = resources.memory() {
            self.set_memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            self.set_cpu(cpu)?;
        }
        if let Some(pids) = resources.pids() {
            self.set_pids(pids)?;
        }
        if let Some(block_io) = resources.block_io() {
            self.set_block_io(block_io)?;
        }
        if let Some(limits) = resources.hugepage_limits() {
            self.set_huge_pages(limits)?;
        }
        for (file, value) in resources.unified().iter().flatten() {
            self.set_unified(file, value)?;
        }
        Ok(())
    }

    fn set_memory(&self, memory: &LinuxMemory) -> Result<(), Error> {
        if memory.limit().is_none() && memory.swap().is_none() && memory.reservation().is_none() {
            return Ok(());
        }
        let controller: &MemController = self.controller("memory")?;
        let swap = match (self.directory.v2(), memory.swap(), memory.limit()) {
            (_, Some(-1), _) => Some(-1),
            // The specification's number is memory plus swap; cgroup v2 counts swap alone.
            (true, Some(swap), limit) => {
                let limit = limit.filter(|limit| *limit > 0 && *limit <= swap);
                let limit = limit.ok_or_else(|| {
                    Error::spec(
                        "linux.resources.memory.swap",
                        format!("{swap} needs a memory limit of at most as much"),
                    )
                })?;
                Some(swap - limit)
            }
            (false, swap, Some(-1)) => swap.or(Some(-1)),
            (_, swap, _) => swap,
        };
        // v1 keeps memory ≤ memory+swap at every moment: widen the outer limit first, narrow it last.
        let outer_first = swap == Some(-1) || swap.unwrap_or(0) > controller.memory_stat().limit_in_bytes;
        let set_swap = || match swap {
            // A kernel without swap has no such file, and nothing to limit.
            Some(0) | None if !controller.path().join("memory.swap.max").exists() => Ok(()),
            Some(swap) => self.set("limit swap", controller.set_memswap_limit(swap)),
            None => Ok(()),
        };
        if outer_first {
            set_swap()?;
        }
        if let Some(limit) = memory.limit() {
            self.set("limit memory", controller.set_limit(limit))?;
        }
        if !outer_first {
            set_swap()?;
        }
        if let Some(reservation) = memory.reservation() {
            self.set("reserve memory", controller.set_soft_limit(reservation.max(0)))?;
        }
        Ok(())
    }

    fn set_cpu(&self, cpu: &LinuxCpu) -> Result<(), Error> {
        if cpu.shares().is_some() || cpu.quota().is_some() || cpu.period().is_some() {
            let controller: &CpuController = self.controller("cpu")?;
            if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
                let shares = if self.directory.v2() { weight_of(shares) } else { shares };
                self.set("set cpu shares", controller.set_shares(shares))?;
            }
            if cpu.quota().is_some() || cpu.period().is_some() {
                self.set("set cpu quota", controller.set_cfs_quota_and_period(cpu.quota(), cpu.period()))?;
            }
        }
        let (cpus, mems) = (cpu.cpus().as_deref().unwrap_or(""), cpu.mems().as_deref().unwrap_or(""));
        if !cpus.is_empty() || !mems.is_empty() {
            let controller: &CpuSetController = self.controller("cpuset")?;
            if !cpus.is_empty() {
                self.set("set cpus", controller.set_cpus(cpus))?;
            }
            if !mems.is_empty() {
                self.set("set memory nodes", controller.set_mems(mems))?;
            }
        }
        Ok(())
    }

    fn set_pids(&self, pids: &LinuxPids) -> Result<(), Error> {
        let controller: &PidController = self.controller("pids")?;
        let limit = if pids.limit() > 0 { MaxValue::Value(pids.limit()) } else { MaxValue::Max };
        self.set("limit pids", controller.set_pid_max(limit))
    }

    fn set_block_io(&self, io: &LinuxBlockIo) -> Result<(), Error> {
        let controller: &BlkIoController = self.controller("io")?;
        if let Some(weight) = io.weight() {
            self.set("set io weight", controller.set_weight(weight.into()))?;
        }
        type Throttle = fn(&BlkIoController, u64, u64, u64) -> cgroups_rs::fs::error::Result<()>;
        let throttles: [(_, Throttle); 4] = [
            (io.throttle_read_bps_device(), BlkIoController::throttle_read_bps_for_device),
            (io.throttle_write_bps_device(), BlkIoController::throttle_write_bps_for_device),
            (io.throttle_read_iops_device(), BlkIoController::throttle_read_iops_for_device),
            (io.throttle_write_iops_device(), BlkIoController::throttle_write_iops_for_device),
        ];
        for (devices, throttle) in throttles {
            for device in devices.iter().flatten() {
                let (major, minor) = (device.major() as u64, device.minor() as u64);
                self.set("throttle io", throttle(controller, major, minor, device.rate()))?;
            }
        }
        Ok(())
    }

    fn set_huge_pages(&self, limits: &[LinuxHugepageLimit]) -> Result<(), Error> {
        for limit in limits {
            let controller: &HugeTlbController = self.controller("hugetlb")?;
            let bytes = u64::try_from(limit.limit()).unwrap_or(u64::MAX);
            self.set("limit huge pages", controller.set_limit_in_bytes(limit.page_size(), bytes))?;
        }
        Ok(())
    }

    fn set_unified(&self, file: &str, value: &str) -> Result<(), Error> {
        let property = || format!("linux.resources.unified.{file:?}");
        if !self.directory.v2() {
            return Err(Error::Unsupported { property: format!("{} on cgroup v1", property()) });
        }
        if file.contains('/') || file.starts_with("cgroup.") || !file.contains('.') {
            return Err(Error::spec(property(), "not a controller's file"));
        }
        let path = Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path).join(file);
        fs::write(&path, value)
            .map_err(|source| Error::system(format!("write {value:?} to {}", path.display()), source))
    }

    fn controller<'a, T>(&'a self, name: &'static str) -> Result<&'a T, Error>
    where
        &'a T: From<&'a Subsystem>,
        T: Controller + ControllIdentifier,
    {
        self.directory.controller_of().ok_or_else(|| Error::Unsupported {
            property: format!("linux.resources: this system has no cgroup controller {name:?}"),
        })
    }

    fn set(&self, act: &'static str, result: cgroups_rs::fs::error::Result<()>) -> Result<(), Error> {
        result.map_err(|error| Error::Cgroup { path: self.path.clone(), act, reason: chain(&error) })
    }

    /// Every process in it.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.directory.procs().into_iter().filter_map(|pid| i32::try_from(pid.pid).ok()).collect()
    }

    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let controller: &FreezerController = self.controller("freezer")?;
        self.set("freeze", if frozen { controller.freeze() } else { controller.thaw() })
    }

    /// SIGKILL to everything in it, frozen or not.
    pub(crate) fn kill(&self) {
        if self.directory.v2() && self.directory.kill().is_ok() {
            return;
        }
        for pid in self.pids() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL); // it may have ended meanwhile
            }
        }
        let _ = self.freeze(false); // cgroup v1: a frozen process dies only once thawed; there may be no freezer
    }

    /// Kills what is in it, waits until it is empty, and removes it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        self.kill();
        self.wait_until_empty();
        match self.directory.delete() {
            Err(error) if self.directory.exists() => {
                Err(Error::Cgroup { path: self.path.clone(), act: "remove", reason: chain(&error) })
            }
            _ => Ok(()),
        }
    }

    /// Waits on `cgroup.events`, which signals POLLPRI at each change (Documentation/admin-guide/cgroup-v2.rst). cgroup v1 has no such
    /// file; there rmdir is simply tried.
    fn wait_until_empty(&self) {
        if !self.directory.v2() {
            return;
        }
        let path = Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path).join("cgroup.events");
        let Ok(file) = File::open(&path) else { return };
        let limit = rustix::time::Timespec { tv_sec: i64::from(EMPTY_WITHIN_MS / 1000), tv_nsec: 0 };
        while fs::read_to_string(&path).is_ok_and(|events| events.contains("populated 1")) {
            match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&limit)) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// What it has used so far.
    pub(crate) fn stats(&self) -> Result<Stats, Error> {
        let base = self.path.to_string_lossy();
        let manager = FsManager::new(&base).map_err(|error| Error::Cgroup {
            path: self.path.clone(),
            act: "read",
            reason: chain(&error),
        })?;
        let read = manager.stats();
        let accounted = read.cpu.cpu_acct.unwrap_or_default();
        let throttled = read.cpu.cpu_throttling.unwrap_or_default();
        let swap = read.memory.memory_swap.unwrap_or_default();
        let memory = read.memory.memory.unwrap_or_default();
        let entries = |stats: Vec<cgroups_rs::stats::BlkioStat>| {
            stats
                .into_iter()
                .map(|s| BlockIoEntry { major: s.major, minor: s.minor, operation: s.op, value: s.value })
                .collect()
        };
        Ok(Stats {
            cpu: Cpu {
                total: accounted.total_usage,
                user: accounted.user_usage,
                system: accounted.system_usage,
                per_cpu: accounted.usage_percpu,
                periods: throttled.periods,
                throttled_periods: throttled.throttled_periods,
                throttled: throttled.throttled_time,
            },
            memory: Memory {
                usage: memory.usage,
                max_usage: memory.max_usage,
                limit: u64::try_from(memory.limit).unwrap_or(u64::MAX),
                failures: memory.fail_cnt,
                oom_kills: 0,
                swap_usage: swap.usage,
                swap_limit: u64::try_from(swap.limit).unwrap_or(u64::MAX),
                cache: read.memory.cache,
                counters: self.memory_counters(),
            },
            pids: Pids { current: read.pids.current, limit: u64::try_from(read.pids.limit).unwrap_or(0) },
            block_io: BlockIo {
                bytes: entries(read.blkio.io_service_bytes_recursive),
                operations: entries(read.blkio.io_serviced_recursive),
            },
            huge_pages: read
                .hugetlb
                .into_iter()
                .map(|(size, s)| (size, HugePages { usage: s.usage, max_usage: s.max_usage, failures: s.fail_cnt }))
                .collect(),
        })
    }

    fn memory_counters(&self) -> std::collections::HashMap<String, u64> {
        let Some(controller) = self.directory.controller_of::<MemController>() else { return Default::default() };
        let text = fs::read_to_string(controller.path().join("memory.stat")).unwrap_or_default();
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_string(), value.parse().ok()?))
        };
        text.lines().filter_map(pair).collect()
    }
}

/// The OCI specification's shares (2 to 262144) on cgroup v2's scale (1 to 10000), as systemd and the other engines convert them.
fn weight_of(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn reads_empty(path: &Path) -> bool {
    fs::read(path).is_ok_and(|value| value.trim_ascii().is_empty())
}

/// cgroups-rs keeps the kernel's answer in the source.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_path_stays_below_the_hierarchy() {
        let of = |path: &str| path_of("c1", Some(Path::new(path)));
        assert_eq!(path_of("c1", None).unwrap(), Path::new("nacre/c1"));
        assert_eq!(of("/kubepods/pod1/c1").unwrap(), Path::new("kubepods/pod1/c1"));
        assert_eq!(of("system.slice:nacre:c1").unwrap(), Path::new("system.slice/nacre-c1.scope"));
        assert!(of("/a/../../b").unwrap_err().to_string().contains("leaves the hierarchy"));
        assert!(of("/").is_err());
    }

    #[test]
    fn shares_keep_their_ends_and_their_middle() {
        assert_eq!((weight_of(0), weight_of(2), weight_of(1024), weight_of(262_144)), (1, 1, 39, 10_000));
    }
}
