//! One layer, from the registry into the store.
//!
//! The event loop fetches; a thread of the layer's own hashes, decompresses, hashes again and unpacks what comes.
//! Between them a few pieces wait, no more: that bounds the memory of a pull whatever the size of its layers.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use oci_spec::image::{Descriptor, ImageManifest};
use tokio::sync::mpsc::{self, Receiver};

use crate::error::{Error, Kind, Result};
use crate::reference::{self, Sha256};
use crate::registry::Registry;
use crate::store::Store;
use crate::stream::{Decoder, Hashed, Pieces};
use crate::unpack;

/// The most layers of an image. Docker's engine stops at 127.
const MAX_LAYERS: usize = 128;

/// The most bytes that an image unpacks to.
const MAX_UNPACKED: u64 = 256 << 30;

/// Programs shrink to a third or so; what swells more than this is made to fill the guest's memory.
const GROWTH: Growth = Growth { times: 1000, besides: 64 << 20 };

/// How many pieces of a layer may wait to be unpacked.
const PIECES: usize = 4;

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
}

/// How many bytes all layers of an image may still unpack to.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<AtomicU64>);

impl Default for Budget {
    fn default() -> Budget {
        Budget(Arc::new(AtomicU64::new(MAX_UNPACKED)))
    }
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
pub(crate) fn plan(manifest: &ImageManifest, diff_ids: &[String]) -> Result<Vec<Layer>> {
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
        check_type(blob.media_type().as_ref())?;
        let (digest, diff_id) = (reference::sha256(blob.digest().as_ref())?, reference::sha256(diff_id)?);
        layers.retain(|lower| lower.diff_id != diff_id);
        layers.push(Layer { blob: blob.clone(), digest, diff_id });
    }
    Ok(layers)
}

fn check_type(media_type: &str) -> Result<()> {
    if media_type.ends_with("+encrypted") {
        return Err(Error::bad_image("the image's layers are encrypted, which is not supported"));
    }
    let plain = ["+gzip", "+zstd", ".gzip", ".zstd"].iter().find_map(|suffix| media_type.strip_suffix(suffix));
    if TYPES.contains(&plain.unwrap_or(media_type)) {
        return Ok(());
    }
    Err(Error::bad_image(format!("a layer is of type {media_type:.100?}, which is no layer of a container image")))
}

impl Layer {
    /// Compressed bytes.
    pub(crate) fn size(&self) -> u64 {
        self.blob.size()
    }

    /// Where it is, if the store has it.
    pub(crate) fn known(&self, store: &Store) -> Option<PathBuf> {
        store.layer(&self.diff_id)
    }

    /// Fetches it into the store. `arrived` hears how many bytes come.
    pub(crate) async fn fetch(
        &self,
        registry: &Registry,
        store: &Store,
        budget: Budget,
        arrived: impl Fn(u64),
    ) -> Result<PathBuf> {
        let partial = store.begin()?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let unpacking = tokio::task::spawn_blocking(move || {
            let pass = Pass::over(receiver, &partial.root(), budget);
            (partial, pass)
        });
        let fetched = registry
            .blob(&self.blob, async |piece: Vec<u8>| {
                arrived(piece.len() as u64);
                sender.send(piece).await.is_ok()
            })
            .await;
        drop(sender);
        let internal = |error: tokio::task::JoinError| Error::new(Kind::Internal, format!("unpack a layer: {error}"));
        let (partial, pass) = unpacking.await.map_err(internal)?;
        let name = self.blob.digest();
        fetched.and_then(|()| self.judge(pass)).map_err(|error| error.context(format!("layer {name}")))?;
        store.keep(partial, &self.diff_id)
    }

