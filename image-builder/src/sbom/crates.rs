//! The crates that programs of ours were linked from: what `cargo tree` says of each, with the digests of Cargo.lock.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Component;

/// The end of the name of the file with a program's crates: a line each, `NAME vVERSION`, the program's own first or not.
const SUFFIX: &str = "crates";

/// Crates' digests, and where the programs' lists are.
#[derive(Debug)]
pub struct Crates {
    dir: PathBuf,
    /// By name and version; those of ours have none.
    digests: HashMap<(String, String), Option<String>>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

impl Crates {
    /// Reads Cargo.lock; the programs' lists are in `dir`.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn read(dir: &Path, lock: &Path) -> Result<Crates> {
        let act = || format!("read {}", lock.display());
        let text = fs::read_to_string(lock).with_context(act)?;
        let lock: Lock = toml::from_str(&text).with_context(act)?;
        let digests = lock.package.into_iter().map(|locked| ((locked.name, locked.version), locked.checksum));
        Ok(Crates { dir: dir.into(), digests: digests.collect() })
    }

    /// A program, by its file, and the crates that it was linked from.
    pub(super) fn of(&self, program: &Path) -> Result<(Component, Vec<Component>)> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let list = self.dir.join(format!("{name}.{SUFFIX}"));
        let text =
            fs::read_to_string(&list).with_context(|| format!("read {} (make images writes it)", list.display()))?;
        let mut version = String::new();
        let mut linked = Vec::new();
        for line in text.lines() {
            let parsed = line.split_once(" v").with_context(|| format!("{}: {line:?} is no crate", list.display()));
            let (package, number) = parsed?;
            if package == name {
                version = number.into();
                continue;
            }
            linked.push(self.component(package, number));
        }
        let holds = linked.iter().map(|one| one.purl.clone()).collect();
        let purl = format!("pkg:generic/{name}@{version}");
        Ok((Component { is_program: true, name, version, purl, sha256: None, source: None, holds }, linked))
    }

    fn component(&self, name: &str, version: &str) -> Component {
        let sha256 = self.digests.get(&(name.into(), version.into())).cloned().flatten();
        // What Cargo.lock has no digest of is ours, and no registry knows it.
        let kind = if sha256.is_some() { "cargo" } else { "generic" };
        Component {
            is_program: false,
            name: name.into(),
            version: version.into(),
            purl: format!("pkg:{kind}/{name}@{}", super::escape(version)),
            sha256,
            source: None,
            holds: Vec::new(),
        }
    }
}
