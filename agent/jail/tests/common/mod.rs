//! What the tests of containers share: a bundle around a static busybox, a specification like a CRI runtime's, and a way to run it.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and say why it is skipped")]
#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of it")]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use nacre_jail::{Container, Error, ExitStatus, Io, Plan};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";

/// A bundle that is taken down with the test.
pub struct Bundle(pub tempfile::TempDir);

/// `None`, and the reason said, where containers can't be made.
pub fn bundle() -> Option<Bundle> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: containers need root");
        return None;
    }
    if !Path::new(BUSYBOX).exists() {
        println!("skipped: {BUSYBOX} is not installed");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("rootfs/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy(BUSYBOX, bin.join("busybox")).unwrap();
    for applet in ["sh", "true", "false", "cat", "id", "sleep", "stat", "tty", "echo", "ls", "touch", "mount", "ps"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
    }
    Some(Bundle(dir))
}

const CAPABILITIES: [&str; 5] = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_KILL"];

/// What a CRI runtime asks for, more or less.
pub fn spec(script: &str) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs" },
        "hostname": "pod",
        "process": {
            "args": ["sh", "-c", script], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true,
            "env": ["PATH=/bin", "COLOUR=blue"],
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES, "inheritable": [], "ambient": [],
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }],
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" },
                { "type": "cgroup" },
            ],
            "maskedPaths": ["/proc/interrupts", "/proc/scsi", "/absent"],
            "readonlyPaths": ["/proc/sys"],
            "resources": { "pids": { "limit": 32 } },
        },
    })
}

/// Runs a container to its end: what it wrote and how it ended.
pub fn run(bundle: &Bundle, id: &str, spec: &Value) -> Result<(String, ExitStatus), Error> {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    let plan = Plan::new(id, &spec, bundle.0.path())?;
    let (read, io) = pipes();
    let container = Container::create(plan, io)?;
    container.start()?;
    let output = drain(read);
    let status = container.init().wait()?;
    container.delete()?;
    Ok((output, status))
}

/// Standard output and error into one pipe; nothing to read.
pub fn pipes() -> (OwnedFd, Io) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdin = File::open("/dev/null").unwrap().into();
    (read, Io::Pipes { stdin, stdout: write.try_clone().unwrap(), stderr: write })
}

/// A terminal's master answers EIO once its last user has gone.
pub fn drain(from: OwnedFd) -> String {
    let mut bytes = Vec::new();
    let mut file = File::from(from);
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = file.read(&mut buffer) {
        bytes.extend(&buffer[..n]);
    }
    String::from_utf8(bytes).unwrap()
}

pub fn output(id: &str, edit: impl FnOnce(&mut Value), script: &str) -> Option<String> {
    let bundle = bundle()?;
    let mut spec = spec(script);
    edit(&mut spec);
    Some(run(&bundle, id, &spec).unwrap().0)
}

/// The caller's own ids, one to one from `first` on: what maps root of a user namespace to a user without rights.
pub fn mapping(first: u32) -> Value {
    json!([{ "containerID": 0, "hostID": first, "size": 65_536 }])
}

/// Whether the host's controllers are cgroup v2's.
pub fn cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Adds a mount to a specification.
pub fn add_mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

/// Adds a namespace to a specification, in place of the one of the same type.
pub fn set_namespace(spec: &mut Value, namespace: Value) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|other| other["type"] != namespace["type"]);
    namespaces.push(namespace);
}

/// Takes a namespace out of a specification.
pub fn drop_namespace(spec: &mut Value, kind: &str) {
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|other| other["type"] != kind);
}

/// The processes in the cgroup `/nacre-test/<name>`; `None` when there is no such cgroup.
pub fn processes_of(name: &str) -> Option<String> {
    let base = if cgroup_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    fs::read_to_string(format!("{base}/nacre-test/{name}/cgroup.procs")).ok()
}

/// A mount of the host's that goes with the test.
pub struct Mounted(std::path::PathBuf);

impl Mounted {
    pub fn tmpfs(at: &Path, flags: rustix::mount::MountFlags, data: &std::ffi::CStr) -> Mounted {
        rustix::mount::mount("tmpfs", at, "tmpfs", flags, data).unwrap();
        Mounted(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
