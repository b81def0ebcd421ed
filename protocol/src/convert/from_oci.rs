//! From the runtime specification's JSON to the wire's messages. What the wire has no field for stays behind.

use std::collections::HashMap;

use oci_spec::runtime;
use protobuf::MessageField;
use serde::Deserialize;
use serde_json::Value;

use super::ConvertError;
use crate::oci;

/// The specification of a container, as a message.
///
/// # Errors
/// A specification that can't be written as JSON.
pub fn spec_from_oci(spec: &runtime::Spec) -> Result<oci::Spec, ConvertError> {
    Ok(spec_of(&Node(&json("spec", spec)?)))
}

/// The specification of a process, as a message.
///
/// # Errors
/// As [`spec_from_oci`].
pub fn process_from_oci(process: &runtime::Process) -> Result<oci::Process, ConvertError> {
    Ok(process_of(&Node(&json("process", process)?)))
}

/// Resource limits, as a message.
///
/// # Errors
/// As [`spec_from_oci`].
pub fn resources_from_oci(resources: &runtime::LinuxResources) -> Result<oci::LinuxResources, ConvertError> {
    Ok(resources_of(&Node(&json("resources", resources)?)))
}

fn json(what: &'static str, value: &impl serde::Serialize) -> Result<Value, ConvertError> {
    serde_json::to_value(value).map_err(|error| ConvertError { what, reason: error.to_string() })
}

/// A place in the JSON; what is absent reads as the default, as proto3 has it.
struct Node<'a>(&'a Value);

