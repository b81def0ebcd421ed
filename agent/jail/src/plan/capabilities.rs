//! `process.capabilities`. What can't be granted is left out and told, not refused (config.md, "Linux Process").

use std::collections::HashSet;

use oci_spec::runtime::{Capability, Process};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What a process has when its program starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    /// Given up first, while one still may.
    pub(super) bounding: CapabilitySet,
    pub(super) sets: CapabilitySets,
    pub(super) ambient: CapabilitySet,
}

/// All that the caller may grant: what it has itself and, in a user namespace, everything.
pub(super) fn grantable(in_user_namespace: bool) -> CapabilitySet {
    if in_user_namespace {
        return CapabilitySet::all();
    }
    rustix::thread::capabilities(None).map_or(CapabilitySet::all(), |own| own.permitted)
}

/// The capabilities of `process`, and a line for each that is left out. A process whose specification names none has none.
pub(super) fn of(process: &Process, grantable: CapabilitySet) -> (Capabilities, Vec<String>) {
    let mut warnings = Vec::new();
    let asked = process.capabilities().as_ref();
    let mut set = |name: &str, names: Option<&HashSet<Capability>>, within: CapabilitySet, why: &str| {
        let names = names.into_iter().flatten();
        let asked = names.fold(CapabilitySet::empty(), |set, capability| set | bit(*capability));
        for capability in ALL.iter().filter(|capability| (asked - within).contains(bit(**capability))) {
            warnings.push(format!("process.capabilities.{name}: CAP_{capability} is left out: {why}"));
        }
        asked & within
    };
    let bounding = set("bounding", asked.and_then(|a| a.bounding().as_ref()), CapabilitySet::all(), "");
    let permitted =
        set("permitted", asked.and_then(|a| a.permitted().as_ref()), grantable, "this runtime does not have it itself");
    let effective = set("effective", asked.and_then(|a| a.effective().as_ref()), permitted, "it is not permitted");
    let inheritable =
        set("inheritable", asked.and_then(|a| a.inheritable().as_ref()), bounding, "it is not in the bounding set");
    let both = permitted & inheritable;
    let ambient = set("ambient", asked.and_then(|a| a.ambient().as_ref()), both, "it is not permitted and inheritable");
    let sets = CapabilitySets { effective, permitted, inheritable };
    (Capabilities { bounding, sets, ambient }, warnings)
}

/// In the order of their numbers (linux/capability.h).
pub(super) const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

fn bit(capability: Capability) -> CapabilitySet {
    let number = ALL.iter().position(|known| *known == capability);
    number.map_or(CapabilitySet::empty(), |number| CapabilitySet::from_bits_retain(1 << number))
}
