//! What an image is to hold, as a TOML file. A word that is not known is an error, for a typo must not build a different guest.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// A recipe.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The image's name, and its files'.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The Debian packages that files are taken from.
    pub packages: Vec<String>,
    /// What goes into the compressed part, `/usr`.
    pub usr: Usr,
    /// Directories of the root.
    #[serde(default)]
    pub directories: Vec<Directory>,
    /// Symbolic links of the root.
    #[serde(default)]
    pub symlinks: Vec<Symlink>,
    /// Small files of the root.
    #[serde(default)]
    pub files: Vec<File>,
    /// Processes that the agent is to run beside itself.
    #[serde(default)]
    pub helpers: Vec<Helper>,
}

/// A process that the agent is to run: one entry of the table that it reads, which leaves out what is not said.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Helper {
    /// Its name in the log and in metrics.
    pub name: String,
    /// Its program's path. That the program is in the image is for `usr` to say.
    pub program: String,
    /// The arguments after the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// The environment besides `PATH`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The user that it runs as.
    #[serde(default)]
    pub uid: u32,
    /// And the group.
    #[serde(default)]
    pub gid: u32,
    /// When it is started anew.
    #[serde(default)]
    pub restart: Restart,
    /// The UNIX socket at which it is ready as soon as it is there.
    #[serde(default)]
    pub ready: Option<String>,
    /// Helpers that must be ready before it starts.
    #[serde(default)]
    pub after: Vec<String>,
    /// How readily the kernel kills it for want of memory, from -997 to 1000.
    #[serde(default)]
    pub oom_score_adj: i32,
}

/// When a helper that has ended is started anew.
#[derive(Debug, Default, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Whenever it ends.
    Always,
    /// When it fails.
    #[default]
    OnFailure,
    /// Never.
    Never,
}

/// The compressed part.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usr {
    /// Programs, by their paths. The libraries that they need come along, and nothing else of their packages.
    pub programs: Vec<String>,
    /// Programs of ours, by their names: static ones that lie beside the agent. They go to `/usr/libexec/nacre`.
    #[serde(default)]
    pub helpers: Vec<String>,
    /// A directory of certificates, of which one bundle is made.
    pub certificates: Option<Certificates>,
}

/// Certificates to trust.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificates {
    /// The directory that holds them, one `.crt` each.
    pub from: String,
    /// The bundle, below `/usr`.
    pub bundle: String,
}

/// A directory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Its path.
    pub path: String,
    /// Its permission bits, in octal.
    #[serde(default = "default_directory_mode")]
    pub mode: String,
}

/// A symbolic link.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symlink {
    /// Its path.
    pub path: String,
    /// Where it leads.
    pub target: String,
}

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its path.
    pub path: String,
    /// Its permission bits, in octal.
    #[serde(default = "default_file_mode")]
    pub mode: String,
    /// Its text.
    pub content: String,
}

fn default_directory_mode() -> String {
    "0755".into()
}

fn default_file_mode() -> String {
    "0644".into()
}

/// Permission bits from octal text.
///
/// # Errors
/// Text that is no octal number of at most 07777.
pub fn mode(text: &str) -> Result<u32> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.with_context(|| format!("mode {text:?} is no octal number of at most 7777"))
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// A file that can't be read or does not say what a recipe says.
    pub fn read(path: &Path) -> Result<(Recipe, String)> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let recipe = Recipe::parse(&text).with_context(|| path.display().to_string())?;
        Ok((recipe, text))
    }

    /// Parses a recipe.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(text: &str) -> Result<Recipe> {
        let recipe: Recipe = toml::from_str(text)?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !recipe.name.is_empty() && recipe.name.chars().all(plain),
            "name {:?}: expected small letters, digits and -",
            recipe.name
        );
        for package in &recipe.packages {
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
            ensure!(
                package.starts_with(|c: char| c.is_ascii_alphanumeric()) && package.chars().all(legal),
                "package {package:?} is no Debian package's name"
            );
        }
        for helper in &recipe.usr.helpers {
            ensure!(!helper.is_empty() && helper.chars().all(plain), "helper {helper:?} is no program of ours");
        }
        for helper in &recipe.helpers {
            ensure!(helper.program.starts_with('/'), "helper {:?}: its program is no whole path", helper.name);
            let known = |name: &String| *name != helper.name && recipe.helpers.iter().any(|other| other.name == *name);
            ensure!(helper.after.iter().all(known), "helper {:?} is to start after one that is not there", helper.name);
        }
        if let Some(certificates) = &recipe.usr.certificates {
            ensure!(certificates.bundle.starts_with("/usr/"), "the certificates' bundle must lie below /usr");
        }
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "name = \"x\"\ndescription = \"\"\npackages = [\"skopeo\"]\n[usr]\nprograms = []\n";

    #[test]
    fn a_recipe_is_read_strictly() {
        assert_eq!(Recipe::parse(MINIMAL).unwrap().packages, ["skopeo"]);
        for (bad, reason) in [
            (MINIMAL.replace("usr", "user"), "unknown field `user`"),
            (MINIMAL.replace("\"x\"", "\"../x\""), "expected small letters"),
            (MINIMAL.replace("skopeo", "-o=x"), "no Debian package"),
            (MINIMAL.replace("programs = []", "programs = 3"), "invalid type"),
            (format!("{MINIMAL}helpers = [\"../sh\"]"), "no program of ours"),
            (format!("{MINIMAL}[[helpers]]\nname = \"a\"\nprogram = \"a\"\n"), "no whole path"),
            (format!("{MINIMAL}[[helpers]]\nname = \"a\"\nprogram = \"/a\"\nafter = [\"b\"]\n"), "is not there"),
        ] {
            let error = format!("{:#}", Recipe::parse(&bad).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }

    /// As the agent reads it.
    #[test]
    fn helpers_are_written_whole() {
        let more = "args = [\"-x\"]\nenv = { K = \"V\" }\nuid = 1\ngid = 2\nrestart = \"never\"\noom_score_adj = 3\n";
        let recipe =
            Recipe::parse(&format!("{MINIMAL}[[helpers]]\nname = \"a\"\nprogram = \"/usr/bin/a\"\n{more}")).unwrap();
        let expected = r#"[{"name":"a","program":"/usr/bin/a","args":["-x"],"env":{"K":"V"},"uid":1,"gid":2,"restart":"never","ready":null,"after":[],"oom_score_adj":3}]"#;
        assert_eq!(serde_json::to_string(&recipe.helpers).unwrap(), expected);
    }

    #[test]
    fn a_mode_is_octal() {
        assert_eq!(mode("0755").unwrap(), 0o755);
        assert!(mode("0789").is_err() && mode("10000").is_err() && mode("").is_err());
    }
}
