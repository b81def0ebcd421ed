//! A container's cgroup: made, limited, read, frozen, emptied and removed. A value of this type owns its directory.
//!
//! The files are written through cgroups-rs where it knows them. The judgement of what a limit means on either hierarchy is here, because
//! "no limit" (−1) must be settable again after a limit was.

mod devices;
mod limits;
mod usage;

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use cgroups_rs::fs::cgroup::Cgroup as Directory;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::freezer::FreezerController;
use cgroups_rs::fs::hierarchies;
use cgroups_rs::fs::{Controller as _, Subsystem};
use oci_spec::runtime::{LinuxDevice, LinuxResources};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::Error;

/// How long the kernel may take to end what was killed, or to freeze what runs, in seconds.
const EVENT_WITHIN_S: i64 = 5;

/// The same on cgroup v1, in milliseconds.
const FROZEN_WITHIN_MS: u32 = 5_000;

/// Where the container's processes are counted.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: Directory,
}

/// The path below the hierarchy's root that `cgroups_path` stands for.
pub(crate) fn path_of(id: &str, cgroups_path: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(asked) = cgroups_path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Path::new("nacre").join(id));
    };
    let systemd: Vec<&str> = asked.to_str().unwrap_or_default().split(':').collect();
    let asked = match systemd[..] {
        [slice, "", name] if is_slice(slice) => slice_path(slice).join(name),
        [slice, prefix, name] if is_slice(slice) => slice_path(slice).join(format!("{prefix}-{name}.scope")),
        _ => asked.to_path_buf(),
    };
    let mut path = PathBuf::new();
    for component in asked.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::spec("linux.cgroupsPath", format!("{} leaves the hierarchy", asked.display())));
            }
        }
    }
    if path.as_os_str().is_empty() {
        return Err(Error::spec("linux.cgroupsPath", "the root of the hierarchy can't be a container's"));
    }
    Ok(path)
}

fn is_slice(name: &str) -> bool {
    name.is_empty() || name.ends_with(".slice")
}

/// Slices nest by their names: `a-b.slice` lies in `a.slice` (systemd.slice(5)); `-.slice` is the root, and the default is `system.slice`.
fn slice_path(slice: &str) -> PathBuf {
    let stem = match slice {
        "" => "system",
        "-.slice" => return PathBuf::new(),
        slice => slice.trim_end_matches(".slice"),
    };
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    ends.filter_map(|end| stem.get(..end)).map(|part| format!("{part}.slice")).collect()
}

/// A directory in which a container's processes are.
#[derive(Debug)]
pub(crate) struct View {
    /// What the hierarchy is called below `/sys/fs/cgroup`; nothing on cgroup v2.
    pub(crate) names: Vec<String>,
    /// The container's directory in it.
    pub(crate) directory: PathBuf,
    /// Whether it is cgroup v2.
    pub(crate) unified: bool,
}

/// Where a container whose cgroup is `path` is, hierarchy by hierarchy.
pub(crate) fn views(path: &Path) -> Result<Vec<View>, Error> {
    let base = Path::new(hierarchies::UNIFIED_MOUNTPOINT);
    if hierarchies::is_cgroup2_unified_mode() {
        return Ok(vec![View { names: Vec::new(), directory: base.join(path), unified: true }]);
    }
    let directory = Directory::load(hierarchies::auto(), path);
    let view = |subsystem: &Subsystem| {
        let directory = subsystem.to_controller().path().to_path_buf();
        let names = hierarchy_of(&directory)?.split(',').map(String::from).collect();
        Some(View { names, directory, unified: false })
    };
    let mut views: Vec<View> = directory.subsystems().iter().filter_map(view).collect();
    views.dedup_by(|a, b| a.directory == b.directory);
    Ok(views)
}

/// What the hierarchy in which `path` lies is called below `/sys/fs/cgroup`.
fn hierarchy_of(path: &Path) -> Option<&str> {
    path.strip_prefix(hierarchies::UNIFIED_MOUNTPOINT).ok()?.components().next()?.as_os_str().to_str()
}

