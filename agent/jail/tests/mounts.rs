//! Mounts: options, propagation, mapped ids, copies, cgroups.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use common::{Bundle, add_mount, bundle, cgroup_v2, mapping, output, run, set_namespace, spec};
use nacre_jail::{Container, Io, Plan};
use oci_spec::runtime::Spec;
use rustix::mount::MountFlags;
use serde_json::{Value, json};

/// A directory of the bundle with a file in it.
fn directory(bundle: &Bundle, name: &str) -> std::path::PathBuf {
    let path = bundle.0.path().join(name);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("file"), "content\n").unwrap();
    path
}

#[test]
fn binds_of_directories_and_files_take_their_options() {
    let Some(bundle) = bundle() else { return };
    let source = directory(&bundle, "source");
    let mut spec = spec(
        "cat /d/file /f; touch /d/x; echo y > /f; /d/true && echo executable; busybox grep -E ' /(d|f) ' /proc/self/mountinfo | busybox cut -d' ' -f5,6,7",
    );
    fs::copy("/bin/busybox", source.join("true")).unwrap();
    add_mount(
        &mut spec,
        json!({ "destination": "/d", "type": "bind", "source": source, "options": ["rbind", "ro", "noexec", "nosuid", "nodev", "noatime"] }),
    );
    add_mount(
        &mut spec,
        json!({ "destination": "/f", "source": source.join("file"), "options": ["bind", "ro", "rprivate"] }),
    );
    let (text, _) = run(&bundle, "binds", &spec).unwrap();
    let expected = "content\ncontent\ntouch: /d/x: Read-only file system\nsh: can't create /f: Read-only file system\n\
                    sh: /d/true: Permission denied\n/d ro,nosuid,nodev,noexec,noatime";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains("\n/f ro,"), "{text}");
    assert!(bundle.0.path().join("rootfs/f").is_file());
}

#[test]
fn recursive_attributes_reach_what_is_mounted_below() {
    let Some(bundle) = bundle() else { return };
    let source = directory(&bundle, "source");
    let below = source.join("below");
    fs::create_dir(&below).unwrap();
    let _mounted = common::Mounted::tmpfs(&below, MountFlags::empty(), c"");
    for (option, expected) in [("ro", "d refused\nbelow written\n"), ("rro", "d refused\nbelow refused\n")] {
        let mut spec = spec(
            "(touch /d/x) 2>/dev/null && echo d written || echo d refused; (touch /d/below/x) 2>/dev/null && echo below written || echo below refused",
        );
        add_mount(&mut spec, json!({ "destination": "/d", "source": source, "options": ["rbind", option] }));
        assert_eq!(run(&bundle, "recursive", &spec).unwrap().0, expected, "{option}");
    }
}

