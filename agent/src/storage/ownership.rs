//! A volume's group: who may read and write what is in it, as Kubernetes' `fsGroup` has it.
//!
//! A volume's content is a container's or the host's. No link is followed, nothing beyond the volume's own file system is touched, and there is an
//! end to how much is looked at.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nacre_protocol::agent::FSGroup;
use nacre_protocol::types::FSGroupChangePolicy;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, chmodat, chownat, fstat, openat, openat2,
};
use rustix::io::Errno;

use super::Error;
use super::directory::{Directory, proc_path};

/// The most files and directories of a volume.
const MAX_FILES: usize = 1 << 20;

/// How deep directories may lie in each other: each takes a descriptor while it is looked at.
const MAX_DEPTH: usize = 256;

/// What the group may do with files, and with those of a volume that is not written to.
const READ_WRITE: u32 = 0o660;
const READ: u32 = 0o440;

/// For directories: to enter them, and that what is made in them is the group's.
const DIRECTORY: u32 = 0o2110;

/// A walk through a volume.
struct Walk {
    group: Gid,
    mask: u32,
    files: usize,
}

/// Give the volume that is mounted on `at` to `group`. Blocks.
pub fn apply(at: &Path, group: &FSGroup, read_only: bool) -> Result<(), Error> {
    let failed = |error: Errno| Error::system("give to its group", at, reason(error));
    if group.group_id == u32::MAX {
        return Err(failed(Errno::INVAL)); // to chown(2) it is no group
    }
    let root = Directory::make(at)?.readable().map_err(failed)?;
    let mask = if read_only { READ } else { READ_WRITE };
    let stat = fstat(&root).map_err(failed)?;
    let wanted = mask | DIRECTORY;
    let as_wanted = stat.st_gid == group.group_id && stat.st_mode & wanted == wanted;
    if as_wanted && group.group_change_policy.enum_value() == Ok(FSGroupChangePolicy::OnRootMismatch) {
        return Ok(());
    }
    let mut walk = Walk { group: Gid::from_raw(group.group_id), mask, files: 0 };
    walk.directory(root).map_err(failed)
}

fn reason(error: Errno) -> io::Error {
    match error {
        Errno::TOOBIG => io::Error::other(format!("it has more than {MAX_FILES} files, or {MAX_DEPTH} levels")),
        error => error.into(),
    }
}

impl Walk {
    /// The root comes last: until then it says that there is something left to do.
    fn directory(&mut self, root: OwnedFd) -> Result<(), Errno> {
        let mut open = vec![(Dir::read_from(&root)?, root)];
        while let Some((entries, directory)) = open.last_mut() {
            let Some(entry) = entries.read() else {
                own(&*directory, self.group, self.mask | DIRECTORY)?;
                open.pop();
                continue;
            };
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            self.files += 1;
            if self.files > MAX_FILES || open.len() > MAX_DEPTH {
                return Err(Errno::TOOBIG);
            }
            let Some((_, directory)) = open.last() else { break };
            if let Some(below) = self.entry(directory, entry.file_name())? {
                open.push((Dir::read_from(&below)?, below));
            }
        }
        Ok(())
    }

    /// What is to be entered, if it is.
    fn entry(&self, directory: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Neither a link nor another file system.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let found = match openat2(directory, name, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT | Errno::XDEV) => return Ok(None),
            found => found?,
        };
        match FileType::from_raw_mode(fstat(&found)?.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                Ok(Some(openat(&found, ".", flags, Mode::empty())?))
            }
            FileType::Symlink => chownat(&found, "", None, Some(self.group), AtFlags::EMPTY_PATH).map(|()| None),
            _ => own(&found, self.group, self.mask).map(|()| None),
        }
    }
}

/// The kernel takes set-user-ID from a file whose group changes; it is not given back.
fn own(file: impl AsFd, group: Gid, mask: u32) -> Result<(), Errno> {
    chownat(&file, "", None, Some(group), AtFlags::EMPTY_PATH)?;
    let Stat { st_mode, .. } = fstat(&file)?;
    chmodat(CWD, proc_path(&file), Mode::from_raw_mode(st_mode & 0o7777 | mask), AtFlags::empty())
}
