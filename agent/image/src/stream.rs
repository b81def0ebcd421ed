//! A layer's bytes on their way: from the registry, hashed as they come, decompressed by one thread, hashed again and unpacked by another.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use flate2::bufread::MultiGzDecoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::{Digest as _, Sha256};

use crate::archive::read_full;
use crate::error::{Error, Kind};
use crate::frames::{self, Frames, Windows};

/// The least that a registry must send while we wait for as long as it may be silent: less is to hold us up.
pub(crate) const LEAST: u64 = 64 << 10;

/// How long another may keep us waiting, and the least that must pass meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    limit: Duration,
    least: u64,
    /// How long we have waited, and what has passed meanwhile.
    waited: Duration,
    passed: u64,
}

impl Patience {
    pub(crate) const fn new(limit: Duration, least: u64) -> Patience {
        Patience { limit, least, waited: Duration::ZERO, passed: 0 }
    }

    /// How long one wait may be.
    pub(crate) fn limit(&self) -> Timespec {
        let seconds = i64::try_from(self.limit.as_secs()).unwrap_or(i64::MAX);
        Timespec { tv_sec: seconds, tv_nsec: self.limit.subsec_nanos().into() }
    }

    /// Whether it lasts when `bytes` have passed after another wait. Only waiting counts: the time between two is ours.
    pub(crate) fn bears(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.passed += bytes;
        if self.waited < self.limit {
            return true;
        }
        let enough = self.passed >= self.least;
        (self.waited, self.passed) = (Duration::ZERO, 0);
        enough
    }
}

/// The reading end of a pipe or a connection whose writer may not be silent for too long, nor nearly so.
#[derive(Debug)]
pub(crate) struct Watched {
    pipe: File,
    patience: Patience,
    /// What was said when it was given up: nobody waits as long once more.
    given_up: Option<&'static str>,
}

impl Watched {
    pub(crate) fn new(pipe: File, patience: Patience) -> Watched {
        Watched { pipe, patience, given_up: None }
    }

    fn give_up(&mut self, what: &'static str) -> io::Error {
        self.given_up = Some(what);
        Error::new(Kind::Stalled, format!("the registry has sent {what}: try again")).into()
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(what) = self.given_up {
            return Err(self.give_up(what));
        }
        let (begun, limit) = (Instant::now(), self.patience.limit());
        let mut ready = [PollFd::new(&self.pipe, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut ready, Some(&limit)))? == 0 {
            return Err(self.give_up("nothing for too long"));
        }
        let n = self.pipe.read(buffer)?;
        if !self.patience.bears(begun.elapsed(), n as u64) && n > 0 {
            return Err(self.give_up("too little for too long"));
        }
        Ok(n)
    }
}

/// How large a piece is, and how many are on their way between two threads: the memory that a layer takes, whatever its size.
const PIECE: usize = 128 << 10;
const PIECES: usize = 4;

/// Two threads' ends of a belt of pieces. They go round: what has been read is filled again.
pub(crate) fn belt() -> (Filler, Pieces) {
    let (full, to_read) = sync_channel(PIECES);
    let (empty, to_fill) = sync_channel(PIECES);
    for _ in 0..PIECES {
        let _ = empty.send(Vec::with_capacity(PIECE)); // there is room for each
    }
    (Filler { full, to_fill }, Pieces { to_read, empty, piece: Vec::new(), at: 0, hash: Sha256::new() })
}

/// The end at which pieces are filled.
#[derive(Debug)]
pub(crate) struct Filler {
    full: SyncSender<io::Result<Vec<u8>>>,
    to_fill: Receiver<Vec<u8>>,
}

impl Filler {
    /// Sends all that `reader` has, and its error if it fails. Ends early when nobody reads any more.
    pub(crate) fn fill(self, mut reader: impl Read) {
        while let Ok(mut piece) = self.to_fill.recv() {
            piece.resize(PIECE, 0); // which costs nothing once it has been full
            let filled = match read_full(&mut reader, &mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    piece.truncate(length);
                    Ok(piece)
                }
                Err(error) => Err(error),
            };
            let failed = filled.is_err();
            if self.full.send(filled).is_err() || failed {
                return;
            }
        }
    }
}

/// The end at which they are read, and hashed.
pub(crate) struct Pieces {
    to_read: Receiver<io::Result<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    hash: Sha256,
}

impl Pieces {
    /// Reads to the end and returns the digest of all that came.
    pub(crate) fn finish(mut self) -> io::Result<[u8; 32]> {
        while self.next()? {}
        Ok(self.hash.finalize().into())
    }

