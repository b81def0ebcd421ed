//! The engine beside crun and runc, turn by turn in the same run, with the same bundles: command line beside command line, and as the agent uses
//! it, in one process (`engine_…`). The peers are command lines in either case: there is no other way to use them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nacre_jail::{Container, Io, Plan};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::{Measured, ms};

/// How often each is measured.
const RUNS: usize = 40;
/// How many are made at once.
const AT_ONCE: usize = 50;
/// Docker's and podman's default filter, of Debian's package golang-github-containers-common.
const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// The names of the rows.
pub(crate) const NAMES: [&str; 12] = [
    "jail.run_true",
    "jail.run_cri",
    "jail.exec_true",
    "jail.create_start_delete",
    "jail.run_true_at_10",
    "jail.run_true_at_100",
    "jail.run_true_at_500",
    "jail.50_at_once",
    "jail.peak_memory",
    "jail.engine_run_true",
    "jail.engine_run_cri",
    "jail.engine_exec_true",
];

/// The three that are compared: ours first.
struct Engines {
    programs: [PathBuf; 3],
    dir: tempfile::TempDir,
}

/// What the engines are called in the table.
const PEERS: [&str; 2] = ["crun", "runc"];

/// The times of the three, run for run.
type Times = [Vec<f64>; 3];

