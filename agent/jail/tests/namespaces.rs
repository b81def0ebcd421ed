//! Namespaces: new ones, joined ones, none.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use common::{add_mount, bundle, drain, drop_namespace, mapping, output, pipes, run, set_namespace, spec};
use nacre_jail::{Container, ExitStatus, Plan};
use oci_spec::runtime::Spec;
use rustix::mount::MountFlags;
use serde_json::{Value, json};

const FIRST: u32 = 200_000;

fn in_user_namespace(spec: &mut Value) {
    set_namespace(spec, json!({ "type": "user" }));
    spec["linux"]["uidMappings"] = mapping(FIRST);
    spec["linux"]["gidMappings"] = mapping(FIRST);
}

#[test]
fn root_of_a_user_namespace_is_nobody_outside() {
    let Some(bundle) = bundle() else { return };
    let script = "id -u; cat /proc/self/uid_map | busybox tr -s ' '; test -c /dev/null && echo null; touch /data/made; \
                  touch /own && echo root owns its root; cat /sys/fs/cgroup/cgroup.procs >/dev/null 2>&1; tty";
    let mut spec = spec(script);
    in_user_namespace(&mut spec);
    let data = bundle.0.path().join("data");
    fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(FIRST), Some(FIRST)).unwrap();
    for path in ["rootfs", "rootfs/bin"] {
        std::os::unix::fs::chown(bundle.0.path().join(path), Some(FIRST), Some(FIRST)).unwrap();
    }
    add_mount(&mut spec, json!({ "destination": "/data", "type": "bind", "source": data, "options": ["rbind"] }));
    spec["process"]["oomScoreAdj"] = 500.into();
    let (text, status) = run(&bundle, "userns", &spec).unwrap();
    assert_eq!(text, format!("0\n 0 {FIRST} 65536\nnull\nroot owns its root\nnot a tty\n"));
    assert_eq!(status, ExitStatus::Exited(1)); // of tty
    assert_eq!(fs::metadata(data.join("made")).unwrap().uid(), FIRST);
}

#[test]
fn a_rootfs_behind_a_closed_directory_serves_a_user_namespace() {
    let Some(bundle) = bundle() else { return };
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(bundle.0.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut spec = spec("echo inside");
    in_user_namespace(&mut spec);
    for path in ["rootfs", "rootfs/bin"] {
        std::os::unix::fs::chown(bundle.0.path().join(path), Some(FIRST), Some(FIRST)).unwrap();
    }
    assert_eq!(run(&bundle, "closed", &spec).unwrap().0, "inside\n");
}

#[test]
fn a_container_joins_the_namespaces_of_another() {
    let Some(bundle) = bundle() else { return };
    for path in ["rootfs", "rootfs/bin"] {
        std::os::unix::fs::chown(bundle.0.path().join(path), Some(FIRST), Some(FIRST)).unwrap();
    }
    let mut first = spec("sleep 1000");
    in_user_namespace(&mut first);
    let parsed: Spec = serde_json::from_value(first.clone()).unwrap();
    let (_, io) = pipes();
    let holder = Container::create(Plan::new("holder", &parsed, bundle.0.path()).unwrap(), io).unwrap();
    holder.start().unwrap();
    let pid = holder.init().pid();

    // As a second container of a pod: user, network, IPC, UTS and PID namespaces are the first one's.
    let mut second = spec(
        "id -u; busybox pidof sleep | busybox wc -w; cat /proc/sys/kernel/hostname; cat /proc/self/uid_map | busybox tr -s ' '",
    );
    second["hostname"] = Value::Null;
    for kind in ["user", "network", "ipc", "uts", "pid"] {
        let file = if kind == "network" { "net" } else { kind };
        set_namespace(&mut second, json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }));
    }
    let (text, status) = run(&bundle, "joiner", &second).unwrap();
    assert_eq!((text.as_str(), status), (format!("0\n1\npod\n 0 {FIRST} 65536\n").as_str(), ExitStatus::Exited(0)));

    // A further process of the first comes into all of them as well.
    let mut process = parsed.process().clone().unwrap();
    process
        .set_args(Some(["sh", "-c", "id -u; cat /proc/self/uid_map | busybox tr -s ' '"].map(String::from).to_vec()));
    let (read, io) = pipes();
    let joined = holder.exec(&process, io, 0).unwrap();
    assert_eq!(drain(read), format!("0\n 0 {FIRST} 65536\n"));
    assert_eq!(joined.wait().unwrap(), ExitStatus::Exited(0));
    holder.delete().unwrap();
}

