//! The command line, driven as podman, containerd and conformance suites drive it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::{Bundle, spec};
use rustix::process::Pid;
use serde_json::{Value, json};

/// The command line, with a state directory of its own.
struct Jail {
    bundle: Bundle,
    id: String,
}

impl Jail {
    fn new(name: &str, edit: impl FnOnce(&mut Value), script: &str) -> Option<Jail> {
        let bundle = common::bundle()?;
        let mut json = spec(script);
        edit(&mut json);
        fs::write(bundle.0.path().join("config.json"), json.to_string()).unwrap();
        // What it leaves running is ours to reap, as it is conmon's and the shim's.
        rustix::process::set_child_subreaper(Pid::from_raw(1)).unwrap();
        Some(Jail { bundle, id: format!("cli-{name}-{}", std::process::id()) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bundle.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacre-jail"));
        command.arg("--root").arg(self.path("state")).args(args).current_dir(self.bundle.0.path()).stdin(Stdio::null());
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line that a call complains with.
    fn complaint(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(!output.status.success(), "{args:?} did not fail");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text.trim_start_matches("nacre-jail: ").trim_end().to_string()
    }

    /// Made with its streams closed, or a waiting container would hold ours.
    fn create(&self) {
        let mut command = self.command(&["create", &self.id]);
        assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).unwrap()
    }

    fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_string()
    }

    fn wait(&self, pid: i32) -> i32 {
        let (_, status) =
            rustix::process::waitpid(Pid::from_raw(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
        status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap())
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        self.call(&["delete", "--force", &self.id]);
    }
}

#[test]
fn a_container_goes_from_created_to_deleted() {
    let Some(jail) = Jail::new("life", |json| json["annotations"] = json!({ "a": "b" }), "exec sleep 1000") else {
        return;
    };
    let id = jail.id.as_str();
    let pid_file = jail.path("pid");
    let mut create = jail.command(&["create", "--pid-file", "pid", id]);
    assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let state = jail.state();
    let pid: i32 = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    assert_eq!((&state["id"], &state["status"], &state["pid"]), (&json!(id), &json!("created"), &json!(pid)));
    assert_eq!(state["bundle"], json!(jail.bundle.0.path().canonicalize().unwrap()));
    assert_eq!((&state["ociVersion"], &state["annotations"]["a"]), (&json!("1.2.0"), &json!("b")));

    assert_eq!(jail.complaint(&["create", id]), format!("container with given ID already exists: {id}"));
    assert_eq!(jail.ok(&["exec", id, "echo", "already"]), "already\n");
    assert!(jail.complaint(&["delete", id]).contains("that is not stopped: created"));
    jail.ok(&["start", id]);
    assert_eq!(jail.status(), "running");
    assert_eq!(jail.complaint(&["start", id]), "cannot start an already running container");
    assert!(jail.complaint(&["delete", id]).contains("that is not stopped: running"));
    assert_eq!(jail.complaint(&["resume", id]), "cannot resume a container that is running, not paused");

    jail.ok(&["pause", id]);
    assert_eq!(jail.status(), "paused");
    assert!(jail.complaint(&["exec", id, "true"]).contains("paused"));
    jail.ok(&["resume", id]);

    let pids: Vec<i32> = serde_json::from_str(&jail.ok(&["ps", "--format", "json", id])).unwrap();
    assert_eq!(pids, [pid]);
    assert!(jail.ok(&["ps", id]).contains("sleep 1000"));
    assert!(jail.ok(&["list"]).contains(id));
    assert_eq!(jail.ok(&["list", "--quiet"]).trim(), id);

    jail.ok(&["kill", id, "0"]); // which asks whether it could be sent one
    jail.ok(&["kill", id, "SIGKILL"]);
    assert_eq!(jail.wait(pid), 137);
    assert_eq!(jail.status(), "stopped");
    assert_eq!(jail.state()["pid"], 0);
    assert_eq!(jail.complaint(&["kill", id, "TERM"]), "container not running");
    assert_eq!(jail.complaint(&["exec", id, "true"]), "cannot exec in a container that has stopped");
    assert_eq!(jail.complaint(&["start", id]), "cannot start a container that has stopped");
    jail.ok(&["delete", id]);
    assert_eq!(jail.complaint(&["state", id]), format!("container does not exist: {id}"));
    assert_eq!(jail.complaint(&["delete", id]), format!("container does not exist: {id}"));
    jail.ok(&["delete", "--force", id]);
    assert!(fs::read_dir(jail.path("state")).unwrap().next().is_none());
}

#[test]
fn run_brings_output_and_code_back_and_leaves_nothing() {
    let Some(jail) = Jail::new("run", |_| (), "cat; echo out; echo err >&2; exit 7") else { return };
    let mut child = jail
        .command(&["run", &jail.id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"in\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"in\nout\n"[..], &b"err\n"[..]));
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(jail.ok(&["list", "--quiet"]), "");
}

#[test]
fn a_signal_to_run_reaches_the_program() {
    let Some(jail) =
        Jail::new("signal", |_| (), "trap 'echo caught; exit 4' TERM; echo ready; while true; do sleep 1; done")
    else {
        return;
    };
    let mut child = jail.command(&["run", &jail.id]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    assert!(is_protected(&child));
    rustix::process::kill_process(Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "caught\n");
}

/// Whether the program file of a process can't be written to, whoever gets hold of it (CVE-2019-5736).
fn is_protected(process: &std::process::Child) -> bool {
    let exe = rustix::fs::statvfs(format!("/proc/{}/exe", process.id())).unwrap();
    exe.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)
}

#[test]
fn start_runs_the_hooks_of_the_containers_image_from_a_file_that_they_cannot_write_to() {
    let hook =
        json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo here > /told; read go < /told"], "env": ["PATH=/bin"] });
    let edit = |json: &mut Value| json["hooks"] = json!({ "startContainer": [hook] });
    let Some(jail) = Jail::new("starthook", edit, "exit 3") else { return };
    let told = jail.path("rootfs/told");
    rustix::fs::mknodat(rustix::fs::CWD, &told, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    jail.create();
    let pid = jail.state()["pid"].as_i64().unwrap() as i32;
    let mut start = jail.command(&["start", &jail.id]).spawn().unwrap();
    assert_eq!(fs::read_to_string(&told).unwrap(), "here\n");
    assert!(is_protected(&start));
    fs::write(&told, "go\n").unwrap();
    assert!(start.wait().unwrap().success());
    assert_eq!(jail.wait(pid), 3);
}

#[test]
fn exec_is_its_own_process() {
    let Some(jail) = Jail::new("exec", |_| (), "exec sleep 1000") else { return };
    let id = jail.id.as_str();
    jail.create();
    jail.ok(&["start", id]);
    let script = "id -u; id -g; id -G; echo $A; pwd; busybox grep -E 'CapEff|CapInh|NoNew' /proc/self/status";
    let args =
        ["exec", "-e", "A=b", "-u", "0:6", "-g", "7", "--cwd", "/bin", "-c", "CAP_NET_RAW", id, "sh", "-c", script];
    // What is added is not inheritable (CVE-2022-29162).
    assert_eq!(
        jail.ok(&args),
        "0\n6\n6 7\nb\n/bin\nCapInh:\t0000000000000000\nCapEff:\t00000000000020ab\nNoNewPrivs:\t1\n"
    );
    assert_eq!(jail.ok(&["exec", "-e", "COLOUR=red", id, "sh", "-c", "echo $COLOUR"]), "red\n", "and not blue");
    assert_eq!(jail.call(&["exec", id, "sh", "-c", "exit 5"]).status.code(), Some(5));
    assert_eq!(jail.call(&["exec", id, "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(jail.call(&["exec", id, "nothing-here"]).status.code(), Some(127));
    assert_eq!(jail.call(&["exec", id, "/bin"]).status.code(), Some(126));

    let process =
        json!({ "args": ["sh", "-c", "exit 3"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] });
    fs::write(jail.path("process.json"), process.to_string()).unwrap();
    jail.ok(&["exec", "--detach", "--process", "process.json", "--pid-file", "exec.pid", id]);
    let pid = fs::read_to_string(jail.path("exec.pid")).unwrap().parse().unwrap();
    assert_eq!(jail.wait(pid), 3, "whoever adopts it has its status");
    let odd = jail.call(&["exec", "-c", "CAP_FLY", id, "true"]);
    let told = String::from_utf8_lossy(&odd.stderr).into_owned();
    assert!(
        odd.status.success() && told == "nacre-jail: warning: --cap CAP_FLY: is not known and left out\n",
        "{told}"
    );
    for (args, expected) in [
        (vec!["exec", id], "exec: no program is named"),
        (vec!["exec", "-u", "root", id, "true"], "--user \"root\": expected numbers"),
        (vec!["exec", "-p", "nowhere", id], "read nowhere: No such file"),
        (vec!["exec", "--cwd", "bin", id, "true"], "process.cwd: must be absolute"),
    ] {
        assert!(jail.complaint(&args).starts_with(expected), "{}", jail.complaint(&args));
    }
}

#[test]
fn who_waits_to_be_started_can_be_asked_to_end() {
    let Some(jail) = Jail::new("asked", |_| (), "exit 7") else { return };
    jail.create();
    let pid = jail.state()["pid"].as_i64().unwrap() as i32;
    jail.ok(&["kill", &jail.id, "TERM"]);
    assert_eq!(jail.wait(pid), 143);
    assert_eq!(jail.status(), "stopped");
}

#[test]
fn lines_that_go_to_no_terminal_end_as_the_program_ends_them() {
    let Some(jail) = Jail::new("lines", |json| json["process"]["terminal"] = true.into(), "echo one; tty") else {
        return;
    };
    assert_eq!(jail.ok(&["run", &jail.id]), "one\n/dev/pts/0\n");
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    let Some(jail) =
        Jail::new("console", |json| json["process"]["terminal"] = true.into(), "tty; read line; echo got $line")
    else {
        return;
    };
    assert!(jail.complaint(&["create", &jail.id]).contains("console socket"));
    let listener = UnixListener::bind(jail.path("console")).unwrap();
    let mut create = jail.command(&["create", "--console-socket", "console", &jail.id]);
    assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let master = receive(&listener);
    jail.ok(&["start", &jail.id]);
    rustix::io::write(&master, b"typed\n").unwrap();
    let shown = common::drain(master);
    assert!(shown.contains("/dev/pts/0\r\n") && shown.contains("got typed\r\n"), "{shown}");
}

/// The descriptor that comes over a socket.
fn receive(listener: &UnixListener) -> OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (connection, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    recvmsg(connection.as_fd(), &mut [std::io::IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .unwrap();
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.unwrap()
}

#[test]
fn a_process_is_handed_on_by_its_pidfd() {
    let Some(jail) = Jail::new("pidfd", |_| (), "exec sleep 1000") else { return };
    let listener = UnixListener::bind(jail.path("pidfd")).unwrap();
    let detached = |args: &[&str]| {
        assert!(jail.command(args).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    };
    detached(&["run", "--detach", "--pid-file", "pid", "--pidfd-socket", "pidfd", &jail.id]);
    let init = receive(&listener);
    detached(&["exec", "--detach", "--pid-file", "pid2", "--pidfd-socket", "pidfd", &jail.id, "sleep", "1000"]);
    let other = receive(&listener);
    let kill = |pidfd: &OwnedFd| rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).unwrap();
    let wait = |file: &str| jail.wait(fs::read_to_string(jail.path(file)).unwrap().parse().unwrap());
    kill(&other);
    assert_eq!((wait("pid2"), jail.status().as_str()), (137, "running"));
    kill(&init);
    assert_eq!(wait("pid"), 137);
    assert_eq!(jail.status(), "stopped");
}

#[test]
fn what_would_survive_the_first_process_is_killed_with_it() {
    let share = |json: &mut Value| common::drop_namespace(json, "pid");
    let Some(jail) = Jail::new("survivor", share, "sleep 1000 & exec sleep 1001") else { return };
    let status = jail.command(&["run", "--detach", &jail.id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    let pids = || serde_json::from_str::<Vec<i32>>(&jail.ok(&["ps", "--format", "json", &jail.id])).unwrap();
    while pids().len() < 2 {
        std::hint::spin_loop();
    }
    let all = pids();
    jail.ok(&["kill", &jail.id, "KILL"]);
    for pid in all {
        assert_eq!(jail.wait(pid), 137);
    }
}

#[test]
fn limits_change_by_flags_and_by_file() {
    let Some(jail) = Jail::new("update", |_| (), "exec sleep 1000") else { return };
    let id = jail.id.as_str();
    jail.create();
    jail.ok(&["start", id]);
    jail.ok(&["update", "--memory", "64m", "--pids-limit", "9", id]);
    let stats = || serde_json::from_str::<Value>(&jail.ok(&["stats", id])).unwrap();
    assert_eq!((&stats()["memory"]["usage"]["limit"], &stats()["pids"]["limit"]), (&json!(64 << 20), &json!(9)));
    let mut child = jail.command(&["update", "--resources", "-", id]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(br#"{"pids":{"limit":-1}}"#).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(stats()["pids"]["limit"], 0);
    let event: Value = serde_json::from_str(&jail.ok(&["events", "--stats", id])).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(id)));
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    jail.ok(&["kill", id, "9"]);
}

#[test]
fn a_bad_bundle_is_one_clear_line_and_leaves_nothing() {
    let Some(jail) = Jail::new("bad", |_| (), "true") else { return };
    let config = jail.path("config.json");
    let good = fs::read(&config).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (good[..good.len() / 2].to_vec(), "EOF while parsing"),
        (b"[]".to_vec(), "ociVersion \"\" is not 1.x"),
        (text.replace("\"1.2.0\"", "\"2.0.0\"").into_bytes(), "ociVersion \"2.0.0\" is not 1.x"),
        (text.replace("\"COLOUR=blue\"", "7").into_bytes(), "invalid type: integer `7`"),
        ([&good[..10], b"\xff\xfe", &good[10..]].concat(), "parse"),
        (vec![b' '; (16 << 20) + 1], "longer than 16 MiB"),
        (text.replace("\"args\":[", "\"args\":[\"a\\u0000b\",").into_bytes(), "process.args: holds a NUL"),
    ];
    for (bytes, expected) in cases {
        fs::write(&config, bytes).unwrap();
        let complaint = jail.complaint(&["run", &jail.id]);
        assert!(complaint.contains(expected), "{expected}: {complaint}");
    }
    fs::remove_file(&config).unwrap();
    assert!(jail.complaint(&["run", &jail.id]).contains("No such file"));
    rustix::fs::mknodat(rustix::fs::CWD, &config, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(jail.complaint(&["run", &jail.id]).ends_with("config.json: not a file"), "a pipe is not waited for");
    for id in ["../x", "", ".", "a/b", "-"] {
        assert!(!jail.call(&["state", "--", id]).status.success());
    }
    assert_eq!(jail.ok(&["list", "--quiet"]), "");
}

#[test]
fn errors_are_logged_as_callers_expect_them() {
    let Some(jail) = Jail::new("log", |_| (), "true") else { return };
    jail.call(&["--log", "log.json", "--log-format", "json", "start", "nobody"]);
    let line: Value = serde_json::from_str(fs::read_to_string(jail.path("log.json")).unwrap().trim()).unwrap();
    assert_eq!((&line["level"], &line["msg"]), (&json!("error"), &json!("container does not exist: nobody")));
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
    jail.call(&["--log", "log.txt", "start", "nobody"]);
    let text = fs::read_to_string(jail.path("log.txt")).unwrap();
    assert!(text.contains("level=error msg=\"container does not exist: nobody\""), "{text}");
}

#[test]
fn descriptors_are_handed_on_when_asked() {
    let Some(jail) = Jail::new("fds", |_| (), "cat <&3; ls /proc/self/fd | busybox wc -l") else { return };
    fs::write(jail.path("data"), "through\n").unwrap();
    let script = format!(
        "exec 3<{}; exec {} --root {} run --preserve-fds 1 {}",
        jail.path("data").display(),
        env!("CARGO_BIN_EXE_nacre-jail"),
        jail.path("state").display(),
        jail.id
    );
    let output = Command::new("sh").args(["-c", &script]).current_dir(jail.bundle.0.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "through\n5\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(jail.complaint(&["run", "--preserve-fds", "900", &jail.id]).contains("is not open"));
}

#[test]
fn a_container_whose_maker_was_killed_can_be_removed() {
    let Some(jail) = Jail::new("half", |_| (), "true") else { return };
    jail.create();
    let file = jail.path("state").join(&jail.id);
    let whole = fs::read(&file).unwrap();
    jail.ok(&["delete", "--force", &jail.id]);
    let intent = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // Killed before it had written anything, before it had made the container, and while it wrote what it had made.
    for length in [0, intent / 2, intent, whole.len() - 10] {
        fs::write(&file, &whole[..length]).unwrap();
        if length >= intent {
            assert_eq!(jail.status(), "stopped");
        }
        assert!(!jail.call(&["start", &jail.id]).status.success());
        assert!(jail.complaint(&["delete", &jail.id]).contains("--force"));
        jail.ok(&["delete", "--force", &jail.id]);
        assert!(!file.exists());
    }
    assert!(fs::read_dir(jail.path("state")).unwrap().next().is_none());
}

#[test]
fn what_it_is_and_can_do_is_printed() {
    let Some(jail) = Jail::new("features", |_| (), "true") else { return };
    assert!(jail.ok(&["--version"]).contains("spec: 1.2.0"));
    let features: Value = serde_json::from_str(&jail.ok(&["features"])).unwrap();
    assert_eq!(features["linux"]["namespaces"].as_array().unwrap().len(), 8);
    assert!(features["mountOptions"].as_array().unwrap().contains(&json!("rro")));
    assert!(features["linux"]["capabilities"].as_array().unwrap().contains(&json!("CAP_BPF")));
    fs::remove_file(jail.path("config.json")).unwrap();
    jail.ok(&["spec"]);
    assert!(jail.complaint(&["spec"]).ends_with("config.json exists: move it away first"));
    // What it writes runs, once it is told what.
    let mut json: Value = serde_json::from_slice(&fs::read(jail.path("config.json")).unwrap()).unwrap();
    json["process"]["terminal"] = false.into();
    json["process"]["args"] = json!(["echo", "hello"]);
    json["process"]["env"] = json!(["PATH=/bin"]);
    fs::write(jail.path("config.json"), json.to_string()).unwrap();
    assert_eq!(jail.ok(&["run", &jail.id]), "hello\n");
}

#[test]
fn a_run_that_ends_late_leaves_another_of_its_name_alone() {
    let Some(jail) = Jail::new("late", |_| {}, "echo ready; sleep 1000") else { return };
    let mut late = jail.command(&["run", &jail.id]);
    let mut late = late.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_child(&late);
    late.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    jail.ok(&["update", "--pids-limit", "100", &jail.id]); // waits until its maker has let it go
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    jail.ok(&["delete", "--force", &jail.id]);
    let mut other = jail.command(&["run", "--detach", &jail.id]);
    assert!(other.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert_eq!(late.wait().unwrap().code(), Some(137));
    assert_eq!(jail.status(), "running");
    jail.ok(&["delete", "--force", &jail.id]);
}

#[test]
fn a_name_that_was_taken_and_no_more_does_not_cost_another_container_its_processes() {
    let edit = |spec: &mut Value| spec["linux"]["cgroupsPath"] = "/nacre-test/shared".into();
    let Some(jail) = Jail::new("taken", edit, "sleep 1000") else { return };
    jail.create();
    jail.ok(&["start", &jail.id]);
    // As a maker leaves it that is killed at once.
    let whole = fs::read_to_string(jail.path("state").join(&jail.id)).unwrap();
    fs::write(jail.path("state/other"), whole.lines().next().unwrap()).unwrap();
    jail.ok(&["delete", "--force", "other"]);
    assert_eq!(jail.status(), "running");
    jail.ok(&["delete", "--force", &jail.id]);
}

#[test]
fn a_container_of_another_version_is_removed_whole() {
    let Some(jail) = Jail::new("version", |_| {}, "sleep 1000") else { return };
    jail.create();
    jail.ok(&["start", &jail.id]);
    let pid = jail.state()["pid"].as_i64().unwrap() as i32;
    let file = jail.path("state").join(&jail.id);
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{}\n{{\"Unheard\":1}}\n", whole.lines().next().unwrap())).unwrap();
    assert!(jail.complaint(&["start", &jail.id]).contains("delete --force"));
    jail.ok(&["delete", "--force", &jail.id]);
    assert_eq!(jail.wait(pid), 137);
    assert!(!file.exists());
}

#[test]
fn an_exec_that_cannot_be_told_of_ends() {
    let Some(jail) = Jail::new("untold", |_| {}, "sleep 1000") else { return };
    jail.create();
    jail.ok(&["start", &jail.id]);
    let before = jail.ok(&["ps", "--format", "json", &jail.id]);
    let output = jail.call(&["exec", "--detach", "--pid-file", "/nonexistent/pid", &jail.id, "sleep", "1000"]);
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(jail.ok(&["ps", "--format", "json", &jail.id]), before);
    jail.ok(&["delete", "--force", &jail.id]);
}

#[test]
fn a_paused_container_can_be_killed() {
    let Some(jail) = Jail::new("frozen", |_| {}, "sleep 1000") else { return };
    jail.create();
    jail.ok(&["start", &jail.id]);
    let pid = jail.state()["pid"].as_i64().unwrap() as i32;
    jail.ok(&["pause", &jail.id]);
    jail.ok(&["kill", &jail.id, "KILL"]);
    assert_eq!(jail.wait(pid), 137);
    jail.ok(&["delete", &jail.id]);
}

#[test]
fn a_long_name_and_a_long_command_line_are_taken() {
    let edit = |spec: &mut Value| spec["process"]["args"] = json!(["sh", "-c", "sleep 1000; true", "x".repeat(70_000)]);
    let Some(mut jail) = Jail::new("long", edit, "") else { return };
    jail.id = format!("{}{}", jail.id, "x".repeat(200));
    jail.create();
    jail.ok(&["start", &jail.id]);
    assert!(jail.ok(&["ps", &jail.id]).contains("xxxxx"));
    jail.ok(&["delete", "--force", &jail.id]);
    assert_eq!(fs::read_dir(jail.path("state")).unwrap().count(), 0);
}

#[test]
fn hooks_hear_of_the_end_of_a_container_that_could_not_be_told_of() {
    let Some(jail) = Jail::new("unheard", |_| {}, "sleep 1000") else { return };
    let mut json = spec("sleep 1000");
    let log = jail.path("log");
    json["hooks"] = json!({ "poststop": [{ "path": "/usr/bin/touch", "args": ["touch", log] }] });
    fs::write(jail.path("config.json"), json.to_string()).unwrap();
    jail.complaint(&["create", "--pid-file", "/nonexistent/pid", &jail.id]);
    assert!(log.exists());
    assert_eq!(fs::read_dir(jail.path("state")).unwrap().count(), 0);
}

#[test]
fn a_maker_that_is_killed_leaves_no_mount_that_cannot_be_removed() {
    let edit = |spec: &mut Value| {
        common::drop_namespace(spec, "mount");
        let kill = json!({ "path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID"] });
        spec["hooks"] = json!({ "createRuntime": [kill] });
    };
    let Some(jail) = Jail::new("murdered", edit, "sleep 1000") else { return };
    let status = jail.command(&["create", &jail.id]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    let rootfs = jail.path("rootfs").display().to_string();
    let mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&rootfs);
    assert!(mounted());
    jail.ok(&["delete", "--force", &jail.id]);
    assert!(!mounted());
}
