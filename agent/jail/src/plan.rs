//! Judgement: a specification becomes a list of steps. Nothing here changes the system.
//!
//! The order of the steps is the security property, and it can be read off [`Plan::launch`] and [`process_steps`].

mod capabilities;
mod check;
mod devices;
mod filter;
mod filter_cache;
mod hooks;
mod mounts;
mod namespaces;
mod process;

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nacre_sys::exec::StringArray;
use oci_spec::runtime::{self, LinuxDevice, LinuxResources};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType};

use crate::Io;
use crate::cgroup;
use crate::channel::Point;
use crate::error::Error;
use crate::launch::{Launch, Start};
use crate::step::{Entry, Maps, Step};

use capabilities::Capabilities;

pub use check::id as check_id;
pub(crate) use filter::{Filter, Listener};
pub use filter_cache::keep_filters_in;
pub(crate) use hooks::{Hook, Hooks};
pub(crate) use namespaces::Namespaces;

/// What a process that joins later gets from the container and not from its own specification.
#[derive(Debug, Clone)]
pub(crate) struct Interior {
    /// The kinds of namespaces that it enters.
    pub(crate) namespaces: ThreadNameSpaceType,
    pub(crate) own_pid_namespace: bool,
    /// Whether its first process is the first of a PID namespace: with it, all others end.
    pub(crate) leads_pid_namespace: bool,
    pub(crate) own_mount_namespace: bool,
    pub(crate) confinement: Confinement,
}

/// What confines every process of a container alike.
#[derive(Debug, Clone, Default)]
pub(crate) struct Confinement {
    pub(crate) filter: Option<Filter>,
    pub(crate) personality: Option<u64>,
}

/// A container, laid out.
#[derive(Debug)]
pub struct Plan {
    pub(crate) cgroup: PathBuf,
    pub(crate) resources: Option<LinuxResources>,
    pub(crate) devices: Vec<LinuxDevice>,
    pub(crate) namespaces: Namespaces,
    pub(crate) hooks: Hooks,
    pub(crate) confinement: Confinement,
    pub(crate) gate: Option<PathBuf>,
    pub(crate) journal: Option<File>,
    /// Whether a mount shows the container its cgroup.
    pub(crate) shows_cgroup: bool,
    before_root: Vec<Step>,
    inside_root: Vec<Step>,
    after_root: Vec<Step>,
    pub(crate) process: runtime::Process,
    warnings: Vec<String>,
    kept: u32,
}

/// What an exec joins.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) pidfd: BorrowedFd<'a>,
    pub(crate) pid: i32,
    pub(crate) interior: &'a Interior,
}

impl Plan {
    /// Judges `spec` for the container `id` whose bundle is the directory `bundle`.
    ///
    /// # Errors
    /// [`Error::Spec`] or [`Error::Unsupported`], with the property's name.
    pub fn new(id: &str, spec: &runtime::Spec, bundle: &Path) -> Result<Plan, Error> {
        check::id(id)?;
        // The type's own default is a container that is as confined as is usual, not one that asks for nothing.
        let nothing: runtime::Linux =
            serde_json::from_str("{}").map_err(|error| Error::spec("linux", error.to_string()))?;
        let linux = spec.linux().as_ref().unwrap_or(&nothing);
        let process = spec.process().clone().ok_or_else(|| Error::spec("process", "is missing"))?;
        let root = spec.root().as_ref().ok_or_else(|| Error::spec("root", "is missing"))?;
        check::supported(linux)?;
        check::bounds(spec, linux)?;
        process::check(&process)?;
        let namespaces = Namespaces::new(linux)?;
        let warnings = warnings(&process, namespaces.has_user);
        let mut plan = Plan {
            cgroup: cgroup::path_of(id, linux.cgroups_path().as_deref())?,
            resources: linux.resources().clone(),
            devices: linux.devices().clone().unwrap_or_default(),
            namespaces,
            hooks: Hooks::new(id, spec, bundle)?,
            confinement: Confinement {
                filter: linux.seccomp().as_ref().map(Filter::compile).transpose()?,
                personality: linux.personality().as_ref().map(process::personality).transpose()?,
            },
            gate: None,
            journal: None,
            shows_cgroup: false,
            before_root: Vec::new(),
            inside_root: Vec::new(),
            after_root: Vec::new(),
            process,
            warnings,
            kept: 0,
        };
        plan.lay_out_names(spec, linux)?;
        plan.lay_out_root(spec, linux, root, bundle)?;
        Ok(plan)
    }

