//! Which module of the agent may use which: the arrows of docs/architecture.md, held against the code.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Each module, and what it may use. One that stands in no row may use nothing of the crate. `chain` writes an error with its causes.
const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &[]),
    ("lib", &[]),
    (
        "server",
        &[
            "args",
            "boot",
            "chain",
            "check",
            "config",
            "console",
            "device",
            "helpers",
            "init",
            "last_words",
            "listener",
            "log",
            "metrics",
            "network",
            "passthrough",
            "policy",
            "rpc",
            "sandbox",
            "storage",
        ],
    ),
    (
        "rpc",
        &[
            "boot",
            "chain",
            "console",
            "container",
            "copy_file",
            "device",
            "guest",
            "helpers",
            "log",
            "metrics",
            "network",
            "passthrough",
            "policy",
            "sandbox",
            "stats",
            "storage",
        ],
    ),
    (
        "fuzzing",
        &[
            "boot",
            "chain",
            "config",
            "console",
            "container",
            "device",
            "metrics",
            "policy",
            "rpc",
            "sandbox",
            "storage",
        ],
    ),
    ("sandbox", &["chain", "container", "device", "passthrough", "storage"]),
    ("container", &["chain", "device", "passthrough", "storage"]),
    ("device", &["chain"]),
    ("storage", &["chain", "config", "device"]),
    ("network", &["chain", "device"]),
    ("guest", &["device", "storage"]),
    ("config", &["log"]),
    ("init", &["last_words"]),
    ("console", &["chain", "container", "listener", "policy"]),
    ("helpers", &["chain", "container"]),
    ("log", &["listener"]),
    ("passthrough", &["listener"]),
    ("copy_file", &["storage"]),
];

/// The modules of the crate that the text names.
fn used(text: &str) -> BTreeSet<String> {
    let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    text.split("crate::").skip(1).map(word).filter(|name| !name.is_empty()).collect()
}

fn read(path: &Path, into: &mut String) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| read(&entry.unwrap().path(), into));
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        into.push_str(&fs::read_to_string(path).unwrap());
    }
}

#[test]
fn the_image_engine_knows_nothing_of_the_agents_api() {
    let mut text = String::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("image/src"), &mut text);
    let used: BTreeSet<_> =
        text.split("nacre_protocol::").skip(1).map(|rest| rest.split(':').next().unwrap()).collect();
    let allowed = ["address", "blob_cache", "connect", "disk", "keyprovider"];
    assert!(used.iter().all(|module| allowed.iter().any(|name| module.starts_with(name))), "{used:?}");
}

#[test]
fn every_module_uses_only_what_it_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(src).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        let mut text = String::new();
        read(&path, &mut text);
        let allowed = ALLOWED.iter().find(|(module, _)| *module == name).map_or(&[][..], |(_, allowed)| allowed);
        for other in used(&text).into_iter().filter(|other| *other != name) {
            assert!(allowed.contains(&other.as_str()), "{name} uses {other}, which is no arrow of the architecture");
        }
    }
}
