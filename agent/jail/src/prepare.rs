//! What the parent makes for its child: everything outside of the container's root is found with the runtime's rights, which root of a user
//! namespace has not. The mounts are detached; the child attaches them.
//!
//! They are made beforehand, but for a user namespace: there what is the host's must be found in the child's mount namespace, where the kernel
//! has locked it (mount_namespaces(7), "Restrictions on mount namespaces").

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::copy_up;
use crate::error::Error;
use crate::step::{Entry, IdMap, IdSource, Maps, Source, Step, clone_tree, errno, new_mount};

/// A mount of the runtime's to be copied.
#[derive(Debug)]
pub(crate) struct Wanted {
    path: CString,
    recursive: bool,
    /// The user namespace through which its owners are shown, and whether also below it.
    ids: Option<(OwnedFd, bool)>,
    /// The step that wants it.
    step: String,
}

impl Wanted {
    fn of(step: &Step) -> Result<Option<Wanted>, Errno> {
        let name = step.to_string();
        let wanted = |path: &CString, recursive, ids| Wanted { path: path.clone(), recursive, ids, step: name };
        Ok(match step {
            Step::OpenRoot { entry: Entry::Chroot, .. } => None,
            Step::OpenRoot { path, .. } => Some(wanted(path, true, None)),
            Step::Mount(mount) => match &mount.source {
                // What is inside the root is there once the mounts before it are.
                Source::Bind { path, recursive, ids, inside: None } => {
                    let ids =
                        ids.as_ref().map(|ids| Ok::<_, Errno>((namespace_of(ids)?, ids.recursive))).transpose()?;
                    Some(wanted(path, *recursive, ids))
                }
                _ => None,
            },
            _ => None,
        })
    }

    fn find(&self) -> Result<OwnedFd, Error> {
        let find = || {
            let tree = clone_tree(&self.path, self.recursive)?;
            if let Some((namespace, recursive)) = &self.ids {
                nacre_sys::mount::map_ids(tree.as_fd(), *recursive, namespace.as_fd()).map_err(errno)?;
            }
            Ok(tree)
        };
        find().map_err(|error: Errno| Error::Step { step: self.step.clone(), source: error.into() })
    }
}

/// Makes what `steps` need. What has to wait for the child's mount namespace is returned: it is for [`find_inside`].
///
/// # Errors
/// As if the step itself had failed. No more than `room` bytes are copied.
pub(crate) fn prepare(steps: &mut [Step], room: Option<u64>) -> Result<Vec<Wanted>, Error> {
    let later = steps.iter().any(|step| matches!(step, Step::TakeSources));
    let mut all = Vec::new();
    let mut copies = Copies { root: None, left: room };
    for step in steps {
        let failed = |step: &Step, error: Errno| Error::Step { step: step.to_string(), source: error.into() };
        let wanted = Wanted::of(step).map_err(|error| failed(step, error))?;
        if let Some(wanted) = wanted {
            if later {
                all.push(wanted);
            } else if let Some(slot) = step.source() {
                *slot = Some(wanted.find()?);
            }
        }
        copies.make(step).map_err(|error| failed(step, error))?;
    }
    Ok(all)
}

/// File systems that start with a copy of what they cover.
struct Copies {
    root: Option<CString>,
    left: Option<u64>,
}

impl Copies {
    fn make(&mut self, step: &mut Step) -> Result<(), Errno> {
        match step {
            Step::OpenRoot { path, .. } => self.root = Some(path.clone()),
            Step::Mount(mount) => {
                if let Source::New { kind, options, copy: true, .. } = &mount.source {
                    let tree = new_mount(kind, options, None)?;
                    let has_mode = options.iter().any(|(key, _)| key.as_c_str() == c"mode");
                    let root = self.root.as_deref().ok_or(Errno::BADF)?;
                    let root =
                        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                    copy_up::copy_up(root.as_fd(), mount.target.path(), tree.as_fd(), has_mode, &mut self.left)?;
                    mount.tree = Some(tree);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Finds what is wanted in the mount namespace of the process `pid`. A thread goes there, for one process is in one.
///
/// # Errors
/// As if the step itself had failed.
pub(crate) fn find_inside(pid: i32, all: &[Wanted]) -> Result<Vec<OwnedFd>, Error> {
    let go = || {
        let fail = |error: std::io::Error| Error::system("enter a container's mount namespace", error);
        let namespace = File::open(format!("/proc/{pid}/ns/mnt")).map_err(fail)?;
        nacre_sys::clone::unshare(libc::CLONE_FS as u64).map_err(fail)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).map_err(|e| fail(e.into()))?;
        all.iter().map(Wanted::find).collect()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, go);
        let thread = thread.map_err(|error| Error::system("start a thread", error))?;
        thread.join().map_err(|_| Error::Setup("a thread of the runtime's ended"))?
    })
}

fn namespace_of(ids: &IdMap) -> Result<OwnedFd, Errno> {
    match &ids.from {
        IdSource::Maps(maps) => user_namespace(maps),
        IdSource::Namespace(path) => File::open(path).map(OwnedFd::from).map_err(errno),
    }
}

/// A user namespace with these mappings. It needs a process to be born in, which ends when its descriptor has been taken.
fn user_namespace(maps: &Maps) -> Result<OwnedFd, Errno> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let wait = || {
        let _ = crate::channel::retry(|| rustix::net::recv(&theirs, &mut [0][..], RecvFlags::empty()));
        0
    };
    let child = crate::launch::bare_child(libc::CLONE_NEWUSER as u64, wait).map_err(errno)?;
    let namespace = write_maps(child.pid, maps)
        .and_then(|()| File::open(format!("/proc/{}/ns/user", child.pid)).map(OwnedFd::from));
    let _ = rustix::net::send(&ours, &[1], rustix::net::SendFlags::NOSIGNAL); // whatever came of it, the process ends
    let _ = crate::exit::reap(child.pidfd.as_fd());
    namespace.map_err(errno)
}

/// Writes the mappings of the user namespace into which the child `pid` was born.
pub(crate) fn write_maps(pid: i32, maps: &Maps) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{pid}/uid_map"), &maps.uids)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), &maps.gids)
}
