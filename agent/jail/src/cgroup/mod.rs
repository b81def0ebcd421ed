//! A container's cgroup: made, limited, read, frozen, emptied and removed. A value of this type owns its directory.
//!
//! The files are written through cgroups-rs where it knows them. The judgement of what a limit means on either hierarchy is here, because
//! "no limit" (−1) must be settable again after a limit was.

pub(crate) mod devices;
mod limits;
mod oom;
mod tree;
mod usage;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Error as IoError, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cgroups_rs::fs::cgroup::Cgroup as Directory;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::freezer::FreezerController;
use cgroups_rs::fs::hierarchies;
use cgroups_rs::fs::{Controller as _, Hierarchy, Subsystem};
use oci_spec::runtime::{LinuxDevice, LinuxResources};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::error::Error;

pub use oom::OomKills;

/// How long the kernel may take to end what was killed, or to freeze what runs.
const WITHIN: Duration = Duration::from_secs(5);

/// How often cgroup v1, which has no events, is asked.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// The longest path of a cgroup: with the hierarchy's own and a file's name it stays below the kernel's PATH_MAX.
const MAX_PATH: usize = 3072;

/// Where the container's processes are counted.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

/// What is mounted where: found once, for to find it takes a look at all mounts, and what that found is large.
#[derive(Debug)]
struct Mounted;

impl Mounted {
    fn found(&self) -> &'static dyn Hierarchy {
        static FOUND: OnceLock<Box<dyn Hierarchy>> = OnceLock::new();
        &**FOUND.get_or_init(hierarchies::auto)
    }
}

impl Hierarchy for Mounted {
    fn subsystems(&self) -> Vec<Subsystem> {
        self.found().subsystems()
    }

    fn root(&self) -> PathBuf {
        self.found().root()
    }

    fn root_control_group(&self) -> Directory {
        self.found().root_control_group()
    }

    fn parent_control_group(&self, path: &str) -> Directory {
        self.found().parent_control_group(path)
    }

    fn v2(&self) -> bool {
        self.found().v2()
    }
}

/// Whether cgroups are those of cgroup v2, in which a process can be born. A system has them mounted one way, once and for all.
pub fn is_unified() -> bool {
    static UNIFIED: OnceLock<bool> = OnceLock::new();
    *UNIFIED.get_or_init(hierarchies::is_cgroup2_unified_mode)
}

/// Where cgroup v2 is mounted beside cgroup v1, without controllers: systemd keeps its services apart by it ("hybrid").
fn beside() -> Option<&'static Path> {
    const PLACE: &str = "/sys/fs/cgroup/unified";
    static THERE: OnceLock<bool> = OnceLock::new();
    let there = || rustix::fs::statfs(PLACE).is_ok_and(|stat| stat.f_type as u64 == libc::CGROUP2_SUPER_MAGIC as u64);
    THERE.get_or_init(|| !is_unified() && there()).then_some(Path::new(PLACE))
}

/// A cgroup of cgroup v2 in which the container's first process is born. Dropping it removes it, unless it has been kept.
#[derive(Debug)]
pub(crate) struct Birthplace(Option<PathBuf>);

impl Birthplace {
    /// That of the cgroup `path`; on a host with cgroup v2 beside v1 it is made here, for the rest is not until the child is there.
    pub(crate) fn of(path: &Path) -> Result<(Birthplace, Option<OwnedFd>), Error> {
        let Some(directory) = beside().map(|root| root.join(path)) else { return Ok((Birthplace(None), None)) };
        let new = make_empty(path, &directory)?;
        let birthplace = Birthplace(new.then(|| directory.clone()));
        Ok((birthplace, Some(open_directory(&directory)?)))
    }

    /// It is the container's from now on.
    pub(crate) fn keep(&mut self) {
        self.0 = None;
    }
}

impl Drop for Birthplace {
    fn drop(&mut self) {
        if let Some(directory) = self.0.take() {
            let _ = tree::remove(&directory); // the error that brings us here is worth more
        }
    }
}

