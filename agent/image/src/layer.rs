//! One layer, from the registry into the store.
//!
//! A thread of the layer's own reads the blob from a pipe, hashes and decompresses it, hashes and unpacks what comes, a piece at a time: that
//! bounds the memory of a pull whatever the size of its layers. While there are fewer such threads than keep the processors busy, another one does the first half.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nacre_protocol::disk::LAYER_ANNOTATION;
use oci_spec::image::{Descriptor, ImageManifest};

use crate::cache::{Cache, Offer, Offered};
use crate::error::{Error, Kind, Result, quoted};
use crate::ocicrypt::{Encrypted, Keys, PrivateOptions};
use crate::ready::{self, Known, Verity};
use crate::reference::{self, Sha256};
use crate::registry::Registry;
use crate::space::Budget;
use crate::store::{Partial, Store};
use crate::stream::{Counted, Decoder, Hashed, Pieces, Watched, Workers, in_pieces};
use crate::unpack;

/// The most layers of an image, which is what overlayfs takes. Docker's engine stops at 127, other builders do not.
const MAX_LAYERS: usize = 500;

/// Programs shrink to a third or so; what swells more than this is made to fill the guest's memory.
const GROWTH: Growth = Growth { times: 1000, besides: 64 << 20 };

/// What layers are (image specification, "layer.md"; Docker's types), without the suffix of their compression, which
/// the first bytes tell better.
const TYPES: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.container.image.rootfs.diff.tar",
];

/// A layer to be had.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    blob: Descriptor,
    digest: Sha256,
    diff_id: Sha256,
    /// Of an encrypted one.
    lock: Option<Arc<Lock>>,
}

/// An encrypted layer, and its key.
#[derive(Debug)]
struct Lock {
    layer: Encrypted,
    options: PrivateOptions,
}

/// How much a layer may grow when it is unpacked.
#[derive(Debug, Clone, Copy)]
struct Growth {
    /// As often as its compressed bytes.
    times: u64,
    /// And this many bytes more.
    besides: u64,
}

/// The layers of an image, the lowest first.
///
/// overlayfs takes no directory twice. Of layers that are the same the topmost stays: whatever it holds or hides it
/// holds or hides for the lower one, too.
///
/// # Errors
/// What makes no sense, and a layer that none of `keys` opens: better now than when the others have been fetched.
pub(crate) fn plan(manifest: &ImageManifest, diff_ids: &[String], keys: &Keys) -> Result<Vec<Layer>> {
    let blobs = manifest.layers();
    if blobs.is_empty() {
        return Err(Error::bad_image("the image has no layers, so there is nothing to run"));
    }
    if blobs.len() != diff_ids.len() || blobs.len() > MAX_LAYERS {
        let (named, known) = (blobs.len(), diff_ids.len());
        return Err(Error::bad_image(format!(
            "the manifest has {named} layers and the configuration {known}; they must agree and be at most {MAX_LAYERS}"
        )));
    }
    let mut layers: Vec<Layer> = Vec::with_capacity(blobs.len());
    for (blob, diff_id) in blobs.iter().zip(diff_ids) {
        let annotations = blob.annotations().clone().unwrap_or_default();
        let encrypted = Encrypted::of(blob.media_type().as_ref(), &annotations)?;
        check_type(encrypted.as_ref().map_or(blob.media_type().as_ref(), Encrypted::plain_type))?;
        let unlock = |layer: Encrypted| -> Result<Arc<Lock>> {
            let options = layer.unlock(keys).map_err(|error| error.context(format!("layer {}", blob.digest())))?;
            Ok(Arc::new(Lock { layer, options }))
        };
        let lock = encrypted.map(unlock).transpose()?;
        let (digest, diff_id) = (reference::sha256(blob.digest().as_ref())?, reference::sha256(diff_id)?);
        layers.retain(|lower| lower.diff_id != diff_id);
        layers.push(Layer { blob: blob.clone(), digest, diff_id, lock });
    }
    Ok(layers)
}

