//! The archive's index, as apt has it on this machine, and whether Debian has signed it.
//!
//! apt is not taken at its word: what it keeps is checked from the archive's key downwards. The signature covers `InRelease`, that has the digest of
//! `Packages`, and that has the digest of each package. Which of several versions is wanted is for apt to say, for it knows the machine's
//! preferences.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::{APT_HELPER, Archive, Package};
use crate::manifest;
use crate::run::{run, run_status};

/// Whom to believe: the keys in Debian's package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What a machine is to do that has no index.
const UPDATE: &str = "run apt-get update as root, then repeat";

/// What Debian's archive has today.
#[derive(Debug, Default)]
pub struct Index {
    /// The archives that were read.
    pub archives: Vec<Archive>,
    /// The packages that were asked for, by name.
    pub packages: BTreeMap<String, Package>,
}

/// One of apt's index files.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    /// Its name in `InRelease`.
    key: String,
    file: PathBuf,
}

/// Looks `names` up. What the archive has not is not in the answer.
///
/// # Errors
/// An index that is missing, or that Debian has not signed.
pub fn read(names: &BTreeSet<&str>) -> Result<Index> {
    let format = "$(ORIGIN)\t$(METAKEY)\t$(FILENAME)";
    let text = run(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let targets: Vec<_> = String::from_utf8_lossy(&text).lines().filter_map(Target::parse).collect();
    ensure!(!targets.is_empty(), "this machine has no index of Debian's archive: {UPDATE}");
    let mut index = Index::default();
    let mut versions = Vec::new();
    for target in &targets {
        let (archive, text) = target.read().with_context(|| format!("use {}", target.file.display()))?;
        if !index.archives.contains(&archive) {
            index.archives.push(archive);
        }
        versions.extend(text.split("\n\n").filter_map(|stanza| stanza_of(stanza, names)));
    }
    index.archives.sort_by(|a, b| a.suite.cmp(&b.suite));
    let known: Vec<&str> = names.iter().copied().filter(|name| versions.iter().any(|p| p.name == *name)).collect();
    for sha256 in candidates(&known)? {
        let package = versions.iter().find(|package| package.sha256 == sha256);
        let package = package.with_context(|| format!("apt wants a package that Debian has not signed ({sha256})"))?;
        index.packages.insert(package.name.clone(), package.clone());
    }
    Ok(index)
}

/// The digests of the versions that apt would install.
fn candidates(names: &[&str]) -> Result<Vec<String>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let text = run(Command::new("apt-get").args(["download", "--print-uris"]).args(names))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(candidate).map(String::from).collect())
}

/// The digest in a line of `--print-uris`: `'URI' FILE SIZE SHA256:DIGEST`.
fn candidate(line: &str) -> Option<&str> {
    let digest = line.starts_with('\'').then(|| line.split_whitespace().nth(3))??.strip_prefix("SHA256:")?;
    super::is_digest(digest).then_some(digest)
}

impl Target {
    fn parse(line: &str) -> Option<Target> {
        let (key, file) = line.strip_prefix("Debian\t")?.split_once('\t')?;
        Some(Target { key: key.into(), file: file.into() })
    }

    /// The archive, and the text of its index.
    fn read(&self) -> Result<(Archive, String)> {
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let (prefix, _) = name.split_once(&self.key.replace('/', "_")).context("a file of another name")?;
        let release = self.file.with_file_name(format!("{prefix}InRelease"));
        ensure!(release.exists(), "{} is missing: {UPDATE}", release.display());
        let (text, key) = signed(&release)?;
        let archive = Archive { suite: field(&text, "Codename")?.into(), date: field(&text, "Date")?.into(), key };
        let expected = listed(&text, &self.key).with_context(|| format!("InRelease does not list {}", self.key))?;
        let packages = run(Command::new(APT_HELPER).arg("cat-file").arg(&self.file))?;
        let sha256 = manifest::digest(&packages);
        ensure!(sha256 == expected, "it has the digest {sha256}, and Debian has signed {expected}: {UPDATE}");
        Ok((archive, String::from_utf8(packages).context("it is not UTF-8")?))
    }
}