    /// What of the specification is left out because the system can't give it, and that without harm: a line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Has the root moved over the old one instead of pivoting into it. The old root stays below: for hosts whose root can't be
    /// pivoted from.
    pub fn no_pivot(mut self) -> Plan {
        for step in self.before_root.iter_mut().chain(&mut self.after_root) {
            if let Step::OpenRoot { entry: entry @ Entry::Pivot, .. } | Step::EnterRoot(entry @ Entry::Pivot) = step {
                *entry = Entry::Move;
            }
        }
        self
    }

    /// Leaves the caller's descriptors 3 to 2 + `count` to the program.
    pub fn keep_descriptors(mut self, count: u32) -> Plan {
        self.kept = count;
        self
    }

    /// Gives the start gate the name `socket`, so that another process can open it.
    pub fn gate(mut self, socket: &Path) -> Plan {
        self.gate = Some(socket.into());
        self
    }

    /// Has a [`crate::Note`] appended to `file` for what is made, before it can matter.
    pub fn journal(mut self, file: File) -> Plan {
        self.journal = Some(file);
        self
    }

    /// Host names, sysctls and clocks: what belongs to namespaces and is set from outside the new root.
    fn lay_out_names(&mut self, spec: &runtime::Spec, linux: &runtime::Linux) -> Result<(), Error> {
        type Name = fn(CString) -> Step;
        let names: [(_, _, Name); 2] =
            [("hostname", spec.hostname(), Step::Hostname), ("domainname", spec.domainname(), Step::Domainname)];
        for (property, name, step) in names {
            let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else { continue };
            if !self.namespaces.has_names {
                return Err(Error::spec(property, "needs a UTS namespace of the container's own"));
            }
            self.before_root.push(step(c_string(property, name)?));
        }
        let mut sysctls: Vec<_> = linux.sysctl().iter().flatten().collect();
        sysctls.sort_unstable();
        for (key, value) in sysctls {
            self.before_root.push(process::sysctl(key, value, &self.namespaces)?);
        }
        self.before_root.extend(process::open_label(&self.process)?);
        Ok(())
    }

    fn lay_out_root(
        &mut self,
        spec: &runtime::Spec,
        linux: &runtime::Linux,
        root: &runtime::Root,
        bundle: &Path,
    ) -> Result<(), Error> {
        let asked = spec.mounts().as_deref().unwrap_or_default();
        let changes_mounts = !asked.is_empty()
            || root.readonly().unwrap_or(false)
            || [linux.masked_paths(), linux.readonly_paths()].into_iter().flatten().any(|paths| !paths.is_empty());
        let entry = match (self.namespaces.own_mounts, self.namespaces.shares_mounts && changes_mounts) {
            (true, _) => Entry::Pivot,
            (false, true) => Entry::Attach,
            (false, false) => Entry::Chroot,
        };
        let propagation = mounts::outer_propagation(linux.rootfs_propagation().as_deref())?;
        if entry == Entry::Pivot {
            self.before_root.push(Step::PrivateMounts(propagation));
            // Only in its own mount namespace are the host's mounts locked: root of a user namespace may neither take one off nor make it writable.
            self.before_root.extend(self.namespaces.has_user.then_some(Step::TakeSources));
        }
        let root_path = bundle.join(root.path());
        let path = c_string("root.path", &root_path.to_string_lossy())?;
        self.before_root.push(Step::OpenRoot { path, tree: None, propagation, entry });
        let context = mounts::Context {
            bundle,
            root: &root_path,
            cgroup: &self.cgroup,
            ids: self.namespaces.ids.as_ref(),
            propagation,
            label: process::mount_label(linux)?,
        };
        let laid = mounts::lay_out(asked, &context)?;
        self.inside_root = laid.steps;
        self.warnings.extend(laid.warnings);
        self.shows_cgroup = asked.iter().any(mounts::is_cgroup);
        let nodes = linux.devices().as_deref().unwrap_or_default();
        self.inside_root.extend(devices::lay_out(asked, nodes, self.namespaces.has_user)?);
        let rules = self.resources.as_ref().and_then(|resources| resources.devices().as_deref());
        if cgroup::devices::forbid_nodes(rules.unwrap_or_default(), nodes)? {
            self.inside_root.push(Step::Sync(Point::Devices));
        }
        let cwd = process::cwd(&self.process)?;
        self.inside_root.push(Step::MakeDirectory(mounts::inside("process.cwd", cwd)?));
        self.after_root.extend(laid.last);
        for path in linux.readonly_paths().iter().flatten() {
            self.after_root.push(Step::Protect(mounts::inside("linux.readonlyPaths", Path::new(path))?));
        }
        for path in linux.masked_paths().iter().flatten() {
            self.after_root.push(Step::Mask(mounts::inside("linux.maskedPaths", Path::new(path))?));
        }
        if root.readonly().unwrap_or(false) {
            self.after_root.push(Step::ProtectRoot);
        }
        self.after_root.push(Step::EnterRoot(entry));
        self.after_root.extend(mounts::inner_propagation(linux.rootfs_propagation().as_deref())?);
        Ok(())
    }

