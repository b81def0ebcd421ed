//! What a process is given: scheduler, priorities, labels, privileges, filters.

mod common;

use std::io::Read as _;
use std::os::unix::net::UnixListener;

use common::{bundle, drain, output, pipes, run, spec};
use nacre_jail::{Container, Plan};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

#[test]
fn scheduler_and_priorities_are_as_asked() {
    let edit = |spec: &mut Value| {
        spec["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 7 });
        spec["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 4 });
    };
    // Fields 19 and 41 of /proc/PID/stat: nice and policy (proc(5)); SCHED_BATCH is 3.
    let script = "busybox awk '{ print $19, $41 }' /proc/1/stat; busybox ionice -p 1";
    let Some(text) = output("scheduler", edit, script) else { return };
    assert_eq!(text, "7 3\nidle\n");
}

#[test]
fn a_personality_says_what_machine_it_is() {
    let edit = |spec: &mut Value| spec["linux"]["personality"] = json!({ "domain": "LINUX32" });
    let Some(text) = output("personality", edit, "busybox uname -m") else { return };
    assert_eq!(text, "i686\n");
}

#[test]
fn a_joining_process_runs_on_the_processors_it_names() {
    let Some(bundle) = bundle() else { return };
    let spec: Spec = serde_json::from_value(spec("sleep 1000")).unwrap();
    let container = Container::create(Plan::new("affinity", &spec, bundle.0.path()).unwrap(), pipes().1).unwrap();
    container.start().unwrap();
    let mut json = serde_json::to_value(spec.process().as_ref().unwrap()).unwrap();
    json["args"] = json!(["busybox", "grep", "Cpus_allowed_list", "/proc/self/status"]);
    json["execCPUAffinity"] = json!({ "initial": "0", "final": "0-0" });
    let (read, io) = pipes();
    container.exec(&serde_json::from_value(json.clone()).unwrap(), io, 0).unwrap();
    assert_eq!(drain(read), "Cpus_allowed_list:\t0\n");
    json["execCPUAffinity"] = json!({ "initial": "0-", "final": "0" });
    // The crate of the specification looks at the list before we do.
    if let Ok(process) = serde_json::from_value(json) {
        let error = container.exec(&process, pipes().1, 0).unwrap_err().to_string();
        assert!(error.contains("is no list of processors"), "{error}");
    }
    container.delete().unwrap();
}

#[test]
fn all_five_sets_of_capabilities_are_as_asked() {
    let edit = |spec: &mut Value| {
        let few = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
        spec["process"]["capabilities"] = json!({
            "bounding": ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN"], "effective": few, "permitted": few,
            "inheritable": few, "ambient": ["CAP_NET_BIND_SERVICE"],
        });
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        spec["process"]["noNewPrivileges"] = false.into();
    };
    let Some(text) = output("capabilities", edit, "busybox grep -E 'Cap|NoNew' /proc/self/status") else { return };
    // After the program is executed: what was ambient is left (capabilities(7), "Transformation of capabilities").
    let expected = "CapInh:\t0000000000000420\nCapPrm:\t0000000000000400\nCapEff:\t0000000000000400\nCapBnd:\t0000000000000421\nCapAmb:\t0000000000000400\nNoNewPrivs:\t0\n";
    assert_eq!(text, expected);
}

#[test]
fn capabilities_that_cannot_be_granted_are_left_out_and_told() {
    let Some(bundle) = bundle() else { return };
    let mut json = spec("busybox grep -E 'CapAmb|CapEff' /proc/self/status");
    json["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL"], "effective": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    });
    let spec: Spec = serde_json::from_value(json.clone()).unwrap();
    let warnings = Plan::new("ungranted", &spec, bundle.0.path()).unwrap().warnings().to_vec();
    assert_eq!(
        warnings,
        [
            "process.capabilities.effective: CAP_CHOWN is left out: it is not permitted",
            "process.capabilities.ambient: CAP_KILL is left out: it is not permitted and inheritable",
        ]
    );
    let (text, _) = run(&bundle, "ungranted", &json).unwrap();
    assert_eq!(text, "CapEff:\t0000000000000020\nCapAmb:\t0000000000000000\n");
}

/// Calls that nobody would think of allowing, and that the engine makes on the way: faccessat2, close_range, prctl, setgroups, …
#[test]
fn a_filter_need_not_allow_what_the_engine_does() {
    for confined in [true, false] {
        let calls = [
            "execve",
            "read",
            "write",
            "exit",
            "exit_group",
            "brk",
            "arch_prctl",
            "mmap",
            "munmap",
            "mprotect",
            "set_tid_address",
            "set_robust_list",
            "rseq",
            "prlimit64",
            "readlink",
            "getrandom",
            "getuid",
            "capset",
            "prctl",
            "fstat",
            "newfstatat",
        ];
        let edit = |spec: &mut Value| {
            spec["process"]["args"] = json!(["echo", "through"]);
            spec["process"]["noNewPrivileges"] = confined.into();
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
                "syscalls": [{ "names": calls, "action": "SCMP_ACT_ALLOW" }],
            });
        };
        let Some(text) = output(&format!("narrow{confined}"), edit, "") else { return };
        assert_eq!(text, "through\n");
    }
}

