//! Ways out of a container that others' engines have had, by the number under which they became known. None may be one of ours.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{add_mount, bundle, pipes, run, set_namespace, spec};
use nacre_jail::{Container, Error, Io, LineEnds, Plan};
use oci_spec::runtime::Spec;
use serde_json::json;

#[test]
fn cve_2019_5736_the_engines_program_is_no_containers_program() {
    let Some(bundle) = bundle() else { return };
    let mut spec = spec("");
    symlink("/proc/self/exe", bundle.0.path().join("rootfs/bin/innocent")).unwrap();
    for program in ["/proc/self/exe", "innocent"] {
        spec["process"]["args"] = json!([program]);
        let error = run(&bundle, "exe", &spec).unwrap_err();
        assert!(
            matches!(&error, Error::Program { source, .. } if source.raw_os_error() == Some(libc::EACCES)),
            "{error}"
        );
    }
}

#[test]
fn cve_2024_21626_no_descriptor_leads_out_by_the_working_directory() {
    let Some(bundle) = bundle() else { return };
    for number in 0..40 {
        let mut spec = spec("ls ..");
        spec["process"]["cwd"] = format!("/proc/self/fd/{number}").into();
        let error = run(&bundle, "cwd", &spec).unwrap_err().to_string();
        assert!(error.contains("directory /proc/self/fd/"), "{number}: {error}");
    }
    // By a link of the image's, too.
    symlink("/proc/self/fd/7/../..", bundle.0.path().join("rootfs/work")).unwrap();
    let mut spec = spec("ls");
    spec["process"]["cwd"] = "/work".into();
    assert!(run(&bundle, "cwd", &spec).is_err());
}

#[test]
fn cve_2024_21626_a_joining_process_has_no_way_out_by_its_working_directory() {
    let Some(bundle) = bundle() else { return };
    let spec: Spec = serde_json::from_value(spec("sleep 1000")).unwrap();
    let container = Container::create(Plan::new("cwd2", &spec, bundle.0.path()).unwrap(), pipes().1).unwrap();
    container.start().unwrap();
    for number in 0..40 {
        let mut process = spec.process().clone().unwrap();
        process.set_cwd(format!("/proc/self/fd/{number}").into());
        process.set_args(Some(["ls", ".."].map(String::from).to_vec()));
        assert!(container.exec(&process, pipes().1, 0).is_err(), "{number}");
    }
    container.delete().unwrap();
}

#[test]
fn cve_2016_9962_who_waits_at_the_gate_cannot_be_looked_into() {
    let Some(bundle) = bundle() else { return };
    let waiting: Spec = serde_json::from_value(spec("sleep 1000")).unwrap();
    let container = Container::create(Plan::new("gate", &waiting, bundle.0.path()).unwrap(), pipes().1).unwrap();
    let mut other = spec("ls -l /proc/1/fd; ls -l /proc/1/exe; ls /proc/1/root/; true");
    set_namespace(&mut other, json!({ "type": "pid", "path": format!("/proc/{}/ns/pid", container.init().pid()) }));
    let (text, _) = run(&bundle, "peeper", &other).unwrap();
    assert!(text.contains("/proc/1/fd/0: cannot read link: Permission denied"), "{text}");
    assert!(text.contains("/proc/1/exe: cannot read link: Permission denied"), "{text}");
    assert!(text.contains("/proc/1/root/: Permission denied"), "{text}");
    container.delete().unwrap();
}