#[test]
fn a_shared_bind_hands_mounts_on_and_a_private_one_does_not() {
    let Some(bundle) = bundle() else { return };
    let source = directory(&bundle, "source");
    let _mounted = common::Mounted::tmpfs(&source, MountFlags::empty(), c"");
    rustix::mount::mount_change(&source, rustix::mount::MountPropagationFlags::SHARED).unwrap();
    fs::create_dir(source.join("in")).unwrap();
    let seen = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains("/source/in ");
    for (propagation, expected) in [("rprivate", false), ("rslave", false), ("rshared", true)] {
        let mut spec = spec("mount -t tmpfs none /d/in && echo mounted; read wait");
        let all = json!(["CAP_SYS_ADMIN"]);
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = all.clone();
        }
        add_mount(&mut spec, json!({ "destination": "/d", "source": source, "options": ["rbind", propagation] }));
        spec["linux"]["rootfsPropagation"] = propagation.into();
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let io = Io::Pipes { stdin: wait, stdout: write.try_clone().unwrap(), stderr: write };
        let container = Container::create(Plan::new("shared", &spec, bundle.0.path()).unwrap(), io).unwrap();
        container.start().unwrap();
        let mut line = [0; 8];
        rustix::io::read(&read, &mut line).unwrap();
        assert_eq!(&line, b"mounted\n");
        assert_eq!(seen(), expected, "{propagation}");
        drop(go);
        container.delete().unwrap();
        if expected {
            rustix::mount::unmount(source.join("in"), rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
}

#[test]
fn the_roots_propagation_is_as_asked() {
    for (asked, expected) in [("private", ""), ("slave", ""), ("shared", "shared:"), ("unbindable", "unbindable")] {
        let edit = |spec: &mut Value| spec["linux"]["rootfsPropagation"] = asked.into();
        let Some(text) = output(
            "propagation",
            edit,
            "busybox grep ' / / ' /proc/self/mountinfo || busybox grep ' / ' /proc/self/mountinfo",
        ) else {
            return;
        };
        let first = text.lines().next().unwrap();
        let optional = first.split(" - ").next().unwrap();
        assert!(optional.contains(expected), "{asked}: {first}");
        assert_eq!(optional.contains("shared:"), asked == "shared", "{asked}: {first}");
    }
}

#[test]
fn an_id_mapped_mount_shows_its_owners_through_other_ids() {
    let Some(bundle) = bundle() else { return };
    let source = directory(&bundle, "source");
    let _mounted = common::Mounted::tmpfs(&source, MountFlags::empty(), c""); // a file system that can map ids, whatever the bundle's is
    fs::write(source.join("file"), "").unwrap();
    let mut with_maps = spec("stat -c %u:%g /d/file; touch /d/new");
    add_mount(
        &mut with_maps,
        json!({
            "destination": "/d", "source": source, "options": ["rbind", "ridmap"],
            "uidMappings": mapping(1000), "gidMappings": mapping(2000),
        }),
    );
    assert_eq!(
        run(&bundle, "idmap", &with_maps).unwrap().0,
        "1000:2000\ntouch: /d/new: Value too large for defined data type\n"
    );

    // Of the container's own user namespace, when it says no more than "idmap".
    let mut with_namespace = spec("stat -c %u:%g /d/file; touch /d/own && stat -c %u /d/own");
    set_namespace(&mut with_namespace, json!({ "type": "user" }));
    with_namespace["linux"]["uidMappings"] = mapping(300_000);
    with_namespace["linux"]["gidMappings"] = mapping(300_000);
    for path in ["rootfs", "rootfs/bin"] {
        std::os::unix::fs::chown(bundle.0.path().join(path), Some(300_000), Some(300_000)).unwrap();
    }
    add_mount(&mut with_namespace, json!({ "destination": "/d", "source": source, "options": ["bind", "idmap"] }));
    assert_eq!(run(&bundle, "idmap2", &with_namespace).unwrap().0, "0:0\n0\n");
    assert_eq!(fs::metadata(source.join("own")).unwrap().uid(), 0);

    let mut neither = spec("true");
    add_mount(&mut neither, json!({ "destination": "/d", "source": source, "options": ["bind", "idmap"] }));
    let error = run(&bundle, "idmap3", &neither).unwrap_err().to_string();
    assert!(error.contains("idmap needs uidMappings"), "{error}");
}

#[test]
fn a_tmpfs_can_start_with_a_copy_of_what_it_covers() {
    let Some(bundle) = bundle() else { return };
    let covered = bundle.0.path().join("rootfs/var/lib/x");
    fs::create_dir_all(covered.join("deep/er")).unwrap();
    fs::write(covered.join("deep/file"), "kept\n").unwrap();
    fs::set_permissions(covered.join("deep/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(covered.join("deep/file"), Some(7), Some(8)).unwrap();
    fs::set_permissions(covered.join("deep/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", covered.join("link")).unwrap();
    fs::set_permissions(&covered, fs::Permissions::from_mode(0o1770)).unwrap();
    let mut spec = spec(
        "cd /var/lib/x; cat deep/file; stat -c %a:%u:%g deep/file; busybox readlink link; stat -c %a .; busybox stat -f -c %T .; rm -r deep 2>/dev/null || busybox rm -r deep; ls",
    );
    add_mount(&mut spec, json!({ "destination": "/var/lib/x", "type": "tmpfs", "options": ["tmpcopyup", "size=1m"] }));
    assert_eq!(run(&bundle, "copyup", &spec).unwrap().0, "kept\n4751:7:8\n/etc/shadow\n1770\ntmpfs\nlink\n");
    assert!(covered.join("deep/file").exists());
    // What does not fit is an error, not half a copy.
    fs::write(covered.join("big"), vec![1; 3 << 20]).unwrap();
    let error = run(&bundle, "copyup2", &spec).unwrap_err().to_string();
    assert!(error.contains("mount tmpfs on /var/lib/x") && error.contains("ENOSPC"), "{error}");
}

#[test]
fn a_container_sees_its_own_cgroup_and_no_other() {
    for own_namespace in [true, false] {
        let edit = |spec: &mut Value| {
            if !own_namespace {
                common::drop_namespace(spec, "cgroup");
            }
            spec["linux"]["cgroupsPath"] = "/nacre-test/view".into();
        };
        let probe = if cgroup_v2() {
            "cat /sys/fs/cgroup/cgroup.procs; cat /sys/fs/cgroup/pids.max; touch /sys/fs/cgroup/x"
        } else {
            "cat /sys/fs/cgroup/pids/cgroup.procs; cat /sys/fs/cgroup/pids/pids.max; touch /sys/fs/cgroup/x; ls /sys/fs/cgroup | busybox wc -l"
        };
        let Some(text) = output("view", edit, probe) else { return };
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("1"), "{text}");
        assert!(lines.next().is_some_and(|next| next == "32" || next.parse::<i32>().is_ok()), "{text}");
        assert!(text.contains("\n32\n") && text.contains("Read-only file system"), "{text}");
    }
}

#[test]
fn masked_directories_are_empty_and_read_only_ones_stay() {
    let Some(bundle) = bundle() else { return };
    let secret = bundle.0.path().join("rootfs/secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("key"), "x").unwrap();
    let plain = bundle.0.path().join("rootfs/plain");
    fs::create_dir(&plain).unwrap();
    fs::write(plain.join("f"), "y\n").unwrap();
    let mut spec = spec("ls /secret; touch /secret/x; cat /plain/f; touch /plain/x");
    spec["linux"]["maskedPaths"] = json!(["/secret"]);
    spec["linux"]["readonlyPaths"] = json!(["/plain"]);
    let (text, _) = run(&bundle, "masks", &spec).unwrap();
    assert_eq!(text, "touch: /secret/x: Read-only file system\ny\ntouch: /plain/x: Read-only file system\n");
}

#[test]
fn a_root_can_be_moved_into_place_where_it_cannot_be_pivoted_into() {
    let Some(bundle) = bundle() else { return };
    let spec: Spec = serde_json::from_value(spec("ls /; cat /proc/1/comm; test -e /rootfs || echo gone")).unwrap();
    let (read, io) = common::pipes();
    let plan = Plan::new("moved", &spec, bundle.0.path()).unwrap().no_pivot();
    let container = Container::create(plan, io).unwrap();
    container.start().unwrap();
    assert_eq!(common::drain(read), "bin\ndev\nproc\nsys\nsh\ngone\n");
    container.delete().unwrap();
}

#[test]
fn a_root_that_is_moved_into_place_leaves_no_other_view_of_the_kernel_below() {
    let Some(bundle) = bundle() else { return };
    let script = "busybox unshare -Urmpf busybox mount -t proc proc /mnt 2>&1; busybox unshare -Urm busybox mount -t sysfs sys /mnt 2>&1";
    fs::create_dir(bundle.0.path().join("rootfs/mnt")).unwrap();
    let mut json = spec(script);
    for set in ["bounding", "effective", "permitted"] {
        json["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .extend([json!("CAP_SYS_ADMIN"), json!("CAP_SETPCAP")]);
    }
    json["process"]["noNewPrivileges"] = false.into();
    json["linux"]["maskedPaths"] = json!(["/proc/kcore", "/sys/firmware", "/sys/kernel"]);
    let spec: Spec = serde_json::from_value(json).unwrap();
    for moved in [false, true] {
        let (read, io) = common::pipes();
        let mut plan = Plan::new("views", &spec, bundle.0.path()).unwrap();
        if moved {
            plan = plan.no_pivot();
        }
        let container = Container::run(plan, io).unwrap();
        let said = common::drain(read);
        container.delete().unwrap();
        let refused =
            said.lines().filter(|line| line.contains("ermission denied") || line.contains("not permitted")).count();
        assert_eq!(refused, 2, "moved: {moved}: {said}");
    }
}

#[test]
fn a_link_that_leads_nowhere_gets_its_target_where_something_is_mounted() {
    let Some(bundle) = bundle() else { return };
    let rootfs = bundle.0.path().join("rootfs");
    fs::create_dir(rootfs.join("etc")).unwrap();
    std::os::unix::fs::symlink("../run/resolver/stub.conf", rootfs.join("etc/resolv.conf")).unwrap();
    std::os::unix::fs::symlink("/var/data/x", rootfs.join("data")).unwrap();
    std::os::unix::fs::symlink("loop", rootfs.join("loop")).unwrap();
    fs::write(bundle.0.path().join("resolv.conf"), "nameserver 10.0.0.1\n").unwrap();
    let mut json = spec("cat /etc/resolv.conf; ls -d /data/deep /var/data/x/deep");
    add_mount(&mut json, json!({ "destination": "/etc/resolv.conf", "source": "resolv.conf", "options": ["bind"] }));
    add_mount(&mut json, json!({ "destination": "/data/deep", "type": "tmpfs" }));
    assert_eq!(run(&bundle, "dangling", &json).unwrap().0, "nameserver 10.0.0.1\n/data/deep\n/var/data/x/deep\n");
    add_mount(&mut json, json!({ "destination": "/loop/x", "type": "tmpfs" }));
    let error = run(&bundle, "dangling", &json).unwrap_err().to_string();
    assert!(error.starts_with("mount tmpfs on /loop/x: ELOOP"), "{error}");
}

#[test]
fn a_source_may_come_from_an_earlier_mount() {
    let Some(bundle) = bundle() else { return };
    let dir = directory(&bundle, "data");
    fs::create_dir(dir.join("inner")).unwrap();
    fs::write(dir.join("inner/file"), "found\n").unwrap();
    let inside = bundle.0.path().join("rootfs/first/inner");
    let mut json = spec("cat /second/file");
    add_mount(&mut json, json!({ "destination": "/first", "source": dir, "options": ["bind"] }));
    add_mount(&mut json, json!({ "destination": "/second", "source": inside, "options": ["rbind"] }));
    assert_eq!(run(&bundle, "earlier", &json).unwrap().0, "found\n");
    // A link of the image's there leads nowhere outside.
    std::os::unix::fs::symlink("/etc", bundle.0.path().join("rootfs/way")).unwrap();
    let mut json = spec("ls /third");
    let source = bundle.0.path().join("rootfs/way");
    add_mount(&mut json, json!({ "destination": "/third", "source": source, "options": ["bind"] }));
    let error = run(&bundle, "earlier", &json).unwrap_err().to_string();
    assert!(error.ends_with("ENOENT: No such file or directory (os error 2)"), "{error}");
}

#[test]
fn a_tmpfs_takes_the_mode_of_what_it_covers_and_is_read_only_when_all_is_in_it() {
    let Some(bundle) = bundle() else { return };
    let covered = bundle.0.path().join("rootfs/covered");
    fs::create_dir(&covered).unwrap();
    fs::set_permissions(&covered, std::os::unix::fs::PermissionsExt::from_mode(0o710)).unwrap();
    let mut json = spec("stat -c '%a' /covered /with-mode /fresh; touch /dev/x 2>&1; ls -d /dev/null /dev/pts/ptmx");
    json["mounts"][1]["options"] = json!(["nosuid", "mode=755", "ro"]);
    add_mount(&mut json, json!({ "destination": "/covered", "type": "tmpfs" }));
    add_mount(&mut json, json!({ "destination": "/with-mode", "type": "tmpfs", "options": ["mode=701"] }));
    add_mount(&mut json, json!({ "destination": "/fresh", "type": "tmpfs" }));
    assert_eq!(
        run(&bundle, "modes", &json).unwrap().0,
        "710\n701\n1777\ntouch: /dev/x: Read-only file system\n/dev/null\n/dev/pts/ptmx\n"
    );
}

#[test]
fn a_destination_may_be_named_from_outside() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("ls -d /named");
    add_mount(&mut json, json!({ "destination": bundle.0.path().join("rootfs/named"), "type": "tmpfs" }));
    assert_eq!(run(&bundle, "named", &json).unwrap().0, "/named\n");
}

#[test]
fn flags_of_file_systems_are_taken_and_where_they_mean_nothing_told() {
    let Some(bundle) = bundle() else { return };
    let dir = directory(&bundle, "plain");
    let mut json = spec("busybox grep -oE '/synced .*sync' /proc/mounts | busybox wc -l");
    let flags = ["async", "dirsync", "iversion", "lazytime", "mand", "noiversion", "nolazytime", "nomand", "sync"];
    let options = [&["bind"][..], &flags].concat();
    add_mount(&mut json, json!({ "destination": "/plain", "source": dir, "options": options }));
    add_mount(
        &mut json,
        json!({ "destination": "/synced", "type": "tmpfs", "options": ["sync", "dirsync", "noiversion"] }),
    );
    let spec: Spec = serde_json::from_value(json.clone()).unwrap();
    let plan = Plan::new("flags", &spec, bundle.0.path()).unwrap();
    assert_eq!(plan.warnings().len(), flags.len(), "{:?}", plan.warnings());
    assert!(plan.warnings()[0].starts_with("mounts[6]: async is left out"), "{:?}", plan.warnings());
    assert_eq!(run(&bundle, "flags", &json).unwrap().0, "1\n");
}

#[test]
fn a_mount_that_cannot_be_is_named_with_its_options() {
    let Some(bundle) = bundle() else { return };
    for (mount, expected) in [
        (
            json!({ "destination": "/a", "source": "/nowhere", "options": ["rbind", "ro"] }),
            "bind /nowhere to /a (rbind,ro): ENOENT",
        ),
        (
            json!({ "destination": "/a", "type": "tmpfs", "options": ["size=wrong"] }),
            "mount tmpfs on /a (size=wrong): EINVAL",
        ),
        (json!({ "destination": "/bin/busybox/x", "type": "tmpfs" }), "mount tmpfs on /bin/busybox/x: ENOTDIR"),
        (json!({ "destination": "/", "type": "tmpfs" }), "mounts[6].destination: is the root itself"),
        (json!({ "destination": "/a/../b", "type": "tmpfs" }), "mounts[6].destination: \"/a/../b\" must not hold .."),
    ] {
        let mut spec = spec("true");
        add_mount(&mut spec, mount);
        let error = run(&bundle, "wrong", &spec).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_copy_takes_no_more_memory_than_the_container_may_and_holes_take_none() {
    let Some(bundle) = bundle() else { return };
    let covered = bundle.0.path().join("rootfs/data");
    fs::create_dir_all(&covered).unwrap();
    let sparse = fs::File::create(covered.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (1 << 30) - 3).unwrap();
    let mut spec = spec("busybox du -k /data/sparse | busybox cut -f1; busybox tail -c 3 /data/sparse");
    add_mount(&mut spec, json!({ "destination": "/data", "type": "tmpfs", "options": ["tmpcopyup"] }));
    spec["linux"]["resources"]["memory"] = json!({ "limit": 32 << 20 });
    assert_eq!(run(&bundle, "sparse", &spec).unwrap().0, "4\nend");
    fs::write(covered.join("big"), vec![1; 33 << 20]).unwrap();
    let error = run(&bundle, "much", &spec).unwrap_err().to_string();
    assert!(error.contains("mount tmpfs on /data") && error.contains("ENOSPC"), "{error}");
}
