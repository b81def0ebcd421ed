use super::*;

fn spec(edit: impl FnOnce(&mut serde_json::Value)) -> runtime::Spec {
    let mut json = serde_json::json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs" },
        "process": { "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid" }] },
    });
    edit(&mut json);
    serde_json::from_value(json).unwrap()
}

fn steps(edit: impl FnOnce(&mut serde_json::Value)) -> Vec<String> {
    let plan = Plan::new("c1", &spec(edit), Path::new("/bundle")).unwrap();
    let root = plan.before_root.iter().chain(&plan.inside_root).chain(&plan.after_root).map(ToString::to_string);
    root.collect()
}

#[test]
fn what_cannot_be_honoured_is_an_error_that_names_it() {
    for (edit, expected) in [
        (("/process/args", serde_json::json!([])), "process.args: names no program"),
        (("/process/cwd", "tmp".into()), "process.cwd: must be absolute"),
        (("/linux/intelRdt", serde_json::json!({})), "linux.intelRdt: not supported"),
        (("/process/oomScoreAdj", 1001.into()), "process.oomScoreAdj: 1001 is not between"),
        (("/hostname", "pod".into()), "hostname: needs a UTS namespace of the container's own"),
        (
            ("/linux/namespaces", serde_json::json!([{ "type": "mount" }, { "type": "mount" }])),
            "linux.namespaces[1]: names a kind a second time",
        ),
        (
            ("/linux/namespaces", serde_json::json!([{ "type": "user" }])),
            "linux: both uidMappings and gidMappings are needed",
        ),
        (("/linux/rootfsPropagation", "odd".into()), "linux.rootfsPropagation: \"odd\" is none"),
        (("/linux/cgroupsPath", "/a/../../b".into()), "linux.cgroupsPath: "),
        (("/linux/cgroupsPath", "/a".repeat(2000).into()), "linux.cgroupsPath: is longer than"),
        (("/process/user", serde_json::json!({ "uid": u32::MAX, "gid": 0 })), "process.user: 4294967295 is no id"),
        (
            ("/process/user", serde_json::json!({ "uid": 1, "gid": 0, "additionalGids": [1, u32::MAX] })),
            "process.user: 4294967295 is no id",
        ),
        (
            (
                "/linux/devices",
                serde_json::json!([{ "path": "/dev/x", "type": "c", "major": 1, "minor": 3, "uid": u32::MAX }]),
            ),
            "linux.devices[0]: 4294967295 is no id",
        ),
        (("/linux/maskedPaths", serde_json::json!(["/proc/../etc"])), "linux.maskedPaths: "),
        (("/linux/sysctl", serde_json::json!({ "vm.swappiness": "1" })), "does not belong to a namespace"),
        (("/linux/sysctl", serde_json::json!({ "net/../../x": "1" })), "needs a network namespace"),
        (
            ("/mounts", serde_json::json!([{ "destination": "/a", "options": ["rbind"] }])),
            "mounts[0]: a bind mount needs",
        ),
        (
            ("/mounts", serde_json::json!([{ "destination": "/a", "type": "proc", "options": ["tmpcopyup"] }])),
            "mounts[0]: tmpcopyup is an option of tmpfs",
        ),
        (
            ("/process/rlimits", serde_json::json!([{ "type": "RLIMIT_NOFILE", "soft": 2, "hard": 1 }])),
            "RLIMIT_NOFILE: the soft limit exceeds the hard one",
        ),
    ] {
        let (pointer, value) = edit;
        let plan = |json: &mut serde_json::Value| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            json.pointer_mut(parent).unwrap()[key] = value.clone();
        };
        let spec = spec(plan);
        let text = Plan::new("c1", &spec, Path::new("/bundle")).unwrap_err().to_string();
        assert!(text.contains(expected), "{pointer}: {text}");
    }
}

#[test]
fn an_id_that_could_leave_its_directory_is_refused() {
    for id in ["", ".", "..", "a/b", "-x", "a b", &"a".repeat(256)] {
        assert!(Plan::new(id, &spec(|_| ()), Path::new("/bundle")).is_err(), "{id:?}");
    }
}

#[test]
fn masks_come_after_mounts_and_before_the_pivot() {
    let steps = steps(|json| {
        json["mounts"] = serde_json::json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
        json["linux"]["maskedPaths"] = serde_json::json!(["/proc/kcore"]);
        json["linux"]["readonlyPaths"] = serde_json::json!(["/proc/sys"]);
        json["root"]["readonly"] = true.into();
    });
    let position = |step: &str| steps.iter().position(|s| s == step).unwrap_or_else(|| panic!("{step} in {steps:?}"));
    assert!(position("open the root file system /bundle/rootfs") < position("mount proc on /proc"));
    assert!(position("mount proc on /proc") < position("mask /proc/kcore"));
    assert!(position("make /proc/sys read-only") < position("make the root file system read-only"));
    assert!(position("make the root file system read-only") < position("pivot into the root file system"));
}

#[test]
fn a_program_is_looked_for_in_the_containers_own_path() {
    let plan = |path: &str, program: &str| {
        let spec = spec(|json| {
            json["process"]["args"] = serde_json::json!([program]);
            json["process"]["env"] = serde_json::json!([format!("PATH={path}")]);
        });
        process::candidates(spec.process().as_ref().unwrap()).unwrap()
    };
    assert_eq!(plan("/a::/b", "x"), [c"/a/x".into(), c"./x".into(), c"/b/x".into()] as [CString; 3]);
    assert_eq!(plan("/a", "./x"), [CString::from(c"./x")]);
}

