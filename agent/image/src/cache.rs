//! The host's cache of blobs: asked before the registry, and believed in nothing.
//!
//! The digest says what a blob is, so the cache can only cost time, and little of that: at its first fault it is asked no more in this pull.
//! It is told digests and sizes; it is offered only what the host may see, which is layers that stay encrypted, and images that a registry
//! gives to anyone.

use std::fs::File;
use std::io::{self, Read, Take};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nacre_protocol::address::Address;
use nacre_protocol::blob_cache::{self, Answer, Ask, Digest};
use nacre_protocol::connect;
use oci_spec::image::Descriptor;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::time::timeout;

use crate::access::credentials::Credentials;
use crate::access::registries::Registries;
use crate::error::{Error, Kind, Result};
use crate::stream::{Patience, Watched};
use crate::{Event, Request, reference};

/// How long a connection may take.
const DIAL_WITHIN: Duration = Duration::from_secs(2);

/// What is waited for an answer or a blob: less than for a registry, for the host is near and there is another way.
const ANSWERS: Patience = Patience::new(Duration::from_secs(5), 1 << 20);

/// How long the cache may hold up a pull that offers it a blob: less than a mebibyte a second is not waited for.
const TAKES: Patience = Patience::new(Duration::from_secs(2), 2 << 20);

/// The cache, as one pull sees it. Without an address there is none.
#[derive(Debug)]
pub(crate) struct Cache {
    address: Option<Address>,
    /// Whether the registry gives the image to anyone.
    is_public: bool,
    asks: AtomicBool,
    offers: AtomicBool,
    tell: fn(&Event),
}

/// What the cache says of a blob.
enum Reply {
    Blob(Take<Watched>),
    Nothing,
    Wanted(Offer),
}

impl Cache {
    /// The cache that `request` names, for the image by its full name. `tell` hears of what it does wrong.
    pub(crate) fn of(request: &Request, tell: fn(&Event)) -> Result<Cache> {
        let wrong = |error| Error::new(Kind::BadRequest, format!("the host's cache: {error}"));
        let named = request.blob_cache.as_ref().filter(|_| !reference::is_local(&request.reference));
        let address = named.map(|text| text.parse().map_err(wrong)).transpose()?;
        let is_public = address.is_some() && is_public(request);
        Ok(Cache { address, is_public, asks: true.into(), offers: true.into(), tell })
    }

    /// The family of the sockets by which it is called.
    pub(crate) fn family(&self) -> Option<i32> {
        self.address.as_ref().map(|address| match address {
            Address::Vsock { .. } => libc::AF_VSOCK,
            Address::Unix(_) | Address::Abstract(_) | Address::Hybrid { .. } => libc::AF_UNIX,
        })
    }

    /// Has `attempt` use what the cache has of a blob. Where that comes to nothing, the registry is to be asked; the cache may want what it
    /// sends.
    ///
    /// # Errors
    /// The image's own faults: what has the right digest, the registry has no better.
    pub(crate) async fn attempt<T>(
        &self,
        blob: &Descriptor,
        is_encrypted: bool,
        attempt: impl AsyncFnOnce(Take<Watched>) -> Result<T>,
    ) -> Result<ControlFlow<T, Option<Offer>>> {
        match self.ask(blob, is_encrypted).await {
            Reply::Nothing => Ok(ControlFlow::Continue(None)),
            Reply::Wanted(offer) => Ok(ControlFlow::Continue(Some(offer))),
            Reply::Blob(bytes) => match attempt(bytes).await {
                Ok(done) => Ok(ControlFlow::Break(done)),
                Err(error) if error.kind == Kind::BadImage => Err(error),
                Err(error) => {
                    self.failed(blob, fault(&error));
                    Ok(ControlFlow::Continue(None))
                }
            },
        }
    }

    /// How an offer ended.
    pub(crate) fn offered(&self, blob: &Descriptor, ended: io::Result<()>) {
        if let Err(error) = ended
            && self.offers.swap(false, Relaxed)
        {
            let why =
                format!("the host's cache does not take {} ({}): nothing more is offered", blob.digest(), plain(error));
            (self.tell)(&Event::Cache { message: why });
        }
    }

    async fn ask(&self, blob: &Descriptor, is_encrypted: bool) -> Reply {
        let Some(address) = self.address.as_ref().filter(|_| self.asks.load(Relaxed)) else { return Reply::Nothing };
        let fill = (self.is_public || is_encrypted) && self.offers.load(Relaxed);
        ask(address, blob, fill).await.unwrap_or_else(|error| {
            self.failed(blob, &format!("has no answer ({})", plain(error)));
            Reply::Nothing
        })
    }

    fn failed(&self, blob: &Descriptor, what: &str) {
        self.asks.store(false, Relaxed);
        let message = format!("the host's cache {what} for {}: fetched from the registry", blob.digest());
        (self.tell)(&Event::Cache { message });
    }
}

async fn ask(address: &Address, blob: &Descriptor, fill: bool) -> io::Result<Reply> {
    let digest = Digest(reference::sha256(blob.digest().as_ref())?);
    let dialled = timeout(DIAL_WITHIN, connect::dial(address)).await;
    let stream = dialled.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let (socket, ask) = (File::from(stream.to_fd()?), Ask { digest, size: blob.size(), fill });
    tokio::task::spawn_blocking(move || converse(socket, ask)).await?
}

