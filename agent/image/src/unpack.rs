//! A layer's archive into a directory.
//!
//! Nothing in the archive is trusted. A path is taken apart into names; its parent is opened by `openat2` inside the
//! layer's root, so that neither `..` nor a symbolic link leads out; the last name is made anew. Whiteouts become what
//! overlayfs takes for them (Documentation/filesystems/overlayfs.rst): a character device 0:0, and the attribute
//! `trusted.overlay.opaque`.

mod tree;

use std::io::BufRead;
use std::path::Path;

use crate::archive::{Archive, Entry, Meta, What};
use crate::error::{Error, Result};
use tree::Tree;

/// The most entries of one layer.
pub(crate) const MAX_ENTRIES: usize = 4_000_000;

/// The longest path, and the longest name, that the kernel takes.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// The deepest path. Who removes a layer holds a descriptor for each directory on the way.
pub(crate) const MAX_DEPTH: usize = 250;

/// Marks of the image specification (layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Unpacks the archive `reader` into the directory `root`, which is empty. Reads no further than the archive's end.
pub(crate) fn unpack(reader: impl BufRead, root: &Path) -> Result<()> {
    let mut tree = Tree::open(root)?;
    let mut archive = Archive::new(reader);
    let mut entries = 0;
    while let Some(entry) = archive.next()? {
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(Error::bad_image(format!("a layer has more than {MAX_ENTRIES} entries")));
        }
        one(&mut tree, &entry, &mut archive)
            .map_err(|error| error.context(format!("unpack {:?}", shown(&entry.path))))?;
    }
    tree.finish()
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

fn one(tree: &mut Tree, entry: &Entry, data: &mut impl BufRead) -> Result<()> {
    let names = names(&entry.path)?;
    let meta = Meta { xattrs: xattrs(&entry.meta), ..entry.meta };
    let Some((name, parent)) = names.split_last() else {
        return match entry.what {
            What::Directory => tree.root_attributes(&meta),
            _ => Err(Error::bad_image("the layer's root is no directory")),
        };
    };
    if name.as_slice() == OPAQUE {
        return tree.opaque(parent);
    }
    if name.starts_with(AUFS) {
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if hidden.is_empty() || matches!(hidden, b"." | b"..") {
            return Err(Error::bad_image("the whiteout hides nothing"));
        }
        return tree.whiteout(parent, hidden);
    }
    match &entry.what {
        What::Directory => tree.directory(parent, name, &meta),
        What::File => tree.file(parent, name, None, data, &meta),
        What::Sparse(map) => tree.file(parent, name, Some(map), data, &meta),
        What::Symlink(target) => tree.symlink(parent, name, target, &meta),
        What::HardLink(target) => {
            let target = self::names(target).map_err(|error| error.context("the hard link's target"))?;
            tree.hard_link(parent, name, &target)
        }
        What::Char(0, 0) => Err(Error::bad_image("the device is a whiteout in disguise")),
        node @ (What::Char(..) | What::Block(..) | What::Fifo) => tree.node(parent, name, node, &meta),
    }
}

/// A path's names. Absolute ones are taken as relative, as every engine does.
fn names(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    if path.len() > MAX_PATH {
        return Err(Error::bad_image("the path is too long"));
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(Error::bad_image("the path leads out of the layer (..)")),
            name if name.len() > MAX_NAME => return Err(Error::bad_image("a name is too long")),
            name if name.contains(&0) => return Err(Error::bad_image("there is a NUL in the path")),
            name => names.push(name.to_vec()),
        }
    }
    if names.len() > MAX_DEPTH {
        return Err(Error::bad_image("the path is too deep"));
    }
    Ok(names)
}

/// Attributes that are the image's to set. `trusted.overlay.…` and `user.overlay.…` would be orders to an overlay;
/// labels belong to the system that built the image.
fn xattrs(meta: &Meta) -> Vec<(Vec<u8>, Vec<u8>)> {
    let theirs = |name: &[u8]| {
        name == b"security.capability"
            || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
            || name.starts_with(b"system.posix_acl_")
    };
    meta.xattrs
        .iter()
        .filter(|(name, _)| theirs(name) && name.len() <= MAX_NAME && !name.contains(&0))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests;
