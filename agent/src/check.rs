//! The guest's check of itself: whether the kernel that runs has what the guest's image relies on.
//!
//! The image brings the table, which the builder has written from `kernel-config/required.toml`. An image without one relies on nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where images have the table.
const TABLE: &str = "/etc/nacre/required.json";

/// The largest table.
const MAX_TABLE: u64 = 1 << 20;

/// What the image relies on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Required {
    option: String,
    why: String,
    seen: Sign,
    vital: bool,
}

/// How a running kernel shows what it has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Sign {
    Filesystem(String),
    Controller(String),
    Path(String),
    Absent(String),
    Word(String, String),
}

/// One thing that was looked for.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// The kernel's option for it.
    pub option: String,
    /// What it is for.
    pub why: String,
    /// Whether nothing runs without it.
    pub vital: bool,
    /// Whether it is as it should be.
    pub ok: bool,
}

/// What came of looking.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The table can't be read.
    #[error("read {TABLE}")]
    Read(#[source] io::Error),
    /// It is none.
    #[error("{TABLE} is no list of what the guest relies on")]
    Json(#[source] serde_json::Error),
    /// The kernel lacks what nothing runs without.
    #[error("the kernel lacks what nothing runs without: {0}")]
    Vital(String),
}

/// Look for all that the image whose root is `root` relies on. Blocks.
pub fn check(root: &Path) -> Result<Vec<Finding>, Error> {
    let text = match read_table(&root.join(TABLE.trim_start_matches('/'))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::Read)?,
    };
    let table: Vec<Required> = serde_json::from_str(&text).map_err(Error::Json)?;
    let kernel = Kernel::look(root);
    let finding = |Required { option, why, seen, vital }| Finding { ok: kernel.shows(&seen), option, why, vital };
    Ok(table.into_iter().map(finding).collect())
}

/// The same at boot: what is missing is said in the log, and is an error if it is vital.
pub fn at_boot(root: &Path) -> Result<(), Error> {
    let missing: Vec<_> = check(root)?.into_iter().filter(|finding| !finding.ok).collect();
    for Finding { option, why, .. } in &missing {
        tracing::warn!("the kernel is not as the image relies on it: {option}: {why}");
    }
    let vital: Vec<_> = missing.iter().filter(|finding| finding.vital).map(|finding| &*finding.option).collect();
    if vital.is_empty() { Ok(()) } else { Err(Error::Vital(vital.join(", "))) }
}

fn read_table(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_TABLE).read_to_string(&mut text)?; // what is cut off is no JSON
    Ok(text)
}

/// What the running kernel says of itself.
struct Kernel<'a> {
    root: &'a Path,
    filesystems: BTreeSet<String>,
    controllers: BTreeSet<String>,
}

impl Kernel<'_> {
    fn look(root: &Path) -> Kernel<'_> {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default(); // which shows nothing
        let filesystems =
            text("proc/filesystems").lines().filter_map(|l| l.split_whitespace().last()).map(String::from).collect();
        let controllers = text("sys/fs/cgroup/cgroup.controllers").split_whitespace().map(String::from).collect();
        Kernel { root, filesystems, controllers }
    }

    fn shows(&self, sign: &Sign) -> bool {
        let path = |path: &str| self.root.join(path.trim_start_matches('/'));
        match sign {
            Sign::Filesystem(name) => self.filesystems.contains(name),
            Sign::Controller(name) => self.controllers.contains(name),
            Sign::Path(name) => path(name).symlink_metadata().is_ok(),
            Sign::Absent(name) => path(name).symlink_metadata().is_err(),
            Sign::Word(file, word) => {
                let text = fs::read_to_string(path(file)).unwrap_or_default();
                text.split([' ', ',', '\n']).any(|have| have == word)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_found_and_what_is_vital_stops_the_boot() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert!(check(root.path()).unwrap().is_empty());
        write("proc/filesystems", "nodev\ttmpfs\n\text4\n");
        write("sys/fs/cgroup/cgroup.controllers", "cpu pids\n");
        write("sys/kernel/security/lsm", "lockdown,capability,landlock\n");
        write("dev/vsock", "");
        let table = r#"[
            {"option": "EXT4", "why": "a", "seen": {"filesystem": "ext4"}, "vital": true},
            {"option": "CPU", "why": "b", "seen": {"controller": "cpu"}, "vital": true},
            {"option": "LANDLOCK", "why": "c", "seen": {"word": ["/sys/kernel/security/lsm", "landlock"]}, "vital": true},
            {"option": "VSOCK", "why": "d", "seen": {"path": "/dev/vsock"}, "vital": true},
            {"option": "MEM", "why": "e", "seen": {"absent": "/dev/mem"}, "vital": true},
            {"option": "XFS", "why": "f", "seen": {"filesystem": "xfs"}, "vital": false},
            {"option": "MEMORY", "why": "g", "seen": {"controller": "memory"}, "vital": false}]"#;
        write("etc/nacre/required.json", table);
        let missing = |finding: &Finding| (!finding.ok).then(|| finding.option.clone());
        assert_eq!(check(root.path()).unwrap().iter().filter_map(missing).collect::<Vec<_>>(), ["XFS", "MEMORY"]);
        at_boot(root.path()).unwrap();
        fs::remove_file(root.path().join("dev/vsock")).unwrap();
        write("dev/mem", "");
        let error = at_boot(root.path()).unwrap_err().to_string();
        assert_eq!(error, "the kernel lacks what nothing runs without: VSOCK, MEM");
        write("etc/nacre/required.json", "[{}]");
        assert!(matches!(check(root.path()), Err(Error::Json(_))));
    }
}
