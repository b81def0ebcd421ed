//! One connection: a question, its answer, and a blob this way or that.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::Relaxed;

use nacre_protocol::blob_cache::{self, Answer, Ask, Digest};
use sha2::{Digest as _, Sha256};

use super::Shared;

/// What of a blob is in memory at once.
const PIECE: usize = 64 << 10;

/// Serves one guest's call. It hangs up when it likes, and so do we.
pub(super) fn connection(shared: &Shared, mut stream: UnixStream) {
    let Ok(ask) = blob_cache::read::<Ask>(&mut stream) else { return };
    let result = match shared.store.find(ask.digest, ask.size) {
        Some(blob) => give(shared, &mut stream, ask, blob),
        None => match Claim::on(shared, ask) {
            Some(claim) => take(shared, &mut stream, ask, claim),
            None => say(&mut stream, Answer::Missing),
        },
    };
    // What a guest does is its own affair; what the disk does is the host's.
    if let Err(Failure::Ours(error)) = result
        && !shared.told.swap(true, Relaxed)
    {
        (shared.tell)(&format!("{}: {error}: nothing more is kept", shared.store));
    }
}

/// Whose fault it was.
enum Failure {
    Guest,
    Ours(io::Error),
}

type Result<T = ()> = std::result::Result<T, Failure>;

fn say(stream: &mut UnixStream, answer: Answer) -> Result {
    stream.write_all(&blob_cache::to_line(&answer)).map_err(|_| Failure::Guest)
}

/// Sends a blob. One that has rotted is removed, as the guest will say that it is something else.
fn give(shared: &Shared, stream: &mut UnixStream, ask: Ask, mut blob: File) -> Result {
    say(stream, Answer::Have)?;
    let (mut left, mut hash, mut piece) = (ask.size, Sha256::new(), vec![0; PIECE]);
    while left > 0 {
        let n = blob.read(room(&mut piece, left)).unwrap_or(0); // cut off or unreadable: the digest is wrong then, too
        if n == 0 {
            break;
        }
        let read = piece.get(..n).unwrap_or_default();
        hash.update(read);
        stream.write_all(read).map_err(|_| Failure::Guest)?;
        left = left.saturating_sub(n as u64);
        shared.served.fetch_add(n as u64, Relaxed);
    }
    if Digest(hash.finalize().into()) != ask.digest {
        let done = if shared.store.discard(ask.digest) { "removed" } else { "is another's to remove" };
        (shared.tell)(&format!("{}: {} has other bytes than its name says: {done}", shared.store, ask.digest));
    }
    Ok(())
}

/// Takes a blob, and keeps it when it is what its digest says.
fn take(shared: &Shared, stream: &mut UnixStream, ask: Ask, claim: Claim<'_>) -> Result {
    let mut file = match shared.store.begin() {
        Ok(file) => file,
        Err(error) => return say(stream, Answer::Missing).and(Err(Failure::Ours(error))),
    };
    say(stream, Answer::Fill)?;
    let (mut left, mut hash, mut piece) = (ask.size, Sha256::new(), vec![0; PIECE]);
    while left > 0 {
        let n = stream.read(room(&mut piece, left)).map_err(|_| Failure::Guest)?;
        let read = piece.get(..n).filter(|read| !read.is_empty()).ok_or(Failure::Guest)?;
        hash.update(read);
        file.write_all(read).map_err(|error| shared.store.full(error)).map_err(Failure::Ours)?;
        left = left.saturating_sub(n as u64);
    }
    if Digest(hash.finalize().into()) != ask.digest {
        return Err(Failure::Guest);
    }
    shared.store.keep(file, ask.digest, ask.size).map_err(|error| shared.store.full(error)).map_err(Failure::Ours)?;
    shared.filled.fetch_add(ask.size, Relaxed);
    drop(claim);
    say(stream, Answer::Kept)
}

fn room(piece: &mut [u8], left: u64) -> &mut [u8] {
    let length = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
    piece.get_mut(..length).unwrap_or_default()
}

/// Room for a blob on its way, given back when it has come or not.
struct Claim<'a> {
    shared: &'a Shared,
    size: u64,
}

impl<'a> Claim<'a> {
    /// Unless the guest would not send it, or it has too much on its way already.
    fn on(shared: &'a Shared, ask: Ask) -> Option<Claim<'a>> {
        let most = shared.store.takes()?;
        let fits = |now: u64| now.checked_add(ask.size).filter(|sum| *sum <= most);
        let claimed = ask.fill && shared.on_the_way.fetch_update(Relaxed, Relaxed, fits).is_ok();
        claimed.then(|| Claim { shared, size: ask.size }) // not made in vain: its drop gives back
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shared.on_the_way.fetch_sub(self.size, Relaxed);
    }
}
