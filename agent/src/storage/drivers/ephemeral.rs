//! File systems in memory.

use std::path::Path;

use nacre_protocol::agent::Storage;
use rustix::fs::{FsWord, statfs};
use rustix::mount::mount_remount;

use crate::storage::directory::Directory;
use crate::storage::mounts::Mounts;
use crate::storage::options::{Data, Options};
use crate::storage::undo::Steps;
use crate::storage::{EPHEMERAL, Error, check_count, checked_path, drivers, invalid, parse_options};

const TMPFS: &str = "tmpfs";

/// What statfs(2) says of a tmpfs.
const TMPFS_MAGIC: FsWord = 0x0102_1994;

/// A file system of its own. Blocks.
pub fn make(storage: &Storage, at: &Path) -> Result<Steps, Error> {
    match storage.fstype.as_str() {
        TMPFS | "" => {
            let options = parse_options(storage, Data::Tmpfs)?;
            let steps = drivers::mount(Path::new(TMPFS), at, TMPFS, &options)?;
            drivers::own(&options, at)?;
            Ok(steps)
        }
        "hugetlbfs" => drivers::hugetlb::mount(storage, at),
        other => Err(invalid(storage, format!("file system type {other:?} is not supported; tmpfs and hugetlbfs are"))),
    }
}

/// Give storages that are mounted already the options of `storages`. All are judged before the first is changed. Blocks.
pub fn update(storages: &[Storage], mounts: &Mounts) -> Result<(), Error> {
    check_count(storages)?;
    let judge = |storage: &Storage| {
        if storage.driver != EPHEMERAL {
            return Err(invalid(storage, format!("only those of driver {EPHEMERAL:?} can be updated")));
        }
        Ok((checked_path(storage)?, parse_options(storage, Data::Tmpfs)?))
    };
    let judged: Vec<_> = storages.iter().map(judge).collect::<Result<_, _>>()?;
    storages.iter().zip(&judged).try_for_each(|(storage, (at, options))| {
        let remounted = mounts.with(at, EPHEMERAL, || remount(storage, at, options));
        remounted.unwrap_or_else(|| Err(invalid(storage, "no such storage is mounted")))
    })
}

/// Huge pages are reserved once.
fn remount(storage: &Storage, at: &Path, options: &Options) -> Result<(), Error> {
    let failed = |error| Error::system("mount anew, with other options,", at, error);
    let directory = Directory::make(at)?;
    if statfs(directory.path()).map_err(failed)?.f_type != TMPFS_MAGIC {
        return Err(invalid(storage, "what is mounted is no tmpfs"));
    }
    mount_remount(directory.path(), options.flags, options.data().as_c_str()).map_err(failed)
}
