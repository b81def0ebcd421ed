//! Limits, device rules and readings, on whichever version of cgroups the host has.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Bundle, bundle, cgroup_v2, drain, pipes, run, spec};
use nacre_jail::{Container, Plan, Status};
use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::{Value, json};

/// A file of the container's cgroup: by the name of v1's hierarchy and file, or v2's file.
fn file(id: &str, hierarchy: &str, v1: &str, v2: &str) -> PathBuf {
    if cgroup_v2() {
        return format!("/sys/fs/cgroup/nacre-test/{id}/{v2}").into();
    }
    format!("/sys/fs/cgroup/{hierarchy}/nacre-test/{id}/{v1}").into()
}

fn value(id: &str, hierarchy: &str, v1: &str, v2: &str) -> Option<String> {
    fs::read_to_string(file(id, hierarchy, v1, v2)).ok().map(|text| text.trim().to_string())
}

fn resources(json: Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

fn started(bundle: &Bundle, id: &str, mut json: Value) -> Container {
    json["linux"]["cgroupsPath"] = format!("/nacre-test/{id}").into();
    let spec: Spec = serde_json::from_value(json).unwrap();
    let container = Container::create(Plan::new(id, &spec, bundle.0.path()).unwrap(), pipes().1).unwrap();
    container.start().unwrap();
    container
}

#[test]
fn limits_are_set_changed_and_lifted_again() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("sleep 1000");
    json["linux"]["resources"] = json!({
        "memory": { "limit": 64 << 20, "reservation": 32 << 20 }, "cpu": { "shares": 512, "quota": 50_000, "period": 100_000 },
        "pids": { "limit": 20 },
    });
    let container = started(&bundle, "limits", json);
    let memory = || value("limits", "memory", "memory.limit_in_bytes", "memory.max");
    let pids = || value("limits", "pids", "pids.max", "pids.max");
    let cpu = || value("limits", "cpu", "cpu.cfs_quota_us", "cpu.max");
    let shares = || value("limits", "cpu", "cpu.shares", "cpu.weight");
    let (quota, lifted) = if cgroup_v2() { ("50000 100000", "max 100000") } else { ("50000", "-1") };
    assert_eq!(memory().as_deref(), Some("67108864"));
    assert_eq!((pids().as_deref(), cpu().as_deref()), (Some("20"), Some(quota)));
    assert_eq!(shares().as_deref(), Some(if cgroup_v2() { "20" } else { "512" }));

    container.update(&resources(json!({ "memory": { "limit": 128 << 20 }, "pids": { "limit": 30 } }))).unwrap();
    assert_eq!((memory().as_deref(), pids().as_deref()), (Some("134217728"), Some("30")));
    assert_eq!(cpu().as_deref(), Some(quota), "what is not named stays");

    container
        .update(&resources(json!({ "memory": { "limit": -1 }, "pids": { "limit": -1 }, "cpu": { "quota": -1 } })))
        .unwrap();
    assert_eq!((pids().as_deref(), cpu().as_deref()), (Some("max"), Some(lifted)));
    let unlimited = memory().unwrap();
    assert!(unlimited == "max" || unlimited.parse::<u64>().unwrap() > 1 << 60, "{unlimited}");

    let error = container.update(&resources(json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } })));
    assert!(error.unwrap_err().to_string().contains("bytes in use (checkBeforeUpdate)"));
    container.delete().unwrap();
    assert!(!file("limits", "memory", "", "").exists());
}