#[test]
fn a_process_has_the_home_of_its_user_and_all_processors_unless_it_is_told() {
    let Some(bundle) = bundle() else { return };
    let etc = bundle.0.path().join("rootfs/etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(etc.join("passwd"), "root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/home/somebody:\n").unwrap();
    for (uid, env, expected) in [
        (0, json!(["PATH=/bin"]), "/root"),
        (1000, json!(["HOME=", "PATH=/bin"]), "/home/somebody"),
        (77, json!(["PATH=/bin"]), "/"),
        (0, json!(["PATH=/bin", "HOME=/mine"]), "/mine"),
    ] {
        let mut json = spec("echo $HOME");
        json["process"]["user"]["uid"] = uid.into();
        json["process"]["env"] = env;
        assert_eq!(run(&bundle, "home", &json).unwrap().0, format!("{expected}\n"), "{uid}");
    }
    // A passwd that is no file is not waited for.
    std::fs::remove_file(etc.join("passwd")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, etc.join("passwd"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(run(&bundle, "home", &spec("echo $HOME")).unwrap().0, "/\n");

    let all = rustix::thread::sched_getaffinity(None).unwrap();
    let processors = std::thread::scope(|scope| {
        let run_on_one = || {
            let mut one = rustix::thread::CpuSet::new();
            one.set((0..1024).find(|processor| all.is_set(*processor)).unwrap());
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            run(&bundle, "processors", &spec("busybox nproc")).unwrap().0
        };
        scope.spawn(run_on_one).join().unwrap()
    });
    assert_eq!(processors, format!("{}\n", all.count()));
}

#[test]
fn a_label_without_its_security_module_is_an_error() {
    let Some(bundle) = bundle() else { return };
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    for (property, module) in [("apparmorProfile", "apparmor"), ("selinuxLabel", "selinux")] {
        if modules.contains(module) {
            println!("skipped: {module} is active here");
            continue;
        }
        let mut spec = spec("true");
        spec["process"][property] = "nacre-test".into();
        let error = run(&bundle, "label", &spec).unwrap_err().to_string();
        assert!(error.contains("label") || error.contains("is the security module active?"), "{error}");
    }
}

#[test]
fn a_listener_is_asked_about_the_calls_that_the_filter_names() {
    for confined in [true, false] {
        let Some(bundle) = bundle() else { return };
        let socket = bundle.0.path().join("listener");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut json = spec("busybox mkdir /made; echo $?");
        json["process"]["noNewPrivileges"] = confined.into();
        json["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "cookie",
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
        });
        let spec: Spec = serde_json::from_value(json).unwrap();
        let (read, io) = pipes();
        let container = Container::create(Plan::new("listener", &spec, bundle.0.path()).unwrap(), io).unwrap();
        container.start().unwrap();
        let (mut connection, _) = listener.accept().unwrap();
        let mut told = vec![0; 4096];
        let length = connection.read(&mut told).unwrap();
        let told: Value = serde_json::from_slice(&told[..length]).unwrap();
        assert_eq!(told["metadata"], "cookie");
        assert_eq!(told["fds"], json!(["seccompFd"]));
        assert_eq!(told["pid"], container.init().pid());
        assert_eq!(told["state"]["id"], "listener");
        drop((connection, listener)); // nobody answers any more: the call fails
        assert_eq!(drain(read), "mkdir: can't create directory '/made': Function not implemented\n1\n");
        container.init().wait().unwrap();
        container.delete().unwrap();
    }
}

#[test]
fn actions_arguments_and_architectures_of_filters_work() {
    let filter = |syscalls: Value| {
        move |spec: &mut Value| {
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": syscalls,
            });
        }
    };
    let kill = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_KILL_PROCESS" }]);
    let Some(text) = output("kill", filter(kill), "busybox mkdir /x; echo $?") else { return };
    assert!(text.ends_with("159\n"), "{text}"); // 128 + SIGSYS
    let trap = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_TRAP" }]);
    assert!(output("trap", filter(trap), "busybox mkdir /x; echo $?").unwrap().ends_with("159\n"));
    let log = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_LOG" }]);
    assert_eq!(output("log", filter(log), "busybox mkdir /x; echo $?").unwrap(), "0\n");
    // kill(1, SIGUSR1) only: each signal is an argument of the call.
    let argument = json!([{
        "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9,
        "args": [{ "index": 1, "value": libc::SIGUSR1, "op": "SCMP_CMP_EQ" }],
    }]);
    let script = "busybox kill -USR1 1; busybox kill -URG 1 && echo allowed";
    let text = output("argument", filter(argument), script).unwrap();
    assert!(text.contains("Bad file descriptor") && text.ends_with("allowed\n"), "{text}");
    let masked = json!([{
        "names": ["kill"], "action": "SCMP_ACT_ERRNO",
        "args": [{ "index": 1, "value": 0xff, "valueTwo": libc::SIGUSR1, "op": "SCMP_CMP_MASKED_EQ" }],
    }]);
    let text = output("masked", filter(masked), "busybox kill -USR1 1; busybox kill -URG 1 && echo allowed").unwrap();
    assert!(text.contains("Operation not permitted") && text.ends_with("allowed\n"), "{text}");
}

#[test]
fn the_score_of_the_oom_killer_is_raised() {
    let edit = |spec: &mut Value| spec["process"]["oomScoreAdj"] = 321.into();
    let Some(text) = output("oom", edit, "cat /proc/self/oom_score_adj") else { return };
    assert_eq!(text, "321\n");
}

#[test]
fn a_limit_that_may_not_be_set_is_named() {
    let Some(bundle) = bundle() else { return };
    let mut spec = spec("ulimit -n; ulimit -c");
    spec["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 64, "hard": 128 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
    ]);
    assert_eq!(run(&bundle, "limits", &spec).unwrap().0, "64\n0\n");
    spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 1, "hard": u64::MAX }]);
    let error = run(&bundle, "limits", &spec).unwrap_err().to_string();
    assert!(error.starts_with("set RLIMIT_NOFILE to 1 (hard: unlimited): EPERM"), "{error}");
}

#[test]
fn no_descriptor_of_ours_reaches_a_program() {
    let Some(text) = output("descriptors", |_| (), "ls /proc/1/fd; true") else { return };
    assert_eq!(text, "0\n1\n2\n");
}
