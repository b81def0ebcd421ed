//! Tar as layers have it: ustar with PAX and GNU extensions, read as a stream.
//!
//! The fields of a block are parsed by the `tar` crate. The walk from block to block is ours, because an extension is
//! read into memory and must have a bound, and because PAX values may hold any byte (file capabilities do). Where
//! readers of tar differ, this one does as Go's: that one has read most layers when they were made.

mod sparse;

use std::io::{self, BufRead, Read};

use tar::{EntryType, Header};

use crate::error::{Error, Result};
pub(crate) use sparse::Map;

const BLOCK: usize = 512;

/// The most bytes of an entry's extension headers. All extended attributes of a file are in one.
const MAX_EXTENSION: u64 = 1 << 20;

/// One file, or what takes its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) what: What,
    pub(crate) meta: Meta,
}

/// What an entry is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum What {
    Directory,
    /// Its data comes next.
    File,
    /// Its data comes next, the pieces that the map names.
    Sparse(Map),
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// What is known about a file besides its data.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Mtime,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Seconds and nanoseconds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mtime(pub(crate) i64, pub(crate) u32);

/// A stream of entries. Reading from it reads the current entry's data.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    input: R,
    data: u64,
    padding: u64,
}

/// What the extension headers before an entry said.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Mtime>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<sparse::Records>,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(input: R) -> Archive<R> {
        Archive { input, data: 0, padding: 0 }
    }

    /// The next entry; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        let mut left = MAX_EXTENSION;
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number("size", &header.as_old().size, || header.entry_size())?;
            match header.entry_type() {
                EntryType::XHeader => extensions.pax(&self.extension(size, &mut left)?)?,
                EntryType::XGlobalHeader => drop(self.extension(size, &mut left)?), // says nothing of a file
                EntryType::GNULongName => extensions.path = Some(until_nul(self.extension(size, &mut left)?)),
                EntryType::GNULongLink => extensions.link = Some(until_nul(self.extension(size, &mut left)?)),
                _ => {
                    let size = extensions.size.unwrap_or(size);
                    return self.entry(&header, size, extensions).map(Some);
                }
            }
        }
    }

    fn entry(&mut self, header: &Header, size: u64, mut extensions: Extensions) -> Result<Entry> {
        let mut sparse = extensions.sparse.take();
        extensions.path = sparse.as_mut().and_then(|records| records.name.take()).or(extensions.path);
        let mut entry = extensions.entry(header)?;
        if entry.what == What::File {
            if let Some(map) = sparse::map(sparse, header, size, self)? {
                entry.what = What::Sparse(map);
            }
        } else if sparse.is_some() {
            return Err(Error::bad_image("an entry has a map of its holes, but is no file"));
        }
        Ok(entry)
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let got = read_full(&mut self.input, &mut block).map_err(reading)?;
        // The end is marked by empty blocks; some writers leave them out.
        if got == 0 || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if got < BLOCK {
            return Err(Error::bad_image("the layer's tar ends within a header"));
        }
        let mut header = Header::new_old();
        *header.as_mut_bytes() = block;
        check_sum(&header)?;
        Ok(Some(header))
    }

    fn expect(&mut self, size: u64) {
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK as u64).saturating_sub(size);
    }

    /// An extension header's data. `left` is how much there may still be before the next entry.
    fn extension(&mut self, size: u64, left: &mut u64) -> Result<Vec<u8>> {
        let over = || Error::bad_image(format!("an entry's extension headers have more than {MAX_EXTENSION} bytes"));
        *left = left.checked_sub(size).ok_or_else(over)?;
        self.expect(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(reading)?;
        Ok(bytes)
    }

    fn skip_data(&mut self) -> Result<()> {
        let left = self.data.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.input).take(left), &mut io::sink()).map_err(reading)?;
        // The last padding may be missing; lost data is noticed by who reads it, and here.
        if skipped < self.data {
            return Err(Error::bad_image("the layer's tar ends within a file"));
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.data == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let n = (&mut self.input).take(self.data).read(buffer)?;
        if n == 0 {
            return Err(Error::bad_image("the layer's tar ends within a file").into());
        }
        self.data = self.data.saturating_sub(n as u64);
        Ok(n)
    }
}

/// The current entry's data, in place.
impl<R: BufRead> BufRead for Archive<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let bytes = self.input.fill_buf()?;
        if bytes.is_empty() {
            return Err(Error::bad_image("the layer's tar ends within a file").into());
        }
        let length = usize::try_from(self.data).unwrap_or(usize::MAX).min(bytes.len());
        Ok(bytes.get(..length).unwrap_or_default())
    }

    fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.data = self.data.saturating_sub(length as u64);
    }
}

