//! New limits for a container.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nacre_jail::Status;
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::args::Update;
use super::directory::{self, Root};
use super::lifecycle;

/// The longest list of resources that is read.
const MAX_RESOURCES: u64 = 1 << 20;

pub fn update(root: &Root, args: &Update) -> Result<()> {
    let resources = match &args.resources {
        Some(path) => read(path)?,
        None => serde_json::from_value(from_flags(args)).context("update")?,
    };
    lifecycle::change(root, &args.id, |container, status| match status {
        Status::Stopped => bail!("cannot update a container that has stopped"),
        _ => Ok(container.update(&resources)?),
    })
}

fn read(path: &Path) -> Result<LinuxResources> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().take(MAX_RESOURCES).read_to_end(&mut bytes).context("read standard input")?;
        bytes
    } else {
        directory::read_stream(path, MAX_RESOURCES)?
    };
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}

/// `linux.resources` as the flags say it.
fn from_flags(args: &Update) -> Value {
    let some = |pairs: Vec<(&str, Option<Value>)>| -> Option<Value> {
        let present: Map<String, Value> =
            pairs.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))).collect();
        (!present.is_empty()).then_some(Value::Object(present))
    };
    let cpu = some(vec![
        ("shares", args.cpu_share.map(Into::into)),
        ("quota", args.cpu_quota.map(Into::into)),
        ("period", args.cpu_period.map(Into::into)),
        ("burst", args.cpu_burst.map(Into::into)),
        ("idle", args.cpu_idle.map(Into::into)),
        ("realtimeRuntime", args.cpu_rt_runtime.map(Into::into)),
        ("realtimePeriod", args.cpu_rt_period.map(Into::into)),
        ("cpus", args.cpuset_cpus.clone().map(Into::into)),
        ("mems", args.cpuset_mems.clone().map(Into::into)),
    ]);
    let memory = some(vec![
        ("limit", args.memory.map(Into::into)),
        ("reservation", args.memory_reservation.map(Into::into)),
        ("swap", args.memory_swap.map(Into::into)),
    ]);
    let resources = some(vec![
        ("cpu", cpu),
        ("memory", memory),
        ("pids", args.pids_limit.map(|limit| json!({ "limit": limit }))),
        ("blockIO", args.blkio_weight.map(|weight| json!({ "weight": weight }))),
    ]);
    resources.unwrap_or_else(|| json!({}))
}