#[test]
fn clocks_of_a_time_namespace_are_set_off() {
    let edit = |spec: &mut Value| {
        set_namespace(spec, json!({ "type": "time" }));
        spec["linux"]["timeOffsets"] =
            json!({ "boottime": { "secs": 1_000_000_000 }, "monotonic": { "secs": 5, "nanosecs": 7 } });
    };
    let Some(text) = output("clocks", edit, "cat /proc/uptime; busybox tr -s ' ' < /proc/self/timens_offsets") else {
        return;
    };
    let uptime: f64 = text.split_ascii_whitespace().next().unwrap().parse().unwrap();
    assert!(uptime > 1e9, "{text}");
    assert!(text.ends_with("monotonic 5 7\nboottime 1000000000 0\n"), "{text}");
}

#[test]
fn clocks_are_set_off_in_a_user_namespace_too() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("busybox tr -s ' ' < /proc/self/timens_offsets");
    in_user_namespace(&mut json);
    set_namespace(&mut json, json!({ "type": "time" }));
    json["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1337, "nanosecs": 3 } });
    for path in ["rootfs", "rootfs/bin"] {
        std::os::unix::fs::chown(bundle.0.path().join(path), Some(FIRST), Some(FIRST)).unwrap();
    }
    assert_eq!(run(&bundle, "userclocks", &json).unwrap().0, "monotonic 0 0\nboottime 1337 3\n");
}

