//! What the parent makes for its child beforehand: everything outside of the container's root is found with the runtime's eyes and rights,
//! which root of a user namespace has not. The mounts are detached; the child attaches them.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

use crate::copy_up;
use crate::error::Error;
use crate::step::{Entry, IdSource, Maps, Mount, Source, Step, clone_tree, errno, new_mount};

/// Opens what `steps` name.
///
/// # Errors
/// As if the step itself had failed.
pub(crate) fn prepare(steps: &mut [Step]) -> Result<(), Error> {
    let mut root = None;
    for step in steps {
        let done = match step {
            Step::OpenRoot { entry: Entry::Chroot, .. } => Ok(()),
            Step::OpenRoot { path, tree, .. } => clone_tree(path, true).and_then(|cloned| {
                root = Some(rustix::io::fcntl_dupfd_cloexec(&cloned, 3)?);
                *tree = Some(cloned);
                Ok(())
            }),
            Step::Mount(mount) => prepare_mount(mount, root.as_ref()),
            _ => Ok(()),
        };
        done.map_err(|error| Error::Step { step: step.to_string(), source: error.into() })?;
    }
    Ok(())
}

fn prepare_mount(mount: &mut Mount, root: Option<&OwnedFd>) -> Result<(), Errno> {
    match &mount.source {
        // What is inside the root is there once the mounts before it are.
        Source::Bind { inside: Some(_), .. } => {}
        Source::Bind { path, recursive, ids, .. } => {
            let tree = clone_tree(path, *recursive)?;
            if let Some(ids) = ids {
                let namespace = match &ids.from {
                    IdSource::Maps(maps) => user_namespace(maps)?,
                    IdSource::Namespace(path) => std::fs::File::open(path).map_err(errno)?.into(),
                };
                nacre_sys::mount::map_ids(tree.as_fd(), ids.recursive, namespace.as_fd()).map_err(errno)?;
            }
            mount.tree = Some(tree);
        }
        Source::New { kind, options, copy: true, .. } => {
            let tree = new_mount(kind, options, None)?;
            let has_mode = options.iter().any(|(key, _)| key.as_c_str() == c"mode");
            let root = root.ok_or(Errno::BADF)?;
            copy_up::copy_up(root.as_fd(), mount.target.path(), tree.as_fd(), has_mode)?;
            mount.tree = Some(tree);
        }
        Source::New { .. } => {}
    }
    Ok(())
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
        .and_then(|()| std::fs::File::open(format!("/proc/{}/ns/user", child.pid)).map(OwnedFd::from));
    let _ = rustix::net::send(&ours, &[1], rustix::net::SendFlags::NOSIGNAL); // whatever came of it, the process ends
    let _ = crate::exit::reap(child.pidfd.as_fd());
    namespace.map_err(errno)
}

/// Writes the mappings of the user namespace into which the child `pid` was born.
pub(crate) fn write_maps(pid: i32, maps: &Maps) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{pid}/uid_map"), &maps.uids)?;
    std::fs::write(format!("/proc/{pid}/gid_map"), &maps.gids)
}