    fn judge(&self, pass: Pass) -> Result<()> {
        // Wrong bytes explain every other error, but for those that stopped the reading.
        if pass.bytes == self.blob.size() && pass.digest != self.digest {
            let found = hex::encode(pass.digest);
            return Err(Error::new(
                Kind::Corrupt,
                format!("the registry serves something else (sha256:{found}): push the image again"),
            ));
        }
        pass.unpacked?;
        if pass.bytes != self.blob.size() {
            return Err(Error::bad_image("its archive ends before its blob does"));
        }
        if pass.diff_id != self.diff_id {
            let found = hex::encode(pass.diff_id);
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
    diff_id: Sha256,
    unpacked: Result<()>,
}

impl Pass {
    /// Reads a blob to its end even when the archive is bad, for only the digest tells whose fault that is. When the
    /// fault is ours, nothing is to be told, and the fetching stops.
    fn over(receiver: Receiver<Vec<u8>>, root: &Path, budget: Budget) -> Pass {
        let mut source = Hashed::new(Pieces::new(receiver));
        let (unpacked, diff_id) = decode(&mut source, root, budget);
        if unpacked.as_ref().err().is_none_or(|error| error.kind == Kind::BadImage) {
            let _ = io::copy(&mut source, &mut io::sink()); // reading pieces can't fail
        }
        let (digest, bytes) = source.finish();
        Pass { digest, bytes, diff_id, unpacked }
    }
}

fn decode(source: &mut Hashed<impl Read>, root: &Path, budget: Budget) -> (Result<()>, Sha256) {
    let decoder = match Decoder::new(source) {
        Ok(decoder) => decoder,
        Err(error) => return (Err(Error::reading("decompress it", error)), Sha256::default()),
    };
    let mut archive = Hashed::new(Limited { inner: decoder, budget, growth: GROWTH, unpacked: 0 });
    let unpacked = unpack::unpack(io::BufReader::with_capacity(64 << 10, &mut archive), root).and_then(|()| {
        // What follows the archive's end counts for the DiffID, too.
        io::copy(&mut archive, &mut io::sink()).map(|_| ()).map_err(|error| Error::reading("decompress it", error))
    });
    (unpacked, archive.finish().0)
}

/// A layer's bytes, drawn on the image's budget and measured against the compressed bytes that they came from.
struct Limited<'a, R: Read> {
    inner: Decoder<&'a mut Hashed<R>>,
    budget: Budget,
    growth: Growth,
    unpacked: u64,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let left = self.budget.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(n as u64));
        let over = |_| Error::bad_image(format!("the image unpacks to more than {} GiB", MAX_UNPACKED >> 30));
        left.map_err(over)?;
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
        let planned = plan(&manifest(layers), &ids(&[7, 8, 7])).unwrap();
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
            assert_eq!(plan(&manifest(layers), &diff_ids).unwrap_err().kind, Kind::BadImage);
        }
        assert!(plan(&manifest(vec![layer("application/vnd.docker.image.rootfs.diff.tar.gzip")]), &ids(&[1])).is_ok());
    }

    #[test]
    fn an_image_that_unpacks_to_too_much_is_stopped() {
        let budget = Budget(Arc::new(AtomicU64::new(10)));
        let error = read_all(io::repeat(0), budget, GROWTH).unwrap_err();
        assert!(error.kind == Kind::BadImage && error.message.contains("the image unpacks to more than"), "{error}");
    }

    /// How many bytes come out of a layer.
    fn read_all(compressed: impl Read, budget: Budget, growth: Growth) -> Result<u64> {
        let mut source = Hashed::new(compressed);
        let mut limited = Limited { inner: Decoder::new(&mut source).unwrap(), budget, growth, unpacked: 0 };
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
            let error = read_all(&bomb[..], Budget::default(), growth).unwrap_err();
            assert!(error.kind == Kind::BadImage && error.message.contains("compressed bytes"), "{error}");
        }
        assert_eq!(read_all(&gzip[..], Budget::default(), GROWTH).unwrap(), 4 << 20);
        assert_eq!(read_all(io::repeat(7).take(4 << 20), Budget::default(), little).unwrap(), 4 << 20);
    }
}
