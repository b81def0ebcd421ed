//! A directory in the guest, which goes with the last who uses it, unless it was there before the first.

use std::fs;
use std::path::Path;

use nacre_protocol::agent::Storage;

use crate::storage::directory::Directory;
use crate::storage::options::Data;
use crate::storage::undo::{Steps, Undo};
use crate::storage::{Error, parse_options};

/// Make it. Blocks.
pub fn make(storage: &Storage, at: &Path) -> Result<Steps, Error> {
    let options = parse_options(storage, Data::Tmpfs)?;
    let mut steps = Steps::default();
    let was_there = fs::symlink_metadata(at).is_ok();
    let directory = Directory::make(at)?;
    if !was_there {
        steps.push(Undo::Tree(at.into()));
    }
    directory.own(&options, at)?;
    Ok(steps)
}
