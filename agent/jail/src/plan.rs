//! Judgement: a specification becomes a list of steps. Nothing here changes the system.
//!
//! The order of the steps is the security property, and it can be read off [`Plan::launch`] and [`process_steps`].

mod filter;
mod mounts;
mod process;

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nacre_sys::exec::StringArray;
use oci_spec::runtime::{self, LinuxNamespaceType, LinuxResources};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use crate::Io;
use crate::cgroup::{self, Cgroup};
use crate::error::Error;
use crate::launch::Launch;
use crate::step::Step;

pub(crate) use filter::Filter;

/// The most namespaces, mounts, devices and paths that one specification may name, each.
const MAX_ITEMS: usize = 4096;

/// What a process that joins later gets from the container and not from its own specification.
#[derive(Debug, Clone, Default)]
pub(crate) struct Confinement {
    filter: Option<Filter>,
}

/// A container, laid out.
#[derive(Debug)]
pub struct Plan {
    pub(crate) cgroup: PathBuf,
    pub(crate) resources: Option<LinuxResources>,
    new_namespaces: u64,
    joined: Vec<(OwnedFd, LinkNameSpaceType, String)>,
    pid_namespace: Option<OwnedFd>,
    has_pid_namespace: bool,
    joinable: ThreadNameSpaceType,
    new_cgroup_namespace: bool,
    before_root: Vec<Step>,
    inside_root: Vec<Step>,
    after_root: Vec<Step>,
    process: runtime::Process,
    filter: Option<Filter>,
}

/// What an exec joins.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) pidfd: BorrowedFd<'a>,
    pub(crate) pid: i32,
    pub(crate) namespaces: ThreadNameSpaceType,
    pub(crate) own_pid_namespace: bool,
    pub(crate) confinement: &'a Confinement,
}

impl Plan {
    /// Judges `spec` for the container `id` whose bundle is the directory `bundle`.
    ///
    /// # Errors
    /// [`Error::Spec`] or [`Error::Unsupported`], with the property's name.
    pub fn new(id: &str, spec: &runtime::Spec, bundle: &Path) -> Result<Plan, Error> {
        check_id(id)?;
        let linux = spec.linux().as_ref().ok_or_else(|| Error::spec("linux", "is missing"))?;
        let process = spec.process().clone().ok_or_else(|| Error::spec("process", "is missing"))?;
        let root = spec.root().as_ref().ok_or_else(|| Error::spec("root", "is missing"))?;
        check_supported(spec, linux)?;
        let cgroup = cgroup::path_of(id, linux.cgroups_path().as_deref())?;
        let mut plan = Plan {
            cgroup,
            resources: linux.resources().clone(),
            new_namespaces: 0,
            joined: Vec::new(),
            pid_namespace: None,
            has_pid_namespace: false,
            joinable: ThreadNameSpaceType::empty(),
            new_cgroup_namespace: false,
            before_root: Vec::new(),
            inside_root: Vec::new(),
            after_root: Vec::new(),
            filter: linux.seccomp().as_ref().map(Filter::compile).transpose()?,
            process,
        };
        plan.take_namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
        plan.lay_out_names(spec, linux)?;
        plan.lay_out_root(spec, linux, root, bundle)?;
        process::check(&plan.process)?;
        Ok(plan)
    }

