//! What the guest's image says of images: which may be used, where they are had, who asks, which are wanted early. All of it is measured with
//! the image; a rule that is there and can't be read admits nothing.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use nacre_protocol::address::{Address, CID_HOST};
use nacre_pull::ready::Known;

use crate::config::{Config, prefetch};

/// Where the rules are, unless the kernel's command line names another file.
const POLICY: &str = "/etc/containers/policy.json";
const REGISTRIES: &str = "/etc/containers/registries.conf";
const REGISTRIES_D: &str = "/etc/containers/registries.d";
const AUTH: &str = "/etc/containers/auth.json";
const KEY_PROVIDERS: &str = "/etc/ocicrypt_config.json";
const PREFETCH: &str = "/etc/nacre/prefetch";
const LAYERS: &str = "/etc/nacre/layers";

/// The largest file of rules.
const MAX_RULES: u64 = 1 << 20;

/// A policy that admits no image.
const REJECT: &str = r#"{"default":[{"type":"reject"}]}"#;

/// See the module's description.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rules {
    /// containers-policy.json(5); without one any image is admitted.
    pub policy: Option<String>,
    /// The files of containers-registries.d(5).
    pub lookaside: Vec<String>,
    /// Whether images must be named by digest.
    pub require_digest: bool,
    /// containers-registries.conf(5).
    pub registries: Option<String>,
    /// containers-auth.json(5).
    pub auth_file: Option<String>,
    /// Who unwraps the keys of encrypted layers: ocicrypt's configuration of key providers.
    pub key_providers: Option<String>,
    /// Environment variables of the puller: its way out.
    pub environment: Vec<(&'static str, String)>,
    /// Ready-made layers, whatever a manifest says of them.
    pub layers: Vec<Known>,
    /// Images to pull before a container asks for them: the image's, then the command line's.
    pub prefetch: Vec<String>,
    /// Where the host's cache of blobs is. It is no rule, and can't break one: digests say what a blob is.
    pub blob_cache: Option<String>,
}

impl Rules {
    /// The rules of the guest whose root is `root`.
    pub fn of_image(root: &Path, config: &Config) -> Rules {
        let read = |named: &Option<String>, usual: &str| {
            let path = named.as_deref().unwrap_or(usual);
            match read(&root.join(path.trim_start_matches('/'))) {
                Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => Ok(None),
                text => text.map(Some).map_err(|error| {
                    tracing::error!(path, %error, "no image is admitted: a rule can't be read");
                }),
            }
        };
        let policy = read(&config.image_policy_file, POLICY);
        let registries = read(&None, REGISTRIES);
        let auth_file = read(&config.image_registry_auth, AUTH);
        let key_providers = read(&None, KEY_PROVIDERS);
        let lookaside = nacre_pull::access::lookaside::read(&root.join(REGISTRIES_D.trim_start_matches('/')));
        let lookaside = lookaside.inspect_err(|error| tracing::error!("no image is admitted: {error}"));
        let readable =
            lookaside.is_ok() && key_providers.is_ok() && policy.is_ok() && registries.is_ok() && auth_file.is_ok();
        let policy = if readable { policy.unwrap_or_default() } else { Some(REJECT.into()) };
        if policy.is_none() {
            tracing::warn!("IMAGE POLICY: ANY IMAGE: this is a development image");
        }
        let variable = |name, value: &Option<String>| value.clone().map(|value| (name, value));
        let environment = [variable("HTTPS_PROXY", &config.https_proxy), variable("NO_PROXY", &config.no_proxy)];
        Rules {
            policy,
            lookaside: lookaside.unwrap_or_default(),
            require_digest: config.require_image_digest,
            registries: registries.unwrap_or_default(),
            auth_file: auth_file.unwrap_or_default(),
            key_providers: key_providers.unwrap_or_default(),
            environment: environment.into_iter().flatten().collect(),
            layers: list(root, LAYERS, "ready-made layer", |text| {
                nacre_pull::ready::parse(text).map_err(|error| error.message)
            }),
            prefetch: list(root, PREFETCH, "image to be pulled early", |text| {
                prefetch::of_text(text).map_err(|why| why.to_string())
            })
            .into_iter()
            .chain(config.prefetch.iter().cloned())
            .collect(),
            blob_cache: config.blob_cache_port.map(|port| Address::Vsock { cid: CID_HOST, port }.to_string()),
        }
    }
}

/// A list that the image carries. It admits nothing, so one that makes no sense costs time and no more.
fn list<T>(root: &Path, path: &str, of: &str, parse: impl Fn(&str) -> Result<Vec<T>, String>) -> Vec<T> {
    let text = match read(&root.join(path.trim_start_matches('/'))) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        text => text.map_err(|error| error.to_string()),
    };
    text.and_then(|text| parse(&text)).unwrap_or_else(|why| {
        tracing::warn!(path, "no {of} of the list counts: {why}");
        Vec::new()
    })
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_RULES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_RULES {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_cannot_be_read_admits_nothing() {
        let root = tempfile::tempdir().unwrap();
        let config = Config::default();
        assert_eq!(Rules::of_image(root.path(), &config), Rules::default());

        let dir = root.path().join("etc/containers");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("policy.json"), "own").unwrap();
        std::fs::write(dir.join("registries.conf"), "places").unwrap();
        let rules = Rules::of_image(root.path(), &config);
        assert_eq!((rules.policy.as_deref(), rules.registries.as_deref()), (Some("own"), Some("places")));

        let named = Config { image_policy_file: Some("/etc/other".into()), ..Config::default() };
        assert_eq!(Rules::of_image(root.path(), &named).policy.as_deref(), Some(REJECT));
        std::fs::write(dir.join("registries.conf"), [0xff]).unwrap();
        assert_eq!(Rules::of_image(root.path(), &config).policy.as_deref(), Some(REJECT));
    }

    #[test]
    fn ready_made_layers_are_listed_in_the_image_and_a_list_that_makes_no_sense_has_none() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/nacre")).unwrap();
        let digest = "0a".repeat(32);
        let good = format!("sha256:{digest} sha256:{digest};blocks=7\n");
        for (text, known) in [(&good, 1), (&format!("{good}nonsense\n"), 0)] {
            std::fs::write(root.path().join("etc/nacre/layers"), text).unwrap();
            let rules = Rules::of_image(root.path(), &Config::default());
            assert_eq!((rules.layers.len(), rules.policy), (known, None), "{text}");
        }
    }

    #[test]
    fn images_wanted_early_come_from_the_image_and_the_command_line() {
        let root = tempfile::tempdir().unwrap();
        let config = Config { prefetch: vec!["b".into()], ..Config::default() };
        assert_eq!(Rules::of_image(root.path(), &config).prefetch, ["b"]);
        std::fs::create_dir_all(root.path().join("etc/nacre")).unwrap();
        for (text, images) in [("a # first\n", "a b"), ("no list", "b")] {
            std::fs::write(root.path().join("etc/nacre/prefetch"), text).unwrap();
            let rules = Rules::of_image(root.path(), &config);
            assert_eq!((rules.prefetch.join(" ").as_str(), rules.policy), (images, None));
        }
    }
}
