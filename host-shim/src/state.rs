//! Pods on this host: a directory each, locked by the process that runs it.
//!
//! What a directory holds is for other `nacre` processes to find: the way to the guest, the status, the container's output. A lock that
//! can be had belongs to a pod whose process is gone; unless its status is to be kept, its directory goes.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

const STATUS: &str = "status.json";
const LOCK: &str = "lock";

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The VM boots, or pulls.
    Starting,
    /// The container runs.
    Running,
    /// The container has ended.
    Exited,
}

/// What is known of a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// The process that runs it.
    pub pid: u32,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// How its container ended.
    pub exit_code: Option<i32>,
    /// Whether its directory stays when it has ended.
    pub keep: bool,
}

/// Where all pods are.
#[derive(Debug, Clone)]
pub struct Pods(PathBuf);

/// A pod of this process. Dropping it removes its directory, unless it is to be kept.
#[derive(Debug)]
pub struct Pod {
    dir: PathBuf,
    status: Status,
    _lock: File,
}

impl Pods {
    /// Opens `dir`, or where pods are by default.
    ///
    /// # Errors
    /// A directory that can't be made.
    pub fn open(dir: Option<PathBuf>) -> Result<Pods> {
        let dir = dir.unwrap_or_else(default_dir);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.with_context(|| format!("create {}", dir.display()))?;
        Ok(Pods(dir))
    }

    /// Makes a pod of this process.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn create(&self, name: Option<&str>, image: &str, keep: bool) -> Result<Pod> {
        self.list()?; // clears what dead processes left
        let name = name.map_or_else(made_up_name, str::to_string);
        let dir = self.0.join(&name);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                bail!("there is a pod {name} already: choose another --name, or remove it (nacre rm {name})")
            }
            made => made.with_context(|| format!("create {}", dir.display()))?,
        }
        let lock = File::create(dir.join(LOCK)).context("make the pod's lock")?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).context("lock the pod")?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let status = Status {
            name,
            image: image.into(),
            phase: Phase::Starting,
            pid: std::process::id(),
            started,
            exit_code: None,
            keep: false,
        };
        let mut pod = Pod { dir, status, _lock: lock };
        pod.update(|status| status.keep = keep)?;
        Ok(pod)
    }

    /// Every pod, by name. Removes what a process left that died.
    ///
    /// # Errors
    /// A directory that can't be read.
    pub fn list(&self) -> Result<Vec<Status>> {
        let mut pods = Vec::new();
        let entries = fs::read_dir(&self.0).with_context(|| format!("list {}", self.0.display()))?;
        for dir in entries.filter_map(|entry| entry.ok().map(|e| e.path())) {
            let alive = is_locked(&dir);
            match read(&dir) {
                Some(status) if alive || (status.keep && status.phase == Phase::Exited) => pods.push(status),
                // Between its directory and its first status a live pod is not to be touched.
                _ if alive || !dir.join(LOCK).exists() => {}
                _ => drop(fs::remove_dir_all(&dir)), // another process may clear it at the same time
            }
        }
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pods)
    }

    /// One pod's directory and status.
    ///
    /// # Errors
    /// No such pod.
    pub fn find(&self, name: &str) -> Result<(PathBuf, Status)> {
        let status = self.list()?.into_iter().find(|status| status.name == name);
        let status = status.with_context(|| format!("there is no pod {name} (nacre ps lists them)"))?;
        Ok((self.0.join(name), status))
    }

    /// Removes an ended pod.
    ///
    /// # Errors
    /// A pod that runs, or none of the name.
    pub fn remove(&self, name: &str) -> Result<()> {
        let (dir, status) = self.find(name)?;
        if status.phase != Phase::Exited || is_locked(&dir) {
            bail!("the pod {name} runs: stop it first (nacre stop {name})");
        }
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))
    }
}

impl Pod {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.status.name
    }

    /// Changes the status that others see.
    ///
    /// # Errors
    /// A status that can't be written.
    pub fn update(&mut self, change: impl FnOnce(&mut Status)) -> Result<()> {
        change(&mut self.status);
        let text = serde_json::to_vec(&self.status).context("write the pod's status")?;
        let new = self.dir.join("status.new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, self.dir.join(STATUS))).context("write the pod's status")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if !(self.status.keep && self.status.phase == Phase::Exited) {
            let _ = fs::remove_dir_all(&self.dir); // the next `nacre` clears what is left
        }
    }
}

fn default_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/run/nacre".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => Path::new(&dir).join("nacre"),
        _ => std::env::temp_dir().join(format!("nacre-{}", rustix::process::geteuid().as_raw())),
    }
}

fn made_up_name() -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("pod-{:x}-{:x}", std::process::id(), time % (1 << 32))
}

fn is_locked(dir: &Path) -> bool {
    File::open(dir.join(LOCK))
        .is_ok_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}

fn read(dir: &Path) -> Option<Status> {
    serde_json::from_slice(&fs::read(dir.join(STATUS)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_seen_while_its_process_lives_and_cleared_after() {
        let dir = tempfile::tempdir().unwrap();
        let pods = Pods::open(Some(dir.path().into())).unwrap();
        let pod = pods.create(Some("a"), "image", false).unwrap();
        assert_eq!(pods.list().unwrap().len(), 1);
        assert!(pods.create(Some("a"), "image", false).unwrap_err().to_string().contains("already"));
        assert!(pods.remove("a").unwrap_err().to_string().contains("nacre stop a"));
        drop(pod);
        assert!(pods.list().unwrap().is_empty());
        // A process that was killed leaves its directory, but not its lock.
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b").join(LOCK), "").unwrap();
        assert!(pods.list().unwrap().is_empty() && !dir.path().join("b").exists());
    }

    #[test]
    fn an_ended_pod_stays_when_asked_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pods = Pods::open(Some(dir.path().into())).unwrap();
        let mut pod = pods.create(Some("a"), "image", true).unwrap();
        pod.update(|status| (status.phase, status.exit_code) = (Phase::Exited, Some(3))).unwrap();
        drop(pod);
        assert_eq!(pods.find("a").unwrap().1.exit_code, Some(3));
        pods.remove("a").unwrap();
        assert!(pods.find("a").is_err());
    }
}