    /// What later processes share with the first one.
    pub(crate) fn interior(&self) -> Interior {
        Interior {
            namespaces: self.namespaces.joinable,
            own_pid_namespace: self.namespaces.has_pid,
            leads_pid_namespace: self.namespaces.leads_pid,
            own_mount_namespace: self.namespaces.own_mounts,
            confinement: self.confinement.clone(),
        }
    }

    /// Puts the steps into their order. `birthplace` is the container's cgroup, if it is one of cgroup v2.
    pub(crate) fn launch(self, birthplace: Option<OwnedFd>, io: Io, start: Start) -> Result<Launch, Error> {
        let mut namespaces = self.namespaces;
        let in_user_namespace = namespaces.has_user;
        let mut steps = vec![Step::Hide];
        if in_user_namespace {
            steps.extend(enter_cgroup()); // what is handed over comes before anything is said
            if namespaces.maps.is_some() {
                steps.push(Step::Sync(Point::Mapped));
            }
            steps.push(Step::MappedRoot);
        } else if let Some(score) = self.process.oom_score_adj() {
            steps.push(process::oom_score(score)?);
        }
        let mut launch = assemble(&self.process, birthplace, start)?;
        launch.namespaces = namespaces.born;
        launch.joined_before = namespaces.joined_before();
        (launch.user_namespace, launch.pid_namespace) = (namespaces.user.take(), namespaces.pid.take());
        let in_cgroup = std::mem::take(&mut namespaces.in_cgroup);
        steps.extend(namespaces.into_steps());
        if !in_user_namespace {
            steps.extend(enter_cgroup());
        }
        steps.extend(in_cgroup);
        steps.push(Step::NewKeyring);
        steps.extend(self.before_root);
        steps.extend(self.inside_root);
        let streams = Streams::of(io, &self.process, &mut steps);
        if matches!(streams, Streams::Terminal) {
            steps.push(Step::Console(mounts::inside("process.terminal", Path::new("/dev/console"))?));
        }
        if self.hooks.come_before_root() {
            steps.push(Step::Sync(Point::BeforeRoot));
        }
        steps.extend(self.after_root);
        let mut behind_gate = Vec::new();
        if self.hooks.come_before_program() {
            behind_gate.push(Step::Sync(Point::BeforeProgram));
        }
        if in_user_namespace {
            steps.push(Step::Sync(Point::Limits));
        } else {
            steps.extend(process::limits(&self.process)?);
        }
        let tail = process_steps(&self.process, streams, &self.confinement, in_user_namespace, self.kept)?;
        steps.extend(tail.before_gate);
        behind_gate.extend(tail.behind_gate);
        (launch.steps, launch.last_steps) = (steps, behind_gate);
        launch.kept = self.kept;
        Ok(launch)
    }

