//! The lock: every package of some recipes, and the kernel's source, to the byte. It lies beside the recipes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::manifest;
use crate::packages::{self, Archive, Package};
use crate::place::{self, Place};
use crate::recipe::{At, Recipe, read_text};
use crate::run::{run, say};

/// Its name, in the recipes' directory.
const NAME: &str = "packages.lock";

/// The only version there is.
const VERSION: u32 = 1;

/// The most packages.
const MAX_PACKAGES: usize = 10_000;

/// What is written above it.
const HEADING: &str = "# Written by `nacre-image lock` (make lock). What is built with it has these bytes, wherever and whenever it is built.\n";

/// What a lock says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// The kernel's source.
    pub kernel: Option<KernelSource>,
    /// The signed indexes that the packages were found in.
    #[serde(default)]
    pub archives: Vec<Archive>,
    /// The packages, by their names.
    #[serde(default, with = "by_name")]
    packages: BTreeMap<String, Package>,
}

/// The archive that the kernel is built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelSource {
    /// Debian's package that has it.
    pub package: String,
    /// The package's version.
    pub version: String,
    /// SHA-256 of the archive, in hex.
    pub sha256: String,
}

/// The lock that counts for `recipe`.
pub fn beside(recipe: &Path) -> PathBuf {
    recipe.with_file_name(NAME)
}

impl Lock {
    /// Reads a lock.
    ///
    /// # Errors
    /// A file that is missing, or the first thing that is wrong with it, with its place.
    pub fn read(file: &Path) -> Result<Lock> {
        let text = read_text(file).context("a locked build takes a lock (nacre-image lock writes it)")?;
        Lock::parse(file, &text)
    }

    /// Parses the `text` of `file`.
    ///
    /// # Errors
    /// As [`Lock::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Lock> {
        /// The same, with places.
        #[derive(Deserialize)]
        struct Placed {
            #[serde(default)]
            packages: Vec<Spanned<toml::Value>>,
        }
        let fault = |error| place::fault_of(file, text, &error);
        let lock: Lock = toml::from_str(text).map_err(fault)?;
        let spans = toml::from_str::<Placed>(text).map_err(fault)?.packages;
        let start = Place::of(file, text, 0..0);
        ensure!(
            lock.version == VERSION,
            start.fault(format!("a lock of version {}; {VERSION} is known", lock.version))
        );
        ensure!(spans.len() <= MAX_PACKAGES, start.fault(format!("more than {MAX_PACKAGES} packages")));
        ensure!(spans.len() == lock.packages.len(), start.fault("a package is there twice"));
        for entry in &spans {
            let package: Package = entry.get_ref().clone().try_into().context("read a package")?;
            if let Some(what) = package.fault() {
                return Err(Place::of(file, text, entry.span()).fault(format!("{}: {what}", package.name)).into());
            }
        }
        if let Some(kernel) = &lock.kernel {
            ensure!(packages::is_digest(&kernel.sha256), start.fault("the kernel's sha256 is no digest"));
        }
        Ok(lock)
    }

    /// What is wanted, as Debian has it today.
    ///
    /// # Errors
    /// A package that Debian has not, with its place; an index that it has not signed.
    pub fn today(wanted: &[At<String>]) -> Result<Lock> {
        let mut lock = Lock { version: VERSION, ..Lock::default() };
        if wanted.is_empty() {
            return Ok(lock);
        }
        let index = packages::today(&wanted.iter().map(|name| name.value.as_str()).collect())?;
        (lock.archives, lock.packages) = (index.archives, index.packages);
        match wanted.iter().find(|name| !lock.packages.contains_key(&name.value)) {
            Some(name) => Err(missing(name).into()),
            None => Ok(lock),
        }
    }

    /// The packages that a recipe wants, in the order of their names.
    ///
    /// # Errors
    /// One that is not locked, with its place.
    pub fn take(&self, wanted: &[At<String>]) -> Result<Vec<Package>> {
        let find = |name: &At<String>| {
            let what = || name.place.fault(format!("the lock has no package {}: nacre-image lock adds it", name.value));
            self.packages.get(&name.value).cloned().ok_or_else(what)
        };
        let found = wanted.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        Ok(in_order(found))
    }

    /// What is different in `new`, a line for each.
    fn changes(&self, new: &Lock) -> Vec<String> {
        let names: BTreeSet<_> = self.packages.keys().chain(new.packages.keys()).collect();
        let package =
            |lock: &Lock, name: &String| lock.packages.get(name).map(|p| (p.version.clone(), p.sha256.clone()));
        let mut lines: Vec<_> =
            names.into_iter().filter_map(|name| change(name, package(self, name), package(new, name))).collect();
        let kernel = |lock: &Lock| lock.kernel.as_ref().map(|kernel| (kernel.version.clone(), kernel.sha256.clone()));
        lines.extend(change("the kernel's source", kernel(self), kernel(new)));
        lines
    }
}

