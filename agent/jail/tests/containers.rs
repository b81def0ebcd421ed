//! Containers, run for real: root and a static busybox are all they need.

mod common;

use std::fs;

use common::{bundle, drain, output, pipes, run, spec};
use nacre_jail::{Container, Error, ExitStatus, Io, LineEnds, Plan};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

#[test]
fn the_process_is_what_its_specification_says() {
    let script = "echo $$ $COLOUR $(hostname 2>/dev/null || cat /proc/sys/kernel/hostname); id -u; id -g; id -G; ulimit -n; umask; pwd; \
                  grep -E 'Cap(Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status 2>/dev/null || busybox grep -E 'Cap(Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status";
    let edit = |spec: &mut Value| {
        spec["process"]["user"] = json!({ "uid": 0, "gid": 7, "additionalGids": [8, 9], "umask": 0o27 });
        spec["process"]["cwd"] = "/made/for/it".into();
    };
    let Some(output) = output("what", edit, script) else { return };
    let expected = "1 blue pod\n0\n7\n7 8 9\n100\n0027\n/made/for/it\n\
                    CapEff:\t00000000000000ab\nCapBnd:\t00000000000000ab\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n";
    assert_eq!(output, expected);
}

#[test]
fn masked_and_read_only_paths_and_devices_are_as_asked() {
    let script = "cat /proc/interrupts | busybox wc -c; echo 1 > /proc/sys/kernel/hostname || echo refused; \
                  for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
                  test -L /dev/stdout && echo linked; echo through > /dev/stdout; ls /absent";
    let Some(output) = output("paths", |_| (), script) else { return };
    assert_eq!(
        output,
        "0\nsh: can't create /proc/sys/kernel/hostname: Read-only file system\nrefused\nlinked\nthrough\nls: /absent: No such file or directory\n"
    );
}

#[test]
fn a_read_only_root_is_read_only_and_a_bind_is_not() {
    let Some(bundle) = bundle() else { return };
    let shared = bundle.0.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let mut spec = spec("touch /x; touch /data/y && echo written");
    spec["root"]["readonly"] = true.into();
    spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/data", "type": "bind", "source": shared.to_str().unwrap(), "options": ["rbind", "rw"],
    }));
    fs::create_dir(bundle.0.path().join("rootfs/data")).unwrap();
    let (output, _) = run(&bundle, "readonly", &spec).unwrap();
    assert_eq!(output, "touch: /x: Read-only file system\nwritten\n");
    assert!(shared.join("y").exists());
}

#[test]
fn exit_codes_and_signals_come_back() {
    let Some(bundle) = bundle() else { return };
    assert_eq!(run(&bundle, "code", &spec("exit 42")).unwrap().1, ExitStatus::Exited(42));
    let killed = run(&bundle, "signal", &spec("sh -c 'kill -9 $$'; exit $?")).unwrap().1;
    assert_eq!(killed.code(), 137);
}

#[test]
fn a_missing_program_is_reported_by_create_and_leaves_nothing() {
    let Some(bundle) = bundle() else { return };
    let mut spec = spec("");
    for (program, errno) in [("nothing-here", libc::ENOENT), ("/proc/version", libc::EACCES), ("/bin", libc::EACCES)] {
        spec["process"]["args"] = json!([program]);
        match run(&bundle, "missing", &spec) {
            Err(Error::Program { program: named, source }) => {
                assert_eq!((named.as_str(), source.raw_os_error()), (program, Some(errno)));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_step_that_fails_says_which() {
    let Some(bundle) = bundle() else { return };
    let mut spec = spec("true");
    spec["mounts"][2]["type"] = "no-such-fs".into();
    let error = run(&bundle, "step", &spec).unwrap_err().to_string();
    assert_eq!(
        error,
        "mount no-such-fs on /dev/pts (nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5): ENODEV: No such device (os error 19)"
    );
}

#[test]
fn a_symbolic_link_in_the_image_leads_nowhere_outside() {
    let Some(bundle) = bundle() else { return };
    let outside = bundle.0.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let rootfs = bundle.0.path().join("rootfs");
    std::os::unix::fs::symlink(&outside, rootfs.join("link")).unwrap();
    let mut with_link = spec("echo ran");
    with_link["mounts"].as_array_mut().unwrap().push(json!({ "destination": "/link/in", "type": "tmpfs" }));
    // The link's target is looked up inside the root and, as it does not exist there, made there.
    assert_eq!(run(&bundle, "link", &with_link).unwrap().0, "ran\n");
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    assert!(rootfs.join(outside.strip_prefix("/").unwrap()).join("in").is_dir());

    fs::remove_dir(rootfs.join("proc")).unwrap();
    std::os::unix::fs::symlink("/bin", rootfs.join("proc")).unwrap();
    let error = run(&bundle, "proc-link", &spec("true")).unwrap_err().to_string();
    assert!(error.starts_with("mount proc on /proc (nosuid,noexec,nodev): ELOOP"), "{error}");
}

#[test]
fn a_filter_refuses_what_it_should() {
    let edit = |spec: &mut Value| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }],
        });
    };
    for (id, confined) in [("filter1", true), ("filter2", false)] {
        let edit = |spec: &mut Value| {
            edit(spec);
            spec["process"]["noNewPrivileges"] = confined.into();
        };
        let Some(output) = output(id, edit, "busybox mkdir /x") else { return };
        assert_eq!(output, "mkdir: can't create directory '/x': No space left on device\n");
    }
}