/// Makes a directory of the cgroup `path`; true when it is new. One that is there has no processes.
fn make_empty(path: &Path, directory: &Path) -> Result<bool, Error> {
    let fail = |source: IoError| Error::system(format!("make the cgroup {}", directory.display()), source);
    let new = tree::make(directory).map_err(fail)?;
    if !new && !tree::processes(directory).is_empty() {
        return Err(exists_and(path, "has processes"));
    }
    Ok(new)
}

fn exists_and(path: &Path, what: &str) -> Error {
    Error::Cgroup { path: path.into(), act: "create", reason: format!("it exists and {what}") }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let opened = File::open(path).map(OwnedFd::from);
    opened.map_err(|source| Error::system(format!("open {}", path.display()), source))
}

/// The path below the hierarchy's root that `cgroups_path` stands for.
pub(crate) fn path_of(id: &str, cgroups_path: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(asked) = cgroups_path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Path::new("nacre").join(id));
    };
    check_length(asked)?; // before slices are spelt out, each with all that is above it
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
    check_length(&path)?;
    Ok(path)
}

fn check_length(path: &Path) -> Result<(), Error> {
    match path.as_os_str().len() {
        0..=MAX_PATH => Ok(()),
        _ => Err(Error::spec("linux.cgroupsPath", format!("is longer than {MAX_PATH} bytes"))),
    }
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
    let directory = Directory::load(Box::new(Mounted), path);
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
    /// Makes the cgroup `path` and sets its limits. A cgroup that exists and has processes is not taken over, but for the container's birthplace if it
    /// is `born` there. Nothing new is left if that fails.
    pub(crate) fn create(
        path: &Path,
        born: bool,
        resources: Option<&LinuxResources>,
        nodes: &[LinuxDevice],
    ) -> Result<Cgroup, Error> {
        let cgroup = Cgroup::at(path);
        let mut made = Vec::new();
        let result = cgroup.make(born, &mut made).and_then(|()| cgroup.limit(resources, nodes));
        if let Err(error) = result {
            for directory in made {
                let _ = tree::remove(&directory); // the first error is worth more
            }
            return Err(error);
        }
        Ok(cgroup)
    }

    /// The cgroup `path`, which may be there or not.
    pub(crate) fn at(path: &Path) -> Cgroup {
        Cgroup { path: path.to_path_buf() }
    }

    /// Its controllers. They are as quickly told as kept, and there may be many cgroups.
    fn controllers(&self) -> Directory {
        Directory::load(Box::new(Mounted), &self.path)
    }

    /// Its directories: one on cgroup v2, one for each hierarchy on v1, and that of cgroup v2 beside them.
    fn directories(&self) -> Vec<PathBuf> {
        if is_unified() {
            return vec![Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path)];
        }
        let mut directories = self.old_directories();
        directories.extend(beside().map(|root| root.join(&self.path)));
        directories
    }

    /// One for each hierarchy of cgroup v1.
    fn old_directories(&self) -> Vec<PathBuf> {
        let mut directories: Vec<PathBuf> = Vec::new();
        for subsystem in self.controllers().subsystems() {
            let path = subsystem.to_controller().path();
            // Controllers that are mounted together have one directory.
            if !directories.iter().any(|known| known == path) {
                directories.push(path.into());
            }
        }
        directories
    }

    /// Makes the directories, and tells which of them are new.
    fn make(&self, born: bool, made: &mut Vec<PathBuf>) -> Result<(), Error> {
        let mut was_there = false;
        let directories = if born { self.old_directories() } else { self.directories() };
        for directory in directories {
            if make_empty(&self.path, &directory)? {
                made.push(directory);
            } else {
                was_there = true;
            }
        }
        // Whoever enters a frozen cgroup does not even end any more.
        if was_there && self.is_frozen() {
            return Err(exists_and(&self.path, "is frozen"));
        }
        if is_unified() {
            self.enable_controllers();
            return Ok(());
        }
        self.inherit_cpuset()
    }

    /// cgroup v2: hands every controller down to the parent's children. Those that can't be are missing when a limit asks for them.
    fn enable_controllers(&self) {
        let root = Path::new(hierarchies::UNIFIED_MOUNTPOINT);
        let parents: Vec<&Path> = self.path.ancestors().skip(1).collect();
        for parent in parents.into_iter().rev().map(|parent| root.join(parent)) {
            let read = |file: &str| fs::read_to_string(parent.join(file)).unwrap_or_default();
            let enabled = read("cgroup.subtree_control");
            let there = read("cgroup.controllers");
            for controller in there.split_ascii_whitespace() {
                if !enabled.split_ascii_whitespace().any(|known| known == controller) {
                    let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")); // see above
                }
            }
        }
    }

    fn limit(&self, resources: Option<&LinuxResources>, nodes: &[LinuxDevice]) -> Result<(), Error> {
        if let Some(resources) = resources {
            self.update(resources)?;
        }
        let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
        if devices::forbid_nodes(rules, nodes)? {
            self.allow_devices_and_making(rules, nodes)
        } else {
            self.allow_devices(rules, nodes)
        }
    }

    /// The cgroup, below the hierarchy's root.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        let read = |file: PathBuf| fs::read_to_string(file).unwrap_or_default();
        if is_unified() {
            let path = Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path).join("cgroup.freeze");
            return read(path).trim() == "1";
        }
        let freezer = self.controller::<FreezerController>("freezer");
        freezer.is_ok_and(|freezer| read(freezer.path().join("freezer.state")).trim() == "FROZEN")
    }

    /// Where a controller's files are: on cgroup v2 in the one directory.
    fn base(&self, controller: &str) -> Option<PathBuf> {
        let root = Path::new(hierarchies::UNIFIED_MOUNTPOINT);
        if is_unified() {
            return Some(root.join(&self.path));
        }
        let controllers = self.controllers();
        let mut paths = controllers.subsystems().iter().map(|subsystem| subsystem.to_controller().path());
        paths
            .find(|path| hierarchy_of(path).is_some_and(|name| name.split(',').any(|n| n == controller)))
            .map(Path::to_path_buf)
    }

    /// For `CLONE_INTO_CGROUP`: the directory on cgroup v2, whether that is all there is or beside v1.
    pub(crate) fn birthplace(&self) -> Result<Option<OwnedFd>, Error> {
        let root = if is_unified() { Some(Path::new(hierarchies::UNIFIED_MOUNTPOINT)) } else { beside() };
        // A container whose maker did not see it has none there.
        let directory = root.map(|root| root.join(&self.path)).filter(|path| is_unified() || path.is_dir());
        directory.map(|directory| open_directory(&directory)).transpose()
    }

    /// For cgroup v1: the files to which a process of one thread writes `0` to enter, one for each hierarchy.
    pub(crate) fn entrances(&self) -> Result<Vec<OwnedFd>, Error> {
        if is_unified() {
            return Ok(Vec::new());
        }
        let open = |directory: &PathBuf| {
            let path = directory.join("tasks");
            OpenOptions::new()
                .write(true)
                .open(&path)
                .map(OwnedFd::from)
                .map_err(|source| Error::system(format!("open {}", path.display()), source))
        };
        self.old_directories().iter().map(open).collect()
    }

    /// cgroup v1 only: a new cpuset has neither processors nor memory nodes, and takes no process until it has.
    fn inherit_cpuset(&self) -> Result<(), Error> {
        let Ok(cpuset) = self.controller::<CpuSetController>("cpuset") else { return Ok(()) };
        let mut missing = Vec::new();
        let mut values = None;
        for directory in cpuset.path().ancestors() {
            let [cpus, mems] = ["cpuset.cpus", "cpuset.mems"].map(|file| read_short(&directory.join(file)));
            match (cpus, mems) {
                (Some(cpus), Some(mems)) if !cpus.is_empty() && !mems.is_empty() => {
                    values = Some([("cpuset.cpus", cpus), ("cpuset.mems", mems)]);
                    break;
                }
                (None, _) | (_, None) => break, // above the hierarchy
                _ => missing.push(directory),
            }
        }
        for directory in missing.into_iter().rev() {
            for (file, value) in values.iter().flatten() {
                let to = directory.join(file);
                write_file(&to, value)
                    .map_err(|source| Error::system(format!("write {value:?} to {}", to.display()), source))?;
            }
        }
        Ok(())
    }

    /// Every process in it and below it. A process is in the cgroup of the same name in each hierarchy.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.directories().first().map(|directory| tree::processes(directory)).unwrap_or_default()
    }

    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let controller: FreezerController = self.controller("freezer")?;
        if !frozen {
            return self.set("thaw", controller.thaw());
        }
        self.set("freeze", controller.freeze())?;
        self.wait_until_frozen()
    }

    /// The kernel freezes one task after the other. cgroup v2 says when it is done; v1 has to be asked again, and told again about tasks that were
    /// made meanwhile.
    fn wait_until_frozen(&self) -> Result<(), Error> {
        if is_unified() {
            if self.wait_for_event("frozen 1") {
                return Ok(());
            }
        } else {
            let controller: FreezerController = self.controller("freezer")?;
            let end = Instant::now() + WITHIN;
            while Instant::now() < end {
                if self.is_frozen() {
                    return Ok(());
                }
                std::thread::sleep(ASK_EVERY);
                self.set("freeze", controller.freeze())?;
            }
        }
        self.freeze(false)?;
        let reason = "a process could not be frozen: it waits for a device or a file system".into();
        Err(Error::Cgroup { path: self.path.clone(), act: "freeze", reason })
    }

    /// SIGKILL to everything in it, frozen or not.
    pub(crate) fn kill(&self) {
        if is_unified() && self.controllers().kill().is_ok() {
            return;
        }
        let pids = self.pids();
        if pids.is_empty() {
            return;
        }
        for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL); // it may have ended meanwhile
        }
        let _ = self.freeze(false); // cgroup v1: a frozen process dies only once thawed; there may be no freezer
    }

    /// Removes its directories that nothing is in: they may be somebody else's.
    pub(crate) fn remove_if_empty(&self) {
        for directory in self.directories() {
            let _ = fs::remove_dir(directory);
        }
    }

    /// Removes it and what is below it. What is in it is killed.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let end = Instant::now() + WITHIN;
        loop {
            match self.directories().iter().try_for_each(|directory| tree::remove(directory)) {
                Err(Errno::BUSY) if Instant::now() < end => {}
                result => {
                    return result.map_err(|error| Error::Cgroup {
                        path: self.path.clone(),
                        act: "remove",
                        reason: error.to_string(),
                    });
                }
            }
            self.kill();
            if is_unified() {
                self.wait_for_event("populated 0");
            } else {
                std::thread::sleep(ASK_EVERY);
            }
        }
    }

    /// Waits for a line in `cgroup.events`, which signals POLLPRI at each change (Documentation/admin-guide/cgroup-v2.rst). False when it does
    /// not come in time.
    fn wait_for_event(&self, line: &str) -> bool {
        let path = Path::new(hierarchies::UNIFIED_MOUNTPOINT).join(&self.path).join("cgroup.events");
        let Ok(file) = File::open(&path) else { return false };
        let limit = rustix::time::Timespec { tv_sec: WITHIN.as_secs() as i64, tv_nsec: 0 };
        while !fs::read_to_string(&path).is_ok_and(|events| events.lines().any(|event| event == line)) {
            match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&limit)) {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
        true
    }
}

/// What a file of one line holds, of at most 4095 bytes.
fn read_short(path: &Path) -> Option<String> {
    let mut bytes = [0; 4095];
    let length = File::open(path).ok()?.read(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(bytes.get(..length)?).trim().to_string())
}

/// Writes to a file that is there. Without O_CREAT and O_TRUNC, which cost a kernel file system time and mean nothing there.
fn write_file(path: &Path, value: &str) -> Result<(), IoError> {
    use std::io::Write as _;
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// The counters in a file of lines with a name and a number each.
fn counters_in(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_string(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
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
