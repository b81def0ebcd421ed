//! Programs newer than this machine's Debian has: its next release's, unpacked beside it and installed nowhere.
//!
//! apt fetches and checks them, with lists and a state of its own by which nothing is installed yet, so that all libraries come along, C's too. Each
//! program is started by its own tree's loader. A tree stays as it was made, for it does what was asked of it wherever the release has moved to.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};
use nacre_image::run::{run, say};
use rustix::fs::{FlockOperation, flock};

use crate::{demo_image, dist};

/// Debian's next release. It gets what has been tried in unstable, and its packages are signed.
const SOURCE: &str =
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian forky main\n";

/// The packages, each with a program of its name, and the oldest version that will do.
const PACKAGES: [(&str, &str); 2] = [("skopeo", "1.19"), ("cosign", "3")];

/// Where the libraries and their loader are in a tree.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// What apt is told, so that it neither uses nor changes what it knows of this machine, and fetches no more of the index than it needs.
const OPTIONS: [&str; 9] = [
    "Dir::Etc::SourceList=sources.list",
    "Dir::Etc::SourceParts=-",
    "Dir::Etc::Preferences=-",
    "Dir::Etc::PreferencesParts=-",
    "Dir::State::status=status",
    "Acquire::Languages=none",
    "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
    "Acquire::Retries=2",
    "Acquire::http::Timeout=20",
];

/// A directory below which what starts the programs is `programs`; it may be looked at from another place. Where they can't be had, a test that
/// wants them is skipped.
pub fn tree() -> Option<PathBuf> {
    static TREE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let tree = TREE.get_or_init(|| kept(&demo_image::cache()).map_err(|error| format!("{error:#}")));
    tree.clone().inspect_err(|why| dist::skip(&format!("newer programs can't be had: {why}"))).ok()
}

/// The program `name`, for who may enter this user's cache.
pub fn program(name: &str) -> Option<PathBuf> {
    tree().map(|tree| tree.join("programs").join(name))
}

/// That of `cache`, or fetched into it by the one who comes first.
fn kept(cache: &Path) -> Result<PathBuf> {
    let name = PACKAGES.map(|(name, least)| format!("{name}-{least}")).join("-");
    let place = cache.join("newer").join(&name);
    if place.exists() {
        return Ok(place);
    }
    ensure!(cfg!(target_arch = "x86_64"), "only x86-64's are known here");
    let above = place.parent().context("a cache has a directory")?;
    fs::create_dir_all(above).with_context(|| format!("create {}", above.display()))?;
    let lock = File::create(above.join(format!("{name}.lock"))).context("make a lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("wait for who fetches them")?;
    if !place.exists() {
        let work = tempfile::Builder::new().prefix(".fetch-").tempdir_in(above).context("make a directory")?;
        let tree = unpack(work.path()).context("fetch from Debian's next release")?;
        write_starters(&tree)?;
        fs::rename(&tree, &place).with_context(|| format!("keep {}", place.display()))?;
    }
    Ok(place)
}

/// Fetches the packages and all that they need below `work`, and returns the directory where they were unpacked.
fn unpack(work: &Path) -> Result<PathBuf> {
    let (archives, tree) = (work.join("cache/archives"), work.join("tree"));
    for dir in [&archives, &tree, &work.join("state")] {
        fs::create_dir_all(dir).context("make apt's directories")?;
    }
    fs::write(work.join("sources.list"), SOURCE).context("write apt's sources")?;
    fs::write(work.join("state/status"), "").context("write apt's status")?;
    say("fetch newer programs");
    run(apt(work).arg("update"))?;
    run(apt(work).args(["install", "--download-only", "--yes", "--no-install-recommends"]).args(PACKAGES.map(first)))?;
    let mut found = Vec::new();
    for archive in fs::read_dir(&archives).context("list what came")? {
        let archive = archive?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&tree))?;
            found.push(fields(&archive)?);
        }
    }
    PACKAGES.iter().try_for_each(|wanted| check(wanted, &found))?;
    Ok(tree)
}

fn first((name, _): (&'static str, &str)) -> &'static str {
    name
}

fn apt(work: &Path) -> Command {
    let mut apt = Command::new("apt-get");
    // Paths are below these, but for the ones that begin with a slash.
    for (name, dir) in [("State", "state"), ("Cache", "cache"), ("Etc", "")] {
        apt.arg("-o").arg(format!("Dir::{name}={}", work.join(dir).display()));
    }
    apt.args(OPTIONS.iter().flat_map(|option| ["-o", option]));
    apt.env("DEBIAN_FRONTEND", "noninteractive").current_dir(work);
    apt
}

/// The name of a package, and its version.
fn fields(archive: &Path) -> Result<(String, String)> {
    let field = |name: &str| -> Result<String> {
        let text = run(Command::new("dpkg-deb").arg("--field").arg(archive).arg(name))?;
        Ok(String::from_utf8_lossy(&text).trim().to_string())
    };
    Ok((field("Package")?, field("Version")?))
}

fn check((name, least): &(&str, &str), found: &[(String, String)]) -> Result<()> {
    let Some((_, version)) = found.iter().find(|(found, _)| found == name) else { bail!("{name} did not come") };
    let compared = run(Command::new("dpkg").args(["--compare-versions", version, "ge", least]));
    compared.map(drop).with_context(|| format!("{name} {version} is older than {least}"))
}

/// Writes what starts the programs of `tree`, wherever it is then.
fn write_starters(tree: &Path) -> Result<()> {
    let programs = tree.join("programs");
    fs::create_dir(&programs).context("make a directory")?;
    for (name, _) in PACKAGES {
        let text = format!(
            "#!/bin/sh\ntree=${{0%/*}}/..\nlibraries=$tree/{LIBRARIES}\n\
             exec \"$libraries/{LOADER}\" --library-path \"$libraries\" --argv0 {name} \"$tree/usr/bin/{name}\" \"$@\"\n"
        );
        fs::write(programs.join(name), text).with_context(|| format!("write what starts {name}"))?;
        fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).context("make it a program")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_there_and_start() {
        for (name, asked) in [("skopeo", "--version"), ("cosign", "version")] {
            let Some(program) = program(name) else { return };
            let said = run(Command::new(program).arg(asked)).unwrap();
            assert!(String::from_utf8_lossy(&said).contains(name), "{name}: {said:?}");
        }
    }

    #[test]
    fn one_that_is_too_old_or_missing_will_not_do() {
        let found = [("skopeo".to_string(), "1.9.3+ds1-1".to_string())];
        assert!(check(&("skopeo", "1.9"), &found).is_ok());
        let error = check(&("skopeo", "1.19"), &found).unwrap_err().to_string();
        assert!(error.contains("older"), "{error}");
        assert!(check(&("cosign", "3"), &found).is_err());
    }
}
