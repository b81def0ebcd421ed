//! A container's bundle: the directory that containerd makes for it (OCI runtime specification, "Filesystem Bundle").

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

/// The largest specification that is read.
const MAX_SPEC: u64 = 8 << 20;

/// A bundle, read.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The directory.
    pub dir: PathBuf,
    /// Its `config.json`.
    pub spec: Spec,
}

impl Bundle {
    /// Reads the bundle in `dir`.
    ///
    /// # Errors
    /// A specification that is missing, too large, or none.
    pub fn read(dir: &Path) -> Result<Bundle> {
        let path = dir.join("config.json");
        let act = || format!("read {}", path.display());
        let mut bytes = Vec::new();
        File::open(&path).and_then(|file| file.take(MAX_SPEC + 1).read_to_end(&mut bytes)).with_context(act)?;
        ensure!(bytes.len() as u64 <= MAX_SPEC, "{}: it is larger than {} MiB", act(), MAX_SPEC >> 20);
        let spec = serde_json::from_slice(&bytes).with_context(act)?;
        Ok(Bundle { dir: dir.into(), spec })
    }

    /// Its annotations.
    pub fn annotations(&self) -> HashMap<String, String> {
        self.spec.annotations().clone().unwrap_or_default()
    }

    /// The namespace of this kind that it is to join.
    pub fn namespace(&self, kind: LinuxNamespaceType) -> Namespace {
        let namespaces = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        match namespaces.into_iter().flatten().find(|namespace| namespace.typ() == kind) {
            None => Namespace::Host,
            Some(namespace) => match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() => Namespace::At(path.clone()),
                _ => Namespace::New,
            },
        }
    }
}

/// Which namespace a container is to be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespace {
    /// The host's.
    Host,
    /// One of its own.
    New,
    /// This one.
    At(PathBuf),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Bundle> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        Bundle::read(dir.path())
    }

    #[test]
    fn namespaces_are_told_apart() {
        let spec = r#"{"ociVersion": "1.0.2", "linux": {"namespaces": [
            {"type": "network", "path": "/run/netns/a"}, {"type": "pid"}, {"type": "ipc", "path": ""}]}}"#;
        let bundle = read(spec).unwrap();
        assert_eq!(bundle.namespace(LinuxNamespaceType::Network), Namespace::At("/run/netns/a".into()));
        assert_eq!(bundle.namespace(LinuxNamespaceType::Pid), Namespace::New);
        assert_eq!(bundle.namespace(LinuxNamespaceType::Ipc), Namespace::New);
        assert_eq!(bundle.namespace(LinuxNamespaceType::Uts), Namespace::Host);
    }

    #[test]
    fn what_is_no_specification_is_refused() {
        let large = format!("{{\"ociVersion\": \"{}\"}}", "a".repeat(9 << 20));
        for text in ["", "7", "{", &large] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains("config.json"), "{error}");
        }
    }
}
