//! Specifications that the command line makes: of a further process, and one to start from.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use oci_spec::runtime::{Capability, Process, Spec};

use super::args::Exec;
use super::{directory, log};

/// The longest process that is read.
const MAX_PROCESS: u64 = 4 << 20;

/// The process that `args` ask for: from a file, or the container's own with changes.
pub fn of(args: &Exec, spec: &Spec) -> Result<Process> {
    if let Some(path) = &args.process {
        let bytes = directory::read_stream(path, MAX_PROCESS)?;
        let nacre_jail::Read { value: mut process, warnings } =
            nacre_jail::read_process(&bytes).with_context(|| format!("parse {}", path.display()))?;
        warnings.iter().for_each(|warning| log::warn(warning));
        if args.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    if args.args.is_empty() {
        bail!("exec: no program is named, neither by --process nor after the id");
    }
    let mut process = spec.process().clone().context("process: is missing")?;
    process.set_args(Some(args.args.clone())).set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if !args.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(args.env.iter().cloned());
        process.set_env(Some(env));
    }
    if let Some(user) = &args.user {
        set_user(&mut process, user)?;
    }
    if !args.additional_gids.is_empty() {
        let mut user = process.user().clone();
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        user.set_additional_gids(Some(gids));
        process.set_user(user);
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if args.apparmor.is_some() {
        process.set_apparmor_profile(args.apparmor.clone());
    }
    if args.process_label.is_some() {
        process.set_selinux_label(args.process_label.clone());
    }
    add_capabilities(&mut process, &args.cap);
    Ok(process)
}

fn set_user(process: &mut Process, text: &str) -> Result<()> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, ""));
    let number = |text: &str| text.parse().with_context(|| format!("--user {text:?}: expected numbers, UID[:GID]"));
    let mut user = process.user().clone();
    user.set_uid(number(uid)?);
    if !gid.is_empty() {
        user.set_gid(number(gid)?);
    }
    process.set_user(user);
    Ok(())
}

fn add_capabilities(process: &mut Process, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let known = |name: &String| {
        let capability = serde_json::from_value(name.to_ascii_uppercase().into()).ok();
        if capability.is_none() {
            log::warn(&format!("--cap {name}: is not known and left out"));
        }
        capability
    };
    let more: HashSet<Capability> = names.iter().filter_map(known).collect();
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<HashSet<Capability>>| Some(set.iter().flatten().chain(&more).copied().collect());
    let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    // What is inheritable already may be ambient, too; nothing becomes inheritable that was not (CVE-2022-29162).
    let inheritable = sets.inheritable().iter().flatten();
    let ambient = sets.ambient().iter().flatten().chain(inheritable.filter(|c| more.contains(c))).copied().collect();
    sets.set_ambient(Some(ambient));
    process.set_capabilities(Some(sets));
}

/// Writes a config.json with a shell in it, as confined as a container usually is.
pub fn write_spec(bundle: &Path, rootless: bool) -> Result<()> {
    let path = bundle.join("config.json");
    if path.exists() {
        bail!("{} exists: move it away first", path.display());
    }
    let mut text = serde_json::to_string_pretty(&default_spec(rootless)).context("write a specification")?;
    text.push('\n');
    directory::replace(&path, text.as_bytes())
}

fn default_spec(rootless: bool) -> serde_json::Value {
    let capabilities = serde_json::json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut spec = serde_json::json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "nacre",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if nacre_jail::has_unified_cgroups()
        && let Some(namespaces) = spec.pointer_mut("/linux/namespaces").and_then(serde_json::Value::as_array_mut)
    {
        namespaces.push(serde_json::json!({ "type": "cgroup" }));
    }
    if rootless && let Some(linux) = spec.get_mut("linux").and_then(serde_json::Value::as_object_mut) {
        let map = |host: u32| serde_json::json!([{ "containerID": 0, "hostID": host, "size": 1 }]);
        linux.insert("uidMappings".into(), map(rustix::process::geteuid().as_raw()));
        linux.insert("gidMappings".into(), map(rustix::process::getegid().as_raw()));
        if let Some(namespaces) = linux.get_mut("namespaces").and_then(serde_json::Value::as_array_mut) {
            namespaces.push(serde_json::json!({ "type": "user" }));
        }
    }
    spec
}
