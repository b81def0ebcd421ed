//! Kernel configuration fragments: merged, and checked against what became of them.
//!
//! kconfig drops what it can't honour without a word; an option that a guest relies on must not vanish so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

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
    /// Reads every `*.config` in `dir`, in the order of their names.
    ///
    /// # Errors
    /// A directory without fragments, a malformed line, or two lines that contradict each other.
    pub fn read(dir: &Path) -> Result<Wanted> {
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

    /// What the final configuration `config` does not have as it was asked for, each with the likely reason.
    pub fn lost(&self, config: &str, tree: &Path) -> Vec<String> {
        let fin: BTreeMap<&str, &str> = config.lines().filter_map(|line| parse(line).ok().flatten()).collect();
        let lost = self.0.iter().filter_map(|(key, option)| {
            let got = fin.get(key.as_str()).copied().unwrap_or("n");
            (got != option.value).then_some((key, option, got))
        });
        lost.map(|(key, option, got)| {
            format!("{}: {key}={} became {got}: {}", option.from, option.value, reason(key, tree))
        })
        .collect()
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

/// What the source says of the option: nothing, or what it depends on.
fn reason(key: &str, tree: &Path) -> String {
    let name = key.strip_prefix("CONFIG_").unwrap_or(key);
    let mut found = Vec::new();
    search(tree, name, &mut found, 0);
    match found.as_slice() {
        [] => "this kernel has no such option".into(),
        depends => {
            let mut depends: Vec<_> = depends.iter().filter(|text| !text.is_empty()).cloned().collect();
            depends.sort();
            depends.dedup();
            if depends.is_empty() {
                "nothing that it depends on is known; perhaps it can't be set by hand".into()
            } else {
                format!("depends on {}", depends.join(" or elsewhere on "))
            }
        }
    }
}

/// The deepest directory in which a Kconfig file is looked for.
const MAX_DEPTH: u32 = 8;

fn search(dir: &Path, name: &str, found: &mut Vec<String>, depth: u32) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let kind = entry.file_type();
        if kind.as_ref().is_ok_and(fs::FileType::is_dir) && depth < MAX_DEPTH {
            search(&path, name, found, depth + 1);
        } else if entry.file_name().to_string_lossy().starts_with("Kconfig") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            found.extend(depends(&text, name));
        }
    }
}

/// For each definition of `name` in a Kconfig file: its dependencies, joined.
fn depends(kconfig: &str, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = kconfig.lines().peekable();
    while let Some(line) = lines.next() {
        let mut words = line.split_whitespace();
        if !matches!(words.next(), Some("config" | "menuconfig")) || words.next() != Some(name) {
            continue;
        }
        let mut all = Vec::new();
        while let Some(body) = lines.next_if(|line| line.is_empty() || line.starts_with([' ', '\t'])) {
            if let Some(condition) = body.trim().strip_prefix("depends on ") {
                all.push(condition.to_string());
            }
        }
        found.push(all.join(" && "));
    }
    found
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
        let kconfig =
            "config DEEP\n\tbool \"deep\"\n\tdepends on WATER && SALT\n\tdepends on DARK\nconfig NEXT\n\tbool\n";
        fs::write(tree.path().join("net/Kconfig"), kconfig).unwrap();
        let mut wanted = Wanted::default();
        wanted.merge("f", "CONFIG_DEEP=y\nCONFIG_GONE=y\nCONFIG_KEPT=y\n# CONFIG_OFF is not set\n").unwrap();
        assert_eq!(
            wanted.lost("CONFIG_KEPT=y\n# CONFIG_DEEP is not set\n", tree.path()),
            [
                "f:1: CONFIG_DEEP=y became n: depends on WATER && SALT && DARK",
                "f:2: CONFIG_GONE=y became n: this kernel has no such option",
            ]
        );
    }
}