impl Engines {
    fn new(dist: &Path) -> Result<Option<Engines>> {
        let there = |program: &str| {
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        };
        if !rustix::process::geteuid().is_root() || !PEERS.iter().all(|peer| there(peer)) {
            return Ok(None);
        }
        part_mounts()?;
        let dir = tempfile::tempdir().context("make a directory")?;
        let programs =
            [dist.join("bin/nacre-jail").canonicalize().context("find nacre-jail")?, "crun".into(), "runc".into()];
        let engines = Engines { programs, dir };
        for (name, spec) in [("minimal", minimal()), ("cri", cri()?), ("sleep", sleeping())] {
            engines.bundle(name, &spec)?;
        }
        Ok(Some(engines))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bundle(&self, name: &str, spec: &Value) -> Result<()> {
        let bin = self.path(name).join("rootfs/bin");
        fs::create_dir_all(&bin).context("make a bundle")?;
        fs::copy("/bin/busybox", bin.join("busybox")).context("copy busybox")?;
        for applet in ["true", "sleep"] {
            symlink("busybox", bin.join(applet)).context("make a bundle")?;
        }
        fs::write(self.path(name).join("config.json"), spec.to_string()).context("write a bundle")
    }

    fn command(&self, engine: usize, args: &[&str]) -> Command {
        let mut command = Command::new(self.programs.get(engine).map_or(Path::new(""), PathBuf::as_path));
        command.arg("--root").arg(self.path(&format!("state{engine}"))).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn call(&self, engine: usize, args: &[&str]) -> Result<()> {
        let output = self.command(engine, args).output().context("start an engine")?;
        ensure!(output.status.success(), "engine {engine} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A container that outlives the call must not hold an end of a pipe to us.
    fn detach(&self, engine: usize, bundle: &str, id: &str) -> Result<()> {
        let mut command = self.command(engine, &["run", "--detach", "--bundle", bundle, id]);
        let status = command.stderr(Stdio::null()).status().context("start an engine")?;
        ensure!(status.success(), "engine {engine}: run --detach {id}: {status}");
        Ok(())
    }

    /// Times `act` for each engine in turn.
    fn turns(&self, runs: usize, mut act: impl FnMut(usize, usize) -> Result<()>) -> Result<Times> {
        let mut times = Times::default();
        for run in 0..runs {
            for (engine, times) in times.iter_mut().enumerate() {
                let begun = Instant::now();
                act(engine, run)?;
                times.push(ms(begun.elapsed()));
            }
        }
        Ok(times)
    }

    fn run(&self, bundle: &str) -> Result<Times> {
        let bundle = self.path(bundle).display().to_string();
        self.turns(RUNS, |engine, run| self.call(engine, &["run", "--bundle", &bundle, &format!("bench{run}")]))
    }

    /// The four calls that a container manager makes, with the wait for the container's end between them.
    fn create_start_delete(&self) -> Result<Times> {
        // What a call leaves behind is ours to wait for, as it is conmon's or the shim's.
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).context("adopt containers")?;
        let bundle = self.path("minimal").display().to_string();
        let pid_file = self.path("pid");
        let pid_path = pid_file.display().to_string();
        self.turns(RUNS, |engine, run| {
            let id = format!("managed{run}");
            let mut create = self.command(engine, &["create", "--bundle", &bundle, "--pid-file", &pid_path, &id]);
            ensure!(create.stderr(Stdio::null()).status().context("start an engine")?.success(), "create failed");
            let pid: i32 = fs::read_to_string(&pid_file).context("read a number")?.parse().context("read a number")?;
            self.call(engine, &["start", &id])?;
            let pid = rustix::process::Pid::from_raw(pid);
            rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).context("wait for a container")?;
            self.call(engine, &["delete", &id])
        })
    }

    fn exec(&self) -> Result<Times> {
        let bundle = self.path("sleep").display().to_string();
        for engine in 0..3 {
            self.detach(engine, &bundle, &format!("sleeper{engine}"))?;
        }
        let times = self.turns(RUNS, |engine, _| self.call(engine, &["exec", &format!("sleeper{engine}"), "true"]));
        for engine in 0..3 {
            self.call(engine, &["delete", "--force", &format!("sleeper{engine}")])?;
        }
        times
    }

    fn at_once(&self) -> Result<Times> {
        let bundle = self.path("minimal").display().to_string();
        self.turns(5, |engine, _| {
            let start = |number: usize| -> Result<Child> {
                let id = format!("many{number}");
                self.command(engine, &["run", "--bundle", &bundle, &id]).spawn().context("start an engine")
            };
            let children = (0..AT_ONCE).map(start).collect::<Result<Vec<_>>>()?;
            for mut child in children {
                ensure!(child.wait().context("wait for an engine")?.success(), "engine {engine} failed");
            }
            Ok(())
        })
    }

    /// The most memory that one call has resident, in KiB, its container's program included.
    fn peak(&self) -> Result<Times> {
        let bundle = self.path("minimal").display().to_string();
        let mut peaks = Times::default();
        for run in 0..9 {
            for (engine, peaks) in peaks.iter_mut().enumerate() {
                let call = self.command(engine, &["run", "--bundle", &bundle, &format!("peak{run}")]);
                let mut command = Command::new("busybox");
                command.args(["time", "-f", "%M"]).arg(call.get_program()).args(call.get_args()).stdin(Stdio::null());
                let output = command.output().context("start busybox time")?;
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let number: f64 = text.trim().parse().with_context(|| format!("engine {engine}: {text}"))?;
                // busybox takes the kernel's KiB for pages of 4 KiB.
                peaks.push(number / 4.0);
            }
        }
        Ok(peaks)
    }

    /// `true` while `count` containers of ours are alive.
    fn beside_others(&self, count: usize) -> Result<Times> {
        let bundle = self.path("sleep").display().to_string();
        let names: Vec<String> = (0..count).map(|number| format!("alive{number}")).collect();
        let result = names.iter().try_for_each(|name| self.detach(0, &bundle, name)).and_then(|()| self.run("minimal"));
        for name in &names {
            self.call(0, &["delete", "--force", name])?;
        }
        result
    }

    /// The engine without a command line: plan, create, start, wait, delete.
    fn library(&self, bundle: &str) -> Result<Times> {
        let path = self.path(bundle);
        let text = fs::read(path.join("config.json")).context("read a bundle")?;
        let spec: Spec = serde_json::from_slice(&text).context("read a bundle")?;
        let name = path.display().to_string();
        self.turns(RUNS, |engine, run| {
            if engine > 0 {
                return self.call(engine, &["run", "--bundle", &name, &format!("library{run}")]);
            }
            let null = || fs::File::options().read(true).write(true).open("/dev/null").map(Into::into);
            let io = Io::Pipes { stdin: null()?, stdout: null()?, stderr: null()? };
            let container = Container::create(Plan::new(&format!("library{run}"), &spec, &path)?, io)?;
            container.start()?;
            container.init().wait()?;
            Ok(container.delete()?)
        })
    }
}

impl Engines {
    /// As [`Engines::library`], for one more process in a container.
    fn library_exec(&self) -> Result<Times> {
        let path = self.path("sleep");
        let spec: Spec = serde_json::from_value(sleeping()).context("read a bundle")?;
        let name = path.display().to_string();
        let null = || fs::File::options().read(true).write(true).open("/dev/null").map(Into::into);
        let io = || -> Result<Io> { Ok(Io::Pipes { stdin: null()?, stdout: null()?, stderr: null()? }) };
        let container = Container::create(Plan::new("library", &spec, &path)?, io()?)?;
        container.start()?;
        let mut process = spec.process().clone().context("read a bundle")?;
        process.set_args(Some(vec!["true".into()]));
        for engine in 1..3 {
            self.detach(engine, &name, "sleeper")?;
        }
        let times = self.turns(RUNS, |engine, _| match engine {
            0 => Ok(container.exec(&process, io()?, 0)?.wait().map(drop)?),
            engine => self.call(engine, &["exec", "sleeper", "true"]),
        });
        for engine in 1..3 {
            self.call(engine, &["delete", "--force", "sleeper"])?;
        }
        container.delete()?;
        times
    }
}

/// crun does not take the layout of a host that has controllers on cgroup v1 and an empty cgroup v2 beside them. In mounts of our own, the
/// latter is out of sight, for all three alike.
fn part_mounts() -> Result<()> {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    nacre_sys::clone::unshare(0x0002_0000).context("make a mount namespace")?; // CLONE_NEWNS
    mount_change("/", flags).context("part the mounts")?;
    let _ = unmount("/sys/fs/cgroup/unified", UnmountFlags::DETACH); // a host of cgroup v2 alone has none
    Ok(())
}

fn minimal() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
        },
    })
}

