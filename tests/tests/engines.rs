//! podman and containerd drive `nacre-jail` as they drive runc: by its command line alone.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nacre_tests::dist;

const APPLETS: [&str; 14] =
    ["sh", "true", "cat", "ls", "sleep", "ps", "id", "echo", "tty", "touch", "grep", "stty", "head", "wc"];

/// The root file system that is imported: a static busybox.
fn rootfs(dir: &Path) -> PathBuf {
    let root = dir.join("rootfs");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let archive = dir.join("rootfs.tar");
    let tar = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status().unwrap();
    assert!(tar.success());
    archive
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Mounts and cgroups that are there, but for those of the engines themselves.
fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(&*dir.to_string_lossy())).map(String::from).collect()
}

/// Whether tests can run here at all.
fn ready(programs: &[&str]) -> bool {
    dist::root() && dist::have(&["busybox"]) && dist::have(programs)
}

struct Podman {
    dir: tempfile::TempDir,
    runtime: PathBuf,
}

impl Podman {
    fn new() -> Option<Podman> {
        if !ready(&["podman", "conmon"]) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // Limits that anybody may set: the defaults of podman can be more than the machine allows.
        fs::write(
            dir.path().join("conf"),
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n",
        )
        .unwrap();
        let podman = Podman { runtime: dist::program("nacre-jail"), dir };
        let archive = rootfs(podman.dir.path());
        let imported = podman.command(&["import", archive.to_str().unwrap(), "demo"]).output().unwrap();
        assert!(imported.status.success(), "{}", complaint(&imported));
        Some(podman)
    }

    fn command(&self, args: &[&str]) -> Command {
        let path = |name: &str| self.dir.path().join(name);
        let mut command = Command::new("timeout");
        command
            .args([
                "60",
                "podman",
                "--cgroup-manager",
                "cgroupfs",
                "--events-backend",
                "file",
                "--storage-driver",
                "vfs",
            ])
            .arg("--runtime")
            .arg(&self.runtime)
            .arg("--root")
            .arg(path("root"))
            .arg("--runroot")
            .arg(path("run"))
            .arg("--tmpdir")
            .arg(path("tmp"))
            .args(args)
            .env("CONTAINERS_CONF", path("conf"))
            .env("XDG_RUNTIME_DIR", path("xdg"))
            .stdin(Stdio::null());
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// As [`Podman::call`], of something that must work.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(output.status.success(), "podman {args:?}: {}", complaint(&output));
        text(&output).trim().to_string()
    }

    /// A container that is removed at its end.
    fn run(&self, flags: &[&str], program: &[&str]) -> Output {
        let args: Vec<&str> =
            ["run", "--rm", "--network", "none"].iter().chain(flags).chain(&["demo"]).chain(program).copied().collect();
        self.call(&args)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.call(&["rm", "--all", "--force", "--time", "0"]); // what a failed test left
    }
}

#[test]
fn podman_runs_containers_as_asked() {
    let Some(podman) = Podman::new() else { return };
    let hello = podman.run(&[], &["echo", "hello"]);
    assert_eq!((text(&hello).as_str(), hello.status.code()), ("hello\n", Some(0)), "{}", complaint(&hello));
    assert_eq!(podman.run(&[], &["sh", "-c", "exit 9"]).status.code(), Some(9));

    let missing = podman.run(&[], &["nothing-here"]);
    assert_eq!(missing.status.code(), Some(127), "{}", complaint(&missing));
    assert!(complaint(&missing).contains("run \"nothing-here\": No such file"), "{}", complaint(&missing));
    assert_eq!(podman.run(&[], &["/tmp"]).status.code(), Some(126));

    let script = "id -u; (touch /x) 2>&1; cat /data/in; echo back > /data/out; grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; echo $COLOUR";
    let shared = podman.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("in"), "from outside\n").unwrap();
    std::os::unix::fs::chown(&shared, Some(1000), Some(1000)).unwrap();
    let volume = format!("{}:/data", shared.display());
    let flags = [
        "--read-only",
        "--user",
        "1000:1000",
        "-v",
        &volume,
        "--security-opt",
        "no-new-privileges",
        "-e",
        "COLOUR=blue",
    ];
    let output = podman.run(&flags, &["sh", "-c", script]);
    let expected = "1000\ntouch: /x: Read-only file system\nfrom outside\nNoNewPrivs:\t1\nSeccomp:\t2\nblue\n";
    assert_eq!(text(&output), expected, "{}", complaint(&output));
    assert_eq!(fs::read_to_string(shared.join("out")).unwrap(), "back\n");

    let terminal = podman.run(&["-t"], &["tty"]);
    assert_eq!(text(&terminal), "/dev/pts/0\r\n", "{}", complaint(&terminal));
    let init = podman.run(
        &["--hostname", "named", "--sysctl", "kernel.shmmni=77"],
        &["sh", "-c", "cat /proc/sys/kernel/hostname /proc/sys/kernel/shmmni"],
    );
    assert_eq!(text(&init), "named\n77\n", "{}", complaint(&init));
}

