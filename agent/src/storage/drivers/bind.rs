//! What is there already, in one more place.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nacre_protocol::agent::Storage;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::storage::directory::{self, Directory};
use crate::storage::options::{Data, Options};
use crate::storage::undo::{Steps, Undo};
use crate::storage::{Error, invalid, parse_options};

/// Bind the source on the mount point. Blocks.
pub fn make(storage: &Storage, at: &Path) -> Result<Steps, Error> {
    let source =
        directory::parse(&storage.source).map_err(|reason| invalid(storage, format!("the source {reason}")))?;
    let options = parse_options(storage, Data::Tmpfs)?;
    let recursive = storage.options.iter().any(|option| option == "rbind");
    bind(&source, at, &options, recursive)
}

/// Bind `source`, a directory or a file, on `at`. It has its options before anybody sees it.
pub fn bind(source: &Path, at: &Path, options: &Options, recursive: bool) -> Result<Steps, Error> {
    let failed = |error| Error::mount(source, at, "bind", error);
    let found = directory::find(source).map_err(failed)?;
    let tree = detached(&found, options, recursive).map_err(failed)?;
    let mut steps = Steps::default();
    let target: OwnedFd = match FileType::from_raw_mode(fstat(&found).map_err(failed)?.st_mode) {
        FileType::Directory => {
            let target = Directory::make(at)?;
            steps.push(Undo::Empty(at.into()));
            target.into()
        }
        FileType::Symlink => return Err(failed(Errno::LOOP)),
        _ => {
            let (target, is_new) = make_file(at)?;
            if is_new {
                steps.push(Undo::EmptyFile(at.into()));
            }
            target
        }
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &target, "", flags).map_err(failed)?;
    steps.push(Undo::Mount(at.into()));
    Ok(steps)
}

fn detached(found: &OwnedFd, options: &Options, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = open_tree(found, "", flags)?;
    let attributes = options.attributes();
    if !attributes.is_empty() {
        nacre_sys::mount::mount_setattr(tree.as_fd(), c"", recursive, &attributes)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    Ok(tree)
}

/// A file to mount a file on, and whether it was not there before.
fn make_file(at: &Path) -> Result<(OwnedFd, bool), Error> {
    let (Some(above), Some(name)) = (at.parent(), at.file_name()) else {
        return Err(Error::system("make file", at, Errno::ISDIR));
    };
    let above = Directory::make(above)?;
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |more| openat(&above, name, flags | more, Mode::from_raw_mode(0o644));
    let opened = match open(OFlags::EXCL) {
        Err(Errno::EXIST) => open(OFlags::empty()).map(|file| (file, false)),
        made => made.map(|file| (file, true)),
    };
    opened.map_err(|error| Error::system("make file", at, error))
}
