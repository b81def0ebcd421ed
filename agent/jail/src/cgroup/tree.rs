//! A cgroup as a directory: made, listed, removed. A container that may write to its cgroup can make any tree below it, so that is walked
//! by descriptor, never by a path that could grow too long, and with one or two of them open, however deep it is.

use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// How deep below a cgroup its processes are looked for. Those that are deeper are found when they are to end, not when they are to be listed.
const LISTED_TO_DEPTH: u32 = 32;

/// Makes the cgroup, and those above it; true when it is new.
pub(super) fn make(directory: &Path) -> std::io::Result<bool> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(directory.parent().unwrap_or(directory))?;
            fs::create_dir(directory).map(|()| true)
        }
        result => result.map(|()| true),
    }
}

/// Every process in the cgroup and below it.
pub(super) fn processes(directory: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    if let Ok(directory) = open(CWD, directory) {
        list(directory.as_fd(), 0, &mut pids);
    }
    pids
}

fn list(directory: BorrowedFd<'_>, depth: u32, pids: &mut Vec<i32>) {
    pids.extend(members(directory));
    if depth == LISTED_TO_DEPTH {
        return;
    }
    for name in children(directory) {
        if let Ok(child) = open(directory, name.as_c_str()) {
            list(child.as_fd(), depth + 1, pids);
        }
    }
}

/// Removes the cgroup and what is below it, which may be nothing. Processes that are in the way are killed; they may take a while to end.
///
/// # Errors
/// `EBUSY` while there are processes.
pub(super) fn remove(directory: &Path) -> Result<(), Errno> {
    match unlinkat(CWD, directory, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(error) => return Err(error),
    }
    let mut here = match open(CWD, directory) {
        Err(Errno::NOENT) => return Ok(()),
        here => here?,
    };
    let mut way: Vec<CString> = Vec::new();
    loop {
        if let Some(child) = children(here.as_fd()).into_iter().next() {
            here = open(&here, child.as_c_str())?;
            way.push(child);
            continue;
        }
        kill_members(here.as_fd());
        let Some(name) = way.pop() else { break };
        here = open(&here, c"..")?;
        unlinkat(&here, name.as_c_str(), AtFlags::REMOVEDIR)?;
    }
    unlinkat(CWD, directory, AtFlags::REMOVEDIR)
}

fn open(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn children(directory: BorrowedFd<'_>) -> Vec<CString> {
    let entries = Dir::read_from(directory).into_iter().flatten().flatten();
    let is_child = |name: &std::ffi::CStr| name != c"." && name != c"..";
    entries
        .filter(|entry| entry.file_type() == FileType::Directory && is_child(entry.file_name()))
        .map(|entry| entry.file_name().to_owned())
        .collect()
}

fn members(directory: BorrowedFd<'_>) -> Vec<i32> {
    let file = openat(directory, c"cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let text = file.map_err(Into::into).and_then(|file| std::io::read_to_string(fs::File::from(file)));
    text.unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

fn kill_members(directory: BorrowedFd<'_>) {
    for pid in members(directory).into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL); // it may have ended meanwhile
    }
}