#[test]
fn a_user_without_privileges_has_none_and_owns_its_streams() {
    let edit = |spec: &mut Value| spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let script = "id -u; echo again > /dev/stdout; busybox grep CapEff /proc/self/status; touch /x || true";
    let Some(output) = output("user", edit, script) else { return };
    assert_eq!(output, "1000\nagain\nCapEff:\t0000000000000000\ntouch: /x: Permission denied\n");
}

#[test]
fn a_terminal_is_the_containers_own() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("tty; stty size; test -c /dev/console && echo console");
    json["process"]["terminal"] = true.into();
    std::os::unix::fs::symlink("busybox", bundle.0.path().join("rootfs/bin/stty")).unwrap();
    let spec: Spec = serde_json::from_value(json).unwrap();
    let plan = Plan::new("terminal", &spec, bundle.0.path()).unwrap();
    let container = Container::create(plan, Io::Terminal { size: Some((80, 24)), lines: LineEnds::Terminal }).unwrap();
    let master = container.init().take_terminal().unwrap();
    container.start().unwrap();
    assert_eq!(drain(master), "/dev/pts/0\r\n24 80\r\nconsole\r\n");
    container.init().wait().unwrap();
    container.delete().unwrap();
}

#[test]
fn more_processes_join_and_all_end_with_the_container() {
    let Some(bundle) = bundle() else { return };
    let spec: Spec = serde_json::from_value(spec("sleep 1000")).unwrap();
    let (read, io) = pipes();
    let container = Container::create(Plan::new("exec", &spec, bundle.0.path()).unwrap(), io).unwrap();
    let process = spec.process().clone().unwrap();
    let mut early = process.clone();
    early.set_args(Some(["echo", "early"].map(String::from).to_vec()));
    let (output, io) = pipes();
    container.exec(&early, io, 0).unwrap().wait().unwrap();
    assert_eq!(drain(output), "early\n");
    container.start().unwrap();
    assert!(matches!(container.start(), Err(Error::State(_))));

    let mut joining = process.clone();
    joining.set_args(Some(
        ["sh", "-c", "cat /proc/sys/kernel/hostname; ps > /dev/shm/list; busybox wc -l < /dev/shm/list; exit 3"]
            .map(String::from)
            .to_vec(),
    ));
    let (output, io) = pipes();
    let joined = container.exec(&joining, io, 0).unwrap();
    assert_eq!(drain(output), "pod\n4\n"); // a heading, sleep, sh and ps
    assert_eq!(joined.wait().unwrap(), ExitStatus::Exited(3));

    joining.set_args(Some(vec!["nothing-here".into()]));
    assert!(matches!(container.exec(&joining, pipes().1, 0), Err(Error::Program { .. })));

    joining.set_args(Some(["sleep", "1000"].map(String::from).to_vec()));
    let sleeping = container.exec(&joining, pipes().1, 0).unwrap();
    assert_eq!(container.pids().unwrap().len(), 2);
    let stats = container.stats().unwrap();
    assert_eq!(stats.pids.limit, 32);
    container.signal_all(libc::SIGUSR1).unwrap(); // the first process of a PID namespace ignores it, the other dies
    assert_eq!(sleeping.wait().unwrap(), ExitStatus::Signaled(libc::SIGUSR1));
    assert!(matches!(sleeping.signal(libc::SIGTERM), Err(Error::Ended)));
    container.delete().unwrap();
    assert_eq!(drain(read), "");
}

#[test]
fn a_container_that_is_dropped_is_gone() {
    let Some(bundle) = bundle() else { return };
    let spec: Spec = serde_json::from_value(spec("sleep 1000")).unwrap();
    for start in [false, true] {
        let (read, io) = pipes();
        let container = Container::create(Plan::new("dropped", &spec, bundle.0.path()).unwrap(), io).unwrap();
        if start {
            container.start().unwrap();
        }
        drop(container);
        assert_eq!(drain(read), ""); // end of file: nobody holds the other end
    }
}

#[test]
fn a_joined_process_that_nobody_waits_for_does_not_hold_up_the_end() {
    let Some(bundle) = bundle() else { return };
    let spec: Spec = serde_json::from_value(spec("sleep 1000")).unwrap();
    let container = Container::create(Plan::new("stray", &spec, bundle.0.path()).unwrap(), pipes().1).unwrap();
    container.start().unwrap();
    for program in [["busybox", "true"], ["sleep", "1000"]] {
        let mut process = spec.process().clone().unwrap();
        process.set_args(Some(program.map(String::from).to_vec()));
        drop(container.exec(&process, pipes().1, 0).unwrap());
    }
    container.delete().unwrap();
}
