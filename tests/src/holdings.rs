//! What an agent holds, to be compared with what it held before.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep};

use crate::agent::Process;

/// How long what was begun may take to come to its end.
const AT_REST_WITHIN: Duration = Duration::from_secs(10);

/// What must not grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Descriptors of the agent's.
    pub descriptors: usize,
    /// Mounts in its namespace.
    pub mounts: usize,
    /// Processes in its namespace and below.
    pub processes: usize,
    /// Cgroups of containers whose names begin as was asked.
    pub cgroups: usize,
}

impl Holdings {
    /// What `agent` holds, with the cgroups of containers whose names begin with `prefix`.
    ///
    /// # Errors
    /// An agent that has ended.
    pub fn of(agent: &Process, prefix: &str) -> Result<Holdings> {
        let of = |name: &str| PathBuf::from(format!("/proc/{}/{name}", agent.pid().unwrap_or_default()));
        let entries = |path| fs::read_dir(path).context("look at the agent").map(|entries| entries.flatten());
        let is_process = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        Ok(Holdings {
            descriptors: entries(of("fd"))?.count(),
            mounts: fs::read_to_string(of("mountinfo")).context("look at the agent's mounts")?.lines().count(),
            processes: entries(of("root/proc"))?.filter(is_process).count(),
            cgroups: Holdings::of_cgroups(prefix),
        })
    }

    /// The cgroups of containers whose names begin with `prefix`, in all hierarchies.
    pub fn of_cgroups(prefix: &str) -> usize {
        cgroups(Path::new("/sys/fs/cgroup"), prefix)
    }

    /// The same as these, or after a while what differs from them.
    ///
    /// # Errors
    /// An agent that has ended.
    pub async fn again(&self, agent: &Process, prefix: &str) -> Result<Holdings> {
        let end = Instant::now() + AT_REST_WITHIN;
        loop {
            let now = Holdings::of(agent, prefix)?;
            if now == *self || Instant::now() > end {
                return Ok(now);
            }
            sleep(Duration::from_millis(10)).await; // nothing tells
        }
    }
}

fn cgroups(dir: &Path, prefix: &str) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    let is_one = |path: &Path| path.to_string_lossy().contains(&format!("nacre-test/{prefix}"));
    dirs.map(|path| usize::from(is_one(&path)) + cgroups(&path, prefix)).sum()
}
