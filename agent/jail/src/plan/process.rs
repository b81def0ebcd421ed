//! `process`: program, environment, limits, user and capabilities.

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{Capability, PosixRlimitType, Process};
use rustix::fs::{Gid, Uid};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::c_string;
use crate::error::Error;
use crate::step::{Capabilities, Credentials, Step};

/// The kernel's own bound on one argument or variable (MAX_ARG_STRLEN, execve(2)).
const MAX_STRING: usize = 128 << 10;

/// The most arguments and variables together; their bytes are bounded by the kernel.
const MAX_STRINGS: usize = 65_536;

/// The most supplementary groups (NGROUPS_MAX, limits.h of the kernel).
const MAX_GROUPS: usize = 65_536;

/// Where a program is looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Refuses what can't be honoured.
pub(crate) fn check(process: &Process) -> Result<(), Error> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::spec("process.args", "names no program"));
    }
    let env = process.env().as_deref().unwrap_or_default();
    if args.len() + env.len() > MAX_STRINGS {
        return Err(Error::spec("process", format!("more than {MAX_STRINGS} arguments and variables")));
    }
    if args.iter().chain(env).any(|string| string.len() >= MAX_STRING) {
        return Err(Error::spec("process", format!("an argument or variable of {MAX_STRING} bytes or more")));
    }
    if process.user().additional_gids().as_ref().is_some_and(|gids| gids.len() > MAX_GROUPS) {
        return Err(Error::spec("process.user.additionalGids", format!("more than {MAX_GROUPS}")));
    }
    let unsupported = [
        ("process.apparmorProfile", process.apparmor_profile().as_ref().is_some_and(|p| !p.is_empty())),
        ("process.selinuxLabel", process.selinux_label().as_ref().is_some_and(|l| !l.is_empty())),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ];
    match unsupported.into_iter().find(|(_, used)| *used) {
        Some((property, _)) => Err(Error::Unsupported { property: property.into() }),
        None => Ok(()),
    }
}

pub(crate) fn argv(process: &Process) -> Result<Vec<CString>, Error> {
    process.args().iter().flatten().map(|arg| c_string("process.args", arg)).collect()
}

pub(crate) fn envp(process: &Process) -> Result<Vec<CString>, Error> {
    process.env().iter().flatten().map(|variable| c_string("process.env", variable)).collect()
}

/// Where the program may be: itself when it has a slash, else in each directory of the process's own PATH.
pub(crate) fn candidates(process: &Process) -> Result<Vec<CString>, Error> {
    let program = process.args().iter().flatten().next().map_or("", String::as_str);
    if program.contains('/') {
        return Ok(vec![c_string("process.args", program)?]);
    }
    let path = process.env().iter().flatten().find_map(|variable| variable.strip_prefix("PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        .map(|dir| if dir.is_empty() { "." } else { dir })
        .map(|dir| c_string("process.args", &format!("{dir}/{program}")))
        .collect()
}

pub(crate) fn cwd(process: &Process) -> Result<&Path, Error> {
    let cwd = process.cwd();
    if cwd.is_absolute() { Ok(cwd) } else { Err(Error::spec("process.cwd", "must be absolute")) }
}

/// Columns and rows.
pub(crate) fn console_size(process: &Process) -> Option<(u16, u16)> {
    let size = process.console_size()?;
    Some((u16::try_from(size.width()).ok()?, u16::try_from(size.height()).ok()?))
}

pub(crate) fn oom_score(score: i32) -> Result<Step, Error> {
    if !(-1000..=1000).contains(&score) {
        return Err(Error::spec("process.oomScoreAdj", format!("{score} is not between -1000 and 1000")));
    }
    let value = c_string("process.oomScoreAdj", &score.to_string())?;
    Ok(Step::Write { path: c"/proc/self/oom_score_adj".into(), value })
}

/// Only what belongs to a namespace of the container's can be set for it.
pub(crate) fn sysctl(key: &str, value: &str) -> Result<Step, Error> {
    let property = format!("linux.sysctl.{key:?}");
    let ipc = ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"];
    let more_ipc = ["kernel.shmmni", "kernel.shm_rmid_forced"];
    let namespaced = ipc.contains(&key)
        || more_ipc.contains(&key)
        || key.starts_with("fs.mqueue.")
        || key.starts_with("net.")
        || key == "kernel.domainname";
    if !namespaced {
        return Err(Error::spec(property, "does not belong to a namespace"));
    }
    // A dot in a name (an interface, say) is written as a slash (sysctl(8)).
    let path: String = key
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    if path.split('/').any(|part| part.is_empty() || part == ".." || part == ".") {
        return Err(Error::spec(property, "is not a sysctl"));
    }
    Ok(Step::Write { path: c_string(&property, &format!("/proc/sys/{path}"))?, value: c_string(&property, value)? })
}

pub(crate) fn limits(process: &Process) -> Result<Vec<Step>, Error> {
    let mut seen = Vec::new();
    process
        .rlimits()
        .iter()
        .flatten()
        .map(|limit| {
            let name = limit.typ().to_string();
            if seen.contains(&name) {
                return Err(Error::spec("process.rlimits", format!("{name} stands there twice")));
            }
            seen.push(name.clone());
            if limit.soft() > limit.hard() {
                return Err(Error::spec("process.rlimits", format!("{name}: the soft limit exceeds the hard one")));
            }
            let value = |n: u64| (n != u64::MAX).then_some(n); // RLIM_INFINITY
            let limit_values = Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) };
            Ok(Step::Limit { resource: resource(limit.typ()), limit: limit_values, name })
        })
        .collect()
}

fn resource(limit: PosixRlimitType) -> Resource {
    match limit {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

pub(crate) fn credentials(process: &Process) -> Credentials {
    let user = process.user();
    Credentials {
        uid: Uid::from_raw(user.uid()),
        gid: Gid::from_raw(user.gid()),
        groups: user.additional_gids().iter().flatten().copied().map(Gid::from_raw).collect(),
    }
}

/// The bounding set is given up first, the rest after the user has changed.
pub(crate) struct AllCapabilities {
    pub(crate) bounding: CapabilitySet,
    pub(crate) rest: Capabilities,
}

/// A process whose specification names no capabilities has none.
pub(crate) fn capabilities(process: &Process) -> Result<AllCapabilities, Error> {
    let set = |capabilities: Option<&std::collections::HashSet<Capability>>| {
        capabilities.into_iter().flatten().fold(CapabilitySet::empty(), |set, capability| set | bit(*capability))
    };
    let Some(asked) = process.capabilities() else {
        let sets = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        let rest = Capabilities { sets, ambient: CapabilitySet::empty() };
        return Ok(AllCapabilities { bounding: CapabilitySet::empty(), rest });
    };
    let sets = CapabilitySets {
        effective: set(asked.effective().as_ref()),
        permitted: set(asked.permitted().as_ref()),
        inheritable: set(asked.inheritable().as_ref()),
    };
    let ambient = set(asked.ambient().as_ref());
    if !sets.permitted.contains(sets.effective) {
        return Err(Error::spec("process.capabilities.effective", "has what the permitted set has not"));
    }
    // A capability is ambient only while it is permitted and inheritable (capabilities(7)).
    let ambient = ambient & sets.permitted & sets.inheritable;
    Ok(AllCapabilities { bounding: set(asked.bounding().as_ref()), rest: Capabilities { sets, ambient } })
}

/// Bit numbers of linux/capability.h.
fn bit(capability: Capability) -> CapabilitySet {
    let number = match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    };
    CapabilitySet::from_bits_retain(1 << number)
}
