//! The root of a container that lives in the runtime's mount namespace: a mount there, which nobody else takes away when the container ends.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::step::{Entry, Step};

/// A mount of ours. Dropping it takes it off, with what is mounted in it.
#[derive(Debug)]
pub(crate) struct SharedRoot(Option<Mounted>);

/// Where it is, and which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    path: PathBuf,
    id: u64,
}

impl SharedRoot {
    /// What `steps` will attach in the runtime's mount namespace, if anything.
    pub(crate) fn of(steps: &[Step]) -> Result<SharedRoot, Error> {
        for step in steps {
            if let Step::OpenRoot { path, tree: Some(tree), entry: Entry::Attach, .. } = step {
                let path = PathBuf::from(path.to_string_lossy().into_owned());
                let id =
                    id_of(tree).map_err(|error| Error::system("look at the mount of the root file system", error))?;
                return Ok(SharedRoot(Some(Mounted { path, id })));
            }
        }
        Ok(SharedRoot(None))
    }

    /// One that was recorded.
    pub(crate) fn recorded(mounted: Option<Mounted>) -> SharedRoot {
        SharedRoot(mounted)
    }

    /// For the record.
    pub(crate) fn mounted(&self) -> Option<&Mounted> {
        self.0.as_ref()
    }

    /// Leaves it where it is.
    pub(crate) fn leave(&mut self) {
        self.0 = None;
    }
}

impl Drop for SharedRoot {
    fn drop(&mut self) {
        let Some(Mounted { path, id }) = self.0.take() else { return };
        // Somebody else's mount may be there: before ours was made, or by now.
        let there = statx(CWD, &path, AtFlags::empty(), StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id);
        if there == Ok(id) {
            let _ = unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW); // there is nobody to tell
        }
    }
}

fn id_of(mount: &OwnedFd) -> Result<u64, rustix::io::Errno> {
    Ok(statx(mount, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}
