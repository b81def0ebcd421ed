//! zstd, frame by frame (RFC 8878 §3.1.1): each frame says at its start how large a window it is decoded in, and so the sender chooses our memory.
//!
//! All layers of a pull share what there is for windows. Ordinary tools make windows of at most 8 MiB: `zstd` to level 19, buildkit and podman.
//! Who wants more waits until nobody else has any.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use crate::archive::read_full;

/// Windows above 32 MiB are refused: levels to 20 need no more.
const MAX_WINDOW_LOG: u32 = 25;

/// What all windows have together, unless one that is larger has it alone.
const WINDOWS: u64 = 8 << 20;

/// As much of a frame as tells its window.
const HEAD: usize = 18;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Memory for windows, which the layers of a pull share.
#[derive(Debug, Clone)]
pub(crate) struct Windows(Arc<(Mutex<u64>, Condvar)>);

/// A part of it, given back when it is dropped.
#[derive(Debug)]
struct Held {
    windows: Windows,
    bytes: u64,
}

impl Windows {
    pub(crate) fn new() -> Windows {
        Windows(Arc::new((Mutex::new(WINDOWS), Condvar::new())))
    }

    /// Waits until there is as much. Who waits must hold none, or two could wait for each other.
    fn take(&self, bytes: u64) -> Held {
        let (left, given_back) = &*self.0;
        let bytes = bytes.min(WINDOWS);
        let left = left.lock().unwrap_or_else(PoisonError::into_inner);
        let left = given_back.wait_while(left, |left| *left < bytes);
        *left.unwrap_or_else(PoisonError::into_inner) -= bytes;
        Held { windows: self.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (left, given_back) = &*self.windows.0;
        *left.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        given_back.notify_all();
    }
}

/// Whether a stream begins with a frame. It may be one to be skipped (§3.1.2): the magic numbers 0x184D2A50 to 5F.
pub(crate) fn begin(first: &[u8]) -> bool {
    first.starts_with(&MAGIC) || matches!(first, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The window that the frame beginning with `head` asks for. What is no frame, or ends too early, the decoder refuses.
fn window(head: &[u8]) -> u64 {
    let Some((descriptor, rest)) = head.strip_prefix(&MAGIC).and_then(<[u8]>::split_first) else { return 0 };
    if descriptor & 0x20 == 0 {
        let window = u64::from(rest.first().copied().unwrap_or(0));
        let base = 1u64 << (10 + (window >> 3));
        return base + base / 8 * (window & 7);
    }
    // Its content is one segment, and the window as large as that.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = 1 << (descriptor >> 6);
    let size = rest.get(dictionary..dictionary + length).unwrap_or_default();
    let size = size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    if length == 2 { size + 256 } else { size }
}

/// What decodes, and the memory that it may take.
struct Decoding {
    decoder: Decoder<'static>,
    window: u64,
    _held: Held,
}

/// A stream of frames, decoded.
pub(crate) struct Frames<R> {
    reader: R,
    windows: Windows,
    decoding: Option<Decoding>,
    /// What has been read of a frame to learn its window, and is yet to be decoded.
    head: Vec<u8>,
    between: bool,
}

impl<R: BufRead> Frames<R> {
    pub(crate) fn new(reader: R, windows: Windows) -> Frames<R> {
        Frames { reader, windows, decoding: None, head: Vec::new(), between: true }
    }

    /// Where the compressed bytes come from.
    pub(crate) fn get_ref(&self) -> &R {
        &self.reader
    }

    /// Looks at the next frame and gets ready for it; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        let had = self.head.len();
        self.head.resize(HEAD, 0);
        let read = read_full(&mut self.reader, self.head.get_mut(had..).unwrap_or_default())?;
        self.head.truncate(had + read);
        if self.head.is_empty() {
            return Ok(false);
        }
        let window = window(&self.head);
        if self.decoding.as_ref().is_none_or(|decoding| decoding.window < window) {
            self.decoding = None; // with what it holds
            let held = self.windows.take(window);
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
            self.decoding = Some(Decoding { decoder, window, _held: held });
        }
        Ok(true)
    }

    /// Decodes some of what has come; how many bytes, and whether there was anything.
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let Some(Decoding { decoder, .. }) = &mut self.decoding else { return Ok((0, false)) };
        let from_head = !self.head.is_empty();
        let come = if from_head { &self.head } else { self.reader.fill_buf()? };
        let more = !come.is_empty();
        let (mut input, mut output) = (InBuffer::around(come), OutBuffer::around(buffer));
        self.between = decoder.run(&mut input, &mut output)? == 0;
        let (read, written) = (input.pos(), output.pos());
        if from_head {
            self.head.drain(..read);
        } else {
            self.reader.consume(read);
        }
        Ok((written, more))
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            if self.between && !self.next_frame()? {
                break;
            }
            let (written, more) = self.step(buffer)?;
            if written > 0 {
                return Ok(written);
            }
            if !more && !self.between {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::sync::mpsc;
    use std::time::Duration;

    /// A frame of `text` whose window is of that size.
    fn frame(text: &[u8], window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        // Pieces of any size must do.
        Frames::new(io::BufReader::with_capacity(7, bytes), Windows::new()).read_to_end(&mut text)?;
        Ok(text)
    }

    #[test]
    fn frames_of_every_kind_follow_each_other() {
        let text: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let skipped = [0x52, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3].to_vec();
        let single = zstd::bulk::compress(b"short", 1).unwrap();
        let all =
            [skipped.clone(), frame(&text, 21), single.clone(), frame(&[], 10), frame(&text, 24), skipped, single];
        assert!(decode(&all.concat()).unwrap() == [&text[..], b"short", &text, b"short"].concat());
        assert_eq!(decode(&[]).unwrap(), b"");
    }

    #[test]
    fn what_breaks_off_or_is_none_is_an_error() {
        let text: Vec<u8> = (0..9000u32).flat_map(u32::to_le_bytes).collect();
        let whole = frame(&text, 20);
        for length in (1..whole.len()).step_by(97) {
            assert!(decode(&whole[..length]).is_err(), "{length}");
        }
        assert!(decode(&[&whole[..], b"rest"].concat()).is_err());
        assert!(decode(&frame(&text, MAX_WINDOW_LOG + 1)).is_err());
    }

    #[test]
    fn the_window_is_what_the_frame_says() {
        for log in [10, 17, 23, 25, 27] {
            assert_eq!(window(&frame(b"text", log)), 1 << log, "{log}");
        }
        let uneven = [&MAGIC[..], &[0, (13 << 3) | 5]].concat();
        assert_eq!(window(&uneven), (8 << 20) / 8 * 13);
        for length in [0usize, 5, 255, 256, 65_791, 65_792, 400_000] {
            assert_eq!(window(&zstd::bulk::compress(&vec![7; length], 1).unwrap()), length as u64);
        }
        let long = [&MAGIC[..], &[0xe3, 1, 2, 3, 4], &[0xff; 8]].concat();
        assert_eq!(window(&long), u64::MAX);
        assert_eq!((window(&long[..6]), window(&MAGIC), window(b"none")), (0, 0, 0));
    }

    #[test]
    fn who_wants_a_large_window_waits_until_nobody_has_any() {
        let windows = Windows::new();
        let small = frame(&[7; 9000], 20);
        let mut first = Frames::new(&small[..], windows.clone());
        first.read_exact(&mut [0]).unwrap();
        let (tell, told) = mpsc::channel();
        let waiting = std::thread::spawn(move || {
            let large = frame(&[7; 9000], 25);
            let mut second = Frames::new(&large[..], windows);
            second.read_exact(&mut [0]).unwrap();
            tell.send(()).unwrap();
        });
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        drop(first);
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        waiting.join().unwrap();
    }
}
