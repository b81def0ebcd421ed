//! Packages by their digests. Whatever lies there is checked each time it is used, so nothing that is kept can poison a build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::{APT_HELPER, Archive, Package};
use crate::manifest;
use crate::run::{run, say};

/// Where Debian keeps what its mirrors have dropped, for each of its archives.
const SNAPSHOTS: [&str; 2] =
    ["http://snapshot.debian.org/archive/debian", "http://snapshot.debian.org/archive/debian-security"];

/// The cache, and what it is to be asked for.
#[derive(Debug)]
pub struct Cache<'a> {
    dir: PathBuf,
    /// The archives as they were when the packages were there.
    archives: &'a [Archive],
    /// Where apt fetches from, once that had to be asked.
    mirrors: Option<Vec<String>>,
    /// How many packages have to be fetched, and how many have been.
    missing: usize,
    fetched: usize,
}

impl<'a> Cache<'a> {
    /// The cache below `cache`, before `packages` of `archives` are taken from it.
    pub fn open(cache: &Path, packages: &[Package], archives: &'a [Archive]) -> Result<Cache<'a>> {
        let dir = cache.join("packages");
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let missing = packages.iter().filter(|package| !place(&dir, package).exists()).count();
        Ok(Cache { dir, archives, mirrors: None, missing, fetched: 0 })
    }

    /// The bytes of a package, fetched unless they are here.
    pub fn get(&mut self, package: &Package) -> Result<Vec<u8>> {
        let kept = place(&self.dir, package);
        if let Ok(bytes) = fs::read(&kept)
            && manifest::digest(&bytes) == package.sha256
        {
            return Ok(bytes);
        }
        self.fetched += 1;
        let (at, of, megabytes) = (self.fetched, self.missing.max(self.fetched), package.size as f64 / 1e6);
        say(&format!("fetch {} {} ({at} of {of}, {megabytes:.1} MB)", package.name, package.version));
        if self.mirrors.is_none() {
            self.mirrors = Some([mirrors()?, snapshots(self.archives)?].concat());
        }
        // Each build fetches into a directory of its own, and renames what is whole: two at a time do the work twice, and no harm.
        let work = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&self.dir);
        let fetched = work.context("make a directory to fetch into")?;
        let to = fetched.path().join("deb");
        let bytes = fetch(package, self.mirrors.iter().flatten(), &to)
            .with_context(|| format!("fetch {} {}: {}", package.name, package.version, advice(package, &kept)))?;
        fs::rename(&to, &kept).with_context(|| format!("keep {}", kept.display()))?;
        Ok(bytes)
    }
}

fn place(dir: &Path, package: &Package) -> PathBuf {
    dir.join(format!("{}.deb", package.sha256))
}

/// Mirrors drop what they have a newer version of.
fn advice(package: &Package, kept: &Path) -> String {
    format!(
        "has every mirror dropped {}? `nacre-image lock --update` (make lock) moves on to what they have; \
         who has the file may put it to {}",
        package.file,
        kept.display()
    )
}

/// Where apt fetches packages from, in its order.
fn mirrors() -> Result<Vec<String>> {
    let text = run(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]))?;
    let mut mirrors = Vec::new();
    for mirror in String::from_utf8_lossy(&text).lines().filter(|line| !line.is_empty()) {
        if !mirrors.iter().any(|other| other == mirror) {
            mirrors.push(mirror.to_string());
        }
    }
    ensure!(!mirrors.is_empty(), "apt has no mirror: /etc/apt/sources.list.d names none");
    Ok(mirrors)
}

/// The archives as they were a day after the last of these indexes was made: nothing that it names is dropped so soon.
fn snapshots(archives: &[Archive]) -> Result<Vec<String>> {
    let mut stamps = Vec::new();
    for archive in archives {
        let date = format!("--date={} + 1 day", archive.date);
        let stamp = run(Command::new("date").args(["--utc", &date, "+%Y%m%dT%H%M%SZ"]))?;
        stamps.push(String::from_utf8_lossy(&stamp).trim().to_string());
    }
    let last = stamps.into_iter().max();
    Ok(last.iter().flat_map(|stamp| SNAPSHOTS.map(|archive| format!("{archive}/{stamp}"))).collect())
}