#[test]
fn what_the_system_cannot_limit_is_named() {
    let Some(bundle) = bundle() else { return };
    let version = if cgroup_v2() { "v2" } else { "v1" };
    let (asked, expected) = if cgroup_v2() {
        (json!({ "memory": { "swappiness": 10 } }), "linux.resources.memory.swappiness on cgroup v2: not supported")
    } else {
        (
            json!({ "unified": { "memory.max": "1g" } }),
            "linux.resources.unified.\"memory.max\" on cgroup v1: not supported",
        )
    };
    let mut json = spec("true");
    json["linux"]["resources"] = asked;
    assert_eq!(run(&bundle, "cannot", &json).unwrap_err().to_string(), expected, "{version}");
    json["linux"]["resources"] = json!({ "hugepageLimits": [{ "pageSize": "3KB", "limit": 1 }] });
    let error = run(&bundle, "cannot", &json).unwrap_err().to_string();
    assert!(
        error.contains("no huge pages of \"3KB\"") || error.contains("no cgroup controller \"hugetlb\""),
        "{error}"
    );
    json["linux"]["resources"] = json!({ "blockIO": { "weight": 5 } });
    let error = run(&bundle, "cannot", &json).unwrap_err().to_string();
    assert_eq!(error, "linux.resources.blockIO.weight: 5 is not between 10 and 1000");
}

#[test]
fn files_of_the_unified_hierarchy_are_written_as_they_are() {
    let Some(bundle) = bundle() else { return };
    if !cgroup_v2() {
        println!("skipped: the host has cgroup v1");
        return;
    }
    let mut json = spec("sleep 1000");
    json["linux"]["resources"] = json!({ "unified": { "memory.high": "33554432", "pids.max": "9" } });
    let container = started(&bundle, "unified", json);
    assert_eq!(value("unified", "", "", "memory.high").as_deref(), Some("33554432"));
    assert_eq!(value("unified", "", "", "pids.max").as_deref(), Some("9"));
    for (file, expected) in [
        ("cgroup.procs", "not a controller's file"),
        ("../x.y", "not a controller's file"),
        ("memory.nope", "this system has no memory.nope"),
    ] {
        let error = container.update(&resources(json!({ "unified": { file: "1" } }))).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    container.delete().unwrap();
}

#[test]
fn a_container_opens_and_makes_the_devices_that_its_rules_allow() {
    let Some(bundle) = bundle() else { return };
    let script = "echo x > /dev/null && echo null; busybox mknod /dev/mine c 1 5 && echo made zero; \
                  busybox mknod /dev/kmsg2 c 1 11 2>/dev/null && echo made kmsg";
    let mut json = spec(script);
    for set in ["bounding", "effective", "permitted"] {
        json["process"]["capabilities"][set] = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    }
    // A node that is bound in from outside: the rules alone decide about it.
    let node = bundle.0.path().join("rootfs/asked");
    let device = rustix::fs::makedev(1, 1); // /dev/mem, of which nothing is read
    rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::CharacterDevice, 0o666.into(), device).unwrap();
    let open_only = "busybox dd if=/asked of=/dev/null count=0 2>/dev/null && echo opened";
    let run_with = |devices: Value, more: &str| {
        let mut json = json.clone();
        json["linux"]["resources"] = json!({ "devices": devices });
        json["process"]["args"][2] = format!("{script}; {more}").into();
        run(&bundle, "devices", &json).unwrap().0
    };
    assert_eq!(run_with(json!([{ "allow": false, "access": "rwm" }]), open_only), "null\nmade zero\n");
    assert_eq!(run_with(json!([]), open_only), "null\nmade zero\n", "without rules the defaults alone are allowed");
    let kmsg = json!([{ "allow": false }, { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "m" }]);
    assert_eq!(run_with(kmsg, open_only), "null\nmade zero\nmade kmsg\n");
}

