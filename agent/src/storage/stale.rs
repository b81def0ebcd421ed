//! Mounts of files that the host has removed from its share.
//!
//! The host's server keeps a file for as long as the guest knows it. To ask for it is to notice that it is gone: what nobody can use any more is
//! unmounted, and the server lets go of the rest.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use tokio::task::spawn_blocking;

use super::mountinfo::{self, Mounted};
use super::mounts::Mounts;
use super::{Error, undo};

/// What hosts share: virtiofs, and FUSE, over which it goes.
const SHARED: [&str; 2] = ["virtiofs", "fuse"];

/// The most mounts that are looked at.
const MAX_MOUNTS: usize = 4096;

/// How long the host has to answer for all of them. It may answer never, and keeps a thread as long as that.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmount what is stale below `root`, and say how many there were.
pub async fn sweep(mounts: &Arc<Mounts>, root: &'static Path) -> Result<usize, Error> {
    if mounts.sweeping.swap(true, SeqCst) {
        return Err(Error::Sweeping);
    }
    let swept = mounts.clone();
    let sweeping = spawn_blocking(move || {
        let result = unmount_stale(root);
        swept.sweeping.store(false, SeqCst);
        result
    });
    let swept = tokio::time::timeout(PATIENCE, sweeping).await.map_err(|_| Error::Silent(PATIENCE))?;
    swept.map_err(|_| Error::Task)?
}

fn unmount_stale(root: &Path) -> Result<usize, Error> {
    let mounted = mountinfo::all().map_err(|error| Error::system("read what is mounted below", root, error))?;
    // What the guest itself has mounted there is not stale, whatever the host says of what leads there.
    let is_shared =
        |mounted: &&Mounted| SHARED.contains(&&*mounted.kind) && mounted.at.starts_with(root) && mounted.at != root;
    let below = mounted.iter().rev().filter(is_shared);
    // Those that were mounted last come first: nothing is mounted on them.
    Ok(below.take(MAX_MOUNTS).filter(|mounted| is_stale(&mounted.at) && detach(&mounted.at)).count())
}

/// The host is asked, whatever the kernel remembers.
fn is_stale(at: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_FORCE_SYNC;
    matches!(statx(CWD, at, flags, StatxFlags::BASIC_STATS), Err(Errno::STALE | Errno::NOTCONN))
}

fn detach(at: &Path) -> bool {
    match undo::detach(at) {
        Ok(()) => {
            tracing::info!(?at, "a mount whose file the host has removed is gone");
            true
        }
        Err(error) => {
            tracing::warn!(?at, %error, "a mount whose file the host has removed stays");
            false
        }
    }
}
