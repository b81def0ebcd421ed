//! The drivers, one file each.

pub mod bind;
pub mod block;
pub mod ephemeral;
pub mod hugetlb;
pub mod local;
pub mod multi_layer;
pub mod overlayfs;
pub mod virtio_fs;
pub mod watchable;

use std::path::{Path, PathBuf};

use nacre_protocol::agent::Storage;

use super::directory::Directory;
use super::options::Options;
use super::undo::{Steps, Undo};
use super::verity::Verity;
use super::{Error, invalid};

/// Mount `source` on `at`, a directory that is made if it is missing. Blocks.
fn mount(source: &Path, at: &Path, kind: &str, options: &Options) -> Result<Steps, Error> {
    let mut steps = Steps::default();
    let target = Directory::make(at)?;
    steps.push(Undo::Empty(at.into()));
    rustix::mount::mount(source, target.path(), kind, options.flags, options.data().as_c_str())
        .map_err(|error| Error::mount(source, at, kind, error))?;
    steps.push(Undo::Mount(at.into()));
    Ok(steps)
}

/// What is to be mounted of `disk`: with the root hash that the host has given, what of it stands for that; devices are called `name`. Blocks.
fn verified(storage: &Storage, disk: &Path, name: &str, steps: &mut Steps) -> Result<Option<PathBuf>, Error> {
    let verity = Verity::of_options(&storage.options).map_err(|reason| invalid(storage, reason))?;
    let Some(verity) = verity else { return Ok(None) };
    let mapped = verity.map(name, disk).map_err(|error| Error::system("verify", disk, error))?;
    let path = mapped.path.clone();
    steps.push(Undo::Value(Box::new(mapped)));
    Ok(Some(path))
}

/// Give the root of what is mounted on `at` the mode and the group that are asked for.
fn own(options: &Options, at: &Path) -> Result<(), Error> {
    // Opened anew, as the mount covers the directory.
    Directory::make(at)?.own(options, at)
}
