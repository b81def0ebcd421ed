//! The wire's OCI messages to and from the runtime specification's types.
//!
//! The specification's JSON is the common ground: a message becomes the JSON that a `config.json` would hold, and `oci_spec` reads it, so
//! an unknown name (a namespace, a seccomp action, a capability) is refused with the path to it instead of being dropped. Proto3 has no
//! "absent" for numbers: zero means absent wherever zero makes no sense, and −1 keeps its meaning of "no limit".

use oci_spec::runtime;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::oci;

mod from_oci;

pub use from_oci::{process_from_oci, resources_from_oci, spec_from_oci};

/// A message that does not describe what it should.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct ConvertError {
    /// `spec`, `process` or `resources`.
    what: &'static str,
    reason: String,
}

/// The specification of a container.
///
/// # Errors
/// A name that the OCI runtime specification does not know, or a number out of its range.
pub fn spec_to_oci(spec: &oci::Spec) -> Result<runtime::Spec, ConvertError> {
    read("spec", spec_json(spec))
}

/// The specification of a process.
///
/// # Errors
/// As [`spec_to_oci`].
pub fn process_to_oci(process: &oci::Process) -> Result<runtime::Process, ConvertError> {
    read("process", process_json(process))
}

/// Resource limits.
///
/// # Errors
/// As [`spec_to_oci`].
pub fn resources_to_oci(resources: &oci::LinuxResources) -> Result<runtime::LinuxResources, ConvertError> {
    read("resources", resources_json(resources))
}

fn read<T: DeserializeOwned>(what: &'static str, value: Value) -> Result<T, ConvertError> {
    serde_path_to_error::deserialize(value).map_err(|error| ConvertError { what, reason: error.to_string() })
}

/// An object without its nulls.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let present = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(present.map(|(key, value)| (key.to_string(), value)).collect())
}

fn text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

fn number<T: Into<Value> + Default + PartialEq>(number: T) -> Value {
    if number == T::default() { Value::Null } else { number.into() }
}

fn flag(flag: bool) -> Value {
    if flag { true.into() } else { Value::Null }
}

fn texts(texts: &[String]) -> Value {
    if texts.is_empty() { Value::Null } else { texts.into() }
}

fn list<T>(items: &[T], each: impl Fn(&T) -> Value) -> Value {
    if items.is_empty() { Value::Null } else { items.iter().map(each).collect() }
}

fn message<T>(message: &protobuf::MessageField<T>, json: impl Fn(&T) -> Value) -> Value {
    message.as_ref().map_or(Value::Null, json)
}

fn map(map: &std::collections::HashMap<String, String>) -> Value {
    if map.is_empty() {
        return Value::Null;
    }
    map.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect::<Map<_, _>>().into()
}

fn spec_json(spec: &oci::Spec) -> Value {
    object([
        ("ociVersion", if spec.Version.is_empty() { "1.2.0".into() } else { text(&spec.Version) }),
        ("process", message(&spec.Process, process_json)),
        ("root", message(&spec.Root, |root| json!({ "path": root.Path, "readonly": root.Readonly }))),
        ("hostname", text(&spec.Hostname)),
        ("mounts", list(&spec.Mounts, mount_json)),
        ("hooks", message(&spec.Hooks, hooks_json)),
        ("annotations", map(&spec.Annotations)),
        ("linux", message(&spec.Linux, linux_json)),
    ])
}

fn process_json(process: &oci::Process) -> Value {
    object([
        ("terminal", process.Terminal.into()),
        ("consoleSize", message(&process.ConsoleSize, |size| json!({ "height": size.Height, "width": size.Width }))),
        ("user", process.User.as_ref().map_or_else(|| json!({ "uid": 0, "gid": 0 }), user_json)),
        ("args", texts(&process.Args)),
        ("env", texts(&process.Env)),
        ("cwd", if process.Cwd.is_empty() { "/".into() } else { text(&process.Cwd) }),
        ("capabilities", message(&process.Capabilities, capabilities_json)),
        (
            "rlimits",
            list(&process.Rlimits, |limit| json!({ "type": limit.Type, "hard": limit.Hard, "soft": limit.Soft })),
        ),
        ("noNewPrivileges", flag(process.NoNewPrivileges)),
        ("apparmorProfile", text(&process.ApparmorProfile)),
        // Without one it would have the agent's.
        ("oomScoreAdj", process.OOMScoreAdj.into()),
        ("selinuxLabel", text(&process.SelinuxLabel)),
    ])
}

