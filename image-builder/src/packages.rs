//! Debian packages: fetched by apt, checked against the digest of the archive's signed index, kept by content, unpacked without privileges.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::manifest::{self, Input};
use crate::run::{run, say};

/// Packages, unpacked into one directory.
#[derive(Debug)]
pub struct Unpacked {
    /// The directory.
    pub root: tempfile::TempDir,
    /// What was unpacked, by name.
    pub inputs: Vec<Input>,
}

/// A package as apt's index knows it.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    file: String,
    sha256: String,
}

/// Fetches what `cache` lacks of the packages `names`, and unpacks them.
///
/// # Errors
/// A name that apt does not know, a download that fails or has another digest than the index says, a full disk.
pub fn unpack(names: &[String], cache: &Path) -> Result<Unpacked> {
    let cache = cache.join("packages");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let root = tempfile::tempdir().context("make a directory to unpack in")?;
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    let mut inputs = Vec::new();
    for name in &names {
        let candidate = candidate(name)?;
        let deb = fetch(name, &candidate, &cache)?;
        run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(root.path()))?;
        let version = run(Command::new("dpkg-deb").arg("--field").arg(&deb).arg("Version"))?;
        let version = String::from_utf8_lossy(&version).trim().to_string();
        inputs.push(Input { name: name.clone(), version, sha256: candidate.sha256 });
    }
    Ok(Unpacked { root, inputs })
}

fn candidate(name: &str) -> Result<Candidate> {
    let text = run(Command::new("apt-get").args(["download", "--print-uris", name]))
        .with_context(|| format!("look up the package {name} (does apt-get update help?)"))?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(parse).with_context(|| format!("apt-get says of {name}: {:?}", text.trim()))
}

/// A line of `--print-uris`: `'URI' FILE SIZE SHA256:DIGEST`.
fn parse(line: &str) -> Option<Candidate> {
    let mut fields = line.split_whitespace();
    let (_, file) = (fields.next().filter(|uri| uri.starts_with('\''))?, fields.next()?);
    let sha256 = fields.nth(1)?.strip_prefix("SHA256:")?;
    let plain = !file.contains('/') && !file.starts_with('.');
    let digest = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    (plain && digest).then(|| Candidate { file: file.into(), sha256: sha256.into() })
}

fn fetch(name: &str, candidate: &Candidate, cache: &Path) -> Result<PathBuf> {
    let kept = cache.join(&candidate.file);
    if kept.exists() && manifest::digest_file(&kept)? == candidate.sha256 {
        return Ok(kept);
    }
    say(&format!("fetch {}", candidate.file));
    let work =
        tempfile::Builder::new().prefix(".fetch-").tempdir_in(cache).context("make a directory to fetch into")?;
    run(Command::new("apt-get").args(["download", "--quiet", name]).current_dir(work.path()))?;
    let fetched = work.path().join(&candidate.file);
    ensure!(fetched.exists(), "apt-get did not fetch {}", candidate.file);
    let sha256 = manifest::digest_file(&fetched)?;
    if sha256 != candidate.sha256 {
        bail!("{} has the digest {sha256}, not {}", candidate.file, candidate.sha256);
    }
    fs::rename(&fetched, &kept).with_context(|| format!("keep {}", kept.display()))?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apt_is_read_whole_or_not_at_all() {
        let digest = "ab".repeat(32);
        let line = format!("'http://deb/skopeo.deb' skopeo_1.9.3_amd64.deb 5910000 SHA256:{digest}");
        assert_eq!(parse(&line), Some(Candidate { file: "skopeo_1.9.3_amd64.deb".into(), sha256: digest.clone() }));
        for bad in ["", "W: a warning of apt", "'uri' ../x.deb 1 SHA256:ab", &line.replace("SHA256", "MD5Sum")] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