    /// What the parent of a process in a user namespace does in its place.
    pub(crate) fn stewardship(&self) -> Result<Stewardship, Error> {
        Ok(Stewardship {
            maps: self.namespaces.maps.clone(),
            offsets: self.namespaces.offsets.clone(),
            limits: process::limits(&self.process)?,
            oom_score: self.process.oom_score_adj(),
        })
    }
}

/// See [`Plan::stewardship`].
#[derive(Debug)]
pub(crate) struct Stewardship {
    pub(crate) maps: Option<Maps>,
    pub(crate) offsets: Option<CString>,
    pub(crate) limits: Vec<Step>,
    pub(crate) oom_score: Option<i32>,
}

/// One more process in a container.
pub(crate) fn exec(
    process: &runtime::Process,
    target: &Target<'_>,
    birthplace: Option<OwnedFd>,
    io: Io,
    kept: u32,
) -> Result<Launch, Error> {
    process::check(process)?;
    let mut steps = vec![Step::Hide];
    let mut launch = assemble(process, birthplace, Start::AtOnce)?;
    let Interior { namespaces, own_pid_namespace, own_mount_namespace, confinement, .. } = target.interior;
    steps.extend(process::affinity(process, process::Affinity::Initial)?);
    steps.extend(enter_cgroup());
    if let Some(score) = process.oom_score_adj() {
        steps.push(process::oom_score(score)?);
    }
    steps.push(Step::NewKeyring);
    steps.extend(process::open_label(process)?);
    let in_user_namespace = namespaces.contains(ThreadNameSpaceType::USER);
    if in_user_namespace {
        steps.extend(process::limits(process)?); // root of the namespace may not raise them any more
    }
    let root = if *own_mount_namespace { None } else { Some(open_of_process(target, "root")?) };
    let pidfd = target.pidfd.try_clone_to_owned().map_err(|error| Error::system("copy a pidfd", error))?;
    steps.push(Step::JoinProcess { pidfd: Some(pidfd), kinds: *namespaces });
    if root.is_some() {
        steps.push(Step::ChangeRoot(root));
    }
    if in_user_namespace {
        steps.push(Step::MappedRoot);
    }
    steps.push(Step::TakeRoot);
    let streams = Streams::of(io, process, &mut steps);
    if !in_user_namespace {
        steps.extend(process::limits(process)?);
    }
    steps.extend(process::affinity(process, process::Affinity::Final)?);
    let tail = process_steps(process, streams, confinement, in_user_namespace, kept)?;
    steps.extend(tail.before_gate);
    (launch.steps, launch.last_steps) = (steps, tail.behind_gate);
    if *own_pid_namespace {
        launch.pid_namespace = Some(open_of_process(target, "ns/pid")?);
    }
    launch.kept = kept;
    Ok(launch)
}

/// Something of the target's in /proc. The number might be another's by the time it is opened, so it is looked at again.
fn open_of_process(target: &Target<'_>, what: &str) -> Result<OwnedFd, Error> {
    let path = format!("/proc/{}/{what}", target.pid);
    let file = File::open(&path).map_err(|error| Error::system(format!("open {path}"), error))?;
    nacre_sys::pidfd::send_signal(target.pidfd, 0).map_err(|_| Error::Ended)?;
    Ok(file.into())
}

/// The step into the cgroup, where one is not born in it.
fn enter_cgroup() -> Option<Step> {
    (!cgroup::is_unified()).then_some(Step::EnterCgroup)
}

/// A launch without steps.
fn assemble(process: &runtime::Process, cgroup: Option<OwnedFd>, start: Start) -> Result<Launch, Error> {
    Ok(Launch {
        namespaces: 0,
        joined_before: Vec::new(),
        user_namespace: None,
        pid_namespace: None,
        cgroup,
        steps: Vec::new(),
        last_steps: Vec::new(),
        start,
        kept: 0,
        candidates: StringArray::new(process::candidates(process)?),
        argv: StringArray::new(process::argv(process)?),
        envp: process::envp(process)?,
    })
}

/// Where a process reads and writes.
enum Streams {
    Terminal,
    Given([OwnedFd; 3]),
    Inherited,
}

