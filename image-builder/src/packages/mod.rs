//! Debian packages: looked up in the archive's signed index or in a lock, kept by their digests, read without privileges.

mod cache;
mod contents;
mod deb;
mod index;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

pub use contents::Contents;
#[cfg(test)]
pub(crate) use deb::made;
pub use deb::{Deb, Entry};
pub use index::{Index, read as today};

use crate::run::say;

/// apt's own tool for fetching and for reading what it keeps compressed.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// The largest package that is fetched.
const MAX_BYTES: u64 = 1 << 30;

/// Where packages come from, at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// The release's code name.
    pub suite: String,
    /// When its index was made, as it says.
    pub date: String,
    /// The fingerprint of the key that has signed it.
    pub key: String,
}

/// A package, to the byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it runs on.
    pub architecture: String,
    /// The source package and its version.
    pub source: String,
    /// Where it is on every mirror.
    pub file: String,
    /// How many bytes it has.
    pub size: u64,
    /// Their SHA-256, in hex.
    pub sha256: String,
}

impl Package {
    /// What is wrong with it: an index and a lock are texts that others write.
    pub fn fault(&self) -> Option<&'static str> {
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let is_below = |part: &str| !matches!(part, "" | "." | "..");
        if !is_name(&self.name) {
            return Some("its name is no Debian package's");
        }
        if !is_plain(&self.version) || !is_plain(&self.architecture) {
            return Some("a version and an architecture are words");
        }
        if !is_plain(&self.file) || !self.file.starts_with("pool/") || !self.file.split('/').all(is_below) {
            return Some("its file is not below pool/");
        }
        if !is_digest(&self.sha256) {
            return Some("its sha256 is no digest of 64 hexadecimal digits");
        }
        (self.size == 0 || self.size > MAX_BYTES).then_some("its size is out of bounds")
    }
}

/// Whether a package can have that name (Debian policy, 5.6.1).
pub fn is_name(name: &str) -> bool {
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    name.len() >= 2 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_legal)
}

/// Whether `text` is a SHA-256, in hex.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The files of `packages`. Those that `cache` lacks are fetched, from mirrors and then from where Debian keeps its `archives` as they were.
///
/// # Errors
/// A package that no mirror has, that is broken, or that has a file of another one; a full disk.
pub fn contents(packages: &[Package], archives: &[Archive], cache: &Path) -> Result<Contents> {
    let mut cache = cache::Cache::open(cache, packages, archives)?;
    let mut contents = Contents::default();
    for package in packages {
        let deb = Deb::read(&cache.get(package)?).with_context(|| format!("{} {}", package.name, package.version))?;
        contents.add(&package.name, deb)?;
    }
    Ok(contents)
}

/// The files of the packages `names` as the archive has them today.
///
/// # Errors
/// As [`contents`] and [`today`]; a name that the archive does not know.
pub fn contents_today(names: &[&str], cache: &Path) -> Result<Contents> {
    let mut index = today(&BTreeSet::from_iter(names.iter().copied()))?;
    let package = |name: &&str| index.packages.remove(*name).with_context(|| format!("Debian has no package {name}"));
    let packages: Vec<_> = names.iter().map(package).collect::<Result<_>>()?;
    say(&format!("packages: {}", names.join(" ")));
    contents(&packages, &index.archives, cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_others_describe_is_checked() {
        let good = Package {
            name: "libc6".into(),
            version: "2.36-9+deb12u14".into(),
            architecture: "amd64".into(),
            source: "glibc 2.36-9+deb12u14".into(),
            file: "pool/main/g/glibc/libc6.deb".into(),
            size: 1,
            sha256: "0a".repeat(32),
        };
        assert_eq!(good.fault(), None);
        for (bad, word) in [
            (Package { name: "-o=x".into(), ..good.clone() }, "name"),
            (Package { version: "1 2".into(), ..good.clone() }, "words"),
            (Package { file: "pool/../../x.deb".into(), ..good.clone() }, "below pool/"),
            (Package { file: "http://x/pool/y.deb".into(), ..good.clone() }, "below pool/"),
            (Package { sha256: "0A".repeat(32), ..good.clone() }, "digest"),
            (Package { size: 0, ..good.clone() }, "size"),
        ] {
            assert!(bad.fault().is_some_and(|fault| fault.contains(word)), "{bad:?}");
        }
    }
}
