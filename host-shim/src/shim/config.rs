//! The shim's configuration: one file of TOML, which pods' annotations may override where it lets them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Deserializer};

use crate::cli::Accelerator;
use crate::size::Size;
use crate::vmm::Machine;

/// Where the configuration is, unless [`ENV`] or containerd's runtime options say otherwise.
pub const FILE: &str = "/etc/nacre/shim.toml";

/// The variable that names another file.
pub const ENV: &str = "NACRE_SHIM_CONFIG";

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// What pods' annotations begin with.
const ANNOTATION: &str = "dev.nacre.";

/// The configuration. What is left out has the default that `docs/shim.md` names.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Nothing of the host's is shared with the guest, and what would need it is refused.
    pub confidential: bool,
    /// The annotations that pods may set, without their prefix `dev.nacre.`.
    pub annotations: Vec<String>,
    /// What boots.
    pub guest: Guest,
    /// The machine that it boots in.
    pub vm: Vm,
    /// How the guest gets images.
    pub images: Images,
}

/// What boots.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Guest {
    /// The kernel [beside the shim: ../share/nacre/vmlinux].
    pub kernel: Option<PathBuf>,
    /// The image [beside the shim: ../share/nacre/minimal.initrd].
    pub image: Option<PathBuf>,
    /// More words for the kernel's command line. They are measured with it.
    pub kernel_args: Vec<String>,
}

/// The machine that a pod's guest boots in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Vm {
    /// KVM where it runs well, emulation elsewhere.
    #[serde(deserialize_with = "word")]
    pub accelerator: Accelerator,
    /// What QEMU plays.
    #[serde(deserialize_with = "word")]
    pub machine: Machine,
    /// Processors of a pod that has no limit.
    pub cpus: u8,
    /// Memory of a pod that has no limit, and what the guest itself has beside the limit of one that has.
    #[serde(deserialize_with = "text")]
    pub memory: Size,
    /// The most memory that a pod's VM may have.
    #[serde(deserialize_with = "text")]
    pub max_memory: Size,
    /// How long the guest may take to boot, in seconds.
    pub boot_timeout: u64,
}

/// How the guest gets images.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Images {
    /// Credentials for registries, as containers-auth.json(5) has them. They are handed to the guest.
    pub auth_file: Option<PathBuf>,
    /// Certificates to trust for registries (PEM), besides the guest's own.
    pub ca_file: Option<PathBuf>,
    /// Registries whose certificates are not checked. For development.
    pub insecure: Vec<String>,
    /// How long a pull may take, in seconds.
    pub pull_timeout: u64,
}

impl Default for Vm {
    fn default() -> Self {
        Vm {
            accelerator: Accelerator::Auto,
            machine: Machine::Microvm,
            cpus: 1,
            memory: Size::mib(512),
            max_memory: Size::mib(64 << 10),
            boot_timeout: 60,
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Images { auth_file: None, ca_file: None, insecure: Vec::new(), pull_timeout: 1200 }
    }
}

fn text<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn word<'de, D: Deserializer<'de>, T: clap::ValueEnum>(deserializer: D) -> Result<T, D::Error> {
    T::from_str(&String::deserialize(deserializer)?, true).map_err(|_| {
        let words: Vec<_> = T::value_variants().iter().filter_map(T::to_possible_value).collect();
        let words: Vec<_> = words.iter().map(|word| word.get_name()).collect();
        serde::de::Error::custom(format!("write one of {}", words.join(", ")))
    })
}

impl Config {
    /// Reads the configuration of `asked`, of the environment or of the usual place, where there may be none.
    ///
    /// # Errors
    /// A file that is asked for and is not there, or one with words that are not known.
    pub fn find(asked: Option<&Path>) -> Result<Config> {
        match asked.map(Path::to_path_buf).or_else(|| std::env::var_os(ENV).map(PathBuf::from)) {
            Some(path) => Config::read(&path),
            None if Path::new(FILE).exists() => Config::read(Path::new(FILE)),
            None => Ok(Config::default()),
        }
    }

