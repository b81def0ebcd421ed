//! Files that are read whole, up to a limit.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::error::{Error, Kind, Result};

/// The largest configuration file.
pub(crate) const MAX_TEXT: u64 = 1 << 20;

/// The bytes of a file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let act = || format!("read {}", path.display());
    let file = File::open(path).map_err(|error| Error::system(act(), error))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| Error::system(act(), error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(Kind::BadRequest, format!("{}: longer than {limit} bytes", act())));
    }
    Ok(bytes)
}

/// The text of a configuration file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let text = String::from_utf8(read(path, MAX_TEXT)?);
    text.map_err(|_| Error::new(Kind::BadRequest, format!("read {}: it is no text", path.display())))
}
