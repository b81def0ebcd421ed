//! The process that pulls: a [`Request`] on standard input, [`Event`]s on standard output, nothing else in or out.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use oci_spec::image::{Descriptor, ImageManifest};
use tokio::sync::{Semaphore, mpsc};

use crate::error::{Error, Kind, Result};
use crate::registry::Registry;
use crate::store::Store;
use crate::stream::{Decoder, Hashed, Pieces};
use crate::{Event, Image, Request, reference, unpack};

/// The most layers of an image.
const MAX_LAYERS: usize = 512;

/// How many layers are on their way at once.
const AT_ONCE: usize = 3;

/// How many pieces of a layer may wait to be unpacked: with [`AT_ONCE`], the bound of the memory that a pull takes.
const PIECES: usize = 8;

/// The most bytes after an archive's end: padding.
const MAX_PADDING: u64 = 64 << 20;

/// The largest request.
const MAX_REQUEST: u64 = 1 << 20;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Pulls what standard input asks for. The exit code is 0 when the last event is `Done`.
pub fn main() -> ExitCode {
    let result = read_request().and_then(|request| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| Error::system("start", error))?.block_on(pull(&request))
    });
    match result {
        Ok(image) => {
            tell(&Event::Done(Box::new(image)));
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell(&Event::Failed { kind: error.kind, message: error.message });
            ExitCode::FAILURE
        }
    }
}

fn read_request() -> Result<Request> {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_REQUEST).read_to_string(&mut text);
    read.map_err(|error| Error::system("read the request", error))?;
    serde_json::from_str(&text).map_err(|error| Error::new(Kind::BadRequest, format!("the request: {error}")))
}

/// A reader that is gone ends this process by its lifeline; there is nothing to do about it here.
fn tell(event: &Event) {
    let Ok(mut line) = serde_json::to_vec(event) else { return };
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

/// Counts what arrives and tells it now and then.
#[derive(Debug)]
struct Progress {
    layers: AtomicUsize,
    bytes: AtomicU64,
    begun: Instant,
    told_ms: AtomicU64,
}

impl Progress {
    fn add(&self, layers: usize, bytes: u64) {
        let layers_done = self.layers.fetch_add(layers, Relaxed) + layers;
        let bytes_done = self.bytes.fetch_add(bytes, Relaxed) + bytes;
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = self.told_ms.load(Relaxed).saturating_add(TELL_EVERY.as_millis() as u64);
        if layers > 0 || now >= due {
            self.told_ms.store(now, Relaxed);
            tell(&Event::Progress { layers_done, bytes_done });
        }
    }
}

async fn pull(request: &Request) -> Result<Image> {
    reference::check(&request.reference)?;
    tell(&Event::Resolving);
    let store = Store::open(&request.store)?;
    let private = tempfile::tempdir().map_err(|error| Error::system("make a private directory", error))?;
    let registry = Registry::open(request, private.path()).await?;
    let (manifest_digest, manifest) = registry.manifest().await?;
    let config = registry.config().await?;
    let layers = pair(&manifest, config.rootfs().diff_ids())?;
    let bytes = manifest.layers().iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size()));
    tell(&Event::Resolved { manifest_digest: manifest_digest.clone(), layers: layers.len(), bytes });

    let progress = Progress {
        layers: AtomicUsize::new(0),
        bytes: AtomicU64::new(0),
        begun: Instant::now(),
        told_ms: AtomicU64::new(0),
    };
    let permits = Semaphore::new(AT_ONCE);
    let fetches = layers.iter().map(async |(blob, diff_id)| {
        let _permit = permits.acquire().await.map_err(|_| Error::new(Kind::Internal, "the pull is over"))?;
        fetch(&registry, &store, blob, diff_id, &progress).await
    });
    let directories = try_join(fetches).await?;
    Ok(Image { reference: request.reference.clone(), manifest_digest, layers: directories, config })
}

/// Every future's value, or the first error: then the others are dropped, and with them what they had made.
async fn try_join<T>(futures: impl Iterator<Item = impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, value) in running.iter_mut().filter(|(_, value)| value.is_none()) {
            match future.as_mut().poll(cx) {
                std::task::Poll::Ready(Ok(done)) => *value = Some(done),
                std::task::Poll::Ready(Err(error)) => return std::task::Poll::Ready(Err(error)),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(Ok(())) }
    })
    .await?;
    Ok(running.into_iter().filter_map(|(_, value)| value).collect())
}

