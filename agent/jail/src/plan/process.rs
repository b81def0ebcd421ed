//! `process`: program, environment, limits, user and capabilities.

use std::collections::HashSet;
use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    PosixRlimitType, Process,
};
use rustix::fs::{Gid, Uid};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CpuSet, ThreadNameSpaceType};

use nacre_sys::exec::StringArray;
use nacre_sys::process::Scheduling;

use super::c_string;
use super::namespaces::Namespaces;
use crate::error::Error;
use crate::step::{Credentials, Step, home};

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
    let user = process.user();
    let ids = [user.uid(), user.gid()].into_iter().chain(user.additional_gids().iter().flatten().copied());
    ids.into_iter().try_for_each(|id| check_id("process.user", id))?;
    cwd(process)?;
    limits(process)?;
    scheduler(process)?;
    io_priority(process)?;
    process.oom_score_adj().map(oom_score).transpose().map(drop)
}

/// -1 is no user or group: to system calls it means that what there is stays, which is root.
pub(super) fn check_id(property: &str, id: u32) -> Result<(), Error> {
    match id {
        u32::MAX => Err(Error::spec(property, format!("{id} is no id"))),
        _ => Ok(()),
    }
}

pub(crate) fn argv(process: &Process) -> Result<Vec<CString>, Error> {
    process.args().iter().flatten().map(|arg| c_string("process.args", arg)).collect()
}

/// The environment. HOME is filled in by the child if it is not there, or empty.
pub(crate) fn envp(process: &Process) -> Result<StringArray, Error> {
    let has_home = has_home(process);
    let variables = environment(process).filter(|variable| has_home || name_of(variable) != "HOME");
    let mut strings = variables.map(|variable| c_string("process.env", variable)).collect::<Result<Vec<_>, Error>>()?;
    strings.reverse();
    Ok(match has_home {
        true => StringArray::new(strings),
        false => StringArray::with_room(strings, "HOME=".len() + home::LONGEST),
    })
}

/// Whether its specification says where the user's home is.
pub(crate) fn has_home(process: &Process) -> bool {
    environment(process).any(|variable| variable.strip_prefix("HOME=").is_some_and(|home| !home.is_empty()))
}

/// The variables, last first. Of two with the same name the later counts, as whoever appends one expects; programs take the first.
fn environment(process: &Process) -> impl Iterator<Item = &str> {
    let mut names = HashSet::new();
    let all = process.env().iter().flatten().map(String::as_str);
    all.rev().filter(move |variable| names.insert(name_of(variable)))
}

fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
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

/// Only what belongs to a namespace of the container's own can be set for it.
pub(crate) fn sysctl(key: &str, value: &str, namespaces: &Namespaces) -> Result<Step, Error> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let property = format!("linux.sysctl.{key:?}");
    let name = key.replace('/', ".");
    let (kind, what) = if IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.") {
        (ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION, "an IPC")
    } else if name.starts_with("net.") {
        (ThreadNameSpaceType::NETWORK, "a network")
    } else if name == "kernel.domainname" || name == "kernel.hostname" {
        (ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME, "a UTS")
    } else {
        return Err(Error::spec(property, "does not belong to a namespace"));
    };
    if !namespaces.has(kind) {
        return Err(Error::spec(property, format!("needs {what} namespace of the container's own")));
    }
    // Names are parted by dots or by slashes, whichever comes first; the other stands for itself then (sysctl(8)).
    let swapped = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let path: String = match key.find(['.', '/']).and_then(|at| key.get(at..=at)) {
        Some("/") => key.into(),
        _ => key.chars().map(swapped).collect(),
    };
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

