//! `process.capabilities`.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, Process};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::Error;
use crate::step::Capabilities;

/// The bounding set is given up first, the rest after the user has changed.
pub(super) struct AllCapabilities {
    pub(super) bounding: CapabilitySet,
    pub(super) rest: Capabilities,
}

/// A process whose specification names no capabilities has none.
pub(super) fn of(process: &Process) -> Result<AllCapabilities, Error> {
    let set = |capabilities: Option<&HashSet<Capability>>| {
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