fn converse(socket: File, ask: Ask) -> io::Result<Reply> {
    let mut offer = Offer { socket: socket.try_clone()?, patience: TAKES };
    offer.send(&blob_cache::to_line(&ask))?;
    let mut watched = Watched::new(socket, ANSWERS);
    match blob_cache::read(&mut watched)? {
        Answer::Have => Ok(Reply::Blob(watched.take(ask.size))),
        Answer::Missing => Ok(Reply::Nothing),
        Answer::Fill if ask.fill => Ok(Reply::Wanted(offer)),
        Answer::Fill | Answer::Kept => Err(io::Error::new(io::ErrorKind::InvalidData, "it was not asked for that")),
    }
}

/// Whether nobody is named to any registry that may be asked for the image. What can't be told is private.
fn is_public(request: &Request) -> bool {
    let credentialed = || -> Result<bool> {
        let Some(file) = &request.auth_file else { return Ok(false) };
        let credentials = Credentials::parse(file.as_bytes())?;
        let registries = request.registries.as_deref().map(Registries::parse).transpose()?.unwrap_or_default();
        for endpoint in registries.endpoints(&request.reference)? {
            if credentials.for_reference(&endpoint.reference)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    request.auth.is_none() && credentialed().is_ok_and(|credentialed| !credentialed)
}

/// What the cache did, by what became of its bytes.
fn fault(error: &Error) -> &str {
    match error.kind {
        Kind::Corrupt => "served something else",
        Kind::Stalled => "sent too little",
        _ => "sent what could not be used",
    }
}

fn plain(error: io::Error) -> String {
    // Only one error of ours can come out of a connection, and it speaks of registries.
    error.downcast::<Error>().map_or_else(|error| error.to_string(), |_| "nothing came for too long".into())
}

/// A blob that the cache wants, on its way there.
#[derive(Debug)]
pub(crate) struct Offer {
    socket: File,
    patience: Patience,
}

impl Offer {
    /// Sends all of `bytes`, if that does not take too long.
    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.patience.bears(Duration::ZERO, sent as u64);
                    bytes = bytes.get(sent..).unwrap_or_default();
                }
                Err(Errno::AGAIN) => self.wait()?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        let slow = || io::Error::new(io::ErrorKind::TimedOut, "it is too slow");
        let (begun, limit) = (Instant::now(), self.patience.limit());
        let mut ready = [PollFd::new(&self.socket, PollFlags::OUT)];
        let ready = rustix::io::retry_on_intr(|| poll(&mut ready, Some(&limit)))?;
        if ready > 0 && self.patience.bears(begun.elapsed(), 0) { Ok(()) } else { Err(slow()) }
    }

    /// All has been sent. Returns when it is kept, so that who pulls next finds it.
    fn finish(self) -> io::Result<()> {
        match blob_cache::read(&mut Watched::new(self.socket, TAKES))? {
            Answer::Kept => Ok(()),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("it says {other:?}"))),
        }
    }
}

/// A reader that offers what passes. A fault of the cache ends the offer, not the reading.
#[derive(Debug)]
pub(crate) struct Offered<R> {
    inner: R,
    offer: io::Result<Option<Offer>>,
}

impl<R> Offered<R> {
    pub(crate) fn new(inner: R, offer: Option<Offer>) -> Offered<R> {
        Offered { inner, offer: Ok(offer) }
    }

    /// How the offer has ended. What is not whole and right is taken back, which ends it well.
    pub(crate) fn finish(self, is_right: bool) -> io::Result<()> {
        match self.offer? {
            Some(offer) if is_right => offer.finish(),
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for Offered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if let Ok(Some(offer)) = &mut self.offer
            && let Err(error) = offer.send(buffer.get(..n).unwrap_or_default())
        {
            self.offer = Err(error);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_public_when_no_place_of_it_is_shown_who_asks() {
        let auth_file = |key: &str| Some(serde_json::json!({ "auths": { key: { "auth": "dTpw" } } }).to_string());
        let token =
            serde_json::json!({ "auths": { "r.example": { "auth": "dTpw", "identitytoken": "t" } } }).to_string();
        let mirror =
            "[[registry]]\nlocation = \"r.example\"\n[[registry.mirror]]\nlocation = \"m.example\"".to_string();
        let of = |auth: bool, auth_file: Option<String>, registries: Option<String>| {
            let auth = auth.then(|| crate::Auth { username: "u".into(), password: "p".into() });
            let request = crate::client::tests::request();
            is_public(&Request { reference: "r.example/a:1".into(), auth, auth_file, registries, ..request })
        };
        assert!(of(false, None, None));
        assert!(of(false, auth_file("other.example"), Some(mirror.clone())));
        for (auth, auth_file, registries) in [
            (true, None, None),
            (false, auth_file("r.example"), None),
            (false, auth_file("r.example/a"), None),
            (false, Some(token), None),
            (false, auth_file("m.example"), Some(mirror)),
            (false, Some("nonsense".into()), None),
        ] {
            assert!(!of(auth, auth_file.clone(), registries), "{auth_file:?}");
        }
    }

    #[test]
    fn who_takes_too_little_does_not_hold_up_a_pull() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let socket = File::from(std::os::fd::OwnedFd::from(ours));
        let offer = Offer { socket, patience: Patience::new(Duration::from_millis(20), 1 << 20) };
        let mut offered = Offered::new(io::repeat(7).take(8 << 20), Some(offer));
        assert_eq!(io::copy(&mut offered, &mut io::sink()).unwrap(), 8 << 20);
        assert_eq!(offered.finish(true).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }
}
