//! The host's specification of a container, as the guest can keep it: what means something only on the host is taken out, what the host
//! has is told to be brought in ([`super::mounts`]), and what can be had by neither way is refused.

use std::path::{Path, PathBuf};

use nacre_protocol::agent::Storage;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use serde_json::{Value, json};

use super::bundle::{Bundle, Namespace};
use super::error::{Error, Result, invalid};
use super::mounts::{self, Copy, RUN};

/// The most that a container may be given in arguments and environment: a message to the guest has 4 MiB.
const MAX_WORDS: usize = 2 << 20;

/// Where Kubernetes says which file of a container's is its termination log, and which it is otherwise.
const TERMINATION_LOG: &str = "io.kubernetes.container.terminationMessagePath";
const USUAL_TERMINATION_LOG: &str = "/dev/termination-log";

/// Devices that a guest has of its own.
const OWN_DEVICES: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// A container as the guest is asked for it.
#[derive(Debug)]
pub struct Translated {
    /// Its specification.
    pub spec: Spec,
    /// What is mounted in the guest for it.
    pub storages: Vec<Storage>,
    /// What is copied into the guest before.
    pub copies: Vec<Copy>,
    /// Whether it shares the pod's processes.
    pub shares_pids: bool,
    /// The host's file that it has as its termination log.
    pub termination_log: Option<PathBuf>,
}

/// Where the guest mounts a container's image.
pub fn rootfs(id: &str) -> String {
    format!("{RUN}/{id}/rootfs")
}

/// The container `id` of `bundle`, in a pod whose sandbox has these sysctls.
///
/// # Errors
/// What a guest can't have: hooks, the host's network, block devices, writable directories of the host's.
pub fn container(id: &str, bundle: &Bundle, sandbox: &Spec, confidential: bool) -> Result<Translated> {
    check(&bundle.spec)?;
    let mut json = serde_json::to_value(&bundle.spec).map_err(|error| invalid("config.json", error))?;
    json["root"]["path"] = rootfs(id).into();
    process(&mut json["process"]);
    linux(&mut json["linux"], id);
    sysctls(&mut json["linux"], sandbox);
    let mut spec: Spec = serde_json::from_value(json).map_err(|error| invalid("config.json", error))?;
    let brought = mounts::bring(id, bundle.spec.mounts().as_deref().unwrap_or_default(), confidential)?;
    spec.set_mounts(Some(brought.mounts));
    let shares_pids = namespaces(&mut spec, bundle);
    let termination_log = termination_log(&mut spec, bundle);
    Ok(Translated { spec, storages: brought.storages, copies: brought.copies, shares_pids, termination_log })
}

/// Tells the guest which of a container's files is its termination log. Returns the host's.
fn termination_log(spec: &mut Spec, bundle: &Bundle) -> Option<PathBuf> {
    let mut annotations = bundle.annotations();
    let destination = annotations.entry(TERMINATION_LOG.into()).or_insert_with(|| USUAL_TERMINATION_LOG.into()).clone();
    let mounts = bundle.spec.mounts().as_deref().unwrap_or_default();
    let mount = mounts.iter().find(|mount| mount.destination() == Path::new(&destination))?;
    spec.set_annotations(Some(annotations));
    mount.source().clone()
}

fn check(spec: &Spec) -> Result<()> {
    let hooks = spec.hooks().as_ref().map(|hooks| serde_json::to_value(hooks).unwrap_or_default());
    let has_some = |hooks: &Value| hooks.as_object().is_some_and(|all| all.values().any(|list| list != &json!([])));
    if hooks.as_ref().is_some_and(has_some) {
        return Err(Error::Unimplemented("hooks: they are the host's, and can't run in a guest".into()));
    }
    let process = spec.process().as_ref();
    let words = [process.and_then(|p| p.args().as_ref()), process.and_then(|p| p.env().as_ref())];
    let bytes: usize = words.into_iter().flatten().flatten().map(String::len).sum();
    if bytes > MAX_WORDS {
        return Err(Error::Invalid(format!(
            "process: arguments and environment are longer than {} MiB",
            MAX_WORDS >> 20
        )));
    }
    let linux = spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
    let is_privileged = is_privileged(spec);
    for device in devices {
        let path = device.path();
        if is_privileged || OWN_DEVICES.iter().any(|own| Path::new(own) == path) {
            continue; // all of the host's are meant, and the guest's stand for them
        }
        return Err(Error::Unimplemented(format!(
            "device {}: the host's devices can't be had in a guest",
            path.display()
        )));
    }
    Ok(())
}

