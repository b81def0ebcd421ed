//! Kernel configuration fragments: merged, and checked against what became of them.
//!
//! kconfig drops what it can't honour without a word; an option that a guest relies on must not vanish so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::place::nearest;

/// Every option that the fragments ask for.
#[derive(Debug, Default)]
pub struct Wanted(BTreeMap<String, Setting>);

#[derive(Debug, Clone)]
struct Setting {
    /// `y`, a number or a quoted string; `n` for "is not set".
    value: String,
    /// The fragment and line that asks for it.
    from: String,
}

impl Wanted {
    /// Reads every `*.config` in `dir`, in the order of their names, and those of its directory `optional` that are named, which have the last word.
    ///
    /// # Errors
    /// A directory without fragments, a fragment that is not there, a malformed line, or two lines that contradict each other.
    pub fn read(dir: &Path, with: &[String]) -> Result<Wanted> {
        let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
        let mut files: Vec<_> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "config"));
        files.sort();
        if files.is_empty() {
            bail!("{} holds no *.config", dir.display());
        }
        let mut wanted = Wanted::default();
        for file in files {
            let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            wanted.merge(&file.file_name().unwrap_or_default().to_string_lossy(), &text)?;
        }
        for name in with {
            let plain =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            ensure!(plain, "{name:?} is no fragment's name");
            let path = dir.join("optional").join(format!("{name}.config"));
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let mut last = Wanted::default();
            last.merge(&format!("optional/{name}.config"), &text)?;
            wanted.0.extend(last.0);
        }
        Ok(wanted)
    }

    /// Adds one fragment.
    ///
    /// # Errors
    /// As [`Wanted::read`].
    pub fn merge(&mut self, name: &str, text: &str) -> Result<()> {
        for (number, line) in text.lines().enumerate() {
            let from = format!("{name}:{}", number + 1);
            let Some((key, value)) = parse(line).with_context(|| from.clone())? else { continue };
            let option = Setting { value: value.to_string(), from };
            match self.0.insert(key.to_string(), option.clone()) {
                Some(before) if before.value != value => {
                    bail!("{}: {key}={value} contradicts {}: {key}={}", option.from, before.from, before.value)
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// As one fragment, sorted: the same options give the same text.
    pub fn text(&self) -> String {
        self.0
            .iter()
            .map(|(key, option)| match option.value.as_str() {
                "n" => format!("# {key} is not set\n"),
                value => format!("{key}={value}\n"),
            })
            .collect()
    }

    /// What is wrong with the final configuration `config`: what it does not have as it was asked for, each with the likely reason; names that the
    /// source in `tree` does not know, which could only be asked not to be; modules.
    ///
    /// # Errors
    /// A source that can't be read.
    pub fn faults(&self, config: &str, tree: &Path) -> Result<Vec<String>> {
        let known = Kconfig::read(tree)?;
        let fin: BTreeMap<&str, &str> = config.lines().filter_map(|line| parse(line).ok().flatten()).collect();
        let asked = self.0.iter().filter_map(|(key, option)| {
            let name = key.strip_prefix("CONFIG_").unwrap_or(key);
            let got = fin.get(key.as_str()).copied().unwrap_or("n");
            let why = match known.0.get(name) {
                None => nearest(name, known.0.keys().map(String::as_str))
                    .map_or("this kernel has no such option".into(), |other| {
                        format!("this kernel has no such option; is CONFIG_{other} meant?")
                    }),
                Some(_) if got == option.value => return None,
                Some(depends) => format!("it became {got}: {}", reason(depends)),
            };
            Some(format!("{}: {key}={}: {why}", option.from, option.value))
        });
        let modules = fin.iter().filter(|(_, value)| **value == "m").map(|(key, _)| format!("{key} became a module"));
        Ok(asked.chain(modules).collect())
    }
}

/// `CONFIG_X=value` or `# CONFIG_X is not set`; comments and blank lines are none.
fn parse(line: &str) -> Result<Option<(&str, &str)>> {
    let line = line.trim();
    if let Some(key) = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
        return Ok(Some((key, "n")));
    }
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    match line.split_once('=') {
        Some((key, value)) if key.starts_with("CONFIG_") && !value.is_empty() => Ok(Some((key, value))),
        _ => bail!("{line:?}: expected CONFIG_NAME=value, \"# CONFIG_NAME is not set\" or a comment"),
    }
}

/// Why an option was not taken, by what its definitions depend on.
fn reason(depends: &BTreeSet<String>) -> String {
    if depends.is_empty() {
        return "nothing that it depends on is known; perhaps it can't be set by hand".into();
    }
    let depends: Vec<_> = depends.iter().map(String::as_str).collect();
    format!("it depends on {}", depends.join(" or elsewhere on "))
}

/// The deepest directory in which a Kconfig file is looked for.
const MAX_DEPTH: u32 = 8;

/// Architectures other than ours have options of their own.
const ARCH: &str = "arch";
const OURS: &str = "x86";

/// The options that a kernel knows, and what each definition of theirs depends on.
#[derive(Debug, Default)]
struct Kconfig(BTreeMap<String, BTreeSet<String>>);

impl Kconfig {
    fn read(tree: &Path) -> Result<Kconfig> {
        let mut all = Kconfig::default();
        all.search(tree, 0)?;
        Ok(all)
    }

    fn search(&mut self, dir: &Path, depth: u32) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let (path, name) = (entry.path(), entry.file_name());
            let foreign = dir.file_name().is_some_and(|dir| dir == ARCH) && depth == 1 && name != OURS;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if depth < MAX_DEPTH && !foreign {
                    self.search(&path, depth + 1)?;
                }
            } else if name.to_string_lossy().starts_with("Kconfig") {
                self.add(&fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?);
            }
        }
        Ok(())
    }

    /// Adds the definitions of a Kconfig file.
    fn add(&mut self, text: &str) {
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let mut words = line.split_whitespace();
            let (Some("config" | "menuconfig"), Some(name)) = (words.next(), words.next()) else { continue };
            let mut all = Vec::new();
            // Those of a choice are indented themselves.
            let body =
                |line: &&str| line.is_empty() || line.starts_with([' ', '\t']) && !line.trim().starts_with("config ");
            while let Some(body) = lines.next_if(body) {
                all.extend(body.trim().strip_prefix("depends on "));
            }
            let definition = self.0.entry(name.into()).or_default();
            definition.extend(Some(all.join(" && ")).filter(|text| !text.is_empty()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_merge_and_contradictions_are_named() {
        let mut wanted = Wanted::default();
        wanted.merge("a", "# why\nCONFIG_A=y\n\nCONFIG_N=64\n").unwrap();
        wanted.merge("b", "CONFIG_A=y\n# CONFIG_B is not set\n").unwrap();
        assert_eq!(wanted.text(), "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=64\n");
        let error = wanted.merge("c", "CONFIG_N=1").unwrap_err().to_string();
        assert_eq!(error, "c:1: CONFIG_N=1 contradicts a:4: CONFIG_N=64");
        let error = format!("{:#}", wanted.merge("d", "A=y").unwrap_err());
        assert!(error.starts_with("d:1: \"A=y\": expected"), "{error}");
    }

    #[test]
    fn an_option_that_was_dropped_is_named_with_the_reason() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("net")).unwrap();
        let kconfig = "config DEEP\n\tbool \"deep\"\n\tdepends on WATER && SALT\n\tdepends on DARK\nchoice\n\tconfig NEXT\n\t\tbool\n\tconfig KEPT\n\t\tbool\n";
        fs::write(tree.path().join("net/Kconfig"), kconfig).unwrap();
        let mut wanted = Wanted::default();
        wanted.merge("f", "CONFIG_DEEP=y\nCONFIG_KEEP=y\nCONFIG_KEPT=y\n# CONFIG_WHATEVER is not set\n").unwrap();
        assert_eq!(
            wanted.faults("CONFIG_KEPT=y\n# CONFIG_DEEP is not set\nCONFIG_NEXT=m\n", tree.path()).unwrap(),
            [
                "f:1: CONFIG_DEEP=y: it became n: it depends on WATER && SALT && DARK",
                "f:2: CONFIG_KEEP=y: this kernel has no such option; is CONFIG_KEPT meant?",
                "f:4: CONFIG_WHATEVER=n: this kernel has no such option",
                "CONFIG_NEXT became a module",
            ]
        );
    }
}