impl Cgroup {
    /// Makes the cgroup `path` and sets its limits. A cgroup that exists and has processes is not taken over.
    pub(crate) fn create(
        path: &Path,
        resources: Option<&LinuxResources>,
        nodes: &[LinuxDevice],
    ) -> Result<Cgroup, Error> {
        let fail = |act, reason: String| Error::Cgroup { path: path.to_path_buf(), act, reason };
        let directory = Directory::load(hierarchies::auto(), path);
        if directory.exists() && !directory.procs().is_empty() {
            return Err(fail("create", "it exists and has processes".into()));
        }
        directory.create().map_err(|error| fail("create", chain(&error)))?;
        let cgroup = Cgroup { path: path.to_path_buf(), directory };
        if !cgroup.directory.v2() {
            cgroup.inherit_cpuset()?;
        }
        if let Some(resources) = resources {
            cgroup.update(resources)?;
        }
        let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
        cgroup.allow_devices(rules, nodes)?;
        Ok(cgroup)
    }

    /// Takes up the cgroup `path` that another process made.
    pub(crate) fn open(path: &Path) -> Result<Cgroup, Error> {
        Ok(Cgroup { path: path.to_path_buf(), directory: Directory::load(hierarchies::auto(), path) })
    }

    /// The cgroup, below the hierarchy's root.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        let read = |file: PathBuf| fs::read_to_string(file).unwrap_or_default();
        if self.directory.v2() {
            let path = Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path).join("cgroup.freeze");
            return read(path).trim() == "1";
        }
        let controller = self.directory.controller_of::<FreezerController>();
        controller.is_some_and(|freezer| read(freezer.path().join("freezer.state")).trim() == "FROZEN")
    }

    /// Where a controller's files are: on cgroup v2 in the one directory.
    fn base(&self, controller: &str) -> Option<PathBuf> {
        let root = Path::new(hierarchies::UNIFIED_MOUNTPOINT);
        if self.directory.v2() {
            return Some(root.join(&self.path));
        }
        let paths = self.directory.subsystems().iter().map(|subsystem| subsystem.to_controller().path());
        paths
            .into_iter()
            .find(|path| hierarchy_of(path).is_some_and(|name| name.split(',').any(|n| n == controller)))
            .map(Path::to_path_buf)
    }

    /// For `CLONE_INTO_CGROUP`: the directory, on cgroup v2.
    pub(crate) fn directory(&self) -> Result<Option<OwnedFd>, Error> {
        if !self.directory.v2() {
            return Ok(None);
        }
        let path = Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path);
        File::open(&path)
            .map(|file| Some(file.into()))
            .map_err(|source| Error::system(format!("open {}", path.display()), source))
    }

    /// For cgroup v1: the files to which a process writes `0` to enter, one for each hierarchy.
    pub(crate) fn entrances(&self) -> Result<Vec<OwnedFd>, Error> {
        if self.directory.v2() {
            return Ok(Vec::new());
        }
        let open = |subsystem: &Subsystem| {
            let path = subsystem.to_controller().path().join("cgroup.procs");
            OpenOptions::new()
                .write(true)
                .open(&path)
                .map(OwnedFd::from)
                .map_err(|source| Error::system(format!("open {}", path.display()), source))
        };
        self.directory.subsystems().iter().map(open).collect()
    }

    /// cgroup v1 only: a new cpuset has neither processors nor memory nodes, and takes no process until it has.
    fn inherit_cpuset(&self) -> Result<(), Error> {
        let Some(cpuset) = self.directory.controller_of::<CpuSetController>() else { return Ok(()) };
        let leaf = cpuset.path();
        let missing: Vec<&Path> = leaf.ancestors().take_while(|dir| reads_empty(&dir.join("cpuset.cpus"))).collect();
        for dir in missing.into_iter().rev() {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let from = dir.parent().unwrap_or(dir).join(file);
                let to = dir.join(file);
                fs::read(&from)
                    .and_then(|value| fs::write(&to, value))
                    .map_err(|source| Error::system(format!("copy {} to {}", from.display(), to.display()), source))?;
            }
        }
        Ok(())
    }

    /// Every process in it.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.directory.procs().into_iter().filter_map(|pid| i32::try_from(pid.pid).ok()).collect()
    }

    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let controller: &FreezerController = self.controller("freezer")?;
        if !frozen {
            return self.set("thaw", controller.thaw());
        }
        self.set("freeze", controller.freeze())?;
        self.wait_until_frozen()
    }

    /// The kernel freezes one task after the other. cgroup v2 says when it is done; v1 has to be asked again, and told again about tasks that were
    /// made meanwhile.
    fn wait_until_frozen(&self) -> Result<(), Error> {
        if self.directory.v2() {
            if self.wait_for_event("frozen 1") {
                return Ok(());
            }
        } else {
            let controller: &FreezerController = self.controller("freezer")?;
            for _ in 0..FROZEN_WITHIN_MS {
                if self.is_frozen() {
                    return Ok(());
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
                self.set("freeze", controller.freeze())?;
            }
        }
        self.freeze(false)?;
        let reason = "a process could not be frozen: it waits for a device or a file system".into();
        Err(Error::Cgroup { path: self.path.clone(), act: "freeze", reason })
    }

    /// SIGKILL to everything in it, frozen or not.
    pub(crate) fn kill(&self) {
        if self.directory.v2() && self.directory.kill().is_ok() {
            return;
        }
        for pid in self.pids() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL); // it may have ended meanwhile
            }
        }
        let _ = self.freeze(false); // cgroup v1: a frozen process dies only once thawed; there may be no freezer
    }

    /// Kills what is in it, waits until it is empty, and removes it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        self.kill();
        self.wait_until_empty();
        match self.directory.delete() {
            Err(error) if self.directory.exists() => {
                Err(Error::Cgroup { path: self.path.clone(), act: "remove", reason: chain(&error) })
            }
            _ => Ok(()),
        }
    }

    /// cgroup v1 has no such event; there rmdir is simply tried.
    fn wait_until_empty(&self) {
        if self.directory.v2() {
            self.wait_for_event("populated 0");
        }
    }

    /// Waits for a line in `cgroup.events`, which signals POLLPRI at each change (Documentation/admin-guide/cgroup-v2.rst). False when it does
    /// not come in time.
    fn wait_for_event(&self, line: &str) -> bool {
        let path = Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path).join("cgroup.events");
        let Ok(file) = File::open(&path) else { return false };
        let limit = rustix::time::Timespec { tv_sec: EVENT_WITHIN_S, tv_nsec: 0 };
        while !fs::read_to_string(&path).is_ok_and(|events| events.lines().any(|event| event == line)) {
            match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&limit)) {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
        true
    }
}

fn reads_empty(path: &Path) -> bool {
    fs::read(path).is_ok_and(|value| value.trim_ascii().is_empty())
}

/// cgroups-rs keeps the kernel's answer in the source.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_path_stays_below_the_hierarchy() {
        let of = |path: &str| path_of("c1", Some(Path::new(path)));
        assert_eq!(path_of("c1", None).unwrap(), Path::new("nacre/c1"));
        assert_eq!(of("/kubepods/pod1/c1").unwrap(), Path::new("kubepods/pod1/c1"));
        assert_eq!(of("system.slice:nacre:c1").unwrap(), Path::new("system.slice/nacre-c1.scope"));
        assert_eq!(
            of("kubepods-pod1.slice:cri:c1").unwrap(),
            Path::new("kubepods.slice/kubepods-pod1.slice/cri-c1.scope")
        );
        assert_eq!(of(":cri:c1").unwrap(), Path::new("system.slice/cri-c1.scope"));
        assert_eq!(of("-.slice:cri:c1").unwrap(), Path::new("cri-c1.scope"));
        assert!(of("a.slice:..:/../..").is_err());
        assert!(of("/a/../../b").unwrap_err().to_string().contains("leaves the hierarchy"));
        assert!(of("/").is_err());
    }
}