fn user_json(user: &oci::User) -> Value {
    object([
        ("uid", user.UID.into()),
        ("gid", user.GID.into()),
        ("additionalGids", list(&user.AdditionalGids, |gid| (*gid).into())),
        ("username", text(&user.Username)),
    ])
}

fn capabilities_json(capabilities: &oci::LinuxCapabilities) -> Value {
    json!({
        "bounding": capabilities.Bounding,
        "effective": capabilities.Effective,
        "inheritable": capabilities.Inheritable,
        "permitted": capabilities.Permitted,
        "ambient": capabilities.Ambient,
    })
}

fn mount_json(mount: &oci::Mount) -> Value {
    object([
        ("destination", mount.destination.as_str().into()),
        ("source", text(&mount.source)),
        ("type", text(&mount.type_)),
        ("options", texts(&mount.options)),
    ])
}

fn hooks_json(hooks: &oci::Hooks) -> Value {
    let each = |hooks: &[oci::Hook]| {
        list(hooks, |hook| {
            object([
                ("path", hook.Path.as_str().into()),
                ("args", texts(&hook.Args)),
                ("env", texts(&hook.Env)),
                ("timeout", number(hook.Timeout)),
            ])
        })
    };
    object([
        ("prestart", each(&hooks.Prestart)),
        ("createRuntime", each(&hooks.CreateRuntime)),
        ("createContainer", each(&hooks.CreateContainer)),
        ("startContainer", each(&hooks.StartContainer)),
        ("poststart", each(&hooks.Poststart)),
        ("poststop", each(&hooks.Poststop)),
    ])
}

fn linux_json(linux: &oci::Linux) -> Value {
    let mappings = |mappings: &[oci::LinuxIDMapping]| {
        list(mappings, |m| json!({ "hostID": m.HostID, "containerID": m.ContainerID, "size": m.Size }))
    };
    object([
        ("uidMappings", mappings(&linux.UIDMappings)),
        ("gidMappings", mappings(&linux.GIDMappings)),
        ("sysctl", map(&linux.Sysctl)),
        ("resources", message(&linux.Resources, resources_json)),
        ("cgroupsPath", text(&linux.CgroupsPath)),
        (
            "namespaces",
            list(&linux.Namespaces, |ns| object([("type", ns.Type.as_str().into()), ("path", text(&ns.Path))])),
        ),
        ("devices", list(&linux.Devices, device_json)),
        ("seccomp", message(&linux.Seccomp, seccomp_json)),
        ("rootfsPropagation", text(&linux.RootfsPropagation)),
        ("maskedPaths", texts(&linux.MaskedPaths)),
        ("readonlyPaths", texts(&linux.ReadonlyPaths)),
        ("mountLabel", text(&linux.MountLabel)),
        ("intelRdt", message(&linux.IntelRdt, |rdt| json!({ "l3CacheSchema": rdt.L3CacheSchema }))),
    ])
}

fn device_json(device: &oci::LinuxDevice) -> Value {
    object([
        ("path", device.Path.as_str().into()),
        ("type", device.Type.as_str().into()),
        ("major", device.Major.into()),
        ("minor", device.Minor.into()),
        ("fileMode", number(device.FileMode)),
        ("uid", device.UID.into()),
        ("gid", device.GID.into()),
    ])
}

fn seccomp_json(seccomp: &oci::LinuxSeccomp) -> Value {
    let arg = |arg: &oci::LinuxSeccompArg| json!({ "index": arg.Index, "value": arg.Value, "valueTwo": arg.ValueTwo, "op": arg.Op });
    let syscall = |call: &oci::LinuxSyscall| {
        object([
            ("names", call.Names.as_slice().into()),
            ("action", call.Action.as_str().into()),
            ("errnoRet", number(call.errnoret)), // 0 would make a refused call succeed
            ("args", list(&call.Args, arg)),
        ])
    };
    object([
        ("defaultAction", seccomp.DefaultAction.as_str().into()),
        ("architectures", texts(&seccomp.Architectures)),
        ("flags", texts(&seccomp.Flags)),
        ("syscalls", list(&seccomp.Syscalls, syscall)),
    ])
}