/// Whether the container may use any device.
fn is_privileged(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_ref()).into_iter().flatten();
    rules
        .into_iter()
        .any(|rule| rule.allow() && rule.major().is_none() && rule.minor().is_none() && rule.typ().is_none_or(is_all))
}

fn is_all(kind: oci_spec::runtime::LinuxDeviceType) -> bool {
    kind == oci_spec::runtime::LinuxDeviceType::A
}

/// Profiles of the host's kernel: the guest's has none.
fn process(process: &mut Value) {
    if let Some(process) = process.as_object_mut() {
        process.remove("apparmorProfile");
        process.remove("selinuxLabel");
    }
}

fn linux(linux: &mut Value, id: &str) {
    let Some(linux) = linux.as_object_mut() else { return };
    linux.remove("mountLabel");
    linux.remove("intelRdt");
    linux.insert("cgroupsPath".into(), format!("/nacre/{id}").into());
    if let Some(devices) = linux.get_mut("devices").and_then(Value::as_array_mut) {
        devices.retain(|device| device["path"].as_str().is_some_and(|path| OWN_DEVICES.contains(&path)));
    }
    // Its numbers are the host's.
    if let Some(cpu) =
        linux.get_mut("resources").and_then(|resources| resources.get_mut("cpu")).and_then(Value::as_object_mut)
    {
        cpu.remove("cpus");
        cpu.remove("mems");
    }
}

/// The pod's sysctls are each container's: the namespaces that they are of are the pod's, too.
fn sysctls(linux: &mut Value, sandbox: &Spec) {
    let Some(pods) = sandbox.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()) else { return };
    for (name, value) in pods {
        if linux["sysctl"].get(name).is_none() {
            linux["sysctl"][name] = value.as_str().into();
        }
    }
}

