//! Copies of the host's files in the guest, made anew when Kubernetes changes a volume (kubelet, `AtomicWriter`: the link `..data` is replaced).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::log::Log;
use super::mounts::Copy;
use crate::guest::Guest;
use crate::volumes::{Copied, copy_tree};

/// What comes within this time is one change.
const TOGETHER: Duration = Duration::from_millis(100);

/// As much of a termination log as Kubernetes takes, whatever the guest says.
const MAX_TERMINATION_LOG: usize = 4096;

/// Copies all of them.
///
/// # Errors
/// A file that can't be read or copied, or too many of them.
pub async fn copy(guest: &Guest, copies: &[Copy]) -> Result<()> {
    let mut copied = Copied::default();
    for copy in copies {
        copy_tree(guest, &copy.from, &copy.to, &mut copied).await?;
    }
    Ok(())
}

/// Copies those that change again whenever they do, until the handle is aborted. Begin before [`copy`]: then no change is missed.
///
/// # Errors
/// A system without inotify(7).
pub fn follow(guest: &Guest, copies: &[Copy], log: &Log) -> Result<Option<AbortHandle>> {
    let live: Vec<Copy> = copies.iter().filter(|copy| copy.live).cloned().collect();
    if live.is_empty() {
        return Ok(None);
    }
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).context("watch volumes")?;
    let mut watched = Vec::with_capacity(live.len());
    for copy in live {
        let changes = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR;
        let act = || format!("watch {}", copy.from.display());
        let number = inotify::add_watch(&inotify, &copy.from, changes).with_context(act)?;
        watched.push((number, copy));
    }
    let inotify = asynchronous(inotify).context("watch volumes")?;
    let (guest, log) = (guest.clone(), log.clone());
    let task = tokio::spawn(async move {
        while let Ok(changed) = changes(&inotify).await {
            sleep(TOGETHER).await;
            let more = read(&inotify).unwrap_or_default();
            for (number, copy) in &watched {
                if !changed.contains(number) && !more.contains(number) {
                    continue;
                }
                if let Err(error) = copy_again(&guest, copy).await {
                    log.warn(&format!("copy {} again: {error:#}", copy.from.display()));
                }
            }
        }
    });
    Ok(Some(task.abort_handle()))
}

#[expect(deprecated, reason = "the other way is unsafe, for types whose descriptor may change; an OwnedFd's does not")]
fn asynchronous(inotify: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(inotify, Interest::READABLE)
}

async fn copy_again(guest: &Guest, copy: &Copy) -> Result<()> {
    copy_tree(guest, &copy.from, &copy.to, &mut Copied::default()).await
}

async fn changes(inotify: &AsyncFd<OwnedFd>) -> io::Result<Vec<i32>> {
    loop {
        let mut ready = inotify.readable().await?;
        let changed = read(inotify)?;
        if !changed.is_empty() {
            return Ok(changed);
        }
        ready.clear_ready();
    }
}

/// The watches that have something to tell now.
fn read(inotify: &AsyncFd<OwnedFd>) -> io::Result<Vec<i32>> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(inotify.get_ref(), &mut buffer);
    let mut changed = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => changed.push(event.wd()),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(changed),
            Err(error) => return Err(error.into()),
        }
        if reader.is_buffer_empty() && changed.len() >= 1024 {
            return Ok(changed);
        }
    }
}

/// What a container wrote to its termination log, to where the kubelet looks for it.
///
/// # Errors
/// A guest that has none, or a file that can't be written.
pub async fn bring_back(guest: &Guest, id: &str, to: &Path) -> Result<()> {
    let mut text = guest.termination_log(id).await?;
    let end = text.floor_char_boundary(MAX_TERMINATION_LOG);
    text.truncate(end);
    std::fs::write(to, text).with_context(|| format!("write {}", to.display()))
}
