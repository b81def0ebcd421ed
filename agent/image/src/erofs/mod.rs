//! A layer's directory as one read-only file system: an uncompressed EROFS image (Documentation/filesystems/erofs.rst).
//!
//! The same layer becomes the same bytes, whoever makes them, where and when: names are sorted by their bytes, and of the directory's file system
//! nothing comes into the image, neither inode numbers nor the holes that it happens to have. Content is written as it is met and the table of
//! inodes comes after it, so that every file is read once; memory goes with the largest directories, not with the layer.

mod data;
mod directory;
mod format;
mod source;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use crate::error::{Error, Result};
use crate::unpack::{MAX_DEPTH, MAX_ENTRIES};
use data::{Content, Data, Place, Table};
use directory::{Named, Names};
use format::{BLOCK, Body, INODE, Inode, LINKS_AT, SLOT, Superblock};
use source::Entry;

/// Writes what is below `root` to `image`, an empty file, as a file system of that `uuid`. Returns how many blocks of 4 KiB it has.
///
/// # Errors
/// What can't be read or written, and what the format has no place for: more than 4,000,000 entries, 256 GiB, or 256 KiB of a file's attributes.
pub fn write(root: &Path, image: &File, uuid: [u8; 16]) -> Result<u64> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(root, flags, Mode::empty())
        .map_err(|error| Error::system(format!("open {}", root.display()), error))?;
    let (data, table, links) = (Data::new(image), Table::new()?, HashMap::new());
    let mut writer = Writer { data, table, links, inodes: 0 };
    let root = writer.directory(&dir, Entry::root(&dir)?, None, 0)?;
    let inodes_at = writer.data.table(&writer.table)?;
    let superblock =
        Superblock { root, inodes: u64::from(writer.inodes), blocks: writer.data.blocks(), inodes_at, uuid };
    writer.data.finish(&superblock.bytes())
}

struct Writer<'a> {
    data: Data<'a>,
    table: Table,
    /// Inodes that have several names.
    links: HashMap<(u64, u64), Link>,
    inodes: u32,
}

/// An inode, and how many of its names were met.
struct Link {
    at: u64,
    names: u32,
}

