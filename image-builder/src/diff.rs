//! `nacre-image diff`: in what two images, or two directories of them, differ.
//!
//! Each side becomes a list of facts: what a manifest says, an option of a kernel's configuration, a file in an image. What differs is told
//! as the fact of the one and of the other. Files that are the same are not looked into.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::inspect::{self, Description};
use crate::manifest;

/// The largest text that is read: a manifest or a configuration.
const MAX_TEXT: u64 = 64 << 20;

/// A fact that is not the same on both sides.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Of what.
    pub what: String,
    /// What the first has.
    pub first: Option<String>,
    /// What the second has.
    pub second: Option<String>,
}

type Facts = BTreeMap<String, String>;

/// Compares two files, whatever their names, or the files of two directories by theirs.
///
/// # Errors
/// What can't be read, or is damaged.
pub fn diff(first: &Path, second: &Path) -> Result<Vec<Difference>> {
    ensure!(first.is_dir() == second.is_dir(), "a directory and a file can't be compared");
    let (first, second) = (files(first)?, files(second)?);
    let mut differences = Vec::new();
    let names: std::collections::BTreeSet<_> = first.keys().chain(second.keys()).collect();
    for name in names {
        let [one, other] = [&first, &second].map(|side| side.get(name));
        if let (Some(one), Some(other)) = (one, other)
            && manifest::digest_file(one)? == manifest::digest_file(other)?
        {
            continue;
        }
        let facts = |file: Option<&PathBuf>| file.map(|file| facts(name, file)).transpose();
        compare(&facts(one)?.unwrap_or_default(), &facts(other)?.unwrap_or_default(), &mut differences);
    }
    Ok(differences)
}

/// As people read it.
pub fn render(differences: &[Difference]) -> String {
    let side = |sign, what: &str, fact: &Option<String>| {
        fact.iter().map(|fact| format!("{sign} {}: {}\n", what.escape_debug(), fact.escape_debug())).collect::<String>()
    };
    differences.iter().map(|one| side('-', &one.what, &one.first) + &side('+', &one.what, &one.second)).collect()
}

/// Files by name. A single one has none.
fn files(path: &Path) -> Result<BTreeMap<String, PathBuf>> {
    if !path.is_dir() {
        return Ok([("file".into(), path.to_path_buf())].into());
    }
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
        let path = entry.with_context(|| format!("list {}", path.display()))?.path();
        if path.is_file() {
            files.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path);
        }
    }
    Ok(files)
}

fn compare(first: &Facts, second: &Facts, differences: &mut Vec<Difference>) {
    let all: std::collections::BTreeSet<_> = first.keys().chain(second.keys()).collect();
    for what in all {
        let [one, other] = [first, second].map(|side| side.get(what).cloned());
        if one != other {
            differences.push(Difference { what: what.clone(), first: one, second: other });
        }
    }
}

fn facts(name: &str, path: &Path) -> Result<Facts> {
    let mut facts = Facts::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => {
            let value = serde_json::from_str(&text(path)?).with_context(|| path.display().to_string())?;
            of_json(name, &value, &mut facts);
        }
        Some("config") => of_options(name, &text(path)?, &mut facts),
        _ => inspect::inspect(path)?.iter().for_each(|one| of_image(name, one, &mut facts)),
    }
    Ok(facts)
}

fn text(path: &Path) -> Result<String> {
    let bytes = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
    ensure!(bytes <= MAX_TEXT, "{} has {bytes} bytes, of {MAX_TEXT} at most", path.display());
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The members of a list are known by their names, where they have such: one package more does not move the others.
fn of_json(what: &str, value: &Value, facts: &mut Facts) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| of_json(&format!("{what} {key}"), value, facts))
        }
        Value::Array(members) => {
            for (number, value) in members.iter().enumerate() {
                let name = value.get("name").and_then(Value::as_str).map_or_else(|| number.to_string(), String::from);
                of_json(&format!("{what} {name}"), value, facts);
            }
        }
        other => drop(facts.insert(what.into(), other.to_string())),
    }
}

fn of_options(name: &str, text: &str, facts: &mut Facts) {
    for line in text.lines() {
        let unset =
            line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set")).map(|option| (option, "n"));
        if let Some((option, value)) = unset.or_else(|| line.split_once('=')) {
            facts.insert(format!("{name} {option}"), value.into());
        }
    }
}

fn of_image(name: &str, image: &Description, facts: &mut Facts) {
    facts.insert(name.into(), format!("{}, {} bytes, sha256 {}", image.kind, image.bytes, image.sha256));
    for part in &image.partitions {
        let holds = part.holds.as_deref().unwrap_or("nothing known");
        let fact = format!("at {}, {} bytes, type {}, guid {}: {holds}", part.offset, part.bytes, part.kind, part.guid);
        facts.insert(format!("{name} partition {}", part.name), fact);
    }
    for section in &image.sections {
        let text = section.text.iter().map(|text| format!(": {text}")).collect::<String>();
        let fact = format!("{} bytes, sha256 {}{text}", section.bytes, section.sha256);
        facts.insert(format!("{name} section {}", section.name), fact);
    }
    for file in &image.files {
        let target = file.target.iter().map(|target| format!(" -> {target}")).collect::<String>();
        let digest = file.sha256.iter().map(|digest| format!(", sha256 {digest}")).collect::<String>();
        facts.insert(format!("{name} {}", file.path), format!("{}, {} bytes{digest}{target}", file.mode, file.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::Initrd;
    use crate::tree::{Node, Tree};

    fn directory(content: &str, version: &str, option: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        tree.add("/init", Node::File(0o755, b"agent".to_vec())).unwrap();
        tree.add("/etc/a", Node::File(0o644, content.into())).unwrap();
        fs::write(dir.path().join("a.initrd"), Initrd::default().pack(&tree).unwrap()).unwrap();
        let json = format!("{{\"packages\": [{{\"name\": \"skopeo\", \"version\": \"{version}\"}}]}}");
        fs::write(dir.path().join("a.manifest.json"), json).unwrap();
        fs::write(dir.path().join("vmlinux.config"), format!("CONFIG_A=y\n{option}\n")).unwrap();
        dir
    }

    #[test]
    fn what_differs_is_told_down_to_file_package_and_option() {
        let first = directory("1", "1.0", "CONFIG_B=y");
        let second = directory("2", "1.1", "# CONFIG_B is not set");
        assert_eq!(diff(first.path(), first.path()).unwrap(), []);
        let found = diff(first.path(), second.path()).unwrap();
        let what: Vec<_> = found.iter().map(|one| &*one.what).collect();
        let package = "a.manifest.json packages skopeo version";
        assert_eq!(what, ["a.initrd", "a.initrd /etc/a", package, "vmlinux.config CONFIG_B"]);
        let text = render(&found);
        for line in [
            "- vmlinux.config CONFIG_B: y\n",
            "+ vmlinux.config CONFIG_B: n\n",
            "+ a.initrd /etc/a: -0644, 1 bytes, sha256 d4735e3a",
        ] {
            assert!(text.contains(line), "{text}");
        }
        fs::remove_file(second.path().join("a.initrd")).unwrap();
        let found = diff(first.path(), second.path()).unwrap();
        assert!(found.iter().any(|one| one.what == "a.initrd /init" && one.second.is_none()));
        assert!(diff(first.path(), &first.path().join("a.initrd")).is_err());
    }
}
