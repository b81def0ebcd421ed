//! Waiting for a socket to appear, by the kernel's word.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::container::stream::watch_fd;

/// A socket that is not there yet.
#[derive(Debug)]
pub struct Awaited {
    path: PathBuf,
    changes: AsyncFd<OwnedFd>,
}

impl Awaited {
    /// Watch for `path`, where nothing is left of an earlier socket. Its directory is made if there is none, as the user's who
    /// will put it there.
    pub fn new(path: &Path, uid: u32, gid: u32) -> io::Result<Awaited> {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if !directory.exists() {
            fs::create_dir_all(directory)?;
            chown(directory, Some(uid), Some(gid))?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&changes, directory, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)?;
        Ok(Awaited { path: path.into(), changes: watch_fd(changes, Interest::READABLE)? })
    }

    /// Waits until it is there.
    pub async fn appears(&self) -> io::Result<()> {
        let is_there = || fs::symlink_metadata(&self.path).is_ok_and(|file| file.file_type().is_socket());
        while !is_there() {
            let mut ready = self.changes.readable().await?;
            let mut space = [MaybeUninit::uninit(); 4096];
            // What has changed is looked up, so the events only have to go.
            match rustix::io::read(self.changes.get_ref(), &mut space) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
