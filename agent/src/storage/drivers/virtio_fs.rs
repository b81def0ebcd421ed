//! Directories that the host shares.

use std::path::Path;

use nacre_protocol::agent::Storage;

use crate::storage::options::Data;
use crate::storage::undo::Steps;
use crate::storage::{Error, drivers, invalid, mountinfo, parse_options};

const VIRTIOFS: &str = "virtiofs";

/// The longest tag (virtio 1.2, 5.11.4).
const MAX_TAG: usize = 36;

/// Mount the share whose tag is the source, or bind what is in a share that is mounted. Blocks.
pub fn make(storage: &Storage, at: &Path) -> Result<Steps, Error> {
    match storage.fstype.as_str() {
        VIRTIOFS | "" => mount(storage, at),
        "bind" => drivers::bind::make(storage, at),
        other => Err(invalid(storage, format!("file system type {other:?} is not supported; {VIRTIOFS} and bind are"))),
    }
}

fn mount(storage: &Storage, at: &Path) -> Result<Steps, Error> {
    let tag = storage.source.as_str();
    if tag.is_empty() || tag.len() > MAX_TAG || tag.contains(['/', '\0']) {
        return Err(invalid(storage, format!("source: a tag of 1 to {MAX_TAG} bytes is expected")));
    }
    let options = parse_options(storage, Data::Any)?;
    let mounted = mountinfo::all().map_err(|error| Error::system("read what is mounted to mount on", at, error))?;
    // Whoever mounted it before has it end.
    if mounted.iter().rfind(|mounted| mounted.at == at).is_some_and(|m| m.kind == VIRTIOFS && m.source == *tag) {
        return Ok(Steps::default());
    }
    drivers::mount(Path::new(tag), at, VIRTIOFS, &options)
}
