//! What a pod has on this host, on disk: written before any of it is made, so that whoever comes after a crash can undo it.

use std::fs::{self, DirBuilder, File};
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// Where pods' directories are.
const STATE: &str = "/run/nacre-shim";

/// The variable that names another place.
const ENV: &str = "NACRE_SHIM_STATE_DIR";

/// What a directory's file is called.
const FILE: &str = "state.json";

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// A process, which its number alone does not tell: numbers come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proc {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since boot (proc(5), /proc/PID/stat, field 22).
    pub started: u64,
}

/// What a pod has. Its VM is not here: the kernel ends it with the shim.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Held {
    /// The shim.
    pub shim: Option<Proc>,
    /// The pod's network namespace, whose interfaces were joined to taps. These go with the processes.
    pub netns: Option<PathBuf>,
    /// Control groups.
    pub cgroups: Vec<PathBuf>,
}

/// A pod's directory and what it says.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    held: Held,
}

impl Proc {
    /// The process of this number, if there is one now.
    pub fn of(pid: u32) -> Option<Proc> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let started = rest.split_ascii_whitespace().nth(19)?.parse().ok()?;
        Some(Proc { pid, started })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Proc::of(self.pid) == Some(self)
    }
}

/// The directory of the pod `id`.
pub fn dir_of(id: &str) -> PathBuf {
    root().join(id)
}

/// Where pods' directories are.
pub fn root() -> PathBuf {
    std::env::var_os(ENV).map_or_else(|| STATE.into(), PathBuf::from)
}

impl Journal {
    /// Makes the directory of a new pod, and notes what it is going to have.
    ///
    /// # Errors
    /// A pod of this name that lives, or a directory that can't be written.
    pub fn create(id: &str, held: &Held) -> Result<Journal> {
        let dir = dir_of(id);
        let act = || format!("create {}", dir.display());
        DirBuilder::new().recursive(true).mode(0o700).create(root()).with_context(act)?;
        if let Err(error) = DirBuilder::new().mode(0o700).create(&dir) {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                bail!("there is a pod {id} already: {}", dir.display());
            }
            return Err(error).with_context(act);
        }
        let (path, new) = (dir.join(FILE), dir.join("state.new"));
        let text = serde_json::to_vec(held).context("write the pod's state")?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Journal { dir, held: held.clone() })
    }

    /// What the pod in `dir` has; nothing where there is none.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn read(dir: &Path) -> Result<Option<Held>> {
        let path = dir.join(FILE);
        let act = || format!("read {}", path.display());
        let mut text = String::new();
        match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)).with_context(act)?,
        };
        serde_json::from_str(&text).map(Some).with_context(act)
    }

    /// The pod's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the pod has.
    pub fn held(&self) -> &Held {
        &self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let this = Proc::of(std::process::id()).unwrap();
        assert!(this.is_alive());
        assert!(!Proc { started: this.started + 1, ..this }.is_alive());
        assert_eq!(Proc::of(u32::MAX), None);
    }
}