    fn take_namespaces(&mut self, namespaces: &[runtime::LinuxNamespace]) -> Result<(), Error> {
        for (i, namespace) in namespaces.iter().enumerate() {
            let property = format!("linux.namespaces[{i}]");
            let (kind, joinable) = match namespace.typ() {
                LinuxNamespaceType::Mount => (LinkNameSpaceType::Mount, ThreadNameSpaceType::MOUNT),
                LinuxNamespaceType::Cgroup => (LinkNameSpaceType::ControlGroup, ThreadNameSpaceType::CONTROL_GROUP),
                LinuxNamespaceType::Uts => {
                    (LinkNameSpaceType::HostNameAndNISDomainName, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
                }
                LinuxNamespaceType::Ipc => {
                    (LinkNameSpaceType::InterProcessCommunication, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
                }
                LinuxNamespaceType::Network => (LinkNameSpaceType::Network, ThreadNameSpaceType::NETWORK),
                LinuxNamespaceType::Pid => (LinkNameSpaceType::ProcessID, ThreadNameSpaceType::empty()),
                LinuxNamespaceType::User | LinuxNamespaceType::Time => {
                    return Err(Error::Unsupported { property: format!("{property} ({:?})", namespace.typ()) });
                }
            };
            let is_pid = kind == LinkNameSpaceType::ProcessID;
            if self.joinable.intersects(joinable) || (is_pid && self.has_pid_namespace) {
                return Err(Error::spec(property, "names a kind a second time"));
            }
            self.joinable |= joinable;
            self.has_pid_namespace |= is_pid;
            let path = namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty());
            match (path, kind) {
                (None, LinkNameSpaceType::ControlGroup) => self.new_cgroup_namespace = true,
                (None, _) => self.new_namespaces |= u64::from(joinable.bits()) | if is_pid { CLONE_NEWPID } else { 0 },
                (Some(_), LinkNameSpaceType::Mount) => {
                    return Err(Error::Unsupported { property: format!("{property}.path of a mount namespace") });
                }
                (Some(path), _) => {
                    let fd = File::open(path).map_err(|error| {
                        Error::spec(format!("{property}.path"), format!("{}: {error}", path.display()))
                    })?;
                    match kind {
                        LinkNameSpaceType::ProcessID => self.pid_namespace = Some(fd.into()),
                        _ => self.joined.push((fd.into(), kind, format!("namespace {}", path.display()))),
                    }
                }
            }
        }
        if !self.joinable.contains(ThreadNameSpaceType::MOUNT) {
            return Err(Error::Unsupported { property: "linux.namespaces without a mount namespace".into() });
        }
        Ok(())
    }

    /// Host names and sysctls: what belongs to namespaces and is set from outside the new root.
    fn lay_out_names(&mut self, spec: &runtime::Spec, linux: &runtime::Linux) -> Result<(), Error> {
        let own_uts = self.new_namespaces & u64::from(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME.bits()) != 0;
        type Name = fn(CString) -> Step;
        let names: [(_, _, Name); 2] =
            [("hostname", spec.hostname(), Step::Hostname), ("domainname", spec.domainname(), Step::Domainname)];
        for (property, name, step) in names {
            let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else { continue };
            if !own_uts {
                return Err(Error::spec(property, "needs a new UTS namespace"));
            }
            self.before_root.push(step(c_string(property, name)?));
        }
        for (key, value) in linux.sysctl().iter().flatten() {
            self.before_root.push(process::sysctl(key, value)?);
        }
        if let Some(score) = self.process.oom_score_adj() {
            self.before_root.push(process::oom_score(score)?);
        }
        Ok(())
    }

    fn lay_out_root(
        &mut self,
        spec: &runtime::Spec,
        linux: &runtime::Linux,
        root: &runtime::Root,
        bundle: &Path,
    ) -> Result<(), Error> {
        let rootfs = bundle.join(root.path());
        self.before_root.push(Step::PrivateMounts(mounts::outer_propagation(linux.rootfs_propagation().as_deref())?));
        self.before_root.push(Step::OpenRoot { path: c_string("root.path", &rootfs.to_string_lossy())? });
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        self.inside_root = mounts::lay_out(mounts, bundle)?;
        self.inside_root.extend(mounts::devices(mounts, linux.devices().as_deref().unwrap_or_default())?);
        let cwd = process::cwd(&self.process)?;
        self.inside_root.push(Step::MakeDirectory(mounts::inside("process.cwd", cwd)?));
        for path in linux.readonly_paths().iter().flatten() {
            self.after_root.push(Step::Protect(mounts::inside("linux.readonlyPaths", Path::new(path))?));
        }
        for path in linux.masked_paths().iter().flatten() {
            self.after_root.push(Step::Mask(mounts::inside("linux.maskedPaths", Path::new(path))?));
        }
        if root.readonly().unwrap_or(false) {
            self.after_root.push(Step::ProtectRoot);
        }
        self.after_root.push(Step::EnterRoot);
        if let Some(step) = mounts::inner_propagation(linux.rootfs_propagation().as_deref())? {
            self.after_root.push(step);
        }
        Ok(())
    }

    pub(crate) fn joinable(&self) -> ThreadNameSpaceType {
        self.joinable
    }

    pub(crate) fn has_pid_namespace(&self) -> bool {
        self.has_pid_namespace
    }

    pub(crate) fn confinement(&self) -> Confinement {
        Confinement { filter: self.filter.clone() }
    }

    /// Puts the steps into their order.
    pub(crate) fn launch(self, cgroup: &Cgroup, io: Io) -> Result<Launch, Error> {
        let mut steps = Vec::new();
        steps.push(Step::EnterCgroups(cgroup.entrances()?));
        steps.extend(self.joined.into_iter().map(|(fd, kind, name)| Step::JoinNamespace { fd, kind, name }));
        if self.new_cgroup_namespace {
            steps.push(Step::NewCgroupNamespace);
        }
        steps.extend(self.before_root);
        steps.extend(self.inside_root);
        let io = match io {
            Io::Terminal { size } => {
                steps.push(Step::OpenTerminal { size: size.or(process::console_size(&self.process)) });
                steps.push(Step::Console(mounts::inside("process.terminal", Path::new("/dev/console"))?));
                None
            }
            Io::Pipes { stdin, stdout, stderr } => Some([stdin, stdout, stderr]),
        };
        steps.extend(self.after_root);
        let tail = process_steps(&self.process, io, self.filter)?;
        steps.extend(tail.before_gate);
        Ok(Launch {
            namespaces: self.new_namespaces,
            pid_namespace: self.pid_namespace,
            cgroup: cgroup.directory()?,
            steps,
            last_steps: tail.behind_gate,
            candidates: StringArray::new(process::candidates(&self.process)?),
            argv: StringArray::new(process::argv(&self.process)?),
            envp: StringArray::new(process::envp(&self.process)?),
        })
    }
}

const CLONE_NEWPID: u64 = libc::CLONE_NEWPID as u64;

/// One more process in a container.
pub(crate) fn exec(process: &runtime::Process, target: Target<'_>, cgroup: &Cgroup, io: Io) -> Result<Launch, Error> {
    process::check(process)?;
    let mut steps = vec![Step::EnterCgroups(cgroup.entrances()?)];
    if let Some(score) = process.oom_score_adj() {
        steps.push(process::oom_score(score)?);
    }
    let pidfd = target.pidfd.try_clone_to_owned().map_err(|error| Error::system("copy a pidfd", error))?;
    steps.push(Step::JoinProcess { pidfd, kinds: target.namespaces });
    steps.push(Step::TakeRoot);
    let io = match io {
        Io::Terminal { size } => {
            steps.push(Step::OpenTerminal { size: size.or(process::console_size(process)) });
            None
        }
        Io::Pipes { stdin, stdout, stderr } => Some([stdin, stdout, stderr]),
    };
    let tail = process_steps(process, io, target.confinement.filter.clone())?;
    steps.extend(tail.before_gate);
    let pid_namespace = if target.own_pid_namespace {
        let path = format!("/proc/{}/ns/pid", target.pid);
        let file = File::open(&path).map_err(|error| Error::system(format!("open {path}"), error))?;
        still_alive(target.pidfd)?; // or the number might be another's by now
        Some(file.into())
    } else {
        None
    };
    Ok(Launch {
        namespaces: 0,
        pid_namespace,
        cgroup: cgroup.directory()?,
        steps,
        last_steps: tail.behind_gate,
        candidates: StringArray::new(process::candidates(process)?),
        argv: StringArray::new(process::argv(process)?),
        envp: StringArray::new(process::envp(process)?),
    })
}

fn still_alive(pidfd: BorrowedFd<'_>) -> Result<(), Error> {
    nacre_sys::pidfd::send_signal(pidfd.as_fd(), 0).map_err(|_| Error::Ended)
}

struct Tail {
    before_gate: Vec<Step>,
    behind_gate: Vec<Step>,
}

/// What every process goes through, first or later: streams, limits, then one privilege after the other is given up.
fn process_steps(process: &runtime::Process, io: Option<[OwnedFd; 3]>, filter: Option<Filter>) -> Result<Tail, Error> {
    let mut steps = vec![Step::Session];
    match io {
        Some(pipes) => steps.push(Step::Stdio(pipes)),
        None => steps.push(Step::TerminalStdio),
    }
    steps.extend(process::limits(process)?);
    steps.push(Step::Umask(process.user().umask().unwrap_or(0o022)));
    steps.push(Step::ChangeDirectory(c_string("process.cwd", &process::cwd(process)?.to_string_lossy())?));
    steps.push(Step::OwnStdio(process.user().uid()));
    let capabilities = process::capabilities(process)?;
    steps.push(Step::BoundCapabilities(capabilities.bounding));
    let confined = process.no_new_privileges().unwrap_or(false);
    let mut filter = filter.map(Filter::into_step);
    if !confined {
        steps.extend(filter.take()); // without no_new_privs, loading takes CAP_SYS_ADMIN, which is about to go
    }
    steps.push(Step::Become(process::credentials(process)));
    steps.push(Step::SetCapabilities(capabilities.rest));
    if confined {
        steps.push(Step::NoNewPrivileges);
    }
    steps.push(Step::FindProgram);
    steps.push(Step::Seal);
    Ok(Tail { before_gate: steps, behind_gate: filter.into_iter().collect() })
}

/// A container's name is a directory's and a cgroup's too.
fn check_id(id: &str) -> Result<(), Error> {
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-+".contains(&b));
    if first && rest && id.len() <= 255 {
        Ok(())
    } else {
        Err(Error::spec("id", format!("{id:?}: expected 1 to 255 letters, digits, _, ., - or +, the first no sign")))
    }
}

fn check_supported(spec: &runtime::Spec, linux: &runtime::Linux) -> Result<(), Error> {
    let unsupported = [
        ("hooks", spec.hooks().as_ref().is_some_and(|hooks| *hooks != runtime::Hooks::default())),
        ("linux.uidMappings", linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty())),
        ("linux.gidMappings", linux.gid_mappings().as_ref().is_some_and(|m| !m.is_empty())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|t| !t.is_empty())),
        ("linux.mountLabel", linux.mount_label().as_ref().is_some_and(|label| !label.is_empty())),
    ];
    if let Some((property, _)) = unsupported.into_iter().find(|(_, used)| *used) {
        return Err(Error::Unsupported { property: property.into() });
    }
    let counts = [
        ("mounts", spec.mounts().as_ref().map_or(0, Vec::len)),
        ("linux.namespaces", linux.namespaces().as_ref().map_or(0, Vec::len)),
        ("linux.devices", linux.devices().as_ref().map_or(0, Vec::len)),
        ("linux.maskedPaths", linux.masked_paths().as_ref().map_or(0, Vec::len)),
        ("linux.readonlyPaths", linux.readonly_paths().as_ref().map_or(0, Vec::len)),
        ("linux.sysctl", linux.sysctl().as_ref().map_or(0, std::collections::HashMap::len)),
    ];
    match counts.into_iter().find(|(_, count)| *count > MAX_ITEMS) {
        Some((property, count)) => Err(Error::spec(property, format!("{count} entries are more than {MAX_ITEMS}"))),
        None => Ok(()),
    }
}

/// A string that the kernel can take.
fn c_string(property: &str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::spec(property, "holds a NUL"))
}

#[cfg(test)]
mod tests;