/// The kinds that the guest makes, without paths of the host's. Whether the container is to see the pod's processes: by the path of the
/// sandbox's, or where the host's were asked for, which the guest's stand for.
fn namespaces(spec: &mut Spec, bundle: &Bundle) -> bool {
    let shares_pids = matches!(bundle.namespace(LinuxNamespaceType::Pid), Namespace::At(_) | Namespace::Host);
    let Some(linux) = spec.linux_mut() else { return shares_pids };
    let all = linux.namespaces().clone().unwrap_or_default();
    let mut kept: Vec<LinuxNamespace> =
        all.into_iter().filter(|one| one.typ() != LinuxNamespaceType::Network).collect();
    for namespace in &mut kept {
        namespace.set_path(None);
    }
    if shares_pids && kept.iter().all(|namespace| namespace.typ() != LinuxNamespaceType::Pid) {
        let mut pid = LinuxNamespace::default();
        pid.set_typ(LinuxNamespaceType::Pid);
        kept.push(pid);
    }
    linux.set_namespaces(Some(kept));
    shares_pids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(linux: &Value) -> Bundle {
        let spec = json!({
            "ociVersion": "1.0.2", "root": { "path": "rootfs", "readonly": true },
            "process": { "args": ["a"], "cwd": "/", "user": { "uid": 1, "gid": 2 }, "apparmorProfile": "x", "selinuxLabel": "y" },
            "linux": linux,
        });
        Bundle { dir: "/b".into(), spec: serde_json::from_value(spec).unwrap() }
    }

    fn translate(linux: &Value) -> Result<Translated> {
        container("c", &bundle(linux), &Spec::default(), false)
    }

    #[test]
    fn what_means_something_only_on_the_host_is_taken_out() {
        let linux = json!({
            "cgroupsPath": "kubepods-burstable.slice:cri-containerd:x", "mountLabel": "z",
            "resources": { "cpu": { "cpus": "3-5", "mems": "1", "quota": 5000, "period": 10000 } },
            "namespaces": [{ "type": "pid" }, { "type": "network", "path": "/proc/7/ns/net" }, { "type": "ipc", "path": "/proc/7/ns/ipc" }],
        });
        let container = translate(&linux).unwrap();
        let seen = serde_json::to_value(&container.spec).unwrap();
        assert_eq!(seen["root"], json!({ "path": "/run/kata-containers/c/rootfs", "readonly": true }));
        assert_eq!(seen["linux"]["cgroupsPath"], "/nacre/c");
        assert_eq!(seen["linux"]["resources"]["cpu"], json!({ "quota": 5000, "period": 10000 }));
        assert_eq!(seen["linux"]["namespaces"], json!([{ "type": "pid" }, { "type": "ipc" }]));
        for gone in ["/process/apparmorProfile", "/process/selinuxLabel", "/linux/mountLabel"] {
            assert_eq!(seen.pointer(gone), None, "{gone}");
        }
        assert!(!container.shares_pids);
    }

    #[test]
    fn the_pods_processes_are_shared_where_the_sandboxs_are_named() {
        let shared = json!({ "namespaces": [{ "type": "pid", "path": "/proc/7/ns/pid" }] });
        assert!(translate(&shared).unwrap().shares_pids);
        let hosts = translate(&json!({ "namespaces": [{ "type": "mount" }] })).unwrap();
        assert!(hosts.shares_pids, "the host's processes are the pod's");
        assert_eq!(hosts.spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn the_hosts_devices_are_refused_and_a_privileged_container_has_the_guests() {
        let disk = json!([{ "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 }]);
        let error = translate(&json!({ "devices": disk })).unwrap_err();
        assert!(matches!(error, Error::Unimplemented(_)) && error.to_string().contains("/dev/sda"), "{error}");
        let privileged = json!({ "devices": disk, "resources": { "devices": [{ "allow": true, "access": "rwm" }] } });
        let seen = translate(&privileged).unwrap();
        assert_eq!(seen.spec.linux().as_ref().unwrap().devices().as_deref(), Some(&[][..]));
        let fuse = json!([{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 }]);
        assert_eq!(
            translate(&json!({ "devices": fuse }))
                .unwrap()
                .spec
                .linux()
                .as_ref()
                .unwrap()
                .devices()
                .as_ref()
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn hooks_and_too_many_words_are_refused() {
        let mut bundle = bundle(&json!({}));
        let hooks = json!({ "createRuntime": [{ "path": "/bin/x" }] });
        bundle.spec.set_hooks(serde_json::from_value(hooks).unwrap());
        assert!(matches!(container("c", &bundle, &Spec::default(), false), Err(Error::Unimplemented(_))));
        bundle.spec.set_hooks(serde_json::from_value(json!({ "createRuntime": [] })).unwrap());
        assert!(container("c", &bundle, &Spec::default(), false).is_ok());
        let mut process = bundle.spec.process().clone().unwrap();
        process.set_env(Some(vec!["a".repeat(3 << 20)]));
        bundle.spec.set_process(Some(process));
        assert!(matches!(container("c", &bundle, &Spec::default(), false), Err(Error::Invalid(_))));
    }

    #[test]
    fn the_pods_sysctls_are_each_containers() {
        let sandbox = json!({ "ociVersion": "1.0.2", "linux": { "sysctl": { "net.core.somaxconn": "9", "kernel.shm_rmid_forced": "1" } } });
        let own = json!({ "sysctl": { "net.core.somaxconn": "7" } });
        let seen = container("c", &bundle(&own), &serde_json::from_value(sandbox).unwrap(), false).unwrap();
        let sysctl = seen.spec.linux().as_ref().unwrap().sysctl().clone().unwrap();
        assert_eq!((sysctl["net.core.somaxconn"].as_str(), sysctl["kernel.shm_rmid_forced"].as_str()), ("7", "1"));
    }
}