#[test]
fn an_unknown_system_call_in_a_filter_is_left_to_the_default() {
    let names = serde_json::json!(["read", "no_such_call"]);
    let seccomp = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }],
    });
    assert!(Filter::compile(&serde_json::from_value(seccomp).unwrap()).is_ok());
}

#[test]
fn a_filter_that_asks_needs_somebody_to_ask_and_a_way_to_tell_whom() {
    let seccomp = |seccomp: serde_json::Value| {
        let mut spec = spec(|_| ());
        let mut json = serde_json::to_value(&spec).unwrap();
        json["linux"]["seccomp"] = seccomp;
        spec = serde_json::from_value(json).unwrap();
        Plan::new("c1", &spec, Path::new("/bundle")).map(drop).map_err(|error| error.to_string())
    };
    let rule = |name: &str| serde_json::json!([{ "names": [name], "action": "SCMP_ACT_NOTIFY" }]);
    let allow = "SCMP_ACT_ALLOW";
    let error = seccomp(serde_json::json!({ "defaultAction": allow, "syscalls": rule("mkdir") })).unwrap_err();
    assert!(error.starts_with("linux.seccomp.listenerPath: "), "{error}");
    let filter = |name| serde_json::json!({ "defaultAction": allow, "listenerPath": "/x", "syscalls": rule(name) });
    seccomp(filter("mkdir")).unwrap();
    let error = seccomp(filter("sendmsg")).unwrap_err();
    assert!(error.contains("must allow sendmsg"), "{error}");
}

/// Values that a hostile `config.json` may hold.
fn any_value() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
    use proptest::prelude::*;
    use serde_json::json;
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<u32>().prop_map(|n| json!(n)),
        "\\PC{0,40}".prop_map(|text| json!(text)),
        prop::sample::select(vec!["/", "..", "/a/../b", "/proc", "rbind", "tmpfs", "0-3,", "a\0b", ""])
            .prop_map(|text| json!(text)),
        prop::collection::vec("\\PC{0,12}", 0..5).prop_map(|list| json!(list)),
        Just(json!([{ "type": "user" }, { "type": "mount" }])),
        Just(json!([{ "containerID": 4_294_967_295_u32, "hostID": 0, "size": 4_294_967_295_u32 }])),
        Just(json!({ "limit": -9_223_372_036_854_775_808_i64 })),
    ]
}

proptest::proptest! {
    #[test]
    fn no_specification_panics_and_the_same_one_makes_the_same_plan(
        edits in proptest::collection::vec((proptest::sample::select(PROPERTIES), any_value()), 0..6),
    ) {
        let mut json = serde_json::to_value(spec(|_| ())).unwrap();
        for (pointer, value) in edits {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            if let Some(object) = json.pointer_mut(parent).and_then(serde_json::Value::as_object_mut) {
                object.insert(key.into(), value);
            }
        }
        if let Ok(spec) = serde_json::from_value::<runtime::Spec>(json) {
            let plan = || match Plan::new("c1", &spec, Path::new("/bundle")) {
                Ok(plan) => format!("{:?}{:?}{:?}", plan.before_root, plan.inside_root, plan.after_root),
                Err(error) => error.to_string(),
            };
            proptest::prop_assert_eq!(plan(), plan());
        }
    }
}

const PROPERTIES: &[&str] = &[
    "/hostname",
    "/domainname",
    "/root",
    "/root/path",
    "/root/readonly",
    "/mounts",
    "/hooks",
    "/annotations",
    "/process/args",
    "/process/env",
    "/process/cwd",
    "/process/user",
    "/process/user/uid",
    "/process/user/additionalGids",
    "/process/capabilities",
    "/process/rlimits",
    "/process/noNewPrivileges",
    "/process/apparmorProfile",
    "/process/selinuxLabel",
    "/process/oomScoreAdj",
    "/process/scheduler",
    "/process/ioPriority",
    "/process/execCPUAffinity",
    "/process/terminal",
    "/linux/namespaces",
    "/linux/uidMappings",
    "/linux/gidMappings",
    "/linux/devices",
    "/linux/resources",
    "/linux/cgroupsPath",
    "/linux/sysctl",
    "/linux/seccomp",
    "/linux/rootfsPropagation",
    "/linux/maskedPaths",
    "/linux/readonlyPaths",
    "/linux/mountLabel",
    "/linux/personality",
    "/linux/timeOffsets",
    "/linux/intelRdt",
];

#[test]
fn every_list_is_bounded() {
    let many = |value: serde_json::Value| serde_json::Value::Array(vec![value; 5000]);
    for (pointer, value, expected) in [
        ("mounts", many(serde_json::json!({ "destination": "/a", "type": "tmpfs" })), "mounts: 5000 entries"),
        ("hooks", serde_json::json!({ "poststop": many(serde_json::json!({ "path": "/x" })) }), "hooks: 5000 entries"),
    ] {
        let spec = spec(|json| json[pointer] = value);
        let error = Plan::new("c1", &spec, Path::new("/bundle")).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let mappings = many(serde_json::json!({ "containerID": 0, "hostID": 0, "size": 1 }));
    let spec = spec(|json| {
        json["linux"]["namespaces"] = serde_json::json!([{ "type": "mount" }, { "type": "user" }]);
        json["linux"]["uidMappings"] = mappings.clone();
        json["linux"]["gidMappings"] = mappings;
    });
    let error = Plan::new("c1", &spec, Path::new("/bundle")).unwrap_err().to_string();
    assert!(error.contains("5000 id mappings are more than 340"), "{error}");
}
