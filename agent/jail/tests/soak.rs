//! Many containers one after another leave the process as it was. `NACRE_SOAK` says how many.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;

use common::{bundle, cgroup_v2, pipes, spec};
use nacre_jail::{Container, Plan};
use oci_spec::runtime::Spec;
use serde_json::json;

/// What a leak would show in: descriptors, mounts, cgroups, and resident memory in KiB.
fn holdings() -> (usize, usize, usize, u64) {
    let lines = |path: &str| fs::read_to_string(path).unwrap().lines().count();
    let base = if cgroup_v2() { "/sys/fs/cgroup/nacre-soak" } else { "/sys/fs/cgroup/pids/nacre-soak" };
    let cgroups =
        fs::read_dir(base).map_or(0, |dir| dir.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib = resident.trim().trim_end_matches(" kB").parse().unwrap();
    (fs::read_dir("/proc/self/fd").unwrap().count(), lines("/proc/self/mountinfo"), cgroups, kib)
}

#[test]
fn many_containers_one_after_another_leave_nothing() {
    let Some(bundle) = bundle() else { return };
    let count: u32 = std::env::var("NACRE_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let mut json = spec("true");
    json["process"]["args"] = json!(["busybox", "true"]);
    let life = |number: u32| {
        let mut json = json.clone();
        json["linux"]["cgroupsPath"] = format!("/nacre-soak/c{number}").into();
        let spec: Spec = serde_json::from_value(json).unwrap();
        let container = Container::create(Plan::new("soak", &spec, bundle.0.path()).unwrap(), pipes().1).unwrap();
        container.start().unwrap();
        container.init().wait().unwrap();
        container.delete().unwrap();
    };
    (0..50).for_each(life); // until all that is kept is kept
    let before = holdings();
    (0..count).for_each(life);
    let after = holdings();
    assert_eq!((after.0, after.1, after.2), (before.0, before.1, before.2));
    assert!(after.3 <= before.3 + 1024, "{} KiB became {} KiB", before.3, after.3);
}