/// Each layer with the digest of its archive. The same one may stand there twice.
fn pair(manifest: &ImageManifest, diff_ids: &[String]) -> Result<Vec<(Descriptor, [u8; 32])>> {
    let layers = manifest.layers();
    if layers.len() != diff_ids.len() || layers.len() > MAX_LAYERS {
        let (a, b) = (layers.len(), diff_ids.len());
        return Err(Error::new(
            Kind::BadImage,
            format!("the manifest names {a} layers and the configuration {b}; at most {MAX_LAYERS} are allowed"),
        ));
    }
    layers.iter().zip(diff_ids).map(|(layer, id)| Ok((layer.clone(), reference::sha256(id)?))).collect()
}

async fn fetch(
    registry: &Registry,
    store: &Store,
    blob: &Descriptor,
    diff_id: &[u8; 32],
    progress: &Progress,
) -> Result<PathBuf> {
    if let Some(known) = store.layer(diff_id) {
        progress.add(1, blob.size());
        return Ok(known);
    }
    let digest = reference::sha256(blob.digest().as_ref())?;
    let partial = store.begin()?;
    let root = partial.root();
    let (sender, receiver) = mpsc::channel(PIECES);
    let unpacking = tokio::task::spawn_blocking(move || unpack_layer(receiver, &root));
    let fetched = registry
        .blob(blob, async |piece: Vec<u8>| {
            progress.add(0, piece.len() as u64);
            sender.send(piece).await.is_ok()
        })
        .await;
    drop(sender);
    let unpacked = unpacking.await.map_err(|error| Error::new(Kind::Internal, format!("unpack a layer: {error}")))?;
    fetched?;
    let name = blob.digest();
    let Digests { compressed, archive, bytes, unpacked } = unpacked;
    // Wrong bytes explain every other error.
    if bytes == blob.size() && compressed != digest {
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "layer {name}: the registry sent sha256:{} instead; is it, or the way to it, to be trusted?",
                hex::encode(compressed)
            ),
        ));
    }
    unpacked.map_err(|error| Error { message: format!("layer {name}: {}", error.message), ..error })?;
    if archive != *diff_id {
        return Err(Error::new(
            Kind::BadImage,
            format!("layer {name}: its archive is sha256:{}, not what the configuration says", hex::encode(archive)),
        ));
    }
    let kept = store.keep(partial, diff_id)?;
    progress.add(1, 0);
    Ok(kept)
}

/// What one pass over a layer yields.
struct Digests {
    compressed: [u8; 32],
    archive: [u8; 32],
    /// Compressed bytes that came.
    bytes: u64,
    unpacked: Result<()>,
}

/// Runs on a thread of its own. Reads the blob to its end even when the archive is bad, for only the digest tells whose fault it is.
fn unpack_layer(receiver: mpsc::Receiver<Vec<u8>>, root: &std::path::Path) -> Digests {
    let broken = |error: std::io::Error| Error::new(Kind::BadImage, format!("it does not decompress: {error}"));
    let mut archive_digest = [0; 32];
    let mut source = Hashed::new(Pieces::new(receiver));
    let unpacked = match Decoder::new(&mut source) {
        Ok(decoder) => {
            let mut archive = Hashed::new(decoder);
            let result = unpack::unpack(&mut archive, root).and_then(|()| {
                let padding =
                    std::io::copy(&mut (&mut archive).take(MAX_PADDING), &mut std::io::sink()).map_err(broken)?;
                if padding < MAX_PADDING { Ok(()) } else { Err(Error::new(Kind::BadImage, "its archive does not end")) }
            });
            (archive_digest, _) = archive.finish();
            result
        }
        Err(error) => Err(broken(error)),
    };
    let _ = std::io::copy(&mut source, &mut std::io::sink()); // reading pieces can't fail
    let (compressed, bytes) = source.finish();
    Digests { compressed, archive: archive_digest, bytes, unpacked }
}
