//! `auth.json` (containers-auth.json(5)), and Docker's `config.json` as far as it is the same: who asks a registry.
//!
//! No error quotes what the file holds besides its keys.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::MAX_FILE;
use super::name::Name;
use crate::error::{Error, Kind, Result, quoted};
use crate::reference::{DEFAULT_REGISTRY, DEFAULT_REGISTRY_ALIAS};

/// Docker's old keys are addresses with these ends; others of its keys hold something else.
const LEGACY_ENDS: [&str; 6] = ["", "/", "/v1", "/v1/", "/v2", "/v2/"];

/// Docker's registry by the names that it has in old keys.
const DOCKER_NAMES: [&str; 2] = [DEFAULT_REGISTRY_ALIAS, "registry-1.docker.io"];

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// A user's name and password.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
    /// What the registry's token service takes for a fresh token.
    IdentityToken(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

/// The secrets of an `auth.json`. Without one there are none.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// By `host[/path]`. Where there is no secret, a program elsewhere keeps it.
    secrets: BTreeMap<String, Option<Secret>>,
    /// By host, from Docker's old keys.
    legacy: BTreeMap<String, Option<Secret>>,
    /// Programs that keep the secrets of a host.
    helpers: BTreeMap<String, String>,
    /// The program that keeps all others.
    store: Option<String>,
}

/// The file as it is written. Docker keeps much else in it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
}

fn bad(reason: impl fmt::Display) -> Error {
    Error::new(Kind::BadRequest, format!("auth.json: {reason}"))
}

impl Credentials {
    /// Reads the file's text.
    pub fn parse(text: &[u8]) -> Result<Credentials> {
        if text.len() > MAX_FILE {
            return Err(bad(format!("it has more than {MAX_FILE} bytes")));
        }
        let file: File = serde_json::from_slice(text).map_err(|error| {
            // Its own words may quote a secret.
            bad(format!("line {}, column {}: this is not what is expected here", error.line(), error.column()))
        })?;
        let host = |key: &String| legacy_host(key).unwrap_or_else(|| canonical(key));
        let mut credentials = Credentials {
            helpers: file.cred_helpers.into_iter().map(|(key, helper)| (host(&key), helper)).collect(),
            store: file.creds_store.filter(|store| !store.is_empty()),
            ..Credentials::default()
        };
        for (key, entry) in file.auths {
            let secret = entry.secret().map_err(|error| bad(error.context(format!("auths {}", quoted(&key)))))?;
            match legacy_host(&key) {
                // The safer scheme comes later in the map's order, and wins.
                Some(host) => drop(credentials.legacy.insert(host, secret)),
                None if key.contains("://") => {}
                None => drop(credentials.secrets.insert(canonical(&key), secret)),
            }
        }
        Ok(credentials)
    }

    /// What to show for an image: the secret of the longest key that its name begins with. `None` asks as nobody.
    pub fn for_reference(&self, reference: &str) -> Result<Option<Secret>> {
        let name = Name::parse(reference)?.on(DEFAULT_REGISTRY);
        let repository = name.repository();
        let host = name.host.unwrap_or_default();
        if let Some(helper) = self.helpers.get(&host) {
            return Err(unknown_helper("credHelpers", helper, &host));
        }
        let mut key = repository.as_str();
        let found = loop {
            if let Some(found) = self.secrets.get(key) {
                break Some(found);
            }
            match key.rsplit_once('/') {
                Some((shorter, _)) => key = shorter,
                None => break self.legacy.get(&host),
            }
        };
        match (found, &self.store) {
            // Docker leaves an empty entry for what its store keeps.
            (Some(None), Some(store)) => Err(unknown_helper("credsStore", store, &host)),
            (found, _) => Ok(found.cloned().flatten()),
        }
    }
}

fn unknown_helper(key: &str, helper: &str, host: &str) -> Error {
    bad(format!("{key} leaves {host} to {}, which can't be run here: put the credentials into auths", quoted(helper)))
}

impl Entry {
    fn secret(self) -> Result<Option<Secret>> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Secret::IdentityToken(self.identitytoken)));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let text = BASE64_STANDARD.decode(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        let (username, password) =
            pair.ok_or_else(|| Error::new(Kind::BadRequest, "auth is not the base64 of user:password"))?;
        // Some old versions of Docker filled the password up.
        let password = password.trim_end_matches('\0');
        Ok(Some(Secret::Basic { username: username.to_string(), password: password.to_string() }))
    }
}

/// A key in its one form. Hosts are the same in any case, and paths are in lower case anyway.
fn canonical(key: &str) -> String {
    let key = key.strip_suffix('/').unwrap_or(key).to_ascii_lowercase();
    let (host, path) = key.split_once('/').map_or((key.as_str(), None), |(host, path)| (host, Some(path)));
    let host = if DOCKER_NAMES.contains(&host) { DEFAULT_REGISTRY } else { host };
    path.map_or_else(|| host.to_string(), |path| format!("{host}/{path}"))
}

/// The host of an old key: `https://host/v1/`.
fn legacy_host(key: &str) -> Option<String> {
    let rest = ["https://", "http://"].iter().find_map(|scheme| key.strip_prefix(scheme))?;
    let (host, end) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len()))?;
    LEGACY_ENDS.contains(&end).then(|| canonical(host))
}

#[cfg(test)]
mod tests;
