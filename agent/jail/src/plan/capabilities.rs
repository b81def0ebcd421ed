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
