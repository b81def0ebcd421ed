//! `linux.resources`: what a container may use. What the system can't limit is an error that names the property.

use std::path::PathBuf;

use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::hugetlb::HugeTlbController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{ControllIdentifier, Controller, MaxValue, Subsystem};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxRdma, LinuxResources,
};

use super::{Cgroup, chain, is_unified};
use crate::error::Error;

impl Cgroup {
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
        if let Some(network) = resources.network() {
            self.set_network(network)?;
        }
        for (device, limits) in resources.rdma().iter().flatten() {
            self.set_rdma(device, limits)?;
        }
        let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
        unified.sort_unstable();
        unified.into_iter().try_for_each(|(file, value)| self.set_unified(file, value))
    }

    fn set_memory(&self, memory: &LinuxMemory) -> Result<(), Error> {
        if memory.check_before_update().unwrap_or(false) {
            self.check_usage(memory)?;
        }
        if memory.limit().is_some() || memory.swap().is_some() || memory.reservation().is_some() {
            self.set_memory_limits(memory)?;
        }
        let number = |number: Option<i64>| number.map(|number| number.to_string());
        let flag = |flag: Option<bool>, value: bool| flag.filter(|flag| *flag == value).map(|_| "1".to_string());
        // What cgroup v2 has no file for. There every hierarchy is one, which is what useHierarchy asks for.
        let old = [
            ("kernel", "memory.kmem.limit_in_bytes", number(memory.kernel())),
            ("kernelTCP", "memory.kmem.tcp.limit_in_bytes", number(memory.kernel_tcp())),
            ("swappiness", "memory.swappiness", memory.swappiness().map(|number| number.to_string())),
            ("disableOOMKiller", "memory.oom_control", flag(memory.disable_oom_killer(), true)),
        ];
        for (name, file, value) in old {
            if let Some(value) = value {
                self.write_v1(&format!("linux.resources.memory.{name}"), "memory", file, &value)?;
            }
        }
        match memory.use_hierarchy() {
            Some(false) if is_unified() => {
                Err(Error::Unsupported { property: "linux.resources.memory.useHierarchy false on cgroup v2".into() })
            }
            _ => Ok(()),
        }
    }

    /// A limit below what is in use already would have the kernel kill.
    fn check_usage(&self, memory: &LinuxMemory) -> Result<(), Error> {
        let controller: MemController = self.controller("memory")?;
        let usage = controller.memory_stat().usage_in_bytes;
        match memory.limit().and_then(|limit| u64::try_from(limit).ok()) {
            Some(limit) if limit < usage => Err(Error::spec(
                "linux.resources.memory.limit",
                format!("{limit} is less than the {usage} bytes in use (checkBeforeUpdate)"),
            )),
            _ => Ok(()),
        }
    }

    fn set_memory_limits(&self, memory: &LinuxMemory) -> Result<(), Error> {
        let controller: MemController = self.controller("memory")?;
        let swap = match (is_unified(), memory.swap(), memory.limit()) {
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
        let file = if is_unified() { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
        let has_swap = controller.path().join(file).exists();
        let set_swap = || match swap {
            // A kernel without swap has no such file, and nothing to limit.
            Some(_) | None if !has_swap => Ok(()),
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
            let reservation = if is_unified() { reservation.max(0) } else { reservation };
            self.set("reserve memory", controller.set_soft_limit(reservation))?;
        }
        Ok(())
    }

    fn set_cpu(&self, cpu: &LinuxCpu) -> Result<(), Error> {
        let v2 = is_unified();
        if cpu.shares().is_some() || cpu.quota().is_some() || cpu.period().is_some() {
            let controller: CpuController = self.controller("cpu")?;
            if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
                let shares = if v2 { weight_of(shares) } else { shares };
                self.set("set cpu shares", controller.set_shares(shares))?;
            }
            let (quota, period) = (cpu.quota(), cpu.period());
            if v2 && (quota.is_some() || period.is_some()) {
                self.set("set cpu quota", controller.set_cfs_quota_and_period(quota, period))?;
            } else {
                let set_quota =
                    || quota.map_or(Ok(()), |quota| self.set("set cpu quota", controller.set_cfs_quota(quota)));
                let set_period =
                    || period.map_or(Ok(()), |period| self.set("set cpu period", controller.set_cfs_period(period)));
                in_either_order(set_period, set_quota)?;
            }
        }
        if let Some(burst) = cpu.burst() {
            let file = if v2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" };
            self.write("linux.resources.cpu.burst", "cpu", file, &burst.to_string())?;
        }
        if let Some(idle) = cpu.idle() {
            self.write("linux.resources.cpu.idle", "cpu", "cpu.idle", &idle.to_string())?;
        }
        let real_time = |name: &str, file: &str, value: Option<String>| {
            let property = format!("linux.resources.cpu.{name}");
            value.map_or(Ok(()), |value| self.write_v1(&property, "cpu", file, &value))
        };
        let (period, runtime) = (cpu.realtime_period(), cpu.realtime_runtime());
        in_either_order(
            || real_time("realtimePeriod", "cpu.rt_period_us", period.map(|us| us.to_string())),
            || real_time("realtimeRuntime", "cpu.rt_runtime_us", runtime.map(|us| us.to_string())),
        )?;
        let (cpus, mems) = (cpu.cpus().as_deref().unwrap_or(""), cpu.mems().as_deref().unwrap_or(""));
        if !cpus.is_empty() || !mems.is_empty() {
            let controller: CpuSetController = self.controller("cpuset")?;
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
        let controller: PidController = self.controller("pids")?;
        let limit = if pids.limit() > 0 { MaxValue::Value(pids.limit()) } else { MaxValue::Max };
        self.set("limit pids", controller.set_pid_max(limit))
    }

    fn set_block_io(&self, io: &LinuxBlockIo) -> Result<(), Error> {
        if let Some(weight) = io.weight().filter(|weight| *weight > 0) {
            self.set_io_weight("linux.resources.blockIO.weight", None, weight)?;
        }
        if let Some(weight) = io.leaf_weight().filter(|weight| *weight > 0) {
            let value = weight.to_string();
            self.write_v1("linux.resources.blockIO.leafWeight", "blkio", "blkio.leaf_weight", &value)?;
        }
        for device in io.weight_device().iter().flatten() {
            let property = "linux.resources.blockIO.weightDevice";
            if let Some(weight) = device.weight() {
                self.set_io_weight(property, Some((device.major(), device.minor())), weight)?;
            }
            if let Some(weight) = device.leaf_weight() {
                let value = format!("{}:{} {weight}", device.major(), device.minor());
                self.write_v1(property, "blkio", "blkio.leaf_weight_device", &value)?;
            }
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
                let controller: BlkIoController = self.controller("io")?;
                let (major, minor) = (device.major() as u64, device.minor() as u64);
                self.set("throttle io", throttle(&controller, major, minor, device.rate()))?;
            }
        }
        Ok(())
    }

    /// Weights belong to a scheduler of requests, which a kernel may not have: BFQ's (10 to 1000) or the I/O cost controller's (1 to 10000).
    fn set_io_weight(&self, property: &str, device: Option<(i64, i64)>, weight: u16) -> Result<(), Error> {
        if !(10..=1000).contains(&weight) {
            return Err(Error::spec(property, format!("{weight} is not between 10 and 1000")));
        }
        let value = |weight: u64| match device {
            Some((major, minor)) => format!("{major}:{minor} {weight}"),
            None => weight.to_string(),
        };
        let plain = value(weight.into());
        let scaled = value(1 + (u64::from(weight) - 10) * 9_999 / 990);
        let files: [(&str, &str, &str); 2] = match (is_unified(), device) {
            (true, _) => [("io", "io.bfq.weight", &plain), ("io", "io.weight", &scaled)],
            (false, None) => [("blkio", "blkio.bfq.weight", &plain), ("blkio", "blkio.weight", &plain)],
            (false, Some(_)) => {
                [("blkio", "blkio.bfq.weight_device", &plain), ("blkio", "blkio.weight_device", &plain)]
            }
        };
        let there = files.iter().find(|(controller, file, _)| self.file(controller, file).is_some());
        let (controller, file, value) = there.ok_or_else(|| Error::Unsupported {
            property: format!("{property}: no scheduler of this kernel weighs block I/O"),
        })?;
        self.write(property, controller, file, value)
    }

    fn set_huge_pages(&self, limits: &[LinuxHugepageLimit]) -> Result<(), Error> {
        for limit in limits {
            let controller: HugeTlbController = self.controller("hugetlb")?;
            let size = limit.page_size();
            if !controller.size_supported(size) {
                let property = "linux.resources.hugepageLimits.pageSize";
                return Err(Error::spec(property, format!("this system has no huge pages of {size:?}")));
            }
            let bytes = u64::try_from(limit.limit()).unwrap_or(u64::MAX);
            self.set("limit huge pages", controller.set_limit_in_bytes(size, bytes))?;
        }
        Ok(())
    }

    fn set_network(&self, network: &LinuxNetwork) -> Result<(), Error> {
        if let Some(class) = network.class_id() {
            self.write_v1("linux.resources.network.classID", "net_cls", "net_cls.classid", &class.to_string())?;
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            self.write_v1("linux.resources.network.priorities", "net_prio", "net_prio.ifpriomap", &value)?;
        }
        Ok(())
    }

    fn set_rdma(&self, device: &str, limits: &LinuxRdma) -> Result<(), Error> {
        let mut value = device.to_string();
        for (name, limit) in [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())] {
            if let Some(limit) = limit {
                value += &format!(" {name}={limit}");
            }
        }
        self.write("linux.resources.rdma", "rdma", "rdma.max", &value)
    }

    fn set_unified(&self, file: &str, value: &str) -> Result<(), Error> {
        let property = format!("linux.resources.unified.{file:?}");
        if !is_unified() {
            return Err(Error::Unsupported { property: format!("{property} on cgroup v1") });
        }
        let Some((controller, _)) = file.split_once('.').filter(|_| !file.contains('/')) else {
            return Err(Error::spec(property, "not a controller's file"));
        };
        if controller == "cgroup" {
            return Err(Error::spec(property, "not a controller's file"));
        }
        self.write(&property, controller, file, value)
    }

    /// A file of a controller, where there is one.
    fn file(&self, controller: &str, file: &str) -> Option<PathBuf> {
        Some(self.base(controller)?.join(file)).filter(|path| path.exists())
    }

    /// Writes a file that only cgroup v1 has.
    fn write_v1(&self, property: &str, controller: &str, file: &str, value: &str) -> Result<(), Error> {
        if is_unified() {
            return Err(Error::Unsupported { property: format!("{property} on cgroup v2") });
        }
        self.write(property, controller, file, value)
    }

    fn write(&self, property: &str, controller: &str, file: &str, value: &str) -> Result<(), Error> {
        let path = self
            .file(controller, file)
            .ok_or_else(|| Error::Unsupported { property: format!("{property}: this system has no {file}") })?;
        super::write_file(&path, value)
            .map_err(|source| Error::system(format!("{property}: write {value:?} to {}", path.display()), source))
    }

    pub(super) fn controller<T>(&self, name: &'static str) -> Result<T, Error>
    where
        for<'a> &'a T: From<&'a Subsystem>,
        T: Controller + ControllIdentifier + Clone,
    {
        self.controllers().controller_of().cloned().ok_or_else(|| Error::Unsupported {
            property: format!("linux.resources: this system has no cgroup controller {name:?}"),
        })
    }

    pub(super) fn set(&self, act: &'static str, result: cgroups_rs::fs::error::Result<()>) -> Result<(), Error> {
        result.map_err(|error| Error::Cgroup { path: self.path.clone(), act, reason: chain(&error) })
    }
}

/// Sets two things of which the kernel judges each with the other's old value: what is refused one way may be taken the other way.
fn in_either_order(one: impl Fn() -> Result<(), Error>, other: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    match one() {
        Ok(()) => other(),
        Err(_) => other().and_then(|()| one()),
    }
}

/// The OCI specification's shares (2 to 262144) on cgroup v2's scale (1 to 10000), as systemd and the other engines convert them.
fn weight_of(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_keep_their_ends_and_their_middle() {
        assert_eq!((weight_of(0), weight_of(2), weight_of(1024), weight_of(262_144)), (1, 1, 39, 10_000));
    }
}
