//! File systems in memory.

use std::ffi::CString;
use std::path::Path;

use nacre_protocol::agent::Storage;
use rustix::mount::mount_remount;

use crate::storage::directory::Directory;
use crate::storage::mounts::Mounts;
use crate::storage::options::Options;
use crate::storage::undo::{Steps, Undo};
use crate::storage::{EPHEMERAL, Error, check_count, checked_path, invalid, parse_options};

/// A tmpfs of its own. Blocks.
pub fn mount(storage: &Storage, at: &Path) -> Result<Steps, Error> {
    if !matches!(storage.fstype.as_str(), "tmpfs" | "") {
        return Err(invalid(storage, format!("file system type {:?} is not supported; tmpfs is", storage.fstype)));
    }
    let options = parse_options(storage)?;
    let data = data_of(storage, &options)?;
    let mut steps = Steps::default();
    let directory = Directory::make(at)?;
    rustix::mount::mount("tmpfs", directory.path(), "tmpfs", options.flags, data.as_c_str())
        .map_err(|error| Error::system("mount tmpfs on", at, error))?;
    steps.push(Undo::Mount(at.into()));
    // Opened anew, as the mount covers the directory.
    Directory::make(at)?.own(&options, at)?;
    Ok(steps)
}

/// Give storages that are mounted already the options of `storages`. All are judged before the first is changed. Blocks.
pub fn update(storages: &[Storage], mounts: &Mounts) -> Result<(), Error> {
    check_count(storages)?;
    let judge = |storage: &Storage| {
        if storage.driver != EPHEMERAL {
            return Err(invalid(storage, format!("only those of driver {EPHEMERAL:?} can be updated")));
        }
        Ok((checked_path(storage)?, parse_options(storage)?))
    };
    let judged: Vec<_> = storages.iter().map(judge).collect::<Result<_, _>>()?;
    storages.iter().zip(&judged).try_for_each(|(storage, (at, options))| {
        let remounted = mounts.with(at, EPHEMERAL, || remount(storage, at, options));
        remounted.unwrap_or_else(|| Err(invalid(storage, "no such storage is mounted")))
    })
}

fn remount(storage: &Storage, at: &Path, options: &Options) -> Result<(), Error> {
    let (directory, data) = (Directory::make(at)?, data_of(storage, options)?);
    mount_remount(directory.path(), options.flags, data.as_c_str())
        .map_err(|error| Error::system("mount anew, with other options,", at, error))
}

fn data_of(storage: &Storage, options: &Options) -> Result<CString, Error> {
    CString::new(options.data.as_str()).map_err(|_| invalid(storage, "an option holds a NUL"))
}
