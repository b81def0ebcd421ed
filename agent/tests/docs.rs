//! docs/agent.md, held against the code.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use nacre_agent::device;
use nacre_agent::metrics::{Facts, Metrics};
use nacre_agent::storage;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What stands between `before` and `after` on lines that have both.
fn between<'a>(text: &'a str, before: &'a str, after: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| Some(line.trim_start().strip_prefix(before)?.split_once(after)?.0))
}

#[test]
fn every_word_method_driver_and_metric_is_described() {
    let docs = read("../docs/agent.md");
    let (config, proto) = (read("src/config/mod.rs"), read("../protocol/proto/agent.proto"));
    let metrics = Metrics::new().render(&Facts::default()).unwrap();
    let words: Vec<_> = between(&config, "(\"", "\", |").collect();
    let methods: Vec<_> = between(&proto, "rpc ", "(").collect();
    let families: Vec<_> = between(&metrics, "# TYPE ", " ").collect();
    assert!(words.len() > 15 && methods.len() == 42 && families.len() > 15);
    let handlers = storage::HANDLERS.iter().chain(device::HANDLERS).copied();
    for name in words.into_iter().chain(methods).chain(families).chain(handlers) {
        assert!(docs.contains(name), "docs/agent.md does not say what {name} is");
    }
}
