//! A layer's archive into a directory.
//!
//! Nothing in the archive is trusted. A path is taken apart into names; its parent is opened by `openat2` inside the layer's root, so that
//! neither `..` nor a symbolic link leads out; the last name is made anew. Whiteouts become what overlayfs takes for them
//! (Documentation/filesystems/overlayfs.rst): a character device 0:0, and the attribute `trusted.overlay.opaque`.

mod tree;

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::Timespec;
use tar::{Archive, Entry, EntryType};

use crate::error::{Error, Kind, Result};
use tree::{Attributes, Tree};

/// The most entries of one layer.
const MAX_ENTRIES: usize = 4_000_000;

/// The most bytes that one layer unpacks to.
const MAX_BYTES: u64 = 256 << 30;

/// The longest path, and the longest name, that the kernel takes.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// The largest value of an extended attribute (xattr(7)).
const MAX_XATTR: usize = 64 << 10;

/// Marks of the image specification (layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Unpacks the archive `reader` into the directory `root`, which is empty. Reads no further than the archive's end.
pub(crate) fn unpack(reader: impl Read, root: &Path) -> Result<()> {
    let mut tree = Tree::open(root)?;
    let mut archive = Archive::new(reader);
    let mut bytes = 0u64;
    let entries = archive.entries().map_err(|error| broken(&error))?;
    for (number, entry) in entries.enumerate() {
        let entry = entry.map_err(|error| broken(&error))?;
        bytes = bytes.saturating_add(entry.size());
        if number >= MAX_ENTRIES || bytes > MAX_BYTES {
            return Err(bad(format!("a layer has more than {MAX_ENTRIES} entries or {MAX_BYTES} bytes")));
        }
        one(&mut tree, entry)?;
    }
    tree.finish()
}

fn bad(reason: impl Into<String>) -> Error {
    Error::new(Kind::BadImage, reason)
}

/// An archive that ends early or makes no sense; whether its bytes are at fault shows in their digest.
fn broken(error: &io::Error) -> Error {
    bad(format!("a layer's archive is broken: {error}"))
}

fn one(tree: &mut Tree, mut entry: Entry<'_, impl Read>) -> Result<()> {
    let kind = entry.header().entry_type();
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    let path = entry.path_bytes().into_owned();
    let shown = String::from_utf8_lossy(&path).chars().take(200).collect::<String>();
    let names = names(&path).map_err(|reason| bad(format!("the entry {shown:?} {reason}")))?;
    let act = |error: Error| Error { message: format!("unpack {shown:?}: {}", error.message), ..error };
    let Some((name, parent)) = names.split_last() else {
        // The root itself.
        let attributes = attributes(&mut entry).map_err(act)?;
        return tree.root_attributes(&attributes).map_err(act);
    };
    if name.as_slice() == OPAQUE {
        return tree.opaque(parent).map_err(act);
    }
    if name.starts_with(AUFS) {
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if hidden.is_empty() || matches!(hidden, b"." | b"..") {
            return Err(bad(format!("the whiteout {shown:?} hides nothing")));
        }
        return tree.whiteout(parent, hidden).map_err(act);
    }
    if kind == EntryType::Link {
        let target = entry.link_name_bytes().ok_or_else(|| bad(format!("the hard link {shown:?} leads nowhere")))?;
        let target =
            self::names(&target).map_err(|reason| bad(format!("the hard link {shown:?}: its target {reason}")))?;
        return tree.hard_link(parent, name, &target).map_err(act);
    }
    let attributes = attributes(&mut entry).map_err(act)?;
    let made = match kind {
        EntryType::Directory => tree.directory(parent, name, &attributes),
        EntryType::Symlink => {
            let target =
                entry.link_name_bytes().ok_or_else(|| bad(format!("the symbolic link {shown:?} leads nowhere")))?;
            tree.symlink(parent, name, &target, &attributes)
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            tree.file(parent, name, &mut entry, &attributes)
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or(0);
            let device = (number(entry.header().device_major()), number(entry.header().device_minor()));
            if kind == EntryType::Char && device == (0, 0) {
                return Err(bad(format!("the device {shown:?} is a whiteout in disguise")));
            }
            tree.node(parent, name, kind, device, &attributes)
        }
        other => return Err(bad(format!("the entry {shown:?} is of a kind ({other:?}) that layers don't have"))),
    };
    made.map_err(act)
}

/// A path's names. Absolute ones are taken as relative, as every engine does.
fn names(path: &[u8]) -> std::result::Result<Vec<Vec<u8>>, &'static str> {
    if path.len() > MAX_PATH {
        return Err("has too long a path");
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err("leads out of the layer (..)"),
            name if name.len() > MAX_NAME => return Err("has too long a name"),
            name if name.contains(&0) => return Err("has a NUL in its name"),
            name => names.push(name.to_vec()),
        }
    }
    Ok(names)
}

fn attributes(entry: &mut Entry<'_, impl Read>) -> Result<Attributes> {
    let header = entry.header();
    let id = |field: io::Result<u64>| {
        field.ok().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| bad("its owner is out of range"))
    };
    let mut attributes = Attributes {
        mode: header.mode().map_err(|error| broken(&error))? & 0o7777,
        uid: id(header.uid())?,
        gid: id(header.gid())?,
        mtime: Timespec { tv_sec: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), tv_nsec: 0 },
        xattrs: HashMap::new(),
    };
    let Some(extensions) = entry.pax_extensions().map_err(|error| broken(&error))? else { return Ok(attributes) };
    for extension in extensions {
        let extension = extension.map_err(|error| broken(&error))?;
        let (key, value) = (extension.key_bytes(), extension.value_bytes());
        if key == b"mtime" {
            attributes.mtime = time(value).unwrap_or(attributes.mtime);
        } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| is_taken(name)) {
            if value.len() > MAX_XATTR {
                return Err(bad("an extended attribute is too large"));
            }
            attributes.xattrs.insert(name.to_vec(), value.to_vec());
        }
    }
    Ok(attributes)
}

/// Attributes that are the image's to set. `trusted.overlay.…` would be orders to our own overlay; labels belong to the builder's system.
fn is_taken(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

/// Seconds with a fraction, as pax has them (`1700000000.25`).
fn time(value: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: digits.parse().ok()? })
}

#[cfg(test)]
mod tests;