impl Extensions {
    /// Records of the form `LENGTH KEY=VALUE\n`, where the length counts the whole record.
    fn pax(&mut self, mut records: &[u8]) -> Result<()> {
        let broken = || Error::bad_image("a PAX header is malformed");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
            let length = records.get(..space).and_then(decimal).ok_or_else(broken)?;
            let length = usize::try_from(length).map_err(|_| broken())?;
            let (record, rest) = records.split_at_checked(length).ok_or_else(broken)?;
            let record = record.get(space + 1..).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(broken)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
            let (key, value) = record.split_at_checked(equals).ok_or_else(broken)?;
            self.record(key, value.get(1..).unwrap_or_default())?;
            records = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let number = || decimal(value).ok_or_else(|| Error::bad_image("a number in a PAX header is malformed"));
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => {
                let time = timestamp(value).ok_or_else(|| Error::bad_image("a time in a PAX header is malformed"))?;
                self.mtime = Some(time);
            }
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().record(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn entry(self, header: &Header) -> Result<Entry> {
        let path = self.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || match self.link {
            Some(link) => link,
            None => header.link_name_bytes().unwrap_or_default().into_owned(),
        };
        let device = || -> Result<(u32, u32)> {
            // These fields are where they are in ustar and GNU headers alike; older ones have none.
            let text = |from: usize| header.as_bytes().get(from..from + 8).unwrap_or_default();
            let major = number("major", text(329), || header.device_major())?.unwrap_or(0);
            Ok((major, number("minor", text(337), || header.device_minor())?.unwrap_or(0)))
        };
        let fields = header.as_old();
        let what = match header.entry_type() {
            // Older writers mark directories by a slash alone.
            EntryType::Regular if path.ends_with(b"/") => What::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => What::File,
            EntryType::Directory => What::Directory,
            EntryType::Symlink => What::Symlink(link()),
            EntryType::Link => What::HardLink(link()),
            EntryType::Char => device().map(|(major, minor)| What::Char(major, minor))?,
            EntryType::Block => device().map(|(major, minor)| What::Block(major, minor))?,
            EntryType::Fifo => What::Fifo,
            other => return Err(Error::bad_image(format!("entries of type {:#04x} are unknown", other.as_byte()))),
        };
        let mtime = header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
        let meta = Meta {
            mode: number("mode", &fields.mode, || header.mode())?,
            uid: identity(self.uid.map_or_else(|| number("uid", &fields.uid, || header.uid()), Ok)?)?,
            gid: identity(self.gid.map_or_else(|| number("gid", &fields.gid, || header.gid()), Ok)?)?,
            mtime: self.mtime.unwrap_or(Mtime(mtime.unwrap_or(0), 0)),
            xattrs: self.xattrs,
        };
        Ok(Entry { path, what, meta })
    }
}

fn reading(error: io::Error) -> Error {
    Error::reading("read the layer", error)
}

/// A number of a header; one that is blank is 0.
fn number<T: Default>(field: &str, text: &[u8], value: impl FnOnce() -> io::Result<T>) -> Result<T> {
    if text.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(T::default());
    }
    value().map_err(|error| Error::bad_image(format!("a tar header's {field}: {error}")))
}

fn identity(number: u64) -> Result<u32> {
    // The highest number means "leave it" to chown(2).
    let id = u32::try_from(number).ok().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| Error::bad_image(format!("{number} is no user or group ID")))
}

fn check_sum(header: &Header) -> Result<()> {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let bytes = header.as_bytes();
    // The field itself counts as spaces.
    let (before, after) = (bytes.get(..148).unwrap_or_default(), bytes.get(156..).unwrap_or_default());
    if number("checksum", &header.as_old().cksum, || header.cksum())? != sum(before) + sum(after) + 8 * u32::from(b' ')
    {
        return Err(Error::bad_image("a tar header's checksum is wrong"));
    }
    Ok(())
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`
fn timestamp(text: &[u8]) -> Option<Mtime> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (negative, digits) = whole.strip_prefix('-').map_or((false, whole), |digits| (true, digits));
    let seconds = i64::try_from(decimal(digits.as_bytes())?).ok()?;
    let nine: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanoseconds = u32::try_from(decimal(nine.as_bytes())?).ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Mtime(seconds, nanoseconds),
        (true, 0) => Mtime(-seconds, 0),
        // The kernel counts nanoseconds upwards, whatever the sign of the seconds.
        (true, _) => Mtime((-seconds).checked_sub(1)?, 1_000_000_000 - nanoseconds),
    })
}

/// Fills the buffer, unless the stream ends.
pub(crate) fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
