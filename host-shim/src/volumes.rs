//! `-v HOST:CONTAINER[:ro]`: files of the host, copied into the guest before the container is made.
//!
//! The guest has no share with the host, so that the host can't change a file under a running container. What is copied is bounded,
//! for it lies in the guest's memory.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

use crate::guest::Guest;

/// Where the agent takes copies (Kata's shared directory).
const SHARED: &str = "/run/kata-containers/shared/containers";

/// The most that is copied.
const MAX_BYTES: u64 = 256 << 20;
const MAX_FILES: usize = 10_000;

/// File types of stat(2).
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What is copied.
    pub host: PathBuf,
    /// Where the container sees it.
    pub container: PathBuf,
    /// Whether the container may not write to its copy.
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Volume, String> {
        let wrong = || "write HOST:CONTAINER or HOST:CONTAINER:ro, the container's path absolute".to_string();
        let (host, container, read_only) = match text.split(':').collect::<Vec<_>>()[..] {
            [host, container] => (host, container, false),
            [host, container, "ro"] => (host, container, true),
            [host, container, "rw"] => (host, container, false),
            _ => return Err(wrong()),
        };
        if host.is_empty() || !container.starts_with('/') {
            return Err(wrong());
        }
        Ok(Volume { host: host.into(), container: container.into(), read_only })
    }
}

/// Where the guest keeps the copy of a pod's volume.
pub fn guest_path(pod: &str, number: usize) -> String {
    format!("{SHARED}/{pod}-volume-{number}")
}

/// Copies every volume of a pod.
///
/// # Errors
/// A file that can't be read or copied, or too many of them.
pub async fn copy(guest: &Guest, pod: &str, volumes: &[Volume]) -> Result<()> {
    let mut copied = Copied::default();
    for (number, volume) in volumes.iter().enumerate() {
        let host = fs::canonicalize(&volume.host).with_context(|| format!("volume {}", volume.host.display()))?;
        copy_tree(guest, &host, &guest_path(pod, number), &mut copied).await?;
    }
    Ok(())
}

/// How much was copied so far.
#[derive(Debug, Default)]
pub struct Copied {
    files: usize,
    bytes: u64,
}

/// Copies a file, or a directory with all that is in it. Parents before children; without recursion, however deep.
///
/// # Errors
/// As [`copy`].
pub async fn copy_tree(guest: &Guest, host: &Path, to: &str, copied: &mut Copied) -> Result<()> {
    let mut todo = vec![(host.to_path_buf(), to.to_string())];
    while let Some((from, to)) = todo.pop() {
        let act = || format!("copy {} into the VM", from.display());
        let meta = fs::symlink_metadata(&from).with_context(act)?;
        copied.files += 1;
        copied.bytes += if meta.is_file() { meta.len() } else { 0 };
        if copied.files > MAX_FILES || copied.bytes > MAX_BYTES {
            bail!("{}: volumes hold more than {MAX_FILES} files or {} MiB", act(), MAX_BYTES >> 20);
        }
        let permissions = meta.permissions().mode() & 0o7777;
        if meta.is_symlink() {
            let target = fs::read_link(&from).with_context(act)?;
            guest.copy(&to, LINK | 0o777, target.as_os_str().as_encoded_bytes()).await.with_context(act)?;
        } else if meta.is_dir() {
            guest.copy(&to, DIRECTORY | permissions, &[]).await.with_context(act)?;
            for entry in fs::read_dir(&from).with_context(act)? {
                let entry = entry.with_context(act)?;
                let name =
                    entry.file_name().into_string().ok().with_context(|| format!("{}: a name is not UTF-8", act()))?;
                todo.push((entry.path(), format!("{to}/{name}")));
            }
        } else if meta.is_file() {
            guest.copy(&to, FILE | permissions, &fs::read(&from).with_context(act)?).await.with_context(act)?;
        } else {
            bail!("{}: only files, directories and symbolic links can be copied", act());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_names_both_ends() {
        let volume: Volume = "./a:/b:ro".parse().unwrap();
        assert_eq!(volume, Volume { host: "./a".into(), container: "/b".into(), read_only: true });
        for bad in ["a", ":/b", "a:b", "a:/b:x", "a:/b:ro:z"] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
    }
}