fn sleeping() -> Value {
    let mut spec = minimal();
    if let Some(args) = spec.pointer_mut("/process/args") {
        *args = json!(["sleep", "10000"]);
    }
    spec
}

/// What a CRI runtime asks for by default, with its filter where this host has one.
fn cri() -> Result<Value> {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ]);
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "hostname": "pod",
        "process": {
            "args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true,
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
        ],
        "linux": {
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }], "memory": { "limit": 268_435_456 },
                "cpu": { "shares": 1024, "quota": 100_000, "period": 100_000 }, "pids": { "limit": 100 },
            },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    let Ok(text) = fs::read(PROFILE) else { return Ok(spec) };
    let profile: Value = serde_json::from_slice(&text).context("read the default filter")?;
    let rules: Vec<Value> = profile
        .get("syscalls")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        // Those of other architectures, and those that hang on capabilities, are left out.
        .filter(|rule| {
            let ours = |condition: &Value| {
                let arches = condition.get("arches").and_then(Value::as_array);
                *condition == json!({}) || arches.is_some_and(|arches| arches.contains(&json!("amd64")))
            };
            rule.get("includes").is_none_or(ours) && rule.get("excludes").is_none_or(|v| *v == json!({}))
        })
        .map(|rule| json!({ "names": rule["names"], "action": rule["action"], "args": rule["args"] }))
        .map(|mut rule| {
            if let Some(fields) = rule.as_object_mut() {
                fields.retain(|_, value| !value.is_null());
            }
            rule
        })
        .collect();
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        let filter = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": rules,
        });
        linux.insert("seccomp".into(), filter);
    }
    Ok(spec)
}

/// Two rows: beside crun, and beside runc.
fn rows(name: [&'static str; 2], unit: &'static str, times: Times) -> [Measured; 2] {
    let [mut ours, mut crun, mut runc] = times;
    let mut again = ours.clone();
    [
        Measured::many(name[0], unit, &mut ours).beside(PEERS[0], &mut crun),
        Measured::many(name[1], unit, &mut again).beside(PEERS[1], &mut runc),
    ]
}

/// All rows of which `wanted` is true.
pub(crate) fn measure(dist: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<Measured>> {
    let Some(engines) = Engines::new(dist)? else {
        eprintln!("skipped: jail: this takes root, crun and runc (make setup)");
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    let mut add = |name: [&'static str; 2], unit, measure: &dyn Fn() -> Result<Times>| -> Result<()> {
        if wanted(name[0]) || wanted(name[1]) {
            all.extend(rows(name, unit, measure()?));
        }
        Ok(())
    };
    add(["jail.run_true", "jail.run_true_vs_runc"], "ms", &|| engines.run("minimal"))?;
    add(["jail.run_cri", "jail.run_cri_vs_runc"], "ms", &|| engines.run("cri"))?;
    add(["jail.exec_true", "jail.exec_true_vs_runc"], "ms", &|| engines.exec())?;
    let all_calls = &|| engines.create_start_delete();
    add(["jail.create_start_delete", "jail.create_start_delete_vs_runc"], "ms", all_calls)?;
    add(["jail.run_true_at_10", "jail.run_true_at_10_vs_runc"], "ms", &|| engines.beside_others(10))?;
    add(["jail.run_true_at_100", "jail.run_true_at_100_vs_runc"], "ms", &|| engines.beside_others(100))?;
    add(["jail.run_true_at_500", "jail.run_true_at_500_vs_runc"], "ms", &|| engines.beside_others(500))?;
    add(["jail.peak_memory", "jail.peak_memory_vs_runc"], "KiB", &|| engines.peak())?;
    add(["jail.50_at_once", "jail.50_at_once_vs_runc"], "ms", &|| engines.at_once())?;
    add(["jail.engine_run_true", "jail.engine_run_true_vs_runc"], "ms", &|| engines.library("minimal"))?;
    add(["jail.engine_run_cri", "jail.engine_run_cri_vs_runc"], "ms", &|| engines.library("cri"))?;
    add(["jail.engine_exec_true", "jail.engine_exec_true_vs_runc"], "ms", &|| engines.library_exec())?;
    Ok(all)
}