fn resources_json(resources: &oci::LinuxResources) -> Value {
    object([
        ("devices", list(&resources.Devices, device_cgroup_json)),
        ("memory", message(&resources.Memory, memory_json)),
        ("cpu", message(&resources.CPU, cpu_json)),
        ("pids", message(&resources.Pids, |pids| json!({ "limit": pids.Limit }))),
        ("blockIO", message(&resources.BlockIO, block_io_json)),
        (
            "hugepageLimits",
            list(&resources.HugepageLimits, |limit| json!({ "pageSize": limit.Pagesize, "limit": limit.Limit })),
        ),
        ("network", message(&resources.Network, network_json)),
    ])
}

/// A rule's major number 0 (the kernel gives it to no device) and negative numbers stand for "any".
fn device_cgroup_json(rule: &oci::LinuxDeviceCgroup) -> Value {
    let any_major = rule.Major <= 0;
    let any_minor = rule.Minor < 0 || (any_major && rule.Minor == 0);
    object([
        ("allow", rule.Allow.into()),
        ("type", text(&rule.Type)),
        ("major", if any_major { Value::Null } else { rule.Major.into() }),
        ("minor", if any_minor { Value::Null } else { rule.Minor.into() }),
        ("access", text(&rule.Access)),
    ])
}

fn memory_json(memory: &oci::LinuxMemory) -> Value {
    object([
        ("limit", number(memory.Limit)),
        ("reservation", number(memory.Reservation)),
        ("swap", number(memory.Swap)),
        ("kernel", number(memory.Kernel)),
        ("kernelTCP", number(memory.KernelTCP)),
        ("swappiness", number(memory.Swappiness)),
        ("disableOOMKiller", flag(memory.DisableOOMKiller)),
    ])
}

fn cpu_json(cpu: &oci::LinuxCPU) -> Value {
    object([
        ("shares", number(cpu.Shares)),
        ("quota", number(cpu.Quota)),
        ("period", number(cpu.Period)),
        ("realtimeRuntime", number(cpu.RealtimeRuntime)),
        ("realtimePeriod", number(cpu.RealtimePeriod)),
        ("cpus", text(&cpu.Cpus)),
        ("mems", text(&cpu.Mems)),
    ])
}

fn block_io_json(io: &oci::LinuxBlockIO) -> Value {
    let throttle = |devices: &[oci::LinuxThrottleDevice]| {
        list(devices, |d| json!({ "major": d.Major, "minor": d.Minor, "rate": d.Rate }))
    };
    let weight = |d: &oci::LinuxWeightDevice| {
        object([
            ("major", d.Major.into()),
            ("minor", d.Minor.into()),
            ("weight", number(d.Weight)),
            ("leafWeight", number(d.LeafWeight)),
        ])
    };
    object([
        ("weight", number(io.Weight)),
        ("leafWeight", number(io.LeafWeight)),
        ("weightDevice", list(&io.WeightDevice, weight)),
        ("throttleReadBpsDevice", throttle(&io.ThrottleReadBpsDevice)),
        ("throttleWriteBpsDevice", throttle(&io.ThrottleWriteBpsDevice)),
        ("throttleReadIOPSDevice", throttle(&io.ThrottleReadIOPSDevice)),
        ("throttleWriteIOPSDevice", throttle(&io.ThrottleWriteIOPSDevice)),
    ])
}