fn change(name: &str, old: Option<(String, String)>, new: Option<(String, String)>) -> Option<String> {
    match (old, new) {
        (old, new) if old == new => None,
        (None, Some((version, _))) => Some(format!("{name}: {version}, new")),
        (Some((version, _)), None) => Some(format!("{name}: {version}, no more")),
        (Some((old, _)), Some((new, _))) if old == new => Some(format!("{name}: {new}, of other bytes")),
        (old, new) => Some(format!("{name}: {} -> {}", old.unwrap_or_default().0, new.unwrap_or_default().0)),
    }
}

fn in_order(mut packages: Vec<Package>) -> Vec<Package> {
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages
}

fn missing(name: &At<String>) -> place::Fault {
    name.place.fault(format!("Debian's archive has no package {} (does apt-get update help?)", name.value))
}

/// Writes the lock of `recipes`, which lie in one directory: it holds what they want and nothing else. What is locked already stays as it
/// is, unless all is to be moved on; what changes is said.
///
/// # Errors
/// A recipe that makes no sense; a package that Debian has not; an index that it has not signed.
pub fn lock(recipes: &[PathBuf], kernel_source: &Path, update: bool) -> Result<()> {
    let file = recipes.first().map(|recipe| beside(recipe)).context("no recipe is named")?;
    ensure!(recipes.iter().all(|recipe| beside(recipe) == file), "a lock is for the recipes of one directory");
    let old = if file.exists() { Lock::read(&file)? } else { Lock::default() };
    let wanted = wanted(recipes)?;
    let (kept, asked): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|name| !update && old.packages.contains_key(&name.value));
    let mut new = Lock::today(&asked)?;
    for package in old.take(&kept)? {
        new.packages.insert(package.name.clone(), package);
    }
    if asked.is_empty() {
        new.archives.clone_from(&old.archives);
    }
    new.kernel.clone_from(&old.kernel);
    if update || old.kernel.is_none() {
        new.kernel = Some(KernelSource::of(kernel_source)?);
    }
    let text = format!("{HEADING}{}", toml::to_string(&new).context("write the lock")?);
    manifest::publish(&file, text.as_bytes())?;
    for line in old.changes(&new) {
        say(&format!("lock: {line}"));
    }
    say(&format!("lock: {} ({} packages)", file.display(), new.packages.len()));
    Ok(())
}

/// The packages of several recipes, each once.
fn wanted(recipes: &[PathBuf]) -> Result<Vec<At<String>>> {
    let mut wanted: Vec<At<String>> = Vec::new();
    for recipe in recipes {
        for name in Recipe::read(recipe)?.packages {
            if wanted.iter().all(|other| other.value != name.value) {
                wanted.push(name);
            }
        }
    }
    Ok(wanted)
}

