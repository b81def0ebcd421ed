//! Mounts that one container has made and that another is to have as well: a sidecar's file systems.
//!
//! The source must have mounted by the time that the other container begins. It is waited for before that one is made, by the kernel's news of the
//! mounts of a container (`poll` of mountinfo), and what it has mounted is copied into the new one before its program runs.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nacre_protocol::agent::SharedMount;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use tokio::io::Interest;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use super::{Container, stream};
use crate::storage::directory::{self, Directory};
use crate::storage::mountinfo;

/// The most mounts that a container takes over.
const MAX_MOUNTS: usize = 32;

/// How long containers have to mount what others want.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most that is read of a container's list of mounts, which it may make long.
const MAX_LIST: u64 = 4 << 20;

/// `MS_PRIVATE` of mount(2).
const PRIVATE: u64 = 1 << 18;

/// A mount was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense.
    #[error("shared mount {name:?}: {reason}")]
    Invalid {
        /// Its name, cut.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The source has not mounted anything there.
    #[error("shared mount {name:?}: container {container:?} has nothing mounted on {path:?} after {PATIENCE:?}")]
    Missing {
        /// Its name.
        name: String,
        /// The source's name.
        container: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("shared mount {name:?}: {act} {path:?}")]
    System {
        /// Its name.
        name: String,
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A task of ours was ended.
    #[error("a task was ended before it was done")]
    Task,
}

/// A mount to be taken over.
#[derive(Debug)]
pub struct Shared {
    name: String,
    container: String,
    from: PathBuf,
    to: PathBuf,
    /// The source's mount namespace, and what is mounted in it.
    namespace: File,
    mounts: File,
}

/// Judge `wanted`; `find` knows containers by what their pod calls them.
pub fn judge(
    wanted: &[SharedMount],
    find: impl Fn(&str) -> Option<std::sync::Arc<Container>>,
) -> Result<Vec<Shared>, Error> {
    if let Some(excess) = wanted.get(MAX_MOUNTS) {
        return Err(invalid(excess, format!("one of {}; at most {MAX_MOUNTS} are taken", wanted.len())));
    }
    let judge = |wanted: &SharedMount| {
        let path = |text: &str| {
            directory::parse(text).map_err(|reason| invalid(wanted, format!("the path {text:?} {reason}")))
        };
        let (from, to) = (path(&wanted.src_path)?, path(&wanted.dst_path)?);
        let source = find(&wanted.src_ctr);
        let source = source.ok_or_else(|| invalid(wanted, format!("there is no container {:?}", wanted.src_ctr)))?;
        let open = |file: &str| {
            let path = Path::new("/proc").join(source.pid().to_string()).join(file);
            File::open(&path).map_err(|error| system(&wanted.name, "open", &path, error))
        };
        let (namespace, mounts) = (open("ns/mnt")?, open("mountinfo")?);
        // As long as it has not ended, its number was not another's when they were opened.
        if source.has_ended() {
            return Err(invalid(wanted, format!("container {:?} has ended", wanted.src_ctr)));
        }
        Ok(Shared { name: cut(&wanted.name), container: cut(&wanted.src_ctr), from, to, namespace, mounts })
    };
    wanted.iter().map(judge).collect()
}

/// Wait until all are there.
pub async fn wait(wanted: &[Shared]) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    for shared in wanted {
        shared.wait(deadline).await?;
    }
    Ok(())
}

/// Give `wanted` to the container whose first process is `pid`. Blocks.
pub fn give(wanted: &[Shared], pid: i32) -> Result<(), Error> {
    let Some(first) = wanted.first() else { return Ok(()) };
    let path = format!("/proc/{pid}/ns/mnt");
    let failed = |error| system(&first.name, "enter", Path::new(&path), error);
    let target = File::open(&path).map_err(failed)?;
    // A thread that ends, so that no other is moved.
    thread::scope(|scope| {
        let given = scope.spawn(|| {
            nacre_sys::clone::unshare(UnshareFlags::FS.bits().into()).map_err(failed)?;
            wanted.iter().try_for_each(|shared| shared.give(&target))
        });
        given.join().unwrap_or(Err(Error::Task))
    })
}

impl Shared {
    async fn wait(&self, deadline: Instant) -> Result<(), Error> {
        match timeout_at(deadline, self.come()).await {
            Ok(came) => came.map_err(|error| system(&self.name, "wait for a mount on", &self.from, error)),
            Err(_) => {
                let (name, container) = (self.name.clone(), self.container.clone());
                Err(Error::Missing { name, container, path: self.from.clone() })
            }
        }
    }

    async fn come(&self) -> io::Result<()> {
        let news = stream::watch_fd(self.mounts.try_clone()?.into(), Interest::PRIORITY)?;
        loop {
            let (list, from) = (self.mounts.try_clone()?, self.from.clone());
            if spawn_blocking(move || is_mounted(list, &from)).await?? {
                return Ok(());
            }
            news.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }

    /// The thread stays in the target's mount namespace.
    fn give(&self, target: &File) -> Result<(), Error> {
        let failed = |act: &'static str| move |error: io::Error| system(&self.name, act, &self.from, error);
        let enter = |namespace: &File| move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount));
        enter(&self.namespace).map_err(|error| failed("enter the mount namespace that has")(error.into()))?;
        let tree = copy(&self.from).map_err(failed("copy the mount on"))?;
        enter(target).map_err(|error| failed("enter the mount namespace that is to have")(error.into()))?;
        let to = Directory::make(&self.to)
            .map_err(|error| failed("make a place for the mount on")(io::Error::other(error)))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &to, "", flags).map_err(|error| failed("give the mount on")(error.into()))
    }
}

fn is_mounted(mut list: File, at: &Path) -> io::Result<bool> {
    list.rewind()?;
    let mut text = Vec::new();
    list.take(MAX_LIST).read_to_end(&mut text)?;
    Ok(mountinfo::parse(&text).any(|mounted| mounted.at == at))
}

/// What is mounted on `path` and below it, apart from what becomes of the original.
fn copy(path: &Path) -> io::Result<OwnedFd> {
    let found = directory::find(path)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(&found, "", flags)?;
    let private = nacre_sys::mount::MountAttr { propagation: PRIVATE, ..Default::default() };
    nacre_sys::mount::mount_setattr(tree.as_fd(), c"", true, &private)?;
    Ok(tree)
}

fn system(name: &str, act: &'static str, path: &Path, source: io::Error) -> Error {
    Error::System { name: name.into(), act, path: path.into(), source }
}

fn invalid(wanted: &SharedMount, reason: String) -> Error {
    Error::Invalid { name: cut(&wanted.name), reason }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}
