//! The image's blocks of data, one after the other, and the table of inodes, which grows beside them until their number is known.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::format::{BLOCK, HOLE, SLOT, XATTR_HEADER};
use crate::error::{Error, Result};
use crate::ready::MAX_BLOCKS;

/// What is read and written at once, and the smallest hole that is told from data.
const PIECE: usize = 64 << 10;

/// The most chunks of a file. Larger files have larger chunks.
const MAX_CHUNKS: u64 = 1 << 16;

/// What is compared with data to find holes.
static ZEROS: [u8; PIECE] = [0; PIECE];

/// The blocks of an image from the second on. The first is the superblock.
#[derive(Debug)]
pub(super) struct Data<'a> {
    image: &'a File,
    blocks: u64,
    buffer: Vec<u8>,
}

/// Where a file's content is.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) place: Place,
    /// What does not fill a block, if it isn't part of a chunk.
    pub(super) tail: Vec<u8>,
}

/// Where a file's whole blocks are.
#[derive(Debug)]
pub(super) enum Place {
    /// From this block on.
    At(u32),
    /// In chunks of as many blocks as two to this power.
    Chunks { power: u32, at: Vec<u32> },
}

fn fail(act: &str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::system(act, error)
}

impl<'a> Data<'a> {
    pub(super) fn new(image: &'a File) -> Data<'a> {
        Data { image, blocks: 1, buffer: vec![0; PIECE] }
    }

    /// How many blocks there are, with the superblock.
    pub(super) fn blocks(&self) -> u32 {
        self.blocks as u32 // `take` keeps it below
    }

    /// The address of the next `count` blocks. A new file has zeros there.
    fn take(&mut self, count: u64) -> Result<u32> {
        let at = self.blocks();
        self.blocks = self.blocks.saturating_add(count);
        if self.blocks > MAX_BLOCKS {
            let most = (MAX_BLOCKS * BLOCK as u64) >> 30;
            return Err(Error::bad_image(format!("the layer takes more than {most} GiB")));
        }
        Ok(at)
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.image.write_all_at(bytes, at).map_err(fail("write the image"))
    }

    /// Adds whole blocks that begin with `bytes`. Returns the first one's address.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<u32> {
        let at = self.take(bytes.len().div_ceil(BLOCK) as u64)?;
        self.put(bytes, u64::from(at) * BLOCK as u64)?;
        Ok(at)
    }

    /// Adds what `file` holds, `size` bytes. Only the content decides what is a hole, so that it is one wherever the file came from.
    pub(super) fn file(&mut self, file: &File, size: u64) -> Result<Content> {
        let whole = size - size % BLOCK as u64;
        let chunk = (size / MAX_CHUNKS).next_power_of_two().max(PIECE as u64);
        let (start, mut at) = (self.blocks(), Vec::new());
        for offset in (0..whole).step_by(chunk as usize) {
            let length = chunk.min(whole - offset);
            at.push(match self.chunk(file, offset, length)? {
                None if length == chunk => HOLE,
                None => self.take(length / BLOCK as u64)?,
                Some(at) => at,
            });
        }
        let mut tail = vec![0; (size - whole) as usize];
        file.read_exact_at(&mut tail, whole).map_err(fail("read a file of the layer"))?;
        if !at.contains(&HOLE) {
            return Ok(Content { place: Place::At(start), tail });
        }
        if !tail.is_empty() {
            let last = self.append(&tail)?;
            if whole.is_multiple_of(chunk) {
                at.push(last);
            }
        }
        let power = (chunk / BLOCK as u64).ilog2();
        Ok(Content { place: Place::Chunks { power, at }, tail: Vec::new() })
    }

    /// Adds a chunk, unless it is all zeros.
    fn chunk(&mut self, file: &File, from: u64, length: u64) -> Result<Option<u32>> {
        if is_hole(file, from, length) {
            return Ok(None);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut place = None;
        for offset in (0..length).step_by(PIECE) {
            let piece = buffer.get_mut(..(length - offset).min(PIECE as u64) as usize).unwrap_or_default();
            file.read_exact_at(piece, from + offset).map_err(fail("read a file of the layer"))?;
            if Some(&*piece) == ZEROS.get(..piece.len()) {
                continue;
            }
            let at = match place {
                Some(at) => at,
                None => *place.insert(self.take(length / BLOCK as u64)?),
            };
            self.put(piece, u64::from(at) * BLOCK as u64 + offset)?;
        }
        self.buffer = buffer;
        Ok(place)
    }

    /// Adds the table of inodes. Returns its address.
    pub(super) fn table(&mut self, table: &Table) -> Result<u32> {
        // fsck.erofs reads the head of attributes behind each inode, also one that has none.
        let start = self.take((table.end + XATTR_HEADER as u64).div_ceil(BLOCK as u64))?;
        table.file.set_len(table.end).map_err(fail("write the table of inodes"))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        for offset in (0..table.end).step_by(PIECE) {
            let piece = buffer.get_mut(..(table.end - offset).min(PIECE as u64) as usize).unwrap_or_default();
            table.file.read_exact_at(piece, offset).map_err(fail("read the table of inodes"))?;
            self.put(piece, u64::from(start) * BLOCK as u64 + offset)?;
        }
        self.buffer = buffer;
        Ok(start)
    }

    /// Writes the first block, and gives the image its length.
    pub(super) fn finish(self, superblock: &[u8]) -> Result<u64> {
        self.put(superblock, 0)?;
        self.image.set_len(self.blocks * BLOCK as u64).map_err(fail("write the image"))?;
        Ok(self.blocks)
    }
}

/// Whether the file system knows, without reading, that there are only zeros. It may well not know.
fn is_hole(file: &File, from: u64, length: u64) -> bool {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(data) => data >= from + length,
        Err(error) => error == Errno::NXIO,
    }
}

/// The table of inodes, in a file that has no name.
#[derive(Debug)]
pub(super) struct Table {
    file: File,
    end: u64,
}

impl Table {
    /// The first place is left free: as an inode's number, 0 means that there is none.
    pub(super) fn new() -> Result<Table> {
        let file = tempfile::tempfile().map_err(fail("make a file for inodes"))?;
        Ok(Table { file, end: SLOT })
    }

    /// A place for `length` bytes. What fits into a block lies in one.
    pub(super) fn reserve(&mut self, length: usize) -> u64 {
        let (block, length) = (BLOCK as u64, length as u64);
        let mut at = self.end.next_multiple_of(SLOT);
        if at % block + length > block {
            at = at.next_multiple_of(block);
        }
        self.end = at + length;
        at
    }

    pub(super) fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(fail("write an inode"))
    }
}
