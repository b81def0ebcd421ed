//! Where signatures by GPG are kept: the signature stores of containers-registries.d(5).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::MAX_FILE;
use crate::error::{Error, Kind, Result};
use crate::limited;

/// The signature stores by scope.
#[derive(Debug, Clone, Default)]
pub struct Lookaside {
    default: Option<Namespace>,
    scopes: BTreeMap<String, Namespace>,
}

/// A file of `registries.d`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    default_docker: Option<Namespace>,
    #[serde(default)]
    docker: BTreeMap<String, Namespace>,
}

/// What is said of a scope. Signatures are only read here, so where they are written to is of no use, and those in registries are always looked
/// for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Namespace {
    lookaside: Option<String>,
    /// Its older name.
    sigstore: Option<String>,
    #[serde(rename = "lookaside-staging")]
    _lookaside_staging: Option<String>,
    #[serde(rename = "sigstore-staging")]
    _sigstore_staging: Option<String>,
    #[serde(rename = "use-sigstore-attachments")]
    _use_sigstore_attachments: Option<bool>,
}

impl Lookaside {
    /// Reads the files of a `registries.d`.
    ///
    /// # Errors
    /// One that is not understood, or a scope that two of them are about.
    pub fn parse(files: &[String]) -> Result<Lookaside> {
        let bad = |why: String| Error::new(Kind::BadRequest, format!("registries.d: {why}"));
        let mut all = Lookaside::default();
        for text in files {
            if text.len() > MAX_FILE {
                return Err(bad("a file has more than 1 MiB".into()));
            }
            let file: File = serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()))?;
            let namespaces = file.docker.values().chain(&file.default_docker);
            if let Some(url) = namespaces.filter_map(Namespace::url).find(|url| !is_store(url)) {
                return Err(bad(format!("{url:?} is no store: it begins with neither https:// nor file:///")));
            }
            for (scope, namespace) in file.docker {
                if all.scopes.insert(scope.clone(), namespace).is_some() {
                    return Err(bad(format!("two files are about {scope:?}")));
                }
            }
            if file.default_docker.is_some() && std::mem::replace(&mut all.default, file.default_docker).is_some() {
                return Err(bad("two files have a default-docker".into()));
            }
        }
        Ok(all)
    }

    /// The store of the closest of these scopes, without a slash at its end.
    pub(crate) fn store<'a>(&'a self, mut scopes: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let found = scopes.find_map(|scope| self.scopes.get(scope)?.url());
        found.or_else(|| self.default.as_ref()?.url()).map(|url| url.trim_end_matches('/'))
    }
}

/// The files of a `registries.d`, in the order of their names; none, if there is no such directory.
///
/// # Errors
/// What can't be read, as text.
pub fn read(dir: &Path) -> std::result::Result<Vec<String>, String> {
    let fail = |path: &Path, error: std::io::Error| format!("read {}: {error}", path.display());
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| fail(dir, error))?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(|error| fail(dir, error)));
    let mut paths = paths.collect::<std::result::Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    paths.iter().map(|path| limited::read_text(path).map_err(|error| error.message)).collect()
}

/// Where a store has a manifest's signature of this number, the first being 1: `base` is the store's address and the repository's path.
pub(crate) fn place(base: &str, manifest_hex: &str, number: usize) -> String {
    format!("{base}@sha256={manifest_hex}/signature-{number}")
}

impl Namespace {
    fn url(&self) -> Option<&str> {
        self.lookaside.as_deref().or(self.sigstore.as_deref()).filter(|url| !url.is_empty())
    }
}

fn is_store(url: &str) -> bool {
    let address = url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    let plain = url.bytes().all(|byte| byte.is_ascii_graphic()) && !url.contains(['?', '#']);
    plain && (address || url.starts_with("file:///")) && !url.split('/').any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Lookaside> {
        Lookaside::parse(&[text.to_string()])
    }

    #[test]
    fn the_closest_scope_that_names_a_store_has_it() {
        let stores = parse(
            "# signatures\n\
             default-docker:\n  sigstore: file:///var/lib/sigs\n  sigstore-staging: file:///tmp/x\n\
             docker:\n  h.io/team:\n    use-sigstore-attachments: true\n  h.io:\n    lookaside: https://sigs.h.io/all/\n",
        );
        let stores = stores.unwrap();
        assert_eq!(stores.store(["h.io/team/app", "h.io/team", "h.io"].into_iter()), Some("https://sigs.h.io/all"));
        assert_eq!(stores.store(["other.io/a", "other.io"].into_iter()), Some("file:///var/lib/sigs"));
        assert_eq!(Lookaside::default().store(["h.io"].into_iter()), None);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "docker: [",
            "docker:\n  h.io:\n    looksaside: https://h.io\n",
            "docker:\n  h.io:\n    lookaside: http://h.io\n",
            "docker:\n  h.io:\n    lookaside: https://h.io/../x\n",
            "docker:\n  h.io:\n    lookaside: a\n  h.io:\n    lookaside: b\n",
            "other: 1\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        let twice = "docker:\n  h.io:\n    lookaside: https://h.io\n".to_string();
        assert!(Lookaside::parse(&[twice.clone(), twice]).is_err());
    }

    proptest! {
        #[test]
        fn any_text_ends_in_an_answer(text in "[a-z:/ \\n&*!|>\\[{-]{0,80}") {
            let _ = parse(&text);
        }
    }
}