#[test]
fn a_device_of_the_specification_is_allowed_until_a_rule_forbids_it() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("busybox dd if=/dev/asked of=/dev/null count=0 2>/dev/null && echo opened");
    json["linux"]["devices"] =
        json!([{ "path": "/dev/asked", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666 }]);
    assert_eq!(run(&bundle, "node", &json).unwrap().0, "opened\n");
    for (rules, expected) in [
        (json!([{ "allow": false, "access": "rwm" }]), ""),
        (json!([{ "allow": false, "type": "c", "major": 10, "minor": 200, "access": "rwm" }]), ""),
        (
            json!([{ "allow": false }, { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw" }]),
            "opened\n",
        ),
    ] {
        json["linux"]["resources"] = json!({ "devices": rules });
        assert_eq!(run(&bundle, "node", &json).unwrap().0, expected, "{rules}");
    }
}

#[test]
fn a_cgroup_that_is_frozen_is_not_entered() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("true");
    json["linux"]["cgroupsPath"] = "/nacre-test/frozen".into();
    let (dir, file, value) = match cgroup_v2() {
        true => ("/sys/fs/cgroup/nacre-test/frozen", "cgroup.freeze", "1"),
        false => ("/sys/fs/cgroup/freezer/nacre-test/frozen", "freezer.state", "FROZEN"),
    };
    fs::create_dir_all(dir).unwrap();
    fs::write(format!("{dir}/{file}"), value).unwrap();
    let error = run(&bundle, "frozen", &json).unwrap_err().to_string();
    assert_eq!(error, "cgroup nacre-test/frozen: create: it exists and is frozen");
    fs::write(format!("{dir}/{file}"), if cgroup_v2() { "0" } else { "THAWED" }).unwrap();
    run(&bundle, "frozen", &json).unwrap();
}

#[test]
fn a_quota_within_a_parents_can_change_its_period() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("sleep 1000");
    json["linux"]["cgroupsPath"] = "/nacre-test/quota/inner".into();
    let parent = if cgroup_v2() { "/sys/fs/cgroup/nacre-test/quota" } else { "/sys/fs/cgroup/cpu/nacre-test/quota" };
    let cpu = |quota: i64, period: u64| json!({ "cpu": { "quota": quota, "period": period } });
    json["linux"]["resources"] = cpu(5_000, 10_000);
    let spec: Spec = serde_json::from_value(json).unwrap();
    let container = Container::run(Plan::new("quota", &spec, bundle.0.path()).unwrap(), pipes().1).unwrap();
    if cgroup_v2() {
        fs::write(format!("{parent}/cpu.max"), "50000 100000").unwrap();
    } else {
        fs::write(format!("{parent}/cpu.cfs_period_us"), "100000").unwrap();
        fs::write(format!("{parent}/cpu.cfs_quota_us"), "50000").unwrap();
    }
    // Half a processor each time; on the way from one to the other it must not be more than the parent's.
    for (quota, period) in [(50_000, 100_000), (5_000, 10_000), (500_000, 1_000_000), (50_000, 100_000)] {
        container.update(&resources(cpu(quota, period))).unwrap();
    }
    container.delete().unwrap();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
        let _ = fs::remove_dir(hierarchy.unwrap().path().join("nacre-test/quota")); // where there is one
    }
    let _ = fs::remove_dir(parent);
}

#[test]
fn a_host_with_both_versions_of_cgroups_has_the_container_in_both() {
    let Some(bundle) = bundle() else { return };
    if cgroup_v2() || !std::path::Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
        println!("skipped: the host does not have cgroup v2 beside cgroup v1");
        return;
    }
    // With a cgroup mount, for which the cgroups are made before the process, and without.
    for kind in ["cgroup", "none at all"] {
        let mut json = spec("sleep 1000");
        json["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "cgroup" || kind == "cgroup");
        let container = started(&bundle, "hybrid", json.clone());
        let process = serde_json::from_value::<Spec>(json).unwrap().process().clone().unwrap();
        let joined = container.exec(&process, pipes().1, 0).unwrap();
        for pid in [container.init().pid(), joined.pid()] {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert_eq!(text.lines().count(), text.matches(":/nacre-test/hybrid").count(), "{text}");
            assert!(text.contains("0::/nacre-test/hybrid"), "{text}");
        }
        drop(joined); // an own child holds up the end of its PID namespace, unless the container knows of it
        container.delete().unwrap();
        assert!(!std::path::Path::new("/sys/fs/cgroup/unified/nacre-test/hybrid").exists());
    }
}

