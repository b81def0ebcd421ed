//! The pod's control group on the host: the shim and the VM are in it, so that what a pod costs is accounted to the pod.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::fs::statfs;

use super::error::Error;

/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";

/// The hierarchies of version 1 that account for what a pod uses (cgroups(7)).
const HIERARCHIES: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];

/// The kernel's number for a file system of version 2 (statfs(2)).
const VERSION_2: i64 = 0x6367_7270;

/// The longest path that is taken.
const MAX_PATH: usize = 1024;

/// A pod's control groups: one, or one in each hierarchy of version 1.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    /// Their directories.
    pub paths: Vec<PathBuf>,
    /// Where this process was before.
    before: Vec<PathBuf>,
}

impl Groups {
    /// What the specification's `cgroupsPath` stands for; nothing where it has none.
    ///
    /// # Errors
    /// A path that leads elsewhere.
    pub fn of(cgroups_path: Option<&Path>) -> Result<Groups, Error> {
        let Some(asked) = cgroups_path.filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(Groups::default());
        };
        let path = relative(asked)?;
        let roots = hierarchies();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let before = roots.iter().map(|root| root.join(place_in(&own, root).unwrap_or_default())).collect();
        Ok(Groups { paths: roots.iter().map(|root| root.join(&path)).collect(), before })
    }

    /// Makes them, and moves this process there, with all that it starts from now on.
    ///
    /// # Errors
    /// A hierarchy that is not ours to change.
    pub fn enter(&self) -> Result<()> {
        for path in &self.paths {
            fs::create_dir_all(path)
                .and_then(|()| join(path))
                .with_context(|| format!("enter the control group {}", path.display()))?;
        }
        Ok(())
    }

    /// Moves this process back, so that they can be removed.
    pub fn leave(&self) {
        for before in &self.before {
            let _ = join(before); // one that is gone keeps nobody
        }
    }
}

fn join(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if statfs(root).is_ok_and(|stat| stat.f_type == VERSION_2) {
        return vec![root.into()];
    }
    HIERARCHIES.iter().map(|name| root.join(name)).filter(|path| path.is_dir()).collect()
}

/// Where a process is in the hierarchy at `root`, by its /proc/PID/cgroup.
fn place_in(own: &str, root: &Path) -> Option<PathBuf> {
    let name = root.file_name()?.to_str()?;
    let line = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let controllers = parts.nth(1)?;
        let path = parts.next()?;
        (controllers.split(',').any(|one| one == name) || (root == Path::new(ROOT) && controllers.is_empty()))
            .then_some(path)
    })?;
    Some(line.trim_start_matches('/').into())
}

/// A path below a hierarchy's root: as it is, or what systemd's `SLICE:PREFIX:NAME` stands for (systemd.slice(5)).
fn relative(asked: &Path) -> Result<PathBuf, Error> {
    let invalid = |why: &str| Error::Invalid(format!("linux.cgroupsPath: {} {why}", asked.display()));
    let text = asked.to_str().filter(|text| text.len() <= MAX_PATH).ok_or_else(|| invalid("is no path"))?;
    let path = match text.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] => slices(slice).join(format!("{prefix}-{name}.scope")),
        _ => PathBuf::from(text.trim_start_matches('/')),
    };
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if inside && path.components().count() > 0 { Ok(path) } else { Err(invalid("leaves the hierarchy")) }
}

/// `a-b.slice` is in `a.slice`.
fn slices(slice: &str) -> PathBuf {
    let name = slice.strip_suffix(".slice").unwrap_or(slice);
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.filter(|end| *end > 0).map(|end| format!("{}.slice", &name[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_drivers_paths_are_understood() {
        let of = |path: &str| relative(Path::new(path)).map(|path| path.display().to_string());
        assert_eq!(of("/k8s.io/abc").unwrap(), "k8s.io/abc");
        assert_eq!(
            of("kubepods-burstable-pod1.slice:cri-containerd:abc").unwrap(),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
        );
        for bad in ["/", "/a/../../b", "a:../..:b", &"a/".repeat(1024)] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_process_is_found_in_its_hierarchy() {
        let own = "12:cpu,cpuacct:/a\n4:memory:/b/c\n0::/u\n";
        let place = |root: &str| place_in(own, Path::new(root)).map(|path| path.display().to_string());
        assert_eq!(place("/sys/fs/cgroup/cpuacct").as_deref(), Some("a"));
        assert_eq!(place("/sys/fs/cgroup/memory").as_deref(), Some("b/c"));
        assert_eq!(place("/sys/fs/cgroup").as_deref(), Some("u"));
        assert_eq!(place("/sys/fs/cgroup/pids"), None);
    }
}
