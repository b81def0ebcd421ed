//! What the guest relies on: looked for in the kernel's final configuration when it is built, and in the running kernel when it boots.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::place;

/// What `required.toml` says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Required {
    required: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The option, all of `CONFIG_NAME`.
    option: String,
    /// Its value; `n` for one that must not be set.
    #[serde(default = "yes")]
    value: String,
    /// What it is for.
    why: String,
    /// The optional fragments that take it back.
    #[serde(default)]
    except: Vec<String>,
    /// How a running kernel shows it.
    seen: Option<Sign>,
    /// Whether nothing runs without it.
    #[serde(default)]
    vital: bool,
}

/// How a running kernel shows what it has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sign {
    /// A file system that it knows.
    Filesystem(String),
    /// A controller of cgroup v2.
    Controller(String),
    /// A path that is there.
    Path(String),
    /// A path that is not there.
    Absent(String),
    /// A file, and a word that it holds.
    Word(String, String),
}

/// What the guest looks for: one entry of the table that `nacre-agent check` reads.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Seen<'a> {
    option: &'a str,
    why: &'a str,
    seen: &'a Sign,
    vital: bool,
}

fn yes() -> String {
    "y".into()
}

impl Required {
    /// Reads what is required of a kernel that is built with the optional fragments `with`.
    ///
    /// # Errors
    /// A file that can't be read or does not say what it should.
    pub fn read(path: &Path, with: &[String]) -> Result<Required> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut all: Required = toml::from_str(&text).map_err(|error| place::fault_of(path, &text, &error))?;
        all.required.retain(|entry| !entry.except.iter().any(|name| with.contains(name)));
        Ok(all)
    }

    /// Compares it with the final configuration `config`.
    ///
    /// # Errors
    /// What is not there, and what it is for.
    pub fn check(&self, config: &str) -> Result<()> {
        let has = |entry: &Entry| match entry.value.as_str() {
            "n" => !config.lines().any(|line| line.starts_with(&format!("{}=", entry.option))),
            value => config.lines().any(|line| line == format!("{}={value}", entry.option)),
        };
        let missing = self.required.iter().filter(|entry| !has(entry));
        let missing: Vec<_> = missing.map(|e| format!("{}={}: {}", e.option, e.value, e.why)).collect();
        if !missing.is_empty() {
            bail!("the guest relies on what the kernel does not have:\n  {}", missing.join("\n  "));
        }
        Ok(())
    }

    /// What a running kernel shows.
    pub fn seen(&self) -> Vec<Seen<'_>> {
        let all = self.required.iter();
        all.filter_map(|Entry { option, why, seen, vital, .. }| {
            Some(Seen { option, why, seen: seen.as_ref()?, vital: *vital })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[[required]]\noption = \"CONFIG_A\"\nwhy = \"a\"\nseen.filesystem = \"a\"\nvital = true\n\
                        [[required]]\noption = \"CONFIG_B\"\nvalue = \"n\"\nwhy = \"b\"\nseen.word = [\"/f\", \"w\"]\n\
                        [[required]]\noption = \"CONFIG_C\"\nvalue = \"64\"\nwhy = \"c\"\n";

    #[test]
    fn what_is_missing_is_said_with_its_reason() {
        let required: Required = toml::from_str(TEXT).unwrap();
        required.check("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=64\n").unwrap();
        let error = required.check("CONFIG_AB=y\nCONFIG_B=y\nCONFIG_C=6\n").unwrap_err().to_string();
        assert!(error.ends_with("\n  CONFIG_A=y: a\n  CONFIG_B=n: b\n  CONFIG_C=64: c"), "{error}");
    }

    /// As the agent reads it.
    #[test]
    fn the_guest_s_table_holds_what_can_be_seen() {
        let required: Required = toml::from_str(TEXT).unwrap();
        let expected = r#"[{"option":"CONFIG_A","why":"a","seen":{"filesystem":"a"},"vital":true},{"option":"CONFIG_B","why":"b","seen":{"word":["/f","w"]},"vital":false}]"#;
        assert_eq!(serde_json::to_string(&required.seen()).unwrap(), expected);
    }

    #[test]
    fn a_fault_is_found_in_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("required.toml");
        fs::write(&path, TEXT.replace("why = \"b\"", "wy = \"b\"")).unwrap();
        let error = Required::read(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("required.toml:9:1: ") && error.contains("`why`"), "{error}");
    }
}
