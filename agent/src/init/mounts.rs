//! What has to be mounted before anything else runs, and the console.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, mount};

/// One mount.
struct Row {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: Option<&'static str>,
}

const NOSUID: MountFlags = MountFlags::NOSUID;
const NODEV: MountFlags = MountFlags::NODEV;
const NOEXEC: MountFlags = MountFlags::NOEXEC;

/// In order. Images are unpacked below /run, so it may take most of the memory: what is stored there is bounded by the pull.
const EARLY: &[Row] = &[
    row("proc", "/proc", NOSUID.union(NODEV).union(NOEXEC), None),
    row("sysfs", "/sys", NOSUID.union(NODEV).union(NOEXEC), None),
    row("devtmpfs", "/dev", NOSUID, Some("mode=755")),
    row("devpts", "/dev/pts", NOSUID.union(NOEXEC), Some("mode=620,ptmxmode=666,gid=5")),
    row("tmpfs", "/dev/shm", NOSUID.union(NODEV), Some("mode=1777")),
    row("tmpfs", "/run", NOSUID.union(NODEV), Some("mode=755,size=80%")),
    row("tmpfs", "/tmp", NOSUID.union(NODEV), Some("mode=1777")),
    row("cgroup2", CGROUPS, NOSUID.union(NODEV).union(NOEXEC), Some("nsdelegate")),
];

/// And on a root that can't be written.
const ON_READ_ONLY: &[Row] = &[row("tmpfs", "/var/tmp", NOSUID.union(NODEV), Some("mode=1777"))];

/// What a kernel may lack. Those who look there see it.
const OPTIONAL: &[Row] = &[row("securityfs", "/sys/kernel/security", NOSUID.union(NODEV).union(NOEXEC), None)];

const CGROUPS: &str = "/sys/fs/cgroup";

/// Names in /dev that programs expect and devtmpfs does not make.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

const fn row(kind: &'static str, target: &'static str, flags: MountFlags, data: Option<&'static str>) -> Row {
    Row { kind, target, flags, data }
}

/// Mount all that is not mounted yet. A guest that lacks one of them may still be able to say so.
pub fn early(complaints: &mut Vec<String>) {
    let read_only = statvfs("/").is_ok_and(|root| root.f_flag.contains(StatVfsMountFlags::RDONLY));
    for row in EARLY.iter().chain(ON_READ_ONLY.iter().filter(|_| read_only)) {
        if let Err(error) = row.mount() {
            complaints.push(format!("mount {} on {}: {error}", row.kind, row.target));
        }
    }
    for row in OPTIONAL {
        let _ = row.mount();
    }
    for (target, link) in LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                complaints.push(format!("link {link} to {target}: {error}"));
            }
            _ => {}
        }
    }
}

impl Row {
    fn mount(&self) -> io::Result<()> {
        fs::create_dir_all(self.target)?;
        let data = self.data.map(std::ffi::CString::new).transpose()?;
        match mount(self.kind, self.target, self.kind, self.flags, data.as_deref()) {
            Err(rustix::io::Errno::BUSY) => Ok(()), // the kernel or another init did it
            other => Ok(other?),
        }
    }
}

/// Standard input, output and error are the console's.
pub fn console() -> io::Result<()> {
    let console = rustix::fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(())
}

/// Every controller that the kernel has is there for the containers' cgroups.
pub fn cgroups(complaints: &mut Vec<String>) {
    let root = Path::new(CGROUPS);
    let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else {
        return; // no unified hierarchy: that mount's complaint has been made
    };
    for controller in controllers.split_ascii_whitespace() {
        // One at a time, as one that is refused would take the others with it.
        if let Err(error) = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")) {
            complaints.push(format!("enable the {controller} controller: {error}"));
        }
    }
}
