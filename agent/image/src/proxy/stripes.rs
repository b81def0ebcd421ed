//! One large blob over several connections, where one alone is slow: many a registry limits each of them.
//!
//! What is left of the blob is cut into stripes, and each connection has every n-th of them. They are put together again in order; a
//! connection that is ahead waits, so that the memory is bounded. Whatever goes wrong with one ends all, and one connection goes on as before.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::body::{Part, Source, write_all};
use super::wire;

/// The most connections that bring blobs at once, unless more blobs are asked for.
pub(super) const MOST: usize = 4;

/// How long a stripe is: not much more than a pipe and a socket hold, for then all connections are at work.
const STRIPE: u64 = 2 << 20;

/// What must be left of a blob to be worth it.
const LEAST: u64 = 8 << 20;

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// How often it is asked whether a registry is slow.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// What comes as fast as this, in bytes a second, is not slow: unpacking is no faster.
const FAST: f64 = 100e6;

/// How often a blob is tried to be had over several connections.
const MOST_TRIES: u32 = 3;

/// How many connections bring blobs.
#[derive(Debug, Default)]
pub(super) struct Lines(AtomicUsize);

/// One of them. Dropping it makes room for another.
#[derive(Debug)]
pub(super) struct Line(Arc<Lines>);

impl Lines {
    /// One more, whoever else there is.
    pub(super) fn take(self: &Arc<Self>) -> Line {
        self.0.fetch_add(1, Relaxed);
        Line(self.clone())
    }

    /// One more, if there is room.
    fn take_free(self: &Arc<Self>) -> Option<Line> {
        let more = |used| (used < MOST).then_some(used + 1);
        self.0.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Line(self.clone()))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// How long one connection has kept us waiting, and how often several have been tried.
pub(super) struct Pace {
    since: Instant,
    waited: Duration,
    bytes: usize,
    tries: u32,
}

impl Pace {
    pub(super) fn begin() -> Pace {
        Pace { since: Instant::now(), waited: Duration::ZERO, bytes: 0, tries: 0 }
    }

    /// So long was waited for so much.
    pub(super) fn waited(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.bytes += bytes;
    }

    /// Something has broken off: from now on one connection must do.
    pub(super) fn broken(&mut self) {
        self.tries = MOST_TRIES;
    }

    /// Whether others should help.
    pub(super) fn is_slow(&mut self) -> bool {
        let passed = self.since.elapsed();
        if passed < LOOK_EVERY || self.tries >= MOST_TRIES {
            return false;
        }
        // A processor that is busy elsewhere makes us wait, too, but not as much.
        let slow = self.waited > passed * 3 / 4 && (self.bytes as f64) < FAST * passed.as_secs_f64();
        *self = Pace { tries: self.tries, ..Pace::begin() };
        slow
    }
}

/// The stripes of what is left of a blob.
#[derive(Clone)]
struct Stripes {
    source: Arc<dyn Source>,
    digest: String,
    left: Range<u64>,
    lines: u64,
}

impl Stripes {
    /// The stripe that has the byte `at`.
    fn around(&self, at: u64) -> Range<u64> {
        let from = at - (at - self.left.start) % STRIPE;
        from..from.saturating_add(STRIPE).min(self.left.end)
    }

    /// The line that brings the byte `at`.
    fn line(&self, at: u64) -> usize {
        ((at - self.left.start) / STRIPE % self.lines) as usize
    }

    fn open(&self, stripe: Range<u64>) -> crate::error::Result<Box<dyn Read + Send>> {
        self.source.range(&self.digest, stripe, self.left.end)
    }

    /// Writes to `pipe` what one line brings, until nobody reads it any more.
    fn bring(&self, line: u64, mut first: Option<Box<dyn Read + Send>>, pipe: &OwnedFd) -> io::Result<()> {
        let begin = self.left.start.saturating_add(line * STRIPE);
        let step = usize::try_from(self.lines * STRIPE).map_err(io::Error::other)?;
        for at in (begin..self.left.end).step_by(step) {
            let stripe = self.around(at);
            let reader = first.take().map_or_else(|| self.open(stripe.clone()), Ok)?;
            if !one(reader, stripe.end - stripe.start, pipe)? {
                break;
            }
        }
        Ok(())
    }
}

/// Copies a stripe, which must be as long as was asked for; false when nobody reads it.
fn one(mut reader: impl Read, length: u64, pipe: &OwnedFd) -> io::Result<bool> {
    let mut buffer = vec![0; CHUNK];
    let mut left = length;
    loop {
        let n = match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        left = left.checked_sub(n as u64).ok_or(io::ErrorKind::InvalidData)?;
        if n == 0 {
            return if left == 0 { Ok(true) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if !write_all(pipe, buffer.get(..n).unwrap_or_default())? {
            return Ok(false);
        }
    }
}

/// The rest of a blob from `from` on, over as many connections as there may be; `None` where one must do. `pace` counts the tries.
pub(super) fn rest(
    source: &Arc<dyn Source>,
    digest: &str,
    from: u64,
    whole: Option<u64>,
    pace: &mut Pace,
) -> Option<Part> {
    let whole = whole.filter(|whole| whole.saturating_sub(from) >= LEAST)?;
    let free: Vec<Line> = std::iter::from_fn(|| source.lines()?.take_free()).collect();
    if free.is_empty() {
        return None;
    }
    pace.tries += 1;
    let lines = free.len() as u64 + 1;
    let stripes = Stripes { source: source.clone(), digest: digest.into(), left: from..whole, lines };
    // Not every registry gives ranges.
    let mut first = Some(stripes.open(stripes.around(from)).ok()?);
    let begin = |(place, line)| Brought::begin(&stripes, place, line, first.take());
    // The blob has a line already.
    let brought = (0..).zip([None].into_iter().chain(free.into_iter().map(Some))).map(begin);
    let brought = brought.collect::<crate::error::Result<_>>().ok()?;
    Some(Part { reader: Box::new(Striped { stripes, brought, at: from }), whole: Some(whole), skip: 0 })
}

/// What one connection brings, and how that ended.
struct Brought {
    pipe: File,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Brought {
    fn begin(
        stripes: &Stripes,
        place: u64,
        line: Option<Line>,
        first: Option<Box<dyn Read + Send>>,
    ) -> crate::error::Result<Brought> {
        let (pipe, theirs) = wire::pipe()?;
        let stripes = stripes.clone();
        let thread = std::thread::spawn(move || {
            let _line = line;
            stripes.bring(place, first, &theirs)
        });
        Ok(Brought { pipe: pipe.into(), thread: Some(thread) })
    }

    /// Why nothing more comes.
    fn failure(&mut self) -> io::Error {
        let ended = self.thread.take().and_then(|thread| thread.join().ok());
        ended.and_then(Result::err).unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// The stripes, one after the other.
struct Striped {
    stripes: Stripes,
    brought: Vec<Brought>,
    at: u64,
}

impl Read for Striped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stripe = self.stripes.around(self.at);
        let left = stripe.end.saturating_sub(self.at);
        let line = self.brought.get_mut(self.stripes.line(self.at)).filter(|_| left > 0);
        let Some(brought) = line else { return Ok(0) };
        let n = (&brought.pipe).take(left).read(buffer)?;
        if n == 0 && !buffer.is_empty() {
            return Err(brought.failure());
        }
        self.at = self.at.saturating_add(n as u64);
        Ok(n)
    }
}