impl KernelSource {
    /// The archive at `path`, which a package of Debian's has put there.
    fn of(path: &Path) -> Result<KernelSource> {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let package = file.split(".tar").next().unwrap_or_default().to_string();
        let version = run(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", &package]))
            .with_context(|| format!("look up the version of {} (make setup installs it)", path.display()))?;
        let version = String::from_utf8_lossy(&version).into_owned();
        Ok(KernelSource { package, version, sha256: manifest::digest_file(path)? })
    }

    /// Whether the archive at `path` is this one.
    ///
    /// # Errors
    /// Another one, and what to do.
    pub fn check(&self, path: &Path) -> Result<()> {
        let sha256 = manifest::digest_file(path)?;
        ensure!(
            sha256 == self.sha256,
            "{} is not the kernel's source that is locked, {} {}: install that version, or have `nacre-image lock --update` (make lock) \
             move on",
            path.display(),
            self.package,
            self.version
        );
        Ok(())
    }
}

/// Packages as a list, which is how TOML has tables with names of any kind.
mod by_name {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::packages::Package;

    pub fn serialize<S: Serializer>(packages: &BTreeMap<String, Package>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(packages.values())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Package>, D::Error> {
        let packages = Vec::<Package>::deserialize(from)?;
        Ok(packages.into_iter().map(|package| (package.name.clone(), package)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, version: &str) -> String {
        format!(
            "[[packages]]\nname = \"{name}\"\nversion = \"{version}\"\narchitecture = \"all\"\nsource = \"s 1\"\nfile = \"pool/x.deb\"\n\
             size = 7\nsha256 = \"{}\"\n",
            "ab".repeat(32)
        )
    }

    fn parse(text: &str) -> Result<Lock, String> {
        Lock::parse(Path::new("packages.lock"), text).map_err(|error| format!("{error:#}"))
    }

    fn wanted(name: &str) -> At<String> {
        At { place: Place::of(Path::new("r.toml"), "", 0..0), value: name.into() }
    }

    #[test]
    fn a_lock_is_read_as_it_is_written() {
        let lock = parse(&format!("version = 1\n{}{}", text("bb", "2"), text("aa", "1"))).unwrap();
        let again = parse(&toml::to_string(&lock).unwrap()).unwrap();
        assert_eq!(lock, again);
        let taken = lock.take(&[wanted("bb"), wanted("aa")]).unwrap();
        assert_eq!(taken.iter().map(|package| package.version.as_str()).collect::<String>(), "12");
        let error = lock.take(&[wanted("cc")]).unwrap_err().to_string();
        assert_eq!(error, "r.toml:1:1: the lock has no package cc: nacre-image lock adds it");
    }

    #[test]
    fn a_lock_that_makes_no_sense_says_where() {
        let one = text("aa", "1");
        for (bad, error) in [
            ("version = 2\n".to_string(), "packages.lock:1:1: a lock of version 2"),
            (format!("version = 1\n{one}{one}"), "there twice"),
            (format!("version = 1\n{}", one.replace("size", "bytes")), "packages.lock:8:1: unknown field `bytes`"),
            (format!("version = 1\n{}", one.replace("pool/", "../")), "its file is not below pool/"),
            (format!("version = 1\n{one}{}", text("b", "1")), "packages.lock:10:1: b: its name is no Debian package's"),
            ("version = 1\n[kernel]\npackage = \"k\"\nversion = \"1\"\nsha256 = \"x\"\n".into(), "is no digest"),
        ] {
            let said = parse(&bad).unwrap_err();
            assert!(said.contains(error), "{said}, not {error}");
        }
    }

    #[test]
    fn what_changes_is_said_in_a_line_each() {
        let old = parse(&format!("version = 1\n{}{}{}", text("aa", "1"), text("bb", "1"), text("dd", "1"))).unwrap();
        let mut new =
            parse(&format!("version = 1\n{}{}{}", text("aa", "2"), text("cc", "1"), text("dd", "1"))).unwrap();
        new.packages.get_mut("dd").unwrap().sha256 = "cd".repeat(32);
        assert_eq!(old.changes(&new), ["aa: 1 -> 2", "bb: 1, no more", "cc: 1, new", "dd: 1, of other bytes"]);
        assert!(old.changes(&old).is_empty());
    }
}