/// Has the first mirror that can give the package's bytes give them.
fn fetch<'a>(package: &Package, mirrors: impl Iterator<Item = &'a String>, to: &Path) -> Result<Vec<u8>> {
    let mut faults = Vec::new();
    for mirror in mirrors {
        let uri = format!("{}/{}", mirror.trim_end_matches('/'), package.file.replace('+', "%2b"));
        match download(&uri, package, to) {
            Ok(bytes) => return Ok(bytes),
            Err(error) => faults.push(format!("{uri}: {error:#}")),
        }
    }
    bail!("{}", faults.join("\n  "))
}

fn download(uri: &str, package: &Package, to: &Path) -> Result<Vec<u8>> {
    run(Command::new(APT_HELPER).args(["download-file", uri]).arg(to))?;
    let bytes = fs::read(to).context("read what was fetched")?;
    let sha256 = manifest::digest(&bytes);
    ensure!(sha256 == package.sha256, "what came has the digest {sha256}, not {}", package.sha256);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(bytes: &[u8]) -> Package {
        Package {
            name: "made-up".into(),
            version: "1+2".into(),
            architecture: "all".into(),
            source: "made-up 1".into(),
            file: "pool/made-up.deb".into(),
            size: bytes.len() as u64,
            sha256: manifest::digest(bytes),
        }
    }

    /// A cache before mirrors that are directories here.
    fn cache(dir: &Path, mirrors: &[&str]) -> Cache<'static> {
        let mirrors = mirrors.iter().map(|mirror| format!("copy:{}", dir.join(mirror).display())).collect();
        Cache { mirrors: Some(mirrors), ..Cache::open(&dir.join("cache"), &[], &[]).unwrap() }
    }

    fn put(dir: &Path, path: &str, bytes: &[u8]) {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn what_a_mirror_serves_is_believed_by_its_digest_alone() {
        if !Path::new(APT_HELPER).exists() {
            return println!("skipped: {APT_HELPER} is missing");
        }
        let dir = tempfile::tempdir().unwrap();
        let package = package(b"the package");
        put(dir.path(), "bad/pool/made-up.deb", b"something else");
        let error = format!("{:#}", cache(dir.path(), &["none", "bad"]).get(&package).unwrap_err());
        for word in ["fetch made-up 1+2", "lock --update", "what came has the digest", "none/pool/made-up.deb"] {
            assert!(error.contains(word), "{error}");
        }
        let left: Vec<_> = fs::read_dir(dir.path().join("cache/packages")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");

        put(dir.path(), "good/pool/made-up.deb", b"the package");
        assert_eq!(cache(dir.path(), &["bad", "good"]).get(&package).unwrap(), b"the package");
        // No mirror is asked again, until what is kept is another.
        assert_eq!(cache(dir.path(), &[]).get(&package).unwrap(), b"the package");
        put(dir.path(), &format!("cache/packages/{}.deb", package.sha256), b"poison");
        assert!(cache(dir.path(), &[]).get(&package).is_err());
        assert_eq!(cache(dir.path(), &["good"]).get(&package).unwrap(), b"the package");
    }

    #[test]
    fn a_snapshot_is_one_of_the_day_after_the_last_index() {
        let archive = |date: &str| Archive { suite: "x".into(), date: date.into(), key: "k".into() };
        let archives = [archive("Tue, 31 Dec 2024 23:59:59 UTC"), archive("Sat, 28 Dec 2024 14:09:31 UTC")];
        let expected = SNAPSHOTS.map(|archive| format!("{archive}/20250101T235959Z"));
        assert_eq!(snapshots(&archives).unwrap(), expected);
        assert_eq!(snapshots(&[]).unwrap(), [""; 0]);
        assert!(snapshots(&[archive("never")]).is_err());
    }
}