#[test]
fn a_new_user_namespace_goes_with_namespaces_that_are_the_hosts() {
    let Some(bundle) = bundle() else { return };
    for path in ["rootfs", "rootfs/bin"] {
        std::os::unix::fs::chown(bundle.0.path().join(path), Some(FIRST), Some(FIRST)).unwrap();
    }
    let holder: Spec = serde_json::from_value(spec("sleep 1000")).unwrap();
    let holder = Container::run(Plan::new("hosts", &holder, bundle.0.path()).unwrap(), pipes().1).unwrap();
    let path = |file: &str| format!("/proc/{}/ns/{file}", holder.init().pid());
    let mut json = spec(
        "id -u; busybox readlink /proc/self/ns/net; busybox readlink /proc/self/ns/uts; cat /proc/sys/kernel/hostname",
    );
    in_user_namespace(&mut json);
    json["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs"); // which is the network's
    json["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "cgroup");
    json["hostname"] = Value::Null;
    set_namespace(&mut json, json!({ "type": "network", "path": path("net") }));
    set_namespace(&mut json, json!({ "type": "uts", "path": path("uts") }));
    let (text, status) = run(&bundle, "ofhosts", &json).unwrap();
    let link = |file: &str| fs::read_link(path(file)).unwrap().display().to_string();
    assert_eq!(text, format!("0\n{}\n{}\npod\n", link("net"), link("uts")));
    assert_eq!(status, ExitStatus::Exited(0));
    set_namespace(&mut json, json!({ "type": "network", "path": path("pid") }));
    let error = run(&bundle, "ofhosts", &json).unwrap_err().to_string();
    assert!(error.starts_with("join the net namespace ") && error.contains("EINVAL"), "{error}");
    holder.delete().unwrap();
}

#[test]
fn a_joined_uts_namespace_takes_a_name() {
    let Some(bundle) = bundle() else { return };
    let holder: Spec = serde_json::from_value(spec("sleep 1000")).unwrap();
    let holder = Container::run(Plan::new("named", &holder, bundle.0.path()).unwrap(), pipes().1).unwrap();
    let mut json = spec("cat /proc/sys/kernel/hostname");
    json["hostname"] = "renamed".into();
    set_namespace(&mut json, json!({ "type": "uts", "path": format!("/proc/{}/ns/uts", holder.init().pid()) }));
    assert_eq!(run(&bundle, "namer", &json).unwrap().0, "renamed\n");
    holder.delete().unwrap();
}

#[test]
fn a_container_that_asks_for_nothing_shares_everything() {
    let Some(bundle) = bundle() else { return };
    let json = json!({
        "ociVersion": "1.2.0", "root": { "path": "rootfs" },
        "process": { "args": ["sh", "-c", "echo $$"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } },
    });
    let (text, status) = run(&bundle, "nothing", &json).unwrap();
    assert!(text.trim().parse::<u32>().unwrap() > 2 && status == ExitStatus::Exited(0), "{text}");
}

#[test]
fn offsets_without_a_time_namespace_are_refused() {
    let mut json = spec("true");
    json["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1 } });
    let spec: Spec = serde_json::from_value(json).unwrap();
    let error = Plan::new("c", &spec, std::path::Path::new("/b")).unwrap_err().to_string();
    assert_eq!(error, "linux.timeOffsets: need a new time namespace");
}

#[test]
fn the_loopback_of_a_new_network_is_up_and_nothing_else_is_there() {
    let Some(text) = output(
        "loopback",
        |_| (),
        "busybox ip -o link; busybox ping -c 1 -W 1 127.0.0.1 >/dev/null; busybox ip -o addr",
    ) else {
        return;
    };
    assert!(text.lines().next().unwrap().contains("lo: <LOOPBACK,UP,LOWER_UP>"), "{text}");
    assert!(text.contains("127.0.0.1/8"), "{text}");
}

#[test]
fn sysctls_and_names_belong_to_the_container() {
    let edit = |spec: &mut Value| {
        spec["linux"]["sysctl"] =
            json!({ "net.ipv4.ip_forward": "1", "kernel.shmmni": "77", "net/ipv4/ip_unprivileged_port_start": "80" });
        spec["domainname"] = "cluster".into();
    };
    let script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/hostname /proc/sys/kernel/domainname";
    let Some(text) = output("sysctl", edit, script) else { return };
    assert_eq!(text, "1\n77\n80\npod\ncluster\n");
    let mut json = spec("true");
    json["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    drop_namespace(&mut json, "network");
    let spec: Spec = serde_json::from_value(json).unwrap();
    let error = Plan::new("c", &spec, std::path::Path::new("/b")).unwrap_err().to_string();
    assert!(error.ends_with("needs a network namespace of the container's own"), "{error}");
}

#[test]
fn without_a_mount_namespace_of_its_own_a_container_leaves_no_mount_in_the_runtimes() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("echo $$; ls /bin/busybox");
    for kind in ["mount", "pid", "cgroup"] {
        drop_namespace(&mut json, kind);
    }
    let place = bundle.0.path().display().to_string();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|l| l.contains(&place)).count();
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    // Once with mounts, which are seen while it runs, and once without.
    let parsed: Spec = serde_json::from_value(json.clone()).unwrap();
    let plan = || Plan::new("nomounts", &parsed, bundle.0.path()).unwrap();
    let (read, io) = pipes();
    let container = Container::create(plan(), io).unwrap();
    assert_eq!(namespace(container.init().pid()), fs::read_link("/proc/self/ns/mnt").unwrap());
    assert!(mounts() > 5, "{}", mounts());
    container.start().unwrap();
    assert!(drain(read).ends_with("/bin/busybox\n"));
    assert_eq!(container.init().wait().unwrap(), ExitStatus::Exited(0));
    container.delete().unwrap();
    assert_eq!(mounts(), 0);
    drop(Container::create(plan(), pipes().1).unwrap());
    assert_eq!(mounts(), 0);
    json["process"]["args"] = json!(["nothing-here"]);
    run(&bundle, "nomounts", &json).unwrap_err();
    assert_eq!(mounts(), 0, "nor when it fails");
    json["process"]["args"] = json!(["sh", "-c", "echo $$; ls /bin/busybox"]);
    json["mounts"] = json!([]);
    json["linux"]["maskedPaths"] = json!([]);
    json["linux"]["readonlyPaths"] = json!([]);
    let (text, status) = run(&bundle, "nomounts", &json).unwrap();
    assert!(text.ends_with("/bin/busybox\n") && status == ExitStatus::Exited(0), "{text}");

    // A further process finds the same root.
    json["process"]["args"] = json!(["sleep", "1000"]);
    let parsed: Spec = serde_json::from_value(json).unwrap();
    let container = Container::create(Plan::new("nomounts2", &parsed, bundle.0.path()).unwrap(), pipes().1).unwrap();
    container.start().unwrap();
    let mut process = parsed.process().clone().unwrap();
    process.set_args(Some(["sh", "-c", "ls /"].map(String::from).to_vec()));
    let (read, io) = pipes();
    container.exec(&process, io, 0).unwrap().wait().unwrap();
    assert_eq!(drain(read), "bin\ndev\nproc\nsys\n");
    container.delete().unwrap();
}

#[test]
fn a_mount_namespace_is_joined_by_its_path() {
    let Some(bundle) = bundle() else { return };
    let parsed: Spec = serde_json::from_value(spec("sleep 1000")).unwrap();
    let holder = Container::create(Plan::new("mounts1", &parsed, bundle.0.path()).unwrap(), pipes().1).unwrap();
    holder.start().unwrap();
    let mut second = spec("cat /proc/sys/kernel/hostname; ls /");
    second["root"]["path"] = "/".into(); // as the joined namespace has it
    second["mounts"] = json!([]);
    second["linux"]["maskedPaths"] = json!([]);
    second["linux"]["readonlyPaths"] = json!([]);
    set_namespace(&mut second, json!({ "type": "mount", "path": format!("/proc/{}/ns/mnt", holder.init().pid()) }));
    let (text, _) = run(&bundle, "mounts2", &second).unwrap();
    assert_eq!(text, "pod\nbin\ndev\nproc\nsys\n");
    holder.delete().unwrap();
}

#[test]
fn a_namespace_path_that_is_none_is_named() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("true");
    set_namespace(&mut json, json!({ "type": "network", "path": "/nowhere" }));
    let error = run(&bundle, "nowhere", &json).unwrap_err().to_string();
    assert!(error.contains(".path: /nowhere: No such file"), "{error}");
    let pid = std::process::id();
    set_namespace(&mut json, json!({ "type": "network", "path": format!("/proc/{pid}/ns/uts") }));
    let error = run(&bundle, "wrong-kind", &json).unwrap_err().to_string();
    assert!(error.starts_with("join the net namespace /proc/") && error.contains("EINVAL"), "{error}");
}