fn check_type(media_type: &str) -> Result<()> {
    let plain = ["+gzip", "+zstd", ".gzip", ".zstd"].iter().find_map(|suffix| media_type.strip_suffix(suffix));
    if TYPES.contains(&plain.unwrap_or(media_type)) {
        return Ok(());
    }
    Err(Error::bad_image(format!("a layer is of type {}, which is no layer of a container image", quoted(media_type))))
}

impl Layer {
    /// The digest of its archive.
    pub(crate) fn diff_id(&self) -> &Sha256 {
        &self.diff_id
    }

    /// Compressed bytes.
    pub(crate) fn size(&self) -> u64 {
        self.blob.size()
    }

    /// What a disk must be to stand for it, if a trusted source says so. An encrypted layer has no ready-made form, for the host could read it.
    pub(crate) fn verity(&self, known: &[Known]) -> Option<Verity> {
        let annotation = self.blob.annotations().as_ref().and_then(|all| all.get(LAYER_ANNOTATION));
        ready::of(&self.diff_id, known, annotation.map(String::as_str)).filter(|_| self.lock.is_none())
    }

    /// Where it is, if the store has it.
    pub(crate) fn known(&self, store: &Store) -> Option<PathBuf> {
        store.layer(&self.diff_id)
    }

    /// Fetches it into the store: from the cache, or from the registry. `arrived` hears how many bytes come.
    pub(crate) async fn fetch(
        &self,
        (registry, cache): (&Registry, &Cache),
        store: &Store,
        budget: &Budget,
        workers: &Arc<Workers>,
        arrived: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<PathBuf> {
        let about = |error: Error| error.context(format!("layer {}", self.blob.digest()));
        let arrived = Arc::new(Arrived { most: AtomicU64::new(0), tell: arrived });
        let cached = cache.attempt(&self.blob, self.lock.is_some(), async |bytes| {
            let drawn = budget.part();
            let (partial, pass, _) = self.pass((bytes, None), store, drawn.clone(), workers, arrived.clone()).await?;
            let judged = self.judge(pass, std::future::ready(Ok(()))).await;
            judged.and_then(|()| store.keep(partial, &self.diff_id)).inspect_err(|_| drawn.give_back())
        });
        let wanted = match cached.await.map_err(about)? {
            ControlFlow::Break(dir) => return Ok(dir),
            ControlFlow::Continue(wanted) => wanted,
        };
        let (bytes, ended) = registry.blob(&self.blob).await.map_err(about)?;
        let (partial, pass, offered) = self.pass((bytes, wanted), store, budget.part(), workers, arrived).await?;
        self.judge(pass, ended).await.map_err(about)?;
        cache.offered(&self.blob, offered);
        store.keep(partial, &self.diff_id)
    }

    /// One pass over its bytes, on threads that may wait for them; and how it went to offer them to the cache.
    async fn pass<F: Fn(u64) + Send + Sync + 'static>(
        &self,
        (bytes, wanted): (io::Take<Watched>, Option<Offer>),
        store: &Store,
        budget: Budget,
        workers: &Arc<Workers>,
        arrived: Arc<Arrived<F>>,
    ) -> Result<(Partial, Pass, io::Result<()>)> {
        let (partial, lock, digest, workers) = (store.begin()?, self.lock.clone(), self.digest, workers.clone());
        let unpacking = tokio::task::spawn_blocking(move || {
            let mut source = Told { inner: Offered::new(bytes, wanted), arrived, bytes: 0 };
            let pass = Pass::over(&mut source, lock.as_deref(), &partial.root(), budget, &workers);
            let offered = source.inner.finish(pass.digest == digest);
            (partial, pass, offered)
        });
        unpacking.await.map_err(|error| Error::new(Kind::Internal, format!("unpack a layer: {error}")))
    }

