//! A layer's bytes on their way: pieces from the registry, hashed as they come, decompressed, hashed again.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::Receiver;

/// zstd windows above 32 MiB are refused, for the sender chooses a decoder's memory: levels to 20 need no more.
const MAX_WINDOW_LOG: u32 = 25;

/// The pieces of a blob, as a reader for a thread of its own. It ends when the sender does.
#[derive(Debug)]
pub(crate) struct Pieces {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Pieces {
    pub(crate) fn new(receiver: Receiver<Vec<u8>>) -> Pieces {
        Pieces { receiver, piece: Vec::new(), at: 0 }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.piece.len() {
            match self.receiver.blocking_recv() {
                Some(piece) => (self.piece, self.at) = (piece, 0),
                None => return Ok(0),
            }
        }
        let n = self.piece.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at += n;
        Ok(n)
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

    /// How many bytes have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.bytes
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

/// A blob, decompressed as its first bytes ask for: what a manifest calls it is not always true.
pub(crate) enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<R>>),
}

const BUFFER: usize = 128 << 10;

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes and chooses.
    pub(crate) fn new(reader: R) -> io::Result<Decoder<R>> {
        let mut buffered = BufReader::with_capacity(BUFFER, reader);
        let first = io::BufRead::fill_buf(&mut buffered)?;
        Ok(if first.starts_with(&[0x1f, 0x8b]) {
            Decoder::Gzip(Box::new(MultiGzDecoder::new(buffered)))
        } else if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(first) {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Decoder::Zstd(decoder)
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

/// A zstd stream may begin with a skippable frame (RFC 8878 §3.1.2): the magic numbers 0x184D2A50 to 5F.
fn is_skippable(first: &[u8]) -> bool {
    matches!(first, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
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
            let mut decoder = Decoder::new(&bytes[..]).unwrap();
            let mut out = Vec::new();
            decoder.read_to_end(&mut out).unwrap();
            assert!(out == expected);
        }
    }

    #[test]
    fn pieces_are_read_in_order_and_end_with_their_sender() {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        sender.blocking_send(b"ab".to_vec()).unwrap();
        sender.blocking_send(b"cde".to_vec()).unwrap();
        drop(sender);
        let mut hashed = Hashed::new(Pieces::new(receiver));
        let mut text = String::new();
        hashed.read_to_string(&mut text).unwrap();
        let (digest, bytes) = hashed.finish();
        assert_eq!((text.as_str(), bytes), ("abcde", 5));
        assert_eq!(digest, <[u8; 32]>::from(Sha256::digest(b"abcde")));
    }
}