impl Streams {
    /// Adds the step that opens the terminal, if one is asked for.
    fn of(io: Io, process: &runtime::Process, steps: &mut Vec<Step>) -> Streams {
        match io {
            Io::Terminal { size, lines } => {
                steps.push(Step::OpenTerminal { size: size.or(process::console_size(process)), lines });
                Streams::Terminal
            }
            Io::Pipes { stdin, stdout, stderr } => Streams::Given([stdin, stdout, stderr]),
            Io::Inherit => Streams::Inherited,
        }
    }
}

struct Tail {
    before_gate: Vec<Step>,
    behind_gate: Vec<Step>,
}

/// What every process goes through, first or later: streams, limits, then one privilege after the other is given up.
fn process_steps(
    process: &runtime::Process,
    streams: Streams,
    confinement: &Confinement,
    in_user_namespace: bool,
    kept: u32,
) -> Result<Tail, Error> {
    let mut steps = vec![Step::Session];
    if process.exec_cpu_affinity().is_none() {
        steps.push(Step::AllProcessors);
    }
    if !process::has_home(process) {
        steps.push(Step::FindHome(process.user().uid()));
    }
    match streams {
        Streams::Terminal => steps.push(Step::TerminalStdio),
        Streams::Given(pipes) => steps.push(Step::Stdio(pipes.map(Some))),
        Streams::Inherited => {}
    }
    steps.extend(process::scheduler(process)?);
    steps.extend(process::io_priority(process)?);
    steps.extend(confinement.personality.map(Step::Personality));
    steps.push(Step::Umask(process.user().umask().unwrap_or(0o022)));
    let cwd = c_string("process.cwd", &process::cwd(process)?.to_string_lossy())?;
    steps.push(Step::ChangeDirectory { path: cwd.clone(), last_chance: false });
    steps.push(Step::OwnStdio(process.user().uid()));
    steps.extend(process::label(process)?);
    let grantable = capabilities::grantable(in_user_namespace);
    let (Capabilities { bounding, sets, ambient }, _) = capabilities::of(process, grantable);
    steps.push(Step::BoundCapabilities(bounding));
    let confined = process.no_new_privileges().unwrap_or(false);
    let mut behind_gate: Vec<Step> = confinement.filter.clone().map(Filter::into_step).into_iter().collect();
    steps.push(Step::Become(process::credentials(process)));
    if confined || behind_gate.is_empty() {
        steps.push(Step::SetCapabilities { sets, ambient });
    } else {
        // The filter is the last but one thing, for it need not allow what we do; until it is loaded, what takes to load it must be permitted.
        let until_then =
            CapabilitySets { effective: sets.effective, permitted: grantable, inheritable: sets.inheritable };
        steps.push(Step::SetCapabilities { sets: until_then, ambient: CapabilitySet::empty() });
        behind_gate.insert(0, Step::MayFilter);
        behind_gate.push(Step::SetCapabilities { sets, ambient });
    }
    steps.push(Step::ChangeDirectory { path: cwd, last_chance: true });
    if confined {
        steps.push(Step::NoNewPrivileges);
    }
    steps.push(Step::FindProgram);
    steps.push(Step::Seal { first: 3 + kept });
    Ok(Tail { before_gate: steps, behind_gate })
}

/// What of `process` is left out because it can't be granted, a line each.
pub(crate) fn warnings(process: &runtime::Process, in_user_namespace: bool) -> Vec<String> {
    capabilities::of(process, capabilities::grantable(in_user_namespace)).1
}

/// The names of the capabilities that a specification may name, sorted.
pub fn known_capabilities() -> Vec<String> {
    let name = |capability| match serde_json::to_value(capability) {
        Ok(serde_json::Value::String(name)) => Some(name),
        _ => None,
    };
    let mut names: Vec<String> = capabilities::ALL.iter().filter_map(name).collect();
    names.sort_unstable();
    names
}

/// The mount options that are understood by themselves, not handed to a file system, sorted.
pub fn known_mount_options() -> Vec<String> {
    mounts::known_options()
}

/// A string that the kernel can take.
fn c_string(property: &str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::spec(property, "holds a NUL"))
}

#[cfg(test)]
mod tests;
