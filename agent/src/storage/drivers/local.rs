//! A directory in the guest, which goes with the last who uses it.

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
    let directory = Directory::make(at)?;
    steps.push(Undo::Tree(at.into()));
    directory.own(&options, at)?;
    Ok(steps)
}