fn network_json(network: &oci::LinuxNetwork) -> Value {
    object([
        ("classID", number(network.ClassID)),
        ("priorities", list(&network.Priorities, |p| json!({ "name": p.Name, "priority": p.Priority }))),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> oci::Spec {
        let seccomp = oci::LinuxSeccomp {
            DefaultAction: "SCMP_ACT_ERRNO".into(),
            Architectures: vec!["SCMP_ARCH_X86_64".into()],
            Syscalls: vec![oci::LinuxSyscall {
                Names: vec!["read".into()],
                Action: "SCMP_ACT_ALLOW".into(),
                Args: vec![oci::LinuxSeccompArg { Index: 1, Value: 2, Op: "SCMP_CMP_EQ".into(), ..Default::default() }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let resources = oci::LinuxResources {
            Devices: vec![
                oci::LinuxDeviceCgroup { Allow: false, Access: "rwm".into(), ..Default::default() },
                oci::LinuxDeviceCgroup {
                    Allow: true,
                    Type: "c".into(),
                    Major: 5,
                    Access: "rw".into(),
                    ..Default::default()
                },
            ],
            Memory: Some(oci::LinuxMemory { Limit: -1, Swap: 4096, ..Default::default() }).into(),
            CPU: Some(oci::LinuxCPU { Quota: -1, Period: 100_000, Cpus: "0-1".into(), ..Default::default() }).into(),
            Pids: Some(oci::LinuxPids { Limit: 7, ..Default::default() }).into(),
            ..Default::default()
        };
        let linux = oci::Linux {
            Namespaces: vec![oci::LinuxNamespace { Type: "mount".into(), ..Default::default() }],
            Resources: Some(resources).into(),
            Seccomp: Some(seccomp).into(),
            MaskedPaths: vec!["/proc/keys".into()],
            CgroupsPath: "/a/b".into(),
            ..Default::default()
        };
        let process = oci::Process {
            Args: vec!["true".into()],
            Cwd: "/w".into(),
            User: Some(oci::User { UID: 5, GID: 6, AdditionalGids: vec![7], ..Default::default() }).into(),
            Rlimits: vec![oci::POSIXRlimit { Type: "RLIMIT_NOFILE".into(), Hard: 2, Soft: 1, ..Default::default() }],
            Capabilities: Some(oci::LinuxCapabilities { Bounding: vec!["CAP_KILL".into()], ..Default::default() })
                .into(),
            NoNewPrivileges: true,
            OOMScoreAdj: -5,
            ..Default::default()
        };
        oci::Spec {
            Version: "1.1.0".into(),
            Process: Some(process).into(),
            Root: Some(oci::Root { Path: "rootfs".into(), Readonly: true, ..Default::default() }).into(),
            Mounts: vec![oci::Mount {
                destination: "/proc".into(),
                type_: "proc".into(),
                source: "proc".into(),
                options: vec!["nosuid".into()],
                ..Default::default()
            }],
            Annotations: [("a".to_string(), "b".to_string())].into(),
            Linux: Some(linux).into(),
            ..Default::default()
        }
    }

    #[test]
    fn no_limit_stays_no_limit_and_absent_stays_absent() {
        let spec = spec_to_oci(&filled()).unwrap();
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        let memory = resources.memory().as_ref().unwrap();
        assert_eq!((memory.limit(), memory.swap(), memory.reservation()), (Some(-1), Some(4096), None));
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.quota(), cpu.period(), cpu.shares()), (Some(-1), Some(100_000), None));
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 7);
        let rules = resources.devices().as_ref().unwrap();
        assert_eq!((rules[0].major(), rules[0].minor()), (None, None));
        assert_eq!((rules[1].major(), rules[1].minor()), (Some(5), Some(0)));
    }

    #[test]
    fn a_refused_system_call_does_not_come_to_succeed() {
        let mut spec = filled();
        let linux = spec.Linux.as_mut().unwrap();
        linux.Seccomp.as_mut().unwrap().Syscalls[0].Action = "SCMP_ACT_ERRNO".into();
        let seccomp = spec_to_oci(&spec).unwrap().linux().as_ref().unwrap().seccomp().clone().unwrap();
        assert_eq!(seccomp.syscalls().as_ref().unwrap()[0].errno_ret(), None);
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_path() {
        let mut spec = filled();
        spec.Linux.as_mut().unwrap().Namespaces[0].Type = "dream".into();
        let error = spec_to_oci(&spec).unwrap_err().to_string();
        assert!(error.starts_with("spec: linux.namespaces[0].type: ") && error.contains("dream"), "{error}");
        let mut process = filled().Process.unwrap();
        process.Rlimits[0].Type = "RLIMIT_FUN".into();
        let error = process_to_oci(&process).unwrap_err().to_string();
        assert!(error.contains("rlimits[0]") && error.contains("RLIMIT_FUN"), "{error}");
    }

    #[test]
    fn a_spec_goes_there_and_back_unchanged() {
        let there = spec_to_oci(&filled()).unwrap();
        assert_eq!(spec_from_oci(&there).unwrap(), filled());
    }

    #[test]
    fn an_empty_spec_is_a_spec() {
        let spec = spec_to_oci(&oci::Spec::new()).unwrap();
        assert!(spec.process().is_none() && spec.linux().is_none());
    }
}
