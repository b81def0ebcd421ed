//! The engine's own times, by Criterion: `cargo bench -p nacre-jail`. Beside its peers it is measured by `make bench ONLY=jail`.

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::Path;

use common::{bundle, pipes, spec};
use criterion::{Criterion, criterion_group, criterion_main};
use nacre_jail::{Container, Plan};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

/// As few namespaces, mounts and rules as there can be.
fn minimal() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs" },
        "process": { "args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }] },
    })
}

fn plans(c: &mut Criterion) {
    for (name, json) in [("plan/minimal", minimal()), ("plan/cri", spec("true"))] {
        let text = json.to_string();
        c.bench_function(name, |b| {
            b.iter(|| {
                let spec: Spec = serde_json::from_str(&text).unwrap();
                Plan::new("bench", &spec, Path::new("/bundle")).unwrap()
            });
        });
    }
}

fn lives(c: &mut Criterion) {
    let Some(bundle) = bundle() else { return };
    for (name, json) in [("life/minimal", minimal()), ("life/cri", spec("true"))] {
        let spec: Spec = serde_json::from_value(json).unwrap();
        c.bench_function(name, |b| {
            b.iter(|| {
                let plan = Plan::new("bench", &spec, bundle.0.path()).unwrap();
                let container = Container::run(plan, pipes().1).unwrap();
                container.init().wait().unwrap();
                container.delete().unwrap();
            });
        });
    }
    let spec: Spec = serde_json::from_value(spec("sleep 10000")).unwrap();
    let container = Container::run(Plan::new("bench", &spec, bundle.0.path()).unwrap(), pipes().1).unwrap();
    let mut process = spec.process().clone().unwrap();
    process.set_args(Some(vec!["true".into()]));
    c.bench_function("exec", |b| {
        b.iter(|| container.exec(&process, pipes().1, 0).unwrap().wait().unwrap());
    });
    container.delete().unwrap();
}

criterion_group!(benches, plans, lives);
criterion_main!(benches);