impl Writer<'_> {
    /// Adds a directory and all that is in it; `above` is its parent's inode, which the root is itself. Returns its inode.
    fn directory(&mut self, dir: &OwnedFd, entry: Entry, above: Option<u64>, depth: usize) -> Result<u64> {
        if depth > MAX_DEPTH + 1 {
            return Err(Error::bad_image("directories are nested too deep"));
        }
        let names = Names::new(source::names(dir, MAX_ENTRIES.saturating_sub(self.inodes as usize))?);
        let mut inode = self.inode(&entry, names.size())?;
        let tail = names.size() as usize % BLOCK;
        let inline = is_inline(&inode, tail);
        let at = self.table.reserve(INODE + inode.xattrs.len() + if inline { tail } else { 0 });
        let number = at / SLOT;
        let mut named = vec![Named::default(); names.count()];
        let mut below = Vec::new();
        // What a listing looks at lies together: first the directory's own files, then what is below.
        for ((place, name), named) in names.all().zip(&mut named) {
            let kind = kind(FileType::Directory);
            match name {
                b"." => *named = Named { inode: number, kind },
                b".." => *named = Named { inode: above.unwrap_or(number), kind },
                name => {
                    let about = |error: Error| error.context(shown(name));
                    let entry = Entry::of(dir, name).map_err(about)?;
                    if entry.kind == FileType::Directory {
                        below.push((place, name, entry));
                    } else {
                        let kind = self::kind(entry.kind);
                        *named = Named { inode: self.leaf(dir, name, entry).map_err(about)?, kind };
                    }
                }
            }
        }
        inode.links = 2 + below.len() as u32;
        for (place, name, entry) in below {
            let about = |error: Error| error.context(shown(name));
            let inner = source::open(dir, name, OFlags::DIRECTORY).map_err(about)?;
            let child = self.directory(&inner, entry, Some(number), depth + 1).map_err(about)?;
            if let Some(named) = named.get_mut(place) {
                *named = Named { inode: child, kind: kind(FileType::Directory) };
            }
        }
        let mut content = names.content(&named);
        let body = if inline {
            let tail = content.split_off(content.len() - tail);
            Body::Tail { at: self.data.append(&content)?, tail }
        } else {
            Body::Blocks { at: self.data.append(&content)? }
        };
        self.table.put(&inode.bytes(&body), at)?;
        Ok(number)
    }

    /// Adds what is no directory, unless another name of it was met. Returns its inode.
    fn leaf(&mut self, dir: &OwnedFd, name: &[u8], entry: Entry) -> Result<u64> {
        if let Some(link) = entry.linked.and_then(|linked| self.links.get_mut(&linked)) {
            link.names += 1;
            self.table.put(&link.names.to_le_bytes(), link.at + LINKS_AT)?;
            return Ok(link.at / SLOT);
        }
        let (size, body) = match entry.kind {
            FileType::RegularFile => (entry.size, self.file(&source::file(dir, name)?, &entry)?),
            FileType::Symlink => {
                let target = source::target(dir, name)?;
                (target.len() as u64, Body::Tail { at: 0, tail: target })
            }
            FileType::CharacterDevice | FileType::BlockDevice => (0, Body::Device(entry.device.0, entry.device.1)),
            _ => (0, Body::Empty),
        };
        let inode = self.inode(&entry, size)?;
        let body = self.placed(&inode, body)?;
        let bytes = inode.bytes(&body);
        let at = self.table.reserve(bytes.len());
        self.table.put(&bytes, at)?;
        if let Some(linked) = entry.linked {
            self.links.insert(linked, Link { at, names: 1 });
        }
        Ok(at / SLOT)
    }

    fn file(&mut self, file: &File, entry: &Entry) -> Result<Body> {
        let Content { place, tail } = self.data.file(file, entry.size)?;
        Ok(match place {
            Place::Chunks { power, at } => Body::Chunks { power, at },
            Place::At(at) if tail.is_empty() => Body::Blocks { at },
            Place::At(at) => Body::Tail { at, tail },
        })
    }

    /// A tail that has no room behind its inode goes to a block of its own, which follows the others.
    fn placed(&mut self, inode: &Inode, body: Body) -> Result<Body> {
        match body {
            Body::Tail { at, tail } if !is_inline(inode, tail.len()) => {
                let last = self.data.append(&tail)?;
                let before = inode.size / BLOCK as u64;
                Ok(Body::Blocks { at: if before == 0 { last } else { at } })
            }
            body => Ok(body),
        }
    }

    /// The inode of `entry`, with one name and `size` bytes.
    fn inode(&mut self, entry: &Entry, size: u64) -> Result<Inode> {
        let xattrs = format::xattrs(&entry.xattrs)
            .ok_or_else(|| Error::bad_image("its extended attributes are more than the format takes"))?;
        self.inodes += 1;
        let Entry { mode, uid, gid, mtime, .. } = *entry;
        Ok(Inode { number: self.inodes, mode, uid, gid, mtime, links: 1, size, xattrs })
    }
}

/// Whether what does not fill a block fits behind its inode: both must lie in one block.
fn is_inline(inode: &Inode, tail: usize) -> bool {
    tail > 0 && INODE + inode.xattrs.len() + tail <= BLOCK
}

/// How directories name an inode's type.
fn kind(kind: FileType) -> u8 {
    match kind {
        FileType::RegularFile => 1,
        FileType::Directory => 2,
        FileType::CharacterDevice => 3,
        FileType::BlockDevice => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
        FileType::Unknown => 0,
    }
}

fn shown(name: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(name).chars().take(200).collect::<String>())
}

#[cfg(test)]
mod tests;