impl Node<'_> {
    fn get<T: Default + for<'de> Deserialize<'de>>(&self, key: &str) -> T {
        self.0.get(key).and_then(|value| T::deserialize(value).ok()).unwrap_or_default()
    }

    fn text(&self, key: &str) -> String {
        self.get(key)
    }

    fn texts(&self, key: &str) -> Vec<String> {
        self.get(key)
    }

    fn list<T>(&self, key: &str, each: impl Fn(&Node<'_>) -> T) -> Vec<T> {
        self.0.get(key).and_then(Value::as_array).into_iter().flatten().map(|value| each(&Node(value))).collect()
    }

    fn message<T>(&self, key: &str, read: impl Fn(&Node<'_>) -> T) -> MessageField<T> {
        self.0.get(key).filter(|value| !value.is_null()).map(|value| read(&Node(value))).into()
    }
}

fn spec_of(node: &Node<'_>) -> oci::Spec {
    oci::Spec {
        Version: node.text("ociVersion"),
        Process: node.message("process", process_of),
        Root: node.message("root", |n| oci::Root {
            Path: n.text("path"),
            Readonly: n.get("readonly"),
            ..Default::default()
        }),
        Hostname: node.text("hostname"),
        Mounts: node.list("mounts", |n| oci::Mount {
            destination: n.text("destination"),
            source: n.text("source"),
            type_: n.text("type"),
            options: n.texts("options"),
            ..Default::default()
        }),
        Hooks: node.message("hooks", |n| oci::Hooks {
            Prestart: n.list("prestart", hook_of),
            Poststart: n.list("poststart", hook_of),
            Poststop: n.list("poststop", hook_of),
            CreateRuntime: n.list("createRuntime", hook_of),
            CreateContainer: n.list("createContainer", hook_of),
            StartContainer: n.list("startContainer", hook_of),
            ..Default::default()
        }),
        Annotations: node.get::<HashMap<String, String>>("annotations"),
        Linux: node.message("linux", linux_of),
        ..Default::default()
    }
}

fn hook_of(node: &Node<'_>) -> oci::Hook {
    oci::Hook {
        Path: node.text("path"),
        Args: node.texts("args"),
        Env: node.texts("env"),
        Timeout: node.get("timeout"),
        ..Default::default()
    }
}

fn process_of(node: &Node<'_>) -> oci::Process {
    oci::Process {
        Terminal: node.get("terminal"),
        ConsoleSize: node.message("consoleSize", |n| oci::Box {
            Height: n.get("height"),
            Width: n.get("width"),
            ..Default::default()
        }),
        User: node.message("user", |n| oci::User {
            UID: n.get("uid"),
            GID: n.get("gid"),
            AdditionalGids: n.get("additionalGids"),
            Username: n.text("username"),
            ..Default::default()
        }),
        Args: node.texts("args"),
        Env: node.texts("env"),
        Cwd: node.text("cwd"),
        Capabilities: node.message("capabilities", |n| oci::LinuxCapabilities {
            Bounding: n.texts("bounding"),
            Effective: n.texts("effective"),
            Inheritable: n.texts("inheritable"),
            Permitted: n.texts("permitted"),
            Ambient: n.texts("ambient"),
            ..Default::default()
        }),
        Rlimits: node.list("rlimits", |n| oci::POSIXRlimit {
            Type: n.text("type"),
            Hard: n.get("hard"),
            Soft: n.get("soft"),
            ..Default::default()
        }),
        NoNewPrivileges: node.get("noNewPrivileges"),
        ApparmorProfile: node.text("apparmorProfile"),
        OOMScoreAdj: node.get("oomScoreAdj"),
        SelinuxLabel: node.text("selinuxLabel"),
        ..Default::default()
    }
}

fn linux_of(node: &Node<'_>) -> oci::Linux {
    let mapping = |n: &Node<'_>| oci::LinuxIDMapping {
        HostID: n.get("hostID"),
        ContainerID: n.get("containerID"),
        Size: n.get("size"),
        ..Default::default()
    };
    oci::Linux {
        UIDMappings: node.list("uidMappings", mapping),
        GIDMappings: node.list("gidMappings", mapping),
        Sysctl: node.get::<HashMap<String, String>>("sysctl"),
        Resources: node.message("resources", resources_of),
        CgroupsPath: node.text("cgroupsPath"),
        Namespaces: node.list("namespaces", |n| oci::LinuxNamespace {
            Type: n.text("type"),
            Path: n.text("path"),
            ..Default::default()
        }),
        Devices: node.list("devices", |n| oci::LinuxDevice {
            Path: n.text("path"),
            Type: n.text("type"),
            Major: n.get("major"),
            Minor: n.get("minor"),
            FileMode: n.get("fileMode"),
            UID: n.get("uid"),
            GID: n.get("gid"),
            ..Default::default()
        }),
        Seccomp: node.message("seccomp", seccomp_of),
        RootfsPropagation: node.text("rootfsPropagation"),
        MaskedPaths: node.texts("maskedPaths"),
        ReadonlyPaths: node.texts("readonlyPaths"),
        MountLabel: node.text("mountLabel"),
        IntelRdt: node.message("intelRdt", |n| oci::LinuxIntelRdt {
            L3CacheSchema: n.text("l3CacheSchema"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn seccomp_of(node: &Node<'_>) -> oci::LinuxSeccomp {
    oci::LinuxSeccomp {
        DefaultAction: node.text("defaultAction"),
        Architectures: node.texts("architectures"),
        Flags: node.texts("flags"),
        Syscalls: node.list("syscalls", |n| oci::LinuxSyscall {
            Names: n.texts("names"),
            Action: n.text("action"),
            errnoret: n.get("errnoRet"),
            Args: n.list("args", |n| oci::LinuxSeccompArg {
                Index: n.get("index"),
                Value: n.get("value"),
                ValueTwo: n.get("valueTwo"),
                Op: n.text("op"),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn resources_of(node: &Node<'_>) -> oci::LinuxResources {
    oci::LinuxResources {
        Devices: node.list("devices", |n| oci::LinuxDeviceCgroup {
            Allow: n.get("allow"),
            Type: n.text("type"),
            Major: n.get("major"),
            Minor: n.get("minor"),
            Access: n.text("access"),
            ..Default::default()
        }),
        Memory: node.message("memory", |n| oci::LinuxMemory {
            Limit: n.get("limit"),
            Reservation: n.get("reservation"),
            Swap: n.get("swap"),
            Kernel: n.get("kernel"),
            KernelTCP: n.get("kernelTCP"),
            Swappiness: n.get("swappiness"),
            DisableOOMKiller: n.get("disableOOMKiller"),
            ..Default::default()
        }),
        CPU: node.message("cpu", |n| oci::LinuxCPU {
            Shares: n.get("shares"),
            Quota: n.get("quota"),
            Period: n.get("period"),
            RealtimeRuntime: n.get("realtimeRuntime"),
            RealtimePeriod: n.get("realtimePeriod"),
            Cpus: n.text("cpus"),
            Mems: n.text("mems"),
            ..Default::default()
        }),
        Pids: node.message("pids", |n| oci::LinuxPids { Limit: n.get("limit"), ..Default::default() }),
        BlockIO: node.message("blockIO", block_io_of),
        HugepageLimits: node.list("hugepageLimits", |n| oci::LinuxHugepageLimit {
            Pagesize: n.text("pageSize"),
            Limit: n.get("limit"),
            ..Default::default()
        }),
        Network: node.message("network", |n| oci::LinuxNetwork {
            ClassID: n.get("classID"),
            Priorities: n.list("priorities", |n| oci::LinuxInterfacePriority {
                Name: n.text("name"),
                Priority: n.get("priority"),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn block_io_of(node: &Node<'_>) -> oci::LinuxBlockIO {
    let throttle = |n: &Node<'_>| oci::LinuxThrottleDevice {
        Major: n.get("major"),
        Minor: n.get("minor"),
        Rate: n.get("rate"),
        ..Default::default()
    };
    oci::LinuxBlockIO {
        Weight: node.get("weight"),
        LeafWeight: node.get("leafWeight"),
        WeightDevice: node.list("weightDevice", |n| oci::LinuxWeightDevice {
            Major: n.get("major"),
            Minor: n.get("minor"),
            Weight: n.get("weight"),
            LeafWeight: n.get("leafWeight"),
            ..Default::default()
        }),
        ThrottleReadBpsDevice: node.list("throttleReadBpsDevice", throttle),
        ThrottleWriteBpsDevice: node.list("throttleWriteBpsDevice", throttle),
        ThrottleReadIOPSDevice: node.list("throttleReadIOPSDevice", throttle),
        ThrottleWriteIOPSDevice: node.list("throttleWriteIOPSDevice", throttle),
        ..Default::default()
    }
}