#[test]
fn what_the_host_has_mounted_is_locked_in_a_user_namespace() {
    let Some(bundle) = bundle() else { return };
    for path in ["rootfs", "rootfs/bin"] {
        std::os::unix::fs::chown(bundle.0.path().join(path), Some(FIRST), Some(FIRST)).unwrap();
    }
    let (sealed, covered) = (bundle.0.path().join("sealed"), bundle.0.path().join("covered"));
    fs::create_dir_all(covered.join("below")).unwrap();
    fs::write(covered.join("below/hidden"), "").unwrap();
    fs::create_dir(&sealed).unwrap();
    let _mounts = [
        common::Mounted::tmpfs(&sealed, MountFlags::RDONLY, c"mode=777"),
        common::Mounted::tmpfs(&covered.join("below"), MountFlags::empty(), c"mode=755"),
    ];
    let mut spec = spec(
        "busybox mount -o remount,bind,rw /sealed; touch /sealed/written; busybox umount /covered/below; ls /covered/below",
    );
    in_user_namespace(&mut spec);
    for set in ["bounding", "effective", "permitted", "inheritable"] {
        spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
    }
    for (to, source) in [("/sealed", &sealed), ("/covered", &covered)] {
        add_mount(&mut spec, json!({ "destination": to, "type": "bind", "source": source, "options": ["rbind"] }));
    }
    let (text, _) = run(&bundle, "locked", &spec).unwrap();
    assert!(!text.contains("hidden"), "{text}");
    assert_eq!(fs::read_dir(&sealed).unwrap().count(), 0, "{text}");
}