/// The scheduler's policy and its numbers (sched_setattr(2)).
pub(crate) fn scheduler(process: &Process) -> Result<Option<Step>, Error> {
    let Some(asked) = process.scheduler() else { return Ok(None) };
    let policy = match asked.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(Error::Unsupported { property: "process.scheduler.policy SCHED_ISO".into() });
        }
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let nice = asked.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(Error::spec("process.scheduler.nice", format!("{nice} is not between -20 and 19")));
    }
    let priority = asked.priority().unwrap_or(0);
    let priority = u32::try_from(priority).ok().filter(|priority| *priority <= 99);
    Ok(Some(Step::Schedule(Scheduling {
        policy: policy as u32,
        flags: asked.flags().iter().flatten().map(flag).sum(),
        nice,
        priority: priority.ok_or_else(|| Error::spec("process.scheduler.priority", "is not between 0 and 99"))?,
        runtime: asked.runtime().unwrap_or(0),
        deadline: asked.deadline().unwrap_or(0),
        period: asked.period().unwrap_or(0),
    })))
}

/// The class and level of block I/O (ioprio_set(2)).
pub(crate) fn io_priority(process: &Process) -> Result<Option<Step>, Error> {
    let Some(asked) = process.io_priority() else { return Ok(None) };
    let class = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u8::try_from(asked.priority()).ok().filter(|level| *level <= 7);
    let level = level.ok_or_else(|| Error::spec("process.ioPriority.priority", "is not between 0 and 7"))?;
    Ok(Some(Step::IoPriority { class, level }))
}

/// Which of the two sets of processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Affinity {
    /// Before the process enters its cgroup.
    Initial,
    /// After.
    Final,
}

/// `process.execCPUAffinity`: a list of processors, `0-3,7`.
pub(crate) fn affinity(process: &Process, which: Affinity) -> Result<Option<Step>, Error> {
    let Some(asked) = process.exec_cpu_affinity() else { return Ok(None) };
    let (property, list) = match which {
        Affinity::Initial => ("process.execCPUAffinity.initial", asked.initial()),
        Affinity::Final => ("process.execCPUAffinity.final", asked.cpu_affinity_final()),
    };
    let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else { return Ok(None) };
    let number = |text: &str| text.trim().parse().ok().filter(|cpu| *cpu < CpuSet::MAX_CPU);
    let mut cpus = CpuSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(Error::spec(property, format!("{list:?} is no list of processors")));
        };
        (first..=last).for_each(|cpu| cpus.set(cpu));
    }
    Ok(Some(Step::Affinity(cpus)))
}

/// `linux.personality` (personality(2)).
pub(crate) fn personality(asked: &LinuxPersonality) -> Result<u64, Error> {
    if asked.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Error::spec("linux.personality.flags", "the specification defines none"));
    }
    Ok(match asked.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// Where the kernel takes the label of the next program. It must be opened while /proc is the runtime's own (CVE-2019-16884).
pub(crate) fn open_label(process: &Process) -> Result<Option<Step>, Error> {
    let file = match (given(process.apparmor_profile()), given(process.selinux_label())) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(Error::spec("process.selinuxLabel", "and process.apparmorProfile can't both be set"));
        }
        (Some(_), None) => c"/proc/self/attr/apparmor/exec",
        (None, Some(_)) => c"/proc/self/attr/exec",
    };
    Ok(Some(Step::OpenLabel { file: file.into() }))
}

/// The label itself.
pub(crate) fn label(process: &Process) -> Result<Option<Step>, Error> {
    let value = match (given(process.apparmor_profile()), given(process.selinux_label())) {
        (Some(profile), _) => c_string("process.apparmorProfile", &format!("exec {profile}"))?,
        (None, Some(label)) => c_string("process.selinuxLabel", label)?,
        (None, None) => return Ok(None),
    };
    Ok(Some(Step::Label { value }))
}

/// `linux.mountLabel`: the SELinux context of new file systems.
pub(crate) fn mount_label(linux: &Linux) -> Result<Option<CString>, Error> {
    given(linux.mount_label()).map(|label| c_string("linux.mountLabel", label)).transpose()
}