    async fn judge(&self, pass: Pass, ended: impl Future<Output = Result<()>>) -> Result<()> {
        // What failed here says nothing of the registry.
        let unpacked = match pass.unpacked {
            Err(error) if error.kind != Kind::BadImage => return Err(error),
            unpacked => unpacked,
        };
        let missing = self.blob.size().saturating_sub(pass.bytes);
        if missing > 0 {
            ended.await?;
            return Err(Error::new(Kind::Stalled, format!("{missing} bytes are missing: try again")));
        }
        // Wrong bytes explain every other error.
        if pass.digest != self.digest {
            let found = hex::encode(pass.digest);
            return Err(Error::new(
                Kind::Corrupt,
                format!("the registry serves something else (sha256:{found}): push the image again"),
            ));
        }
        let diff_id = unpacked?;
        if diff_id != self.diff_id {
            let found = hex::encode(diff_id);
            return Err(Error::bad_image(format!("its archive is sha256:{found}, not what the configuration says")));
        }
        Ok(())
    }
}

/// What one pass over a blob yields.
#[derive(Debug)]
struct Pass {
    digest: Sha256,
    bytes: u64,
    /// The archive's digest, if it was unpacked.
    unpacked: Result<Sha256>,
}

impl Pass {
    /// The blob is read to its end even when the archive is bad, for only the digest tells whose fault that is. When the fault is ours, nothing is
    /// to be told, and the reading stops.
    fn over(source: impl Read + Send, lock: Option<&Lock>, root: &Path, budget: Budget, workers: &Workers) -> Pass {
        let _busy = workers.one();
        let mut source = Hashed::new(source);
        let mut unpacked = Err(Error::new(Kind::Internal, "nothing was unpacked"));
        let sealed = decompress(&mut source, lock, budget, |plain| {
            unpacked = in_pieces(plain, workers, |pieces| decode(pieces, root));
        });
        let rest = if is_ours(&unpacked) { Ok(()) } else { drain(&mut source, "read it") };
        let (digest, bytes) = source.finish();
        Pass { digest, bytes, unpacked: sealed.and(rest).and(unpacked) }
    }
}

/// Whether something failed here, whatever the image is.
fn is_ours<T>(unpacked: &Result<T>) -> bool {
    unpacked.as_ref().is_err_and(|error| error.kind != Kind::BadImage)
}

fn drain(source: &mut impl Read, act: &str) -> Result<()> {
    io::copy(source, &mut io::sink()).map(drop).map_err(|error| Error::reading(act, error))
}

/// Decrypts and decompresses for `take`, and reads the blob to its end: only there it is known whether the key's owner has encrypted it.
fn decompress(
    source: &mut (impl Read + Send),
    lock: Option<&Lock>,
    budget: Budget,
    take: impl FnOnce(&mut (dyn Read + Send)),
) -> Result<()> {
    let plain: Box<dyn Read + Send + '_> = match lock {
        None => Box::new(source),
        Some(Lock { layer, options }) => Box::new(layer.decrypter(options, source)?),
    };
    let mut counted = Counted::new(plain);
    match Decoder::new(&mut counted, budget.windows()) {
        Ok(decoder) => take(&mut Limited { inner: decoder, budget, growth: GROWTH, unpacked: 0 }),
        Err(error) => take(&mut Failing(Some(error))),
    }
    match lock {
        None => Ok(()),
        Some(_) => drain(&mut counted, "decrypt it"),
    }
}

fn decode(mut pieces: Pieces<'_, '_>, root: &Path) -> Result<Sha256> {
    unpack::unpack(&mut pieces, root)?;
    // What follows the archive's end counts for the DiffID, too.
    pieces.finish().map_err(|error| Error::reading("decompress it", error))
}

/// A reader that fails at once.
struct Failing(Option<io::Error>);

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

/// Hears how much of a layer has come. What comes once more is not told twice.
struct Arrived<F> {
    most: AtomicU64,
    tell: F,
}

/// A reader that tells how much has come.
struct Told<R, F> {
    inner: R,
    arrived: Arc<Arrived<F>>,
    bytes: u64,
}

impl<R: Read, F: Fn(u64)> Read for Told<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes = self.bytes.saturating_add(n as u64);
        let before = self.arrived.most.fetch_max(self.bytes, Relaxed);
        (self.arrived.tell)(self.bytes.saturating_sub(before));
        Ok(n)
    }
}

