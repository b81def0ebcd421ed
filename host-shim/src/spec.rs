//! The container's specification: what container engines give by default, and what the command line adds.

use anyhow::{Context as _, Result};
use oci_spec::runtime;
use serde_json::{Value, json};

use crate::cli;
use crate::size::Cpus;
use crate::volumes;

/// What a container may do by default: the set that Docker and containerd give.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Calls that a container has no business with: they change the kernel, its clock or its mounts, or reach into other processes'
/// keys. Everything else is allowed.
const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "vhangup",
    "vm86",
];

const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The specification of the container of `pod`.
///
/// # Errors
/// An environment variable that is asked for and not set.
pub fn container(pod: &str, run: &cli::Run, terminal: Option<(u16, u16)>) -> Result<runtime::Spec> {
    let mut process = process(&run.command, &run.env, run.tty, terminal)?;
    if let Some(dir) = &run.workdir {
        process["cwd"] = dir.to_string_lossy().into();
    }
    let mut annotations = json!({ "dev.nacre.process.args": "cmd" });
    if let Some(program) = &run.entrypoint {
        let args: Vec<_> = [program].into_iter().chain(&run.command).collect();
        process["args"] = json!(args);
        annotations["dev.nacre.process.args"] = "full".into();
    }
    if let Some(user) = &run.user {
        annotations["dev.nacre.process.user"] = user.as_str().into();
    }
    let mut mounts = mounts();
    for (number, volume) in run.volumes.iter().enumerate() {
        mounts.push(json!({
            "destination": volume.container, "type": "bind", "source": volumes::guest_path(pod, number),
            "options": ["rbind", if volume.read_only { "ro" } else { "rw" }],
        }));
    }
    let mut resources = json!({ "pids": { "limit": 4096 } });
    if let Some(quota) = run.cpus.quota_us() {
        resources["cpu"] = json!({ "quota": quota, "period": Cpus::PERIOD_US });
    }
    let namespaces = ["pid", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
    let spec = json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs" },
        "process": process,
        "mounts": mounts,
        "annotations": annotations,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/nacre/{pod}"),
            "resources": resources,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{ "names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
            },
        },
    });
    serde_json::from_value(spec).context("lay out the container")
}

/// A process that is run in a container that exists.
///
/// # Errors
/// As [`container`].
pub fn exec(exec: &cli::Exec, terminal: Option<(u16, u16)>) -> Result<runtime::Process> {
    let mut process = process(&exec.command, &exec.env, exec.tty, terminal)?;
    if let Some(dir) = &exec.workdir {
        process["cwd"] = dir.to_string_lossy().into();
    }
    let env = process["env"].as_array_mut().context("lay out the process")?;
    if !env.iter().filter_map(Value::as_str).any(|variable| variable.starts_with("PATH=")) {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    serde_json::from_value(process).context("lay out the process")
}

fn process(args: &[String], env: &[String], tty: bool, terminal: Option<(u16, u16)>) -> Result<Value> {
    let mut variables = env.iter().map(|variable| from_here(variable)).collect::<Result<Vec<_>>>()?;
    if tty && !variables.iter().any(|variable| variable.starts_with("TERM=")) {
        variables.push(format!("TERM={}", std::env::var("TERM").unwrap_or_else(|_| "xterm".into())));
    }
    let mut process = json!({
        "terminal": tty,
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": variables,
        "cwd": "/",
        "noNewPrivileges": true,
        "capabilities": {
            "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES, "inheritable": [], "ambient": [],
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096 }],
    });
    if let Some((columns, rows)) = terminal {
        process["consoleSize"] = json!({ "width": columns, "height": rows });
    }
    Ok(process)
}

/// `NAME=VALUE` as it is; `NAME` with the value that it has here.
fn from_here(variable: &str) -> Result<String> {
    if variable.contains('=') {
        return Ok(variable.into());
    }
    let value = std::env::var(variable)
        .with_context(|| format!("-e {variable}: it is not set here; write {variable}=VALUE"))?;
    Ok(format!("{variable}={value}"))
}

fn mounts() -> Vec<Value> {
    let of = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let bind = |path: &str| json!({ "destination": path, "type": "bind", "source": path, "options": ["bind", "ro"] });
    vec![
        of("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        of("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        of("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        of("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        of("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        of("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        of("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
        bind("/etc/resolv.conf"),
        bind("/etc/hosts"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn of(args: &[&str]) -> runtime::Spec {
        let args = cli::Args::parse_from(["nacre", "run"].iter().chain(args));
        let cli::Command::Run(run) = args.command else { panic!() };
        container("pod", &run, None).unwrap()
    }

    #[test]
    fn the_image_decides_what_the_command_line_leaves_open() {
        let spec = of(&["-e", "A=1", "-u", "web", "alpine"]);
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_deref(), Some(&[][..]));
        assert_eq!(process.env().as_deref().unwrap(), ["A=1"]);
        let annotations = spec.annotations().as_ref().unwrap();
        assert_eq!(
            (&annotations["dev.nacre.process.args"][..], &annotations["dev.nacre.process.user"][..]),
            ("cmd", "web")
        );
    }

    #[test]
    fn an_entry_point_replaces_the_images() {
        let spec = of(&["--entrypoint", "/bin/sh", "alpine", "-c", "true"]);
        assert_eq!(spec.process().as_ref().unwrap().args().as_deref().unwrap(), ["/bin/sh", "-c", "true"]);
        assert_eq!(spec.annotations().as_ref().unwrap()["dev.nacre.process.args"], "full");
    }

    #[test]
    fn limits_and_volumes_reach_the_container() {
        let spec = of(&["--cpus", "0.5", "-v", "/a:/b:ro", "alpine"]);
        let cpu = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(50_000), Some(100_000)));
        let mount = spec.mounts().as_ref().unwrap().last().unwrap().clone();
        assert!(mount.source().as_ref().unwrap().ends_with("pod-volume-0"));
        assert_eq!(mount.options().as_deref().unwrap(), ["rbind", "ro"]);
    }
}
