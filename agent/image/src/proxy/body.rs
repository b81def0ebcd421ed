//! Where blobs come from, and how they reach the client: whole, or from where a broken transfer left off.

use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use oci_spec::image::Descriptor;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::http::is_silence;
use super::layout::Layout;
use super::manifest::{Found, Manifest};
use super::options::Options;
use super::registry::Registry;
use super::stripes::{self, Lines, Pace};
use crate::error::{Error, Kind, Result, quoted};
use crate::reference;

/// How much is read at once.
const CHUNK: usize = 256 << 10;

/// How often a transfer that breaks off is taken up again without much progress between; one that falls silent, once.
const MOST_RESUMES: u32 = 3;
const SILENCE_COUNTS: u32 = 3;
const MUCH: u64 = 1 << 20;

/// The largest configuration.
const MAX_CONFIG: u64 = 8 << 20;

/// What has manifests and blobs: a registry, or a directory.
pub(super) trait Source: Send + Sync {
    /// The manifest that a tag or a digest stands for.
    fn manifest(&self, name: &str) -> Result<Found>;
    /// A blob from its byte `from` on. The digest is a well-formed one.
    fn open(&self, digest: &str, from: u64) -> Result<Part>;
    /// This part and no other of a blob that is so long in `whole`.
    fn range(&self, digest: &str, part: Range<u64>, whole: u64) -> Result<Box<dyn Read + Send>>;
    /// The connections that bring blobs, where they come over any.
    fn lines(&self) -> Option<&Arc<Lines>>;
}

/// What comes of a blob.
pub(super) struct Part {
    pub(super) reader: Box<dyn Read + Send>,
    /// How long the whole blob is, as the source says.
    pub(super) whole: Option<u64>,
    /// How much of it comes before what was asked for.
    pub(super) skip: u64,
}

/// Finds the image `name`, which has its transport before it (containers-transports(5)).
pub(super) fn find(name: &str, options: &Options) -> Result<(Arc<dyn Source>, Manifest)> {
    let (transport, place) = name.split_once(':').unwrap_or(("", name));
    match transport {
        "docker" => {
            let (registry, manifest) = Registry::find(place.strip_prefix("//").unwrap_or(place), options)?;
            Ok((Arc::new(registry), manifest))
        }
        "oci" | "oci-archive" => {
            let (layout, tag) = Layout::open(transport, place)?;
            let manifest = Manifest::find(&tag, |name| layout.manifest(name))?;
            Ok((Arc::new(layout), manifest))
        }
        _ => Err(Error::new(
            Kind::BadRequest,
            format!(
                "the transport {} is unknown: docker://, oci: and oci-archive: are known, and others to skopeo",
                quoted(transport)
            ),
        )),
    }
}

/// A blob that fits into memory, checked: the configuration.
pub(super) fn small(source: &dyn Source, blob: &Descriptor) -> Result<Vec<u8>> {
    let (digest, size) = (blob.digest().to_string(), blob.size());
    if size > MAX_CONFIG || !crate::registry::is_config(blob.media_type()) {
        return Err(Error::bad_image(format!("the configuration {digest} is too large, or none")));
    }
    let expected = reference::sha256(&digest)?;
    let mut bytes = Vec::new();
    let read = source.open(&digest, 0)?.reader.take(size + 1).read_to_end(&mut bytes);
    read.map_err(|error| broken(&error))?;
    if <[u8; 32]>::from(Sha256::digest(&bytes)) != expected {
        return Err(corrupt(&digest));
    }
    Ok(bytes)
}

/// Writes to the client; false when it has hung up, for it has had enough.
pub(super) fn write_all(pipe: impl AsFd, mut bytes: &[u8]) -> Result<bool> {
    while !bytes.is_empty() {
        match rustix::io::write(&pipe, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::PIPE) => return Ok(false),
            Err(error) => return Err(Error::system("write to a pipe", error)),
        }
    }
    Ok(true)
}

/// Writes what is in memory.
pub(super) fn give(pipe: &OwnedFd, bytes: &[u8]) -> Result<()> {
    write_all(pipe, bytes).map(drop)
}

/// Copies a blob to the pipe. What it is, the client checks.
pub(super) fn copy(source: &Arc<dyn Source>, digest: &str, pipe: &OwnedFd) -> Result<()> {
    each_piece(source, digest, |piece| write_all(pipe, piece))
}

/// The same, checked here: for a client that asks afterwards (`FinishPipe`).
pub(super) fn copy_checked(source: &Arc<dyn Source>, digest: &str, size: u64, pipe: &OwnedFd) -> Result<()> {
    let expected = reference::sha256(digest)?;
    let (mut hash, mut length) = (Sha256::new(), 0u64);
    each_piece(source, digest, |piece| {
        hash.update(piece);
        length = length.saturating_add(piece.len() as u64);
        write_all(pipe, piece)?;
        Ok(length <= size)
    })?;
    if length != size || <[u8; 32]>::from(hash.finalize()) != expected {
        return Err(corrupt(digest));
    }
    Ok(())
}

/// How far a blob is.
#[derive(Default)]
struct Progress {
    at: u64,
    resumes: u32,
    resumed_at: u64,
}

impl Progress {
    /// Whether what broke off may be taken up again.
    fn may_resume(&mut self, was_silent: bool) -> bool {
        if self.at.saturating_sub(self.resumed_at) >= MUCH {
            self.resumes = 0;
        }
        self.resumes += if was_silent { SILENCE_COUNTS } else { 1 };
        self.resumed_at = self.at;
        self.resumes <= MOST_RESUMES
    }
}

/// Reads a blob to its end, resuming what breaks off, until `take` has had enough.
fn each_piece(source: &Arc<dyn Source>, digest: &str, mut take: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
    let _line = source.lines().map(Lines::take);
    let mut buffer = vec![0; CHUNK];
    let mut progress = Progress::default();
    let mut part = source.open(digest, 0)?;
    let whole = part.whole;
    let mut pace = Pace::begin();
    loop {
        if pace.is_slow()
            && part.skip == 0
            && let Some(rest) = stripes::rest(source, digest, progress.at, whole, &mut pace)
        {
            part = rest;
        }
        let begun = Instant::now();
        let read = part.reader.read(&mut buffer);
        pace.waited(begun.elapsed(), read.as_ref().map_or(0, |length| *length));
        let (failure, was_silent) = match read {
            Ok(0) if whole.is_none_or(|whole| progress.at >= whole) => return Ok(()),
            Ok(0) => (broken(&std::io::ErrorKind::UnexpectedEof.into()), false),
            Ok(length) => {
                let skipped = usize::try_from(part.skip).unwrap_or(usize::MAX).min(length);
                part.skip = part.skip.saturating_sub(skipped as u64);
                let piece = buffer.get(skipped..length).unwrap_or_default();
                progress.at = progress.at.saturating_add(piece.len() as u64);
                if !piece.is_empty() && !take(piece)? {
                    return Ok(());
                }
                continue;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => (broken(&error), is_silence(&error)),
        };
        pace.broken();
        if !progress.may_resume(was_silent) {
            return Err(failure);
        }
        part = source.open(digest, progress.at)?;
    }
}

fn broken(error: &std::io::Error) -> Error {
    let what = if is_silence(error) { "has sent nothing for too long" } else { "ended the transfer early" };
    Error::new(Kind::Stalled, format!("the registry {what}: try again [{error}]"))
}

fn corrupt(digest: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the registry serves something else as {digest}: push the image again"))
}