#[test]
fn podman_leads_a_container_through_its_life() {
    let Some(podman) = Podman::new() else { return };
    podman.ok(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "life",
        "--memory",
        "64m",
        "--pids-limit",
        "20",
        "demo",
        "sh",
        "-c",
        "echo logged; exec sleep 1000",
    ]);
    assert_eq!(
        podman.ok(&["exec", "-e", "A=b", "--user", "5:6", "life", "sh", "-c", "id -u; id -g; echo $A"]),
        "5\n6\nb"
    );
    assert_eq!(podman.call(&["exec", "life", "sh", "-c", "exit 3"]).status.code(), Some(3));
    assert_eq!(podman.call(&["exec", "life", "nothing-here"]).status.code(), Some(127));
    assert_eq!(podman.ok(&["exec", "-t", "life", "tty"]), "/dev/pts/0");

    let limit = || {
        podman.ok(&[
            "exec",
            "life",
            "sh",
            "-c",
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
        ])
    };
    assert_eq!(limit(), (64 << 20).to_string());
    podman.ok(&["update", "--memory", "128m", "--memory-swap", "-1", "life"]);
    assert_eq!(limit(), (128 << 20).to_string());

    podman.ok(&["pause", "life"]);
    assert_eq!(podman.ok(&["inspect", "--format", "{{.State.Status}}", "life"]), "paused");
    assert!(!podman.call(&["exec", "life", "true"]).status.success());
    podman.ok(&["unpause", "life"]);
    assert_eq!(podman.ok(&["top", "life", "args"]).lines().nth(1), Some("sleep 1000"));
    assert!(podman.ok(&["stats", "--no-stream", "--format", "{{.PIDs}}", "life"]).starts_with('1'));
    assert_eq!(podman.ok(&["logs", "life"]), "logged");

    // A second container in the first one's namespaces, as the containers of a pod are.
    let shared = ["--pid", "container:life", "--ipc", "container:life", "--network", "container:life"];
    let args: Vec<&str> = ["run", "--rm"]
        .iter()
        .chain(&shared)
        .chain(&["demo", "sh", "-c", "ps | grep -c 'sleep 100[0]'"])
        .copied()
        .collect();
    assert_eq!(podman.ok(&args), "1");

    podman.ok(&["stop", "--time", "1", "life"]);
    assert_eq!(podman.ok(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "life"]), "exited 137");
    podman.ok(&["start", "life"]);
    podman.ok(&["kill", "life"]);
    podman.ok(&["wait", "life"]);
    podman.ok(&["rm", "life"]);
    assert_eq!(mounts_below(podman.dir.path()), Vec::<String>::new());
    assert!(podman.ok(&["ps", "--all", "--quiet"]).is_empty());
}

#[test]
fn podman_maps_users_checks_health_and_restarts() {
    let Some(podman) = Podman::new() else { return };
    let mapped = podman.run(
        &["--uidmap", "0:100000:65536"],
        &["sh", "-c", "id -u; grep -c 100000 /proc/self/uid_map; touch /tmp/x && echo mine"],
    );
    assert_eq!(text(&mapped), "0\n1\nmine\n", "{}", complaint(&mapped));
    podman.ok(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "healthy",
        "--health-cmd",
        "true",
        "--health-interval",
        "disable",
        "demo",
        "sleep",
        "1000",
    ]);
    podman.ok(&["healthcheck", "run", "healthy"]);
    podman.ok(&["rm", "--force", "--time", "0", "healthy"]);
    podman.ok(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "again",
        "--restart",
        "on-failure:2",
        "demo",
        "sh",
        "-c",
        "exit 1",
    ]);
    podman.ok(&["wait", "again"]);
    podman.ok(&["rm", "--force", "--time", "0", "again"]);
    let privileged = podman
        .run(&["--privileged"], &["sh", "-c", "grep -c ffffffff /proc/self/status; test -e /dev/kmsg && echo devices"]);
    assert!(text(&privileged).ends_with("devices\n"), "{}", complaint(&privileged));
}

/// A containerd of the test's own.
struct Containerd {
    dir: tempfile::TempDir,
    daemon: Child,
    runtime: PathBuf,
}

