//! A layer's bytes on their way: from the registry, hashed as they come, decompressed, hashed again and unpacked, by one thread or by two.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;
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

/// The threads that unpack the layers of an image: as many as there are layers on their way, or as keep the processors busy.
#[derive(Debug)]
pub(crate) struct Workers {
    busy: AtomicUsize,
    enough: usize,
}

/// One of them. Dropping it lets another one work.
#[derive(Debug)]
pub(crate) struct Worker<'a>(&'a Workers);

impl Workers {
    /// One more than there are processors, for now and then one waits for another.
    pub(crate) fn new() -> Workers {
        Workers::of(1 + std::thread::available_parallelism().map_or(1, NonZero::get))
    }

    fn of(enough: usize) -> Workers {
        Workers { busy: AtomicUsize::new(0), enough }
    }

    /// One more, however many there are.
    pub(crate) fn one(&self) -> Worker<'_> {
        self.busy.fetch_add(1, Relaxed);
        Worker(self)
    }

    /// One more, if there are not enough.
    fn another(&self) -> Option<Worker<'_>> {
        let more = |busy| (busy < self.enough).then_some(busy + 1);
        self.busy.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Worker(self))
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
    }
}

/// Runs `take` over what `reader` has, in pieces: read by the thread that takes them, and by another one as soon as there is one.
pub(crate) fn in_pieces<T>(
    reader: &mut (dyn Read + Send),
    workers: &Workers,
    take: impl FnOnce(Pieces<'_, '_>) -> T,
) -> T {
    std::thread::scope(|scope| {
        take(Pieces { reader: Some(reader), workers, scope, belt: None, piece: Vec::new(), at: 0, hash: Sha256::new() })
    })
}

/// The end of a belt at which pieces are filled. They go round: what has been read is filled again.
struct Filler {
    full: SyncSender<io::Result<Vec<u8>>>,
    to_fill: Receiver<Vec<u8>>,
}

/// The end at which they are read.
struct Belt {
    to_read: Receiver<io::Result<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
}

fn belt() -> (Filler, Belt) {
    let (full, to_read) = sync_channel(PIECES);
    let (empty, to_fill) = sync_channel(PIECES);
    for _ in 0..PIECES {
        let _ = empty.send(Vec::new()); // there is room for each
    }
    (Filler { full, to_fill }, Belt { to_read, empty })
}

impl Filler {
    /// Sends all that `reader` has, and its error if it fails. Ends early when nobody reads any more.
    fn fill(self, reader: &mut dyn Read) {
        while let Ok(piece) = self.to_fill.recv() {
            let filled = fill(reader, piece);
            let ended = filled.as_ref().map_or(true, Vec::is_empty);
            if self.full.send(filled).is_err() || ended {
                return;
            }
        }
    }
}

impl Belt {
    /// The next piece, for one that has been read; an empty one at the end.
    fn next(&self, read: Vec<u8>) -> io::Result<Vec<u8>> {
        let _ = self.empty.try_send(read); // who fills no more does not need it, and one more than there were is too many
        self.to_read.recv().unwrap_or_else(|_| Ok(Vec::new()))
    }
}

/// Fills a piece, unless the stream ends.
fn fill(mut reader: &mut dyn Read, mut piece: Vec<u8>) -> io::Result<Vec<u8>> {
    piece.resize(PIECE, 0); // which costs nothing once it has been full
    let length = read_full(&mut reader, &mut piece)?;
    piece.truncate(length);
    Ok(piece)
}

/// Pieces one after another, hashed.
pub(crate) struct Pieces<'scope, 'env> {
    /// Where they come from, until another thread reads it.
    reader: Option<&'env mut (dyn Read + Send)>,
    workers: &'env Workers,
    scope: &'scope Scope<'scope, 'env>,
    belt: Option<Belt>,
    piece: Vec<u8>,
    at: usize,
    hash: Sha256,
}

impl Pieces<'_, '_> {
    /// Reads to the end and returns the digest of all that came.
    pub(crate) fn finish(mut self) -> io::Result<[u8; 32]> {
        while self.next()? {}
        Ok(self.hash.finalize().into())
    }

    /// Takes the next piece; false at the end.
    fn next(&mut self) -> io::Result<bool> {
        self.at = 0;
        let read = std::mem::take(&mut self.piece);
        self.get_help();
        self.piece = match (&self.belt, &mut self.reader) {
            (Some(belt), _) => belt.next(read)?,
            (None, Some(reader)) => fill(reader, read)?,
            (None, None) => Vec::new(),
        };
        self.hash.update(&self.piece);
        Ok(!self.piece.is_empty())
    }

    /// Has another thread read from now on, if there is one.
    fn get_help(&mut self) {
        if self.reader.is_some()
            && let Some(worker) = self.workers.another()
            && let Some(reader) = self.reader.take()
        {
            let (filler, belt) = belt();
            self.belt = Some(belt);
            self.scope.spawn(move || {
                let _busy = worker;
                filler.fill(reader);
            });
        }
    }
}

impl Read for Pieces<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

/// Whoever reads in place need not copy.
impl BufRead for Pieces<'_, '_> {
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
    fn pieces_are_read_in_order_and_hashed_whole_with_help_and_without() {
        let text: Vec<u8> = (0..3 * PIECE + 5).map(|n| n as u8).collect();
        for enough in [0, 1] {
            let workers = Workers::of(enough);
            let hash = in_pieces(&mut &text[..], &workers, |mut pieces| {
                let mut start = [0; 7];
                pieces.read_exact(&mut start).unwrap();
                assert_eq!(start, text[..7]);
                assert_eq!(pieces.belt.is_some(), enough > 0);
                pieces.finish().unwrap()
            });
            assert_eq!(hash, <[u8; 32]>::from(Sha256::digest(&text)));
            assert_eq!(workers.busy.load(Relaxed), 0);
        }
    }

    #[test]
    fn help_comes_as_soon_as_another_layer_is_done() {
        let (text, workers) = (vec![7; 3 * PIECE], Workers::of(2));
        let (this, other) = (workers.one(), workers.one());
        in_pieces(&mut &text[..], &workers, |mut pieces| {
            pieces.fill_buf().unwrap();
            assert!(pieces.belt.is_none());
            drop(other);
            assert_eq!(io::copy(&mut pieces, &mut io::sink()).unwrap(), text.len() as u64);
            assert!(pieces.belt.is_some());
        });
        drop(this);
        assert_eq!(workers.busy.load(Relaxed), 0);
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
