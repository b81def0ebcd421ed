//! What the agent changes in a specification before the engine sees it.
//!
//! The host describes the container; the guest knows which namespaces its pod shares, and where the image it pulled is. Annotations of
//! ours begin with `dev.nacre.`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nacre_pull::merge::{self, ArgsRule};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Hooks, LinuxNamespace, LinuxNamespaceType, RootBuilder, Spec};

use super::Error;

/// What the process's arguments in the specification are: `full` (the default) or `cmd`.
const ARGS: &str = "dev.nacre.process.args";

/// `user[:group]`, in place of the image's.
const USER: &str = "dev.nacre.process.user";

/// Where in the container Kubernetes has its termination log.
const TERMINATION_LOG: &str = "io.kubernetes.container.terminationMessagePath";

/// What runtimes say of a container's name in its pod.
const NAMES: &[&str] = &["io.kubernetes.cri.container-name", "io.kubernetes.container.name"];

/// The longest of our annotations' values.
const MAX_VALUE: usize = 256;

/// The namespaces that a container is to be in, by path.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// The pod's, if it has one.
    pub ipc: Option<PathBuf>,
    /// The pod's, if it has one.
    pub uts: Option<PathBuf>,
    /// The pod's, if its containers share one; `None` is a new one.
    pub pid: Option<PathBuf>,
}

fn has_any(hooks: &Hooks) -> bool {
    let points = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    points.into_iter().flatten().any(|hooks| !hooks.is_empty())
}

/// Put the container into `namespaces`. A PID namespace it always has; the host's word counts for the others. The guest's network is the
/// pod's, so a container without a network of its own may set its sysctls.
///
/// Hooks run as the guest's root, outside of the container: the host has none to give.
pub fn join(spec: &mut Spec, namespaces: &Namespaces) -> Result<(), Error> {
    if spec.hooks().as_ref().is_some_and(has_any) {
        return Err(Error::Spec("hooks", "are not taken from the host"));
    }
    let linux = spec.linux_mut().as_mut().ok_or(Error::Spec("linux", "is missing"))?;
    let list = linux.namespaces_mut().get_or_insert_default();
    list.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
    for namespace in list.iter_mut() {
        let shared = match namespace.typ() {
            LinuxNamespaceType::Ipc => &namespaces.ipc,
            LinuxNamespaceType::Uts => &namespaces.uts,
            _ => continue,
        };
        if shared.is_some() {
            namespace.set_path(shared.clone());
        }
    }
    let mut pid = LinuxNamespace::default();
    pid.set_typ(LinuxNamespaceType::Pid).set_path(namespaces.pid.clone());
    list.push(pid);
    if list.iter().all(|namespace| namespace.typ() != LinuxNamespaceType::Network) {
        let mut network = LinuxNamespace::default();
        network.set_typ(LinuxNamespaceType::Network).set_path(Some("/proc/self/ns/net".into()));
        list.push(network);
    }
    let joins = |kind| list.iter().any(|namespace| namespace.typ() == kind && namespace.path().is_some());
    let has = |kind| list.iter().any(|namespace| namespace.typ() == kind);
    // A shared host name is the pod's, and a guest's own is not a container's to set.
    if joins(LinuxNamespaceType::Uts) || !has(LinuxNamespaceType::Uts) {
        spec.set_hostname(None);
        spec.set_domainname(None);
    }
    Ok(())
}

/// Take from a pulled image what the host left open: its root, and what its config says of the process.
pub fn merge_image(spec: &mut Spec, config: &ImageConfiguration, rootfs: &Path) -> Result<(), Error> {
    let annotations = spec.annotations().clone().unwrap_or_default();
    let rule = args_rule(&annotations)?;
    let user = annotation(&annotations, USER)?;
    let readonly = spec.root().as_ref().and_then(|root| root.readonly());
    let root = RootBuilder::default().path(rootfs).readonly(readonly.unwrap_or(false)).build();
    spec.set_root(Some(root.map_err(|_| Error::Spec("root", "can't be built"))?));
    let process = spec.process_mut().as_mut().ok_or(Error::Spec("process", "is missing"))?;
    let directory = std::fs::File::open(rootfs).map_err(|source| Error::Rootfs { path: rootfs.into(), source })?;
    let mut config = config.clone();
    if let Some(user) = user {
        let mut inner = config.config().clone().unwrap_or_default();
        inner.set_user(Some(user.into()));
        config.set_config(Some(inner));
    }
    merge::process(&config, process, rule, std::os::fd::AsFd::as_fd(&directory)).map_err(Error::Merge)
}

/// What the container's pod calls it, as its runtime says: containerd or CRI-O.
pub fn name(spec: &Spec) -> Option<String> {
    let annotations = spec.annotations().as_ref()?;
    NAMES.iter().find_map(|key| annotations.get(*key)).cloned()
}

