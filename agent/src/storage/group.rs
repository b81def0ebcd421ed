//! The cgroup of the processes that pull.
//!
//! There is one for all pulls, made with the first and kept: what a pull writes into a store in memory is charged to its cgroup, and a removed
//! one would stay in the kernel for as long as that. For the same reason it has no `memory.max`, which would bound images: what a process has
//! to itself, `nacre-pull` bounds by a resource limit.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Its name, below the root of the hierarchy.
const NAME: &str = "nacre-pull";

/// How much work goes to pulls when containers have work, too (a container's default is 100), and how many processes and threads four pulls
/// may come to: some thirty each, and key providers.
const LIMITS: &[(&str, &str)] = &[("cpu.weight", "50"), ("pids.max", "512")];

/// The cgroup, or none.
#[derive(Debug, Default)]
pub struct Group {
    root: Option<PathBuf>,
    procs: OnceLock<Option<File>>,
}

impl Group {
    /// One in the cgroup2 file system that is mounted on `root`.
    pub fn below(root: impl Into<PathBuf>) -> Group {
        Group { root: Some(root.into()), procs: OnceLock::new() }
    }

    /// Lets what `command` starts begin there. Where no cgroup can be made, a pull does without one.
    pub(super) fn join(&self, command: &mut Command) {
        let procs = self.procs.get_or_init(|| self.make()).as_ref();
        if let Some(Ok(procs)) = procs.map(File::try_clone) {
            nacre_sys::cgroup::join(command, procs);
        }
    }

    fn make(&self) -> Option<File> {
        let group = self.root.as_ref().filter(|root| root.join("cgroup.procs").exists())?.join(NAME);
        let made = match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => OpenOptions::new().write(true).open(group.join("cgroup.procs")),
        };
        let procs = made.inspect_err(|error| tracing::warn!(%error, "pulls have no cgroup of their own")).ok()?;
        for (file, limit) in LIMITS {
            if let Err(error) = fs::write(group.join(file), limit) {
                tracing::warn!(%error, "{file} of the pulls' cgroup is not set");
            }
        }
        Some(procs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a cgroup2 file system is mounted, if one is.
    fn mounted() -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let place = fields.find_map(|fields| (fields.get(2) == Some(&"cgroup2")).then(|| fields[1].into()));
        if place.is_none() {
            println!("skipped: no cgroup2 file system is mounted");
        }
        place
    }

    #[test]
    fn what_pulls_begins_in_the_pulls_cgroup() {
        let Some(root) = mounted() else { return };
        let (root, group) = (root.clone(), Group::below(root));
        for _ in 0..2 {
            let mut command = Command::new("cat");
            group.join(command.arg("/proc/self/cgroup"));
            let output = command.output().unwrap();
            assert!(String::from_utf8_lossy(&output.stdout).contains("0::/nacre-pull\n"), "{output:?}");
        }
        fs::remove_dir(root.join(NAME)).unwrap();
    }

    #[test]
    fn without_a_hierarchy_a_pull_begins_where_it_is() {
        let nowhere = tempfile::tempdir().unwrap();
        for group in [Group::default(), Group::below(nowhere.path())] {
            let mut command = Command::new("true");
            group.join(&mut command);
            assert!(command.status().unwrap().success());
        }
    }
}