impl Containerd {
    fn new() -> Option<Containerd> {
        if !ready(&["containerd", "ctr", "containerd-shim-runc-v2"]) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let daemon = nacre_tests::containerd::start(dir.path()).unwrap();
        let containerd = Containerd { dir, daemon, runtime: dist::program("nacre-jail") };
        let archive = rootfs(containerd.dir.path());
        let image = containerd.dir.path().join("image.tar");
        oci_archive(&archive, &image);
        containerd.ok(&["images", "import", "--snapshotter", "native", image.to_str().unwrap()]);
        Some(containerd)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["60", "ctr", "--address"])
            .arg(nacre_tests::containerd::socket(self.dir.path()))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(output.status.success(), "ctr {args:?}: {}", complaint(&output));
        text(&output).trim().to_string()
    }

    fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Output {
        let root = self.dir.path().join("jail").display().to_string();
        let runtime = self.runtime.display().to_string();
        let fixed = ["run", "--snapshotter", "native", "--runc-binary", &runtime, "--runc-root", &root];
        let args: Vec<&str> = fixed.iter().chain(flags).chain(&[IMAGE, id]).chain(program).copied().collect();
        self.call(&args)
    }

    fn status(&self, id: &str) -> String {
        let list = self.ok(&["task", "ls"]);
        let line = list.lines().find(|line| line.starts_with(id)).unwrap_or_default();
        line.split_whitespace().last().unwrap_or_default().to_string()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let life = format!("life-{}", std::process::id());
        let _ = self.call(&["task", "rm", "--force", &life]); // what a failed test left
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The name under which containerd knows the image.
const IMAGE: &str = "docker.io/nacre/demo:1";

/// One layer as an image that containerd can import.
fn oci_archive(layer: &Path, image: &Path) {
    use nacre_tests::image::{Compression, Image};
    let config = serde_json::json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
    let layout = image.with_extension("layout");
    fs::create_dir(&layout).unwrap();
    Image::new(config).layer(fs::read(layer).unwrap(), Compression::Gzip).write(&layout).unwrap();
    let index = layout.join("index.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    json["manifests"][0]["annotations"] = serde_json::json!({ "io.containerd.image.name": IMAGE });
    fs::write(&index, json.to_string()).unwrap();
    let tar = Command::new("tar").arg("-C").arg(&layout).arg("-cf").arg(image).arg(".").status().unwrap();
    assert!(tar.success());
}

#[test]
fn containerd_runs_execs_pauses_and_deletes() {
    let Some(containerd) = Containerd::new() else { return };
    let hello = containerd.run(&["--rm"], "hello", &["echo", "hello"]);
    assert_eq!((text(&hello).as_str(), hello.status.code()), ("hello\n", Some(0)), "{}", complaint(&hello));
    assert_eq!(containerd.run(&["--rm"], "code", &["sh", "-c", "exit 9"]).status.code(), Some(9));
    let missing = containerd.run(&["--rm"], "missing", &["nothing-here"]);
    assert!(complaint(&missing).contains("run \"nothing-here\": No such file"), "{}", complaint(&missing));

    // Its cgroup has its name, in a hierarchy that all tests share.
    let life = format!("life-{}", std::process::id());
    let life = life.as_str();
    let detached = containerd.run(&["-d", "--memory-limit", "67108864"], life, &["sleep", "1000"]);
    assert!(detached.status.success(), "{}", complaint(&detached));
    let exec = |id: &str, program: &[&str]| {
        let args: Vec<&str> = ["task", "exec", "--exec-id", id, life].iter().chain(program).copied().collect();
        containerd.call(&args)
    };
    assert_eq!(text(&exec("e1", &["sh", "-c", "ps | grep -c 'sleep 100[0]'"])), "1\n");
    assert_eq!(exec("e2", &["sh", "-c", "exit 5"]).status.code(), Some(5));
    containerd.ok(&["task", "pause", life]);
    assert_eq!(containerd.status(life), "PAUSED");
    containerd.ok(&["task", "resume", life]);
    assert_eq!(containerd.status(life), "RUNNING");
    assert!(containerd.ok(&["task", "metrics", life]).contains("67108864"));
    assert_eq!(containerd.ok(&["task", "ps", life]).lines().count(), 2);
    let mut attached = containerd.command(&["task", "attach", life]).stdout(Stdio::null()).spawn().unwrap();
    containerd.ok(&["task", "kill", "--signal", "SIGKILL", life]);
    attached.wait().unwrap(); // which it does when the task has ended
    containerd.call(&["task", "rm", life]);
    containerd.ok(&["containers", "rm", life]);
    assert!(!containerd.ok(&["task", "ls"]).contains(life));
    let left = fs::read_dir(containerd.dir.path().join("jail/default")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "states of containers are left");
    assert_eq!(mounts_below(&containerd.dir.path().join("state")), Vec::<String>::new());
}