    /// Takes the next piece; false at the end.
    fn next(&mut self) -> io::Result<bool> {
        let Ok(piece) = self.to_read.recv() else { return Ok(false) };
        let piece = piece?;
        self.hash.update(&piece);
        let read = std::mem::replace(&mut self.piece, piece);
        self.at = 0;
        if read.capacity() > 0 {
            let _ = self.empty.send(read); // who fills no more does not need it
        }
        Ok(true)
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

/// Whoever reads in place need not copy.
impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at >= self.piece.len() && self.next()? {}
        Ok(self.piece.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, length: usize) {
        self.at = self.at.saturating_add(length);
    }
}

/// A reader that hashes what passes.
pub(crate) struct Hashed<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(inner: R) -> Hashed<R> {
        Hashed { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// The digest of what has passed, and its length.
    pub(crate) fn finish(self) -> ([u8; 32], u64) {
        (self.hash.finalize().into(), self.bytes)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..n).unwrap_or_default());
        self.bytes += n as u64;
        Ok(n)
    }
}

/// A reader that counts what passes.
pub(crate) struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Counted<R> {
    pub(crate) fn new(inner: R) -> Counted<R> {
        Counted { inner, bytes: 0 }
    }

    /// How many bytes have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.bytes
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

/// A blob, decompressed as its first bytes ask for: what a manifest calls it is not always true.
pub(crate) enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<Frames<BufReader<R>>>),
}

const BUFFER: usize = 128 << 10;

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes and chooses.
    pub(crate) fn new(reader: R, windows: Windows) -> io::Result<Decoder<R>> {
        let mut buffered = BufReader::with_capacity(BUFFER, reader);
        let first = buffered.fill_buf()?;
        Ok(if first.starts_with(&[0x1f, 0x8b]) {
            Decoder::Gzip(Box::new(MultiGzDecoder::new(buffered)))
        } else if frames::begin(first) {
            Decoder::Zstd(Box::new(Frames::new(buffered, windows)))
        } else {
            Decoder::Plain(buffered)
        })
    }

    /// Where the compressed bytes come from.
    pub(crate) fn source(&self) -> &R {
        match self {
            Decoder::Plain(reader) => reader.get_ref(),
            Decoder::Gzip(decoder) => decoder.get_ref().get_ref(),
            Decoder::Zstd(decoder) => decoder.get_ref().get_ref(),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(reader) => reader.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn each_compression_is_told_by_its_first_bytes() {
        let text = b"a layer".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        // Two members in a row are one stream, as parallel compressors write it.
        let double = [gzip.clone(), gzip.clone()].concat();
        let zstd = zstd::stream::encode_all(&text[..], 3).unwrap();
        for (bytes, expected) in
            [(text.clone(), text.clone()), (gzip, text.clone()), (double, text.repeat(2)), (zstd, text.clone())]
        {
            let mut decoder = Decoder::new(&bytes[..], Windows::new()).unwrap();
            let mut out = Vec::new();
            decoder.read_to_end(&mut out).unwrap();
            assert!(out == expected);
        }
    }

    #[test]
    fn pieces_are_read_in_order_and_hashed_whole() {
        let text: Vec<u8> = (0..3 * PIECE + 5).map(|n| n as u8).collect();
        let (filler, mut pieces) = belt();
        let sent = text.clone();
        let thread = std::thread::spawn(move || filler.fill(&sent[..]));
        let mut start = [0; 7];
        pieces.read_exact(&mut start).unwrap();
        assert_eq!(start, text[..7]);
        assert_eq!(pieces.finish().unwrap(), <[u8; 32]>::from(Sha256::digest(&text)));
        thread.join().unwrap();
    }

    #[test]
    fn who_is_silent_for_too_long_is_not_waited_for() {
        let (read, _write) = io::pipe().unwrap();
        let patience = Patience::new(Duration::from_millis(300), LEAST);
        let mut watched = Watched::new(File::from(std::os::fd::OwnedFd::from(read)), patience);
        assert_eq!(Error::reading("", watched.read(&mut [0]).unwrap_err()).kind, Kind::Stalled);
        // Who reads on is not made to wait again.
        let again = Instant::now();
        assert_eq!(Error::reading("", watched.read(&mut [0]).unwrap_err()).kind, Kind::Stalled);
        assert!(again.elapsed() < Duration::from_millis(300));

        // Nor who says next to nothing.
        let (read, mut write) = io::pipe().unwrap();
        let dripping = std::thread::spawn(move || {
            while write.write_all(&[0]).is_ok() {
                std::thread::sleep(Duration::from_millis(5)); // that is the fault to be noticed
            }
        });
        let mut watched = Watched::new(
            File::from(std::os::fd::OwnedFd::from(read)),
            Patience::new(Duration::from_millis(100), LEAST),
        );
        let error = io::copy(&mut watched, &mut io::sink()).unwrap_err();
        assert_eq!(Error::reading("", error).kind, Kind::Stalled);
        drop(watched);
        dripping.join().unwrap();
    }
}