/// The file in the guest that the container has mounted as its termination log.
pub fn termination_log(spec: &Spec) -> Option<PathBuf> {
    let destination = Path::new(spec.annotations().as_ref()?.get(TERMINATION_LOG)?);
    let mount = spec.mounts().as_ref()?.iter().find(|mount| mount.destination() == destination)?;
    mount.source().clone()
}

fn args_rule(annotations: &HashMap<String, String>) -> Result<ArgsRule, Error> {
    match annotation(annotations, ARGS)? {
        None | Some("full") => Ok(ArgsRule::Full),
        Some("cmd") => Ok(ArgsRule::ReplaceCmd),
        Some(_) => Err(Error::Spec(ARGS, "is neither \"full\" nor \"cmd\"")),
    }
}

fn annotation<'a>(annotations: &'a HashMap<String, String>, key: &'static str) -> Result<Option<&'a str>, Error> {
    match annotations.get(key).map(String::as_str) {
        Some(value) if value.len() > MAX_VALUE => Err(Error::Spec(key, "is too long")),
        value => Ok(value.filter(|value| !value.is_empty())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Mount;

    fn spec(namespaces: &[LinuxNamespaceType]) -> Spec {
        let mut spec = Spec::default();
        spec.set_hostname(Some("box".into()));
        let list = namespaces.iter().map(|typ| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(*typ).set_path(None);
            namespace
        });
        let list = list.collect();
        if let Some(linux) = spec.linux_mut() {
            linux.set_namespaces(Some(list));
        }
        spec
    }

    fn path_of(spec: &Spec, kind: LinuxNamespaceType) -> Option<Option<PathBuf>> {
        let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
        namespaces.iter().find(|namespace| namespace.typ() == kind).map(|namespace| namespace.path().clone())
    }

    #[test]
    fn a_container_joins_its_pod_and_gets_a_pid_namespace() {
        use LinuxNamespaceType::{Ipc, Mount, Network, Pid, Uts};
        let mut spec = spec(&[Mount, Ipc, Uts]);
        let namespaces = Namespaces { ipc: Some("/i".into()), uts: Some("/u".into()), pid: None };
        join(&mut spec, &namespaces).unwrap();
        assert_eq!(path_of(&spec, Ipc), Some(Some("/i".into())));
        assert_eq!(path_of(&spec, Uts), Some(Some("/u".into())));
        assert_eq!(path_of(&spec, Pid), Some(None));
        assert_eq!(path_of(&spec, Network), Some(Some("/proc/self/ns/net".into())));
        assert_eq!(spec.hostname().as_deref(), None);
    }

    #[test]
    fn without_a_pod_a_container_has_namespaces_and_a_name_of_its_own() {
        use LinuxNamespaceType::{Mount, Pid, Uts};
        let mut spec = spec(&[Mount, Uts, Pid]);
        join(&mut spec, &Namespaces { pid: Some("/p".into()), ..Namespaces::default() }).unwrap();
        assert_eq!(path_of(&spec, Pid), Some(Some("/p".into())));
        assert_eq!(path_of(&spec, Uts), Some(None));
        assert_eq!(spec.hostname().as_deref(), Some("box"));
    }

    #[test]
    fn the_host_has_no_hooks_to_give() {
        let mut spec = spec(&[LinuxNamespaceType::Mount]);
        let mut hooks = Hooks::default();
        hooks.set_poststop(Some(Vec::new()));
        spec.set_hooks(Some(hooks.clone()));
        join(&mut spec, &Namespaces::default()).unwrap();
        hooks.set_poststop(Some(vec![Default::default()]));
        spec.set_hooks(Some(hooks));
        assert!(matches!(join(&mut spec, &Namespaces::default()), Err(Error::Spec("hooks", _))));
    }

    #[test]
    fn a_termination_log_is_a_mount_that_an_annotation_names() {
        let mut spec = Spec::default();
        let mut mount = Mount::default();
        mount.set_destination("/dev/termination-log".into()).set_source(Some("/run/log".into()));
        spec.set_mounts(Some(vec![Mount::default(), mount]));
        assert_eq!(termination_log(&spec), None);
        let annotation = |path: &str| Some([(TERMINATION_LOG.to_string(), path.to_string())].into());
        spec.set_annotations(annotation("/dev/termination-log"));
        assert_eq!(termination_log(&spec), Some("/run/log".into()));
        spec.set_annotations(annotation("/elsewhere"));
        assert_eq!(termination_log(&spec), None);
    }

    #[test]
    fn our_annotations_are_judged() {
        let rule = |value: &str| args_rule(&[(ARGS.to_string(), value.to_string())].into());
        assert!(matches!(rule("cmd"), Ok(ArgsRule::ReplaceCmd)));
        assert!(matches!(rule("full"), Ok(ArgsRule::Full)));
        assert!(matches!(args_rule(&HashMap::new()), Ok(ArgsRule::Full)));
        assert!(rule("both").is_err());
        assert!(rule(&"x".repeat(300)).is_err());
    }
}