#[test]
fn cve_2021_30465_a_link_that_appears_underfoot_leads_nowhere_outside() {
    let Some(bundle) = bundle() else { return };
    let rootfs = bundle.0.path().join("rootfs");
    let outside = bundle.0.path().join("outside");
    fs::create_dir_all(outside.join("in")).unwrap();
    fs::create_dir_all(rootfs.join("real/in")).unwrap();
    symlink(&outside, rootfs.join("false")).unwrap();
    symlink("real", rootfs.join("swap")).unwrap();
    let stop = AtomicBool::new(false);
    let mut spec = spec("true");
    add_mount(&mut spec, json!({ "destination": "/swap/in", "type": "tmpfs", "options": ["mode=0700"] }));
    add_mount(&mut spec, json!({ "destination": "/swap/in/deeper", "type": "tmpfs" }));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for target in ["false", "real"] {
                    let new = rootfs.join("new");
                    let _ = symlink(target, &new);
                    let _ = fs::rename(&new, rootfs.join("swap"));
                }
            }
        });
        for _ in 0..100 {
            let _ = run(&bundle, "swap", &spec); // it may work or not
        }
        stop.store(true, Ordering::Relaxed);
    });
    let made: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(made, ["in"]);
    assert_eq!(fs::read_dir(outside.join("in")).unwrap().count(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*outside.to_string_lossy()));
}

