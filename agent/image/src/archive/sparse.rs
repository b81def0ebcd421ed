//! Files with holes, in the four forms that GNU tar gives them (its manual, "Storing Sparse Files").
//!
//! A map says which pieces of the file have data; the archive holds these pieces only, one after the other. The old
//! form has the map in the header and in blocks that follow it, PAX 0.0 and 0.1 have it in records, and PAX 1.0 has it
//! in front of the data. A hole costs nothing, so the size of a file has a bound of its own here.

use std::io::Read;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{Archive, BLOCK, decimal, number, read_full, reading};
use crate::error::{Error, Result, quoted};

/// The most pieces of a file.
const MAX_PIECES: usize = 65_536;

/// The largest file with holes.
const MAX_SIZE: u64 = 1 << 40;

/// The most digits of a number.
const MAX_DIGITS: usize = 20;

/// Where a file has data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    pieces: Vec<Piece>,
    size: u64,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What the records `GNU.sparse.…` of a PAX header said.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// The file's own name: the entry's is for readers that know of no holes.
    pub(super) name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    count: Option<u64>,
    /// An offset that waits for its length.
    offset: Option<u64>,
    pieces: Vec<Piece>,
}

fn bad(what: &str) -> Error {
    Error::bad_image(format!("a sparse file's {what}"))
}

impl Map {
    /// The pieces, in order. Their lengths are the stored data's.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The whole file's size.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn checked(pieces: Vec<Piece>, size: u64, stored: u64) -> Result<Map> {
        if size > MAX_SIZE {
            return Err(bad(&format!("size is {size} bytes, more than {} GiB", MAX_SIZE >> 30)));
        }
        let (mut end, mut sum) = (0, 0);
        for piece in &pieces {
            if piece.offset < end {
                return Err(bad("pieces overlap or are out of order"));
            }
            let within = piece.offset.checked_add(piece.length).filter(|end| *end <= size);
            end = within.ok_or_else(|| bad("pieces reach beyond its end"))?;
            sum += piece.length; // never more than `end`, for they do not overlap
        }
        if sum != stored {
            return Err(bad(&format!("pieces are {sum} bytes, and {stored} are stored")));
        }
        Ok(Map { pieces, size })
    }
}

impl Records {
    /// One record, without the `GNU.sparse.` of its key.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let number = || decimal(value).ok_or_else(|| bad("number in a PAX header is malformed"));
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"numblocks" => self.count = Some(number()?),
            b"offset" => {
                if self.offset.replace(number()?).is_some() {
                    return Err(bad("map has an offset without a length"));
                }
            }
            b"numbytes" => {
                let offset = self.offset.take().ok_or_else(|| bad("map has a length without an offset"))?;
                push(&mut self.pieces, offset, number()?)?;
            }
            b"map" => self.pieces = listed(value)?,
            _ => return Err(bad(&format!("record {} is unknown", quoted(&String::from_utf8_lossy(key))))),
        }
        Ok(())
    }

    fn pax_form<R: Read>(self, archive: &mut Archive<R>) -> Result<(Vec<Piece>, u64)> {
        let size = self.size.ok_or_else(|| bad("size is missing"))?;
        match (self.major, self.minor) {
            (None, None) | (Some(0), Some(0 | 1)) => {
                let count = self.pieces.len() as u64;
                if self.offset.is_some() || self.count.is_some_and(|said| said != count) {
                    return Err(bad("map is not whole"));
                }
                Ok((self.pieces, size))
            }
            (Some(1), Some(0)) => Ok((leading(archive)?, size)),
            _ => Err(bad("form is unknown")),
        }
    }
}