    fn read(path: &Path) -> Result<Config> {
        let act = || format!("read the configuration {}", path.display());
        let length = fs::metadata(path).with_context(act)?.len();
        ensure!(length <= MAX_FILE, "{}: it is larger than {} MiB", act(), MAX_FILE >> 20);
        let config: Config = toml::from_str(&fs::read_to_string(path).with_context(act)?).with_context(act)?;
        config.check().with_context(act)?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        ensure!((1..=86_400).contains(&self.vm.boot_timeout), "vm.boot-timeout: write 1 to 86400 seconds");
        ensure!((1..=86_400).contains(&self.images.pull_timeout), "images.pull-timeout: write 1 to 86400 seconds");
        ensure!(self.vm.cpus > 0, "vm.cpus: a machine has at least one processor");
        ensure!(self.vm.memory.as_mib() >= 128, "vm.memory: the guest needs 128 MiB");
        if let Some(unknown) = self.annotations.iter().find(|name| !OVERRIDES.contains(&name.as_str())) {
            bail!("annotations: {unknown:?} is none of {}", OVERRIDES.join(", "));
        }
        ensure!(
            !self.confidential || self.images.insecure.is_empty(),
            "images.insecure: not where pods are confidential"
        );
        Ok(())
    }

    /// With what a pod's annotations override.
    ///
    /// # Errors
    /// An annotation of ours that is not known, not allowed here, or has a value that makes no sense.
    pub fn with_annotations(mut self, annotations: &HashMap<String, String>) -> Result<Config> {
        for (key, value) in annotations {
            let Some(name) = key.strip_prefix(ANNOTATION) else { continue };
            ensure!(OVERRIDES.contains(&name), "annotation {key}: this shim knows none of this name");
            ensure!(
                self.annotations.iter().any(|allowed| allowed == name),
                "annotation {key}: the host does not allow it"
            );
            self.set(name, value).with_context(|| format!("annotation {key}"))?;
        }
        self.check()?;
        Ok(self)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "vm.cpus" => self.vm.cpus = value.parse().context("write a number")?,
            "vm.memory" => self.vm.memory = value.parse()?,
            "vm.boot-timeout" => self.vm.boot_timeout = value.parse().context("write seconds")?,
            "images.pull-timeout" => self.images.pull_timeout = value.parse().context("write seconds")?,
            _ => bail!("it can't be overridden"),
        }
        ensure!(self.vm.memory <= self.vm.max_memory, "the host gives a pod at most {}", self.vm.max_memory);
        Ok(())
    }

    /// How long a guest may take to boot.
    pub fn boot_within(&self) -> Duration {
        Duration::from_secs(self.vm.boot_timeout)
    }

    /// How long a pull may take.
    pub fn pull_within(&self) -> Duration {
        Duration::from_secs(self.images.pull_timeout)
    }
}

/// What annotations can override.
const OVERRIDES: [&str; 4] = ["vm.cpus", "vm.memory", "vm.boot-timeout", "images.pull-timeout"];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = of("[vm]\nmachine = \"q35\"\nmemory = \"1G\"\n").unwrap();
        assert_eq!((config.vm.machine, config.vm.memory, config.vm.cpus), (Machine::Q35, Size::mib(1024), 1));
        assert_eq!(config.pull_within(), Duration::from_secs(1200));
    }

    #[test]
    fn mistakes_are_found_where_they_are() {
        for (text, expected) in [
            ("[vm]\nmemoy = \"1G\"", "memoy"),
            ("[vm]\nmemory = \"1X\"", "write a size"),
            ("[vm]\nmachine = \"pc\"", "write one of microvm, q35"),
            ("[vm]\ncpus = 0", "at least one processor"),
            ("annotations = [\"vm.kernel\"]", "none of vm.cpus"),
            ("confidential = true\n[images]\ninsecure = [\"a\"]", "images.insecure"),
        ] {
            let error = format!("{:#}", of(text).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn pods_override_what_they_may() {
        let config = of("annotations = [\"vm.memory\"]\n[vm]\nmax-memory = \"2G\"").unwrap();
        let with =
            |key: &str, value: &str| config.clone().with_annotations(&HashMap::from([(key.into(), value.into())]));
        assert_eq!(with("dev.nacre.vm.memory", "2G").unwrap().vm.memory, Size::mib(2048));
        assert_eq!(with("io.kubernetes.other", "x").unwrap().vm.memory, Size::mib(512));
        for (key, value) in [("dev.nacre.vm.memory", "3G"), ("dev.nacre.vm.cpus", "2"), ("dev.nacre.vm.kernel", "/k")] {
            assert!(with(key, value).is_err(), "{key}");
        }
    }
}