#[test]
fn cve_2024_45310_nothing_is_made_outside_by_a_path_with_links() {
    let Some(bundle) = bundle() else { return };
    let outside = bundle.0.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let rootfs = bundle.0.path().join("rootfs");
    symlink("../outside", rootfs.join("up")).unwrap();
    symlink(&outside, rootfs.join("away")).unwrap();
    for destination in ["/up/a/b", "/away/a/b"] {
        for kind in ["tmpfs", "bind"] {
            let mut spec = spec("true");
            let source = bundle.0.path().join("rootfs/bin");
            add_mount(&mut spec, json!({ "destination": destination, "type": kind, "source": source }));
            let _ = run(&bundle, "mkdir", &spec); // inside the root it may be possible
        }
        let mut spec = spec("true");
        spec["linux"]["devices"] = json!([{ "path": destination, "type": "c", "major": 1, "minor": 3 }]);
        let _ = run(&bundle, "mkdir", &spec);
        spec["linux"]["devices"] = json!([]);
        spec["process"]["cwd"] = destination.into();
        let _ = run(&bundle, "mkdir", &spec);
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn cve_2019_16884_and_2019_19921_and_2025_52881_a_false_proc_takes_no_writes() {
    let Some(bundle) = bundle() else { return };
    // An image that brings a /proc of its own, as a volume.
    let fake = bundle.0.path().join("fake");
    fs::create_dir_all(fake.join("sys/net/ipv4")).unwrap();
    fs::create_dir_all(fake.join("self/attr")).unwrap();
    for file in ["sys/net/ipv4/ip_forward", "self/attr/exec", "self/oom_score_adj"] {
        fs::write(fake.join(file), "untouched").unwrap();
    }
    let mut spec = spec("cat /real/sys/net/ipv4/ip_forward; cat /real/self/oom_score_adj");
    spec["mounts"][0] = json!({ "destination": "/proc", "type": "bind", "source": fake, "options": ["rbind"] });
    add_mount(&mut spec, json!({ "destination": "/real", "type": "proc", "source": "proc" }));
    spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    spec["process"]["oomScoreAdj"] = 7.into();
    let (text, _) = run(&bundle, "proc", &spec).unwrap();
    assert_eq!(text, "1\n7\n");
    for file in ["sys/net/ipv4/ip_forward", "self/attr/exec", "self/oom_score_adj"] {
        assert_eq!(fs::read_to_string(fake.join(file)).unwrap(), "untouched", "{file}");
    }
}

#[test]
fn cve_2023_28642_proc_and_sys_are_not_mounted_over_links() {
    let Some(bundle) = bundle() else { return };
    for directory in ["proc", "sys"] {
        symlink("/bin", bundle.0.path().join("rootfs").join(directory)).unwrap();
        let error = run(&bundle, "links", &spec("true")).unwrap_err().to_string();
        assert!(error.contains("ELOOP"), "{error}");
        fs::remove_file(bundle.0.path().join("rootfs").join(directory)).unwrap();
    }
}

#[test]
fn cve_2025_31133_masks_are_the_runtimes_dev_null() {
    let Some(bundle) = bundle() else { return };
    let rootfs = bundle.0.path().join("rootfs");
    fs::create_dir(rootfs.join("dev")).unwrap();
    let mut spec = spec("cat /proc/interrupts; true");
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] == "/proc");
    // A file or a link where the device should be is not taken for one.
    fs::write(rootfs.join("dev/null"), "false").unwrap();
    let error = run(&bundle, "null", &spec).unwrap_err().to_string();
    assert!(error.starts_with("make the device /dev/null: EEXIST"), "{error}");
    fs::remove_file(rootfs.join("dev/null")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", rootfs.join("dev/null")).unwrap();
    let error = run(&bundle, "null", &spec).unwrap_err().to_string();
    assert!(error.starts_with("make the device /dev/null: EEXIST"), "{error}");
    fs::remove_file(rootfs.join("dev/null")).unwrap();
    assert_eq!(run(&bundle, "null", &spec).unwrap().0, "");
}

#[test]
fn cve_2025_52565_the_console_is_not_bound_over_what_a_link_names() {
    let Some(bundle) = bundle() else { return };
    let rootfs = bundle.0.path().join("rootfs");
    fs::create_dir(rootfs.join("dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", rootfs.join("dev/console")).unwrap();
    let mut json = spec("true");
    json["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev");
    json["process"]["terminal"] = true.into();
    let spec: Spec = serde_json::from_value(json).unwrap();
    let plan = Plan::new("console", &spec, bundle.0.path()).unwrap();
    let error =
        Container::create(plan, Io::Terminal { size: None, lines: LineEnds::Terminal }).unwrap_err().to_string();
    assert!(error.starts_with("bind the terminal to /dev/console: ELOOP"), "{error}");
}

#[test]
fn cve_2022_0811_no_sysctl_reaches_the_whole_system() {
    for key in ["kernel.core_pattern", "kernel/core_pattern", "net/../kernel/core_pattern", "vm.overcommit_memory"] {
        let mut json = spec("true");
        json["linux"]["sysctl"] = json!({ key: "|/bin/sh" });
        let spec: Spec = serde_json::from_value(json).unwrap();
        let error = Plan::new("sysctl", &spec, Path::new("/b")).unwrap_err().to_string();
        assert!(error.starts_with("linux.sysctl."), "{key}: {error}");
    }
}

#[test]
fn cve_2022_0492_the_hierarchy_of_cgroups_takes_no_writes() {
    let Some(bundle) = bundle() else { return };
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do (echo x > $d/release_agent) 2>/dev/null && echo wrote; \
                  (echo 1 > $d/notify_on_release) 2>/dev/null && echo wrote; (mkdir $d/x) 2>/dev/null && echo made; done; echo done";
    assert_eq!(run(&bundle, "release", &spec(script)).unwrap().0, "done\n");
}

#[test]
fn a_program_that_is_no_file_is_not_waited_for() {
    let Some(bundle) = bundle() else { return };
    let pipe = bundle.0.path().join("rootfs/bin/pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o755.into(), 0).unwrap();
    let mut spec = spec("");
    for program in ["pipe", "/bin/pipe", "/dev/null", "/bin", ""] {
        spec["process"]["args"] = json!([program]);
        assert!(run(&bundle, "pipe", &spec).is_err(), "{program}");
    }
}

#[test]
fn what_failed_leaves_nothing_behind() {
    let Some(bundle) = bundle() else { return };
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let mut spec = spec("true");
    spec["linux"]["cgroupsPath"] = "/nacre-test/nothing".into();
    let mut failing = spec.clone();
    add_mount(&mut failing, json!({ "destination": "/late", "type": "no-such-fs" }));
    let mut missing = spec.clone();
    missing["process"]["args"] = json!(["nothing-here"]);
    for spec in [&failing, &missing] {
        run(&bundle, "nothing", spec).unwrap_err();
        assert_eq!(common::processes_of("nothing"), None, "the cgroup is gone");
    }
    run(&bundle, "nothing", &spec).unwrap();
    assert_eq!(mounts(), before);
}