/// A layer's bytes, drawn on the image's budget and measured against the compressed bytes that they came from.
struct Limited<'a, R: Read> {
    inner: Decoder<&'a mut Counted<R>>,
    budget: Budget,
    growth: Growth,
    unpacked: u64,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.budget.draw(n as u64)?;
        self.unpacked = self.unpacked.saturating_add(n as u64);
        // What was read, not what the manifest promises: a bomb would promise much.
        let compressed = self.inner.source().passed();
        let Growth { times, besides } = self.growth;
        if self.unpacked > compressed.saturating_mul(times).saturating_add(besides) {
            let reason = format!("it unpacks to more than {times} times its {compressed} compressed bytes");
            return Err(Error::bad_image(reason).into());
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Space;
    use oci_spec::image::{ImageManifestBuilder, MediaType};

    fn descriptor(media_type: &str, digest: u8) -> Descriptor {
        let digest: oci_spec::image::Digest = format!("sha256:{}", hex::encode([digest; 32])).parse().unwrap();
        Descriptor::new(media_type.into(), 1, digest)
    }

    fn manifest(layers: Vec<Descriptor>) -> ImageManifest {
        let config = descriptor(MediaType::ImageConfig.as_ref(), 0);
        ImageManifestBuilder::default().schema_version(2u32).config(config).layers(layers).build().unwrap()
    }

    fn ids(bytes: &[u8]) -> Vec<String> {
        bytes.iter().map(|byte| format!("sha256:{}", hex::encode([*byte; 32]))).collect()
    }

    #[test]
    fn of_layers_that_are_the_same_the_topmost_stays() {
        let layers = [1, 2, 3].map(|digest| descriptor(TYPES[0], digest)).to_vec();
        let planned = plan(&manifest(layers), &ids(&[7, 8, 7]), &Keys::default()).unwrap();
        assert_eq!(planned.iter().map(|layer| layer.diff_id[0]).collect::<Vec<_>>(), [8, 7]);
    }

    #[test]
    fn layers_that_make_no_sense_are_refused() {
        let layer = |kind: &str| descriptor(kind, 1);
        for (layers, diff_ids) in [
            (vec![], vec![]),
            (vec![layer(TYPES[0])], ids(&[1, 2])),
            (vec![layer(TYPES[0]); MAX_LAYERS + 1], ids(&[1; MAX_LAYERS + 1])),
            (vec![layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")], ids(&[1])),
            (vec![layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip")], ids(&[1])),
            (vec![layer(TYPES[0])], vec!["sha512:00".to_string()]),
        ] {
            assert_eq!(plan(&manifest(layers), &diff_ids, &Keys::default()).unwrap_err().kind, Kind::BadImage);
        }
        let docker = vec![layer("application/vnd.docker.image.rootfs.diff.tar.gzip")];
        assert!(plan(&manifest(docker), &ids(&[1]), &Keys::default()).is_ok());
    }

    fn budget() -> Budget {
        Budget::new(Space::of(Path::new("/")).unwrap())
    }

    /// How many bytes come out of a layer.
    fn read_all(compressed: impl Read, budget: Budget, growth: Growth) -> Result<u64> {
        let mut source = Counted::new(compressed);
        let inner = Decoder::new(&mut source, budget.windows()).unwrap();
        let mut limited = Limited { inner, budget, growth, unpacked: 0 };
        io::copy(&mut limited, &mut io::sink()).map_err(|error| Error::reading("", error))
    }

    #[test]
    fn a_layer_that_grows_beyond_reason_is_stopped_whatever_its_compression() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        io::copy(&mut io::repeat(0).take(4 << 20), &mut gzip).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::stream::encode_all(io::repeat(0).take(256 << 20), 1).unwrap();
        // Deflate reaches 1,032 at most, which takes gigabytes to be told from 1,000.
        let little = Growth { times: 100, besides: 1 << 20 };
        for (bomb, growth) in [(&gzip, little), (&zstd, GROWTH)] {
            let error = read_all(&bomb[..], budget(), growth).unwrap_err();
            assert!(error.kind == Kind::BadImage && error.message.contains("compressed bytes"), "{error}");
        }
        assert_eq!(read_all(&gzip[..], budget(), GROWTH).unwrap(), 4 << 20);
        assert_eq!(read_all(io::repeat(7).take(4 << 20), budget(), little).unwrap(), 4 << 20);
    }
}