/// The text of `InRelease` that is signed, and the key's fingerprint.
fn signed(release: &Path) -> Result<(String, String)> {
    let dir = tempfile::tempdir().context("make a directory for a signed text")?;
    let text = dir.path().join("text");
    let mut gpgv = Command::new("gpgv");
    gpgv.args(["--status-fd", "1", "--keyring", KEYRING, "--output"]).arg(&text).arg(release);
    let (status, output) = run_status(&mut gpgv).context("check a signature (gpgv is in Debian's package gpgv)")?;
    let key = status.success().then(|| output.lines().find_map(|line| line.strip_prefix("[GNUPG:] VALIDSIG ")));
    let Some(key) = key.flatten().and_then(|rest| rest.split(' ').next()) else {
        bail!("{} is not signed by a key in {KEYRING}: {UPDATE}", release.display());
    };
    Ok((fs::read_to_string(&text).context("read the signed text")?, key.to_string()))
}

/// The value of `Name: value`.
fn field<'a>(text: &'a str, name: &str) -> Result<&'a str> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.map(str::trim).with_context(|| format!("it has no field {name}"))
}

/// The digest of the file `key` in the part `SHA256:` of `InRelease`.
fn listed<'a>(release: &'a str, key: &str) -> Option<&'a str> {
    let (_, part) = release.split_once("\nSHA256:\n")?;
    part.lines().take_while(|line| line.starts_with(' ')).find_map(|line| {
        let mut words = line.split_whitespace();
        let digest = words.next().filter(|digest| super::is_digest(digest))?;
        (words.nth(1) == Some(key)).then_some(digest)
    })
}

/// A package that is asked for, out of its stanza in `Packages`.
fn stanza_of(stanza: &str, names: &BTreeSet<&str>) -> Option<Package> {
    let get = |name| field(stanza, name).ok();
    let name = get("Package").filter(|name| names.contains(name))?;
    let version = get("Version")?;
    // Without the field, or without a version in it, the source's are the package's own.
    let source = match get("Source").map(|source| source.split_once(" (").unwrap_or((source, ""))) {
        None => format!("{name} {version}"),
        Some((source, "")) => format!("{source} {version}"),
        Some((source, of)) => format!("{source} {}", of.trim_end_matches(')')),
    };
    let package = Package {
        name: name.into(),
        version: version.into(),
        architecture: get("Architecture")?.into(),
        source,
        file: get("Filename")?.into(),
        size: get("Size")?.parse().ok()?,
        sha256: get("SHA256")?.into(),
    };
    package.fault().is_none().then_some(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apt_is_read_whole_or_not_at_all() {
        let digest = "ab".repeat(32);
        let line = format!("'http://deb/skopeo.deb' skopeo_1.9.3_amd64.deb 5910000 SHA256:{digest}");
        assert_eq!(candidate(&line), Some(digest.as_str()));
        for bad in ["", "W: a warning of apt", "'uri' x.deb 1 SHA256:ab", &line.replace("SHA256", "MD5Sum")] {
            assert_eq!(candidate(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_digest_is_looked_up_in_the_part_of_its_kind() {
        let digest = "cd".repeat(32);
        let text =
            format!("Codename: x\nMD5Sum:\n 00 9 main/Packages\nSHA256:\n {digest} 9 main/Packages\n ab 9 y\nZ:\n");
        assert_eq!(listed(&text, "main/Packages"), Some(digest.as_str()));
        assert_eq!((listed(&text, "Packages"), listed(&text, "y")), (None, None));
        assert_eq!(field(&text, "Codename").unwrap(), "x");
        assert!(field(&text, "Date").is_err());
    }

    #[test]
    fn a_stanza_says_where_the_package_is_and_of_what_source() {
        let digest = "ef".repeat(32);
        let stanza = |source: &str| {
            let text = format!(
                "Package: bb\n{source}Version: 1:2-3+b1\nArchitecture: amd64\nFilename: pool/main/b/b.deb\nSize: 7\nSHA256: {digest}"
            );
            stanza_of(&text, &BTreeSet::from(["bb"])).unwrap()
        };
        assert_eq!(stanza("").source, "bb 1:2-3+b1");
        assert_eq!(stanza("Source: s\n").source, "s 1:2-3+b1");
        assert_eq!(stanza("Source: s (1:2-3)\n").source, "s 1:2-3");
        assert_eq!(stanza("").file, "pool/main/b/b.deb");
        assert!(stanza_of("Package: c\n", &BTreeSet::from(["bb"])).is_none());
    }

    #[test]
    fn a_text_that_was_changed_is_not_signed() {
        if !Path::new(KEYRING).exists() {
            return println!("skipped: {KEYRING} is missing");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nCodename: x\n").unwrap();
        let error = signed(file.path()).unwrap_err().to_string();
        assert!(error.contains("is not signed by a key in"), "{error}");
    }
}