#[test]
fn device_rules_change_under_a_running_container() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("sleep 1000");
    for set in ["bounding", "effective", "permitted"] {
        json["process"]["capabilities"][set] = json!(["CAP_MKNOD"]);
    }
    let process = serde_json::from_value::<Spec>(json.clone()).unwrap().process().clone().unwrap();
    let container = started(&bundle, "rules", json);
    let make = || {
        let mut process = process.clone();
        let script = "busybox mknod /dev/x c 10 200 2>/dev/null && echo made && busybox rm /dev/x; true";
        process.set_args(Some(["sh", "-c", script].map(String::from).to_vec()));
        let (read, io) = pipes();
        container.exec(&process, io, 0).unwrap().wait().unwrap();
        drain(read)
    };
    assert_eq!(make(), "");
    let tun = json!([{ "allow": false }, { "allow": true, "type": "c", "major": 10, "minor": 200 }]);
    container.update(&resources(json!({ "devices": tun }))).unwrap();
    assert_eq!(make(), "made\n");
    container.update(&resources(json!({ "devices": [{ "allow": false }] }))).unwrap();
    assert_eq!(make(), "");
    container.delete().unwrap();
}

#[test]
fn a_frozen_container_does_nothing_until_it_is_thawed() {
    let Some(bundle) = bundle() else { return };
    let container = started(&bundle, "thawed", spec("while true; do echo > /dev/null; done"));
    container.pause().unwrap();
    assert_eq!(container.status().unwrap(), Status::Paused);
    let used = || container.stats().unwrap().cpu.total;
    let before = used();
    let until = std::time::Instant::now() + std::time::Duration::from_millis(50);
    while std::time::Instant::now() < until {
        std::hint::spin_loop();
    }
    assert_eq!(used(), before);
    container.resume().unwrap();
    assert_eq!(container.status().unwrap(), Status::Running);
    while used() == before {
        std::hint::spin_loop();
    }
    container.pause().unwrap();
    container.delete().unwrap(); // frozen or not
}

#[test]
fn readings_tell_what_was_used() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("while :; do :; done");
    json["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 32 } });
    let container = started(&bundle, "readings", json);
    // The kernel may count whose time it was by its ticks only.
    let stats = loop {
        let stats = container.stats().unwrap();
        if stats.cpu.total > 1_000_000 && stats.cpu.user + stats.cpu.system > 0 {
            break stats;
        }
    };
    assert!(stats.memory.usage > 0 && stats.memory.limit == 64 << 20, "{:?}", stats.memory);
    assert_eq!((stats.pids.current, stats.pids.limit), (1, 32));
    container.delete().unwrap();
}

#[test]
fn a_kill_for_want_of_memory_is_counted() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("busybox dd if=/dev/zero of=/dev/shm/fill bs=1M count=100; sleep 1000");
    json["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    let container = started(&bundle, "hungry", json);
    let (status, kills) = loop {
        let kills = container.stats().unwrap().memory.oom_kills;
        if kills > 0 {
            break (container.status().unwrap(), kills);
        }
        if container.status().unwrap() == Status::Stopped {
            break (Status::Stopped, container.stats().unwrap().memory.oom_kills);
        }
    };
    assert!(kills > 0, "{status}");
    container.delete().unwrap();
}

#[test]
fn a_cgroup_with_strangers_in_it_is_not_taken_over() {
    let Some(bundle) = bundle() else { return };
    let first = started(&bundle, "taken", spec("sleep 1000"));
    let mut json = spec("true");
    json["linux"]["cgroupsPath"] = "/nacre-test/taken".into();
    let error = run(&bundle, "second", &json).unwrap_err().to_string();
    assert!(error.contains("create: it exists and has processes"), "{error}");
    assert_eq!(first.status().unwrap(), Status::Running);
    first.delete().unwrap();
}