/// Where the entry's file has data; `None` if it has no holes. The archive stands behind the header, and then at the
/// data. `size` is what is stored.
pub(super) fn map<R: Read>(
    records: Option<Records>,
    header: &Header,
    size: u64,
    archive: &mut Archive<R>,
) -> Result<Option<Map>> {
    let old = header.entry_type() == EntryType::GNUSparse;
    // The blocks of the old form's map do not count as stored.
    let old = if old { Some(old_form(header, &mut archive.input)?) } else { None };
    archive.expect(size);
    let (pieces, whole) = match (old, records) {
        (None, None) => return Ok(None),
        (Some(old), None) => old,
        (None, Some(records)) => records.pax_form(archive)?,
        (Some(_), Some(_)) => return Err(bad("map is given twice")),
    };
    Map::checked(pieces, whole, archive.data).map(Some)
}

fn push(pieces: &mut Vec<Piece>, offset: u64, length: u64) -> Result<()> {
    if pieces.len() >= MAX_PIECES {
        return Err(bad(&format!("map has more than {MAX_PIECES} pieces")));
    }
    pieces.push(Piece { offset, length });
    Ok(())
}

/// PAX 0.1: `OFFSET,LENGTH,OFFSET,LENGTH…`
fn listed(text: &[u8]) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut numbers = text.split(|byte| *byte == b',').filter(|_| !text.is_empty());
    while let Some(offset) = numbers.next() {
        let (Some(offset), Some(length)) = (decimal(offset), numbers.next().and_then(decimal)) else {
            return Err(bad("map is malformed"));
        };
        push(&mut pieces, offset, length)?;
    }
    Ok(pieces)
}

/// The old form: four pieces in the header, 21 in each block that follows.
fn old_form(header: &Header, input: &mut impl Read) -> Result<(Vec<Piece>, u64)> {
    let gnu = header.as_gnu().ok_or_else(|| bad("header is not GNU's"))?;
    let mut pieces = Vec::new();
    append(&mut pieces, &gnu.sparse)?;
    let mut more = gnu.isextended != [0];
    while more {
        let mut block = GnuExtSparseHeader::new();
        if read_full(input, block.as_mut_bytes()).map_err(reading)? < BLOCK {
            return Err(Error::bad_image("the layer's tar ends within a sparse file's map"));
        }
        let before = pieces.len();
        append(&mut pieces, &block.sparse)?;
        more = block.isextended != [0];
        // Each block adds something, so that there is an end to them.
        if more && pieces.len() == before {
            return Err(bad("map has an empty block"));
        }
    }
    Ok((pieces, number("size", &gnu.realsize, || gnu.real_size())?))
}

fn append(pieces: &mut Vec<Piece>, fields: &[GnuSparseHeader]) -> Result<()> {
    for field in fields.iter().take_while(|field| !field.is_empty()) {
        let read = |value: std::io::Result<u64>| value.map_err(|error| bad(&format!("map: {error}")));
        push(pieces, read(field.offset())?, read(field.length())?)?;
    }
    Ok(())
}

/// PAX 1.0: the count, then each offset and length, a line each, filled up to whole blocks.
fn leading<R: Read>(archive: &mut Archive<R>) -> Result<Vec<Piece>> {
    let mut lines = Lines { archive, block: [0; BLOCK], at: BLOCK };
    let count = lines.number()?;
    let mut pieces = Vec::new();
    for _ in 0..count {
        let offset = lines.number()?;
        push(&mut pieces, offset, lines.number()?)?;
    }
    Ok(pieces)
}

/// Numbers, a line each, read block by block so that the data after them stays where it is.
struct Lines<'a, R> {
    archive: &'a mut Archive<R>,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                byte if digits.len() < MAX_DIGITS => digits.push(byte),
                _ => return Err(bad("map is malformed")),
            }
        }
        decimal(&digits).ok_or_else(|| bad("map is malformed"))
    }

    fn byte(&mut self) -> Result<u8> {
        if self.at == BLOCK {
            if read_full(self.archive, &mut self.block).map_err(reading)? < BLOCK {
                return Err(bad("map ends early"));
            }
            self.at = 0;
        }
        let byte = self.block.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        Ok(byte)
    }
}

#[cfg(test)]
mod tests;
