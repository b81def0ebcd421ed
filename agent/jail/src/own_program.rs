//! The engine's own program file, kept from its containers (CVE-2019-5736).
//!
//! Between fork and exec a process of a container still runs the engine's program, and a script with the interpreter `/proc/self/exe` runs it
//! in the container. Who gets hold of it there could write to it, and so to the host. It can't be written to through a mount that is
//! read-only, nor if it is immutable; so where the engine's is neither, it starts again through a read-only copy of its mount that nobody else sees.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::CommandExt as _;

use nacre_sys::mount::{MountAttr, mount_setattr};
use rustix::fs::{StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::step::clone_tree;

/// Says to ourselves that we have been here.
const MARK: &str = "_NACRE_JAIL_PROTECTED";

/// Sees to it that the program file of this process is on a read-only mount; for a command line, before it makes any process. Does not return
/// when the program had to be started again.
///
/// # Errors
/// Those of open_tree(2), mount_setattr(2) and execve(2). Who may not mount may not write to a system's program either, and goes on.
pub fn protect_own_program() -> Result<(), Error> {
    let exe = c"/proc/self/exe";
    let fail = |error: Errno| Error::system("look at /proc/self/exe", error);
    if std::env::var_os(MARK).is_some() {
        return rustix::thread::set_name(c"nacre-jail").map_err(fail); // and not what the descriptor is called
    }
    let mount = rustix::fs::statvfs(exe).map_err(fail)?.f_flag;
    if mount.contains(StatVfsMountFlags::RDONLY) || is_immutable(exe) {
        return Ok(());
    }
    let tree = match clone_tree(exe, false) {
        Err(Errno::PERM) => return Ok(()),
        tree => tree.map_err(|error| Error::system("copy the mount of /proc/self/exe", error))?,
    };
    let read_only = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    mount_setattr(tree.as_fd(), c"", false, &read_only)
        .map_err(|error| Error::system("make the mount of /proc/self/exe read-only", error))?;
    let mut args = std::env::args_os();
    let mut command = std::process::Command::new(format!("/proc/self/fd/{}", tree.as_raw_fd()));
    command.arg0(args.next().as_deref().unwrap_or(OsStr::new("nacre-jail"))).args(args).env(MARK, "1");
    Err(Error::system("start again from a read-only mount", command.exec()))
}

/// Whether nobody can write to the file, whatever it is mounted as (chattr(1) `+i`, fs-verity).
fn is_immutable(path: &std::ffi::CStr) -> bool {
    let fixed = StatxAttributes::IMMUTABLE | StatxAttributes::VERITY;
    let stat = rustix::fs::statx(rustix::fs::CWD, path, rustix::fs::AtFlags::empty(), StatxFlags::MODE);
    stat.is_ok_and(|stat| stat.stx_attributes.intersects(fixed))
}
