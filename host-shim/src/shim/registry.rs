//! What the guest is told of the registries that it pulls from.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_protocol::nacre::SetRegistryAccessRequest;
use serde::Deserialize;

use super::config::Images;
use crate::reference::Reference;

/// The largest file of credentials or certificates.
const MAX_FILE: u64 = 1 << 20;

/// What containers-auth.json(5) and Docker's config.json have.
#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthFile {
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
}

/// How `image` is had; nothing where the guest needs no help of the host's.
///
/// # Errors
/// A file that can't be read, or credentials that are none.
pub fn access(images: &Images, image: &Reference) -> Result<Option<SetRegistryAccessRequest>> {
    let registry = image.registry();
    let mut access = SetRegistryAccessRequest { registry: registry.into(), ..SetRegistryAccessRequest::new() };
    if let Some(path) = &images.auth_file {
        let act = || format!("images.auth-file {}", path.display());
        let file: AuthFile = serde_json::from_str(&read(path).with_context(act)?).with_context(act)?;
        if let Some((username, password)) = credentials(&file, image).with_context(act)? {
            (access.username, access.password) = (username, password);
        }
    }
    if let Some(path) = &images.ca_file {
        access.ca_pem = read(path).with_context(|| format!("images.ca-file {}", path.display()))?;
    }
    access.skip_tls_verification = images.insecure.iter().any(|insecure| insecure == registry);
    let is_empty = access.username.is_empty() && access.ca_pem.is_empty() && !access.skip_tls_verification;
    Ok((!is_empty).then_some(access))
}

/// The entry that fits best: of the repository, of what it lies below, of the registry.
fn credentials(file: &AuthFile, image: &Reference) -> Result<Option<(String, String)>> {
    let name = image.name();
    let mut key = Some(name.as_str());
    while let Some(at) = key {
        if let Some(entry) = file.auths.get(at) {
            return decode(entry).with_context(|| at.to_string()).map(Some);
        }
        key = at.rsplit_once('/').map(|(above, _)| above);
    }
    // As Docker writes its own registry's.
    let hub = (image.registry() == "docker.io").then(|| file.auths.get("https://index.docker.io/v1/")).flatten();
    hub.map(decode).transpose()
}

fn decode(entry: &Entry) -> Result<(String, String)> {
    if !entry.username.is_empty() {
        return Ok((entry.username.clone(), entry.password.clone()));
    }
    let text = String::from_utf8(STANDARD.decode(entry.auth.trim()).context("auth: is no Base64")?)
        .context("auth: is no text")?;
    let (username, password) = text.split_once(':').context("auth: is no USER:PASSWORD")?;
    Ok((username.into(), password.trim_end_matches('\0').into()))
}

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_FILE, "it is larger than {} MiB", MAX_FILE >> 20);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(auths: &str, image: &str) -> Result<Option<(String, String)>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{{\"auths\": {auths}}}")).unwrap();
        let images = Images { auth_file: Some(file.path().into()), ..Images::default() };
        Ok(access(&images, &image.parse().unwrap())?.map(|access| (access.username, access.password)))
    }

    #[test]
    fn the_nearest_entry_is_taken() {
        let auths = format!(
            r#"{{"r.example": {{"auth": "{}"}}, "r.example/team": {{"username": "u", "password": "p"}}}}"#,
            STANDARD.encode("a:b:c")
        );
        let some = |user: &str, password: &str| Some((user.into(), password.into()));
        assert_eq!(of(&auths, "r.example/other/x:1").unwrap(), some("a", "b:c"));
        assert_eq!(of(&auths, "r.example/team/x:1").unwrap(), some("u", "p"));
        assert_eq!(of(&auths, "other.example/team/x:1").unwrap(), None);
        let hub = format!(r#"{{"https://index.docker.io/v1/": {{"auth": "{}"}}}}"#, STANDARD.encode("a:b"));
        assert_eq!(of(&hub, "alpine").unwrap(), some("a", "b"));
    }

    #[test]
    fn credentials_that_are_none_are_named_and_not_told() {
        let error = format!("{:#}", of(r#"{"r.example": {"auth": "c2VjcmV0"}}"#, "r.example/x").unwrap_err());
        assert!(error.contains("r.example") && error.contains("USER:PASSWORD") && !error.contains("secret"), "{error}");
    }
}
