//! A registry that limits each connection, and what it may answer when it is asked for parts of a blob.

#![expect(clippy::unwrap_used, reason = "a fixture that fails fails its test")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nacre_pull::{Kind, Request};

use super::fixture::Compression::None as Plain;
use super::fixture::{Image, archive};

/// What each connection sends at once, and how long it waits then: 4 MB a second.
const PIECE: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(16);

/// How it answers who asks for a part with an end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answers {
    Rightly,
    /// With the whole, as if it knew no parts.
    Whole,
    /// With a part that begins earlier.
    Overlapping,
    OfAnotherTotal,
    /// With more bytes than it said.
    TooMuch,
    /// The connection ends too early.
    TooLittle,
    /// One of them falls silent in the middle.
    Silence,
    /// With other bytes.
    Wrongly,
}

struct Narrow {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Narrow {
    fn start(image: &Image, answers: Answers) -> Narrow {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let narrow = Narrow { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let (image, asked) = (Arc::new(image.clone()), narrow.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (image, asked) = (image.clone(), asked.clone());
                std::thread::spawn(move || serve(stream, &image, answers, &asked));
            }
        });
        narrow
    }

    /// The parts of the blob that it was asked for, nothing for all of it.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, image: &Image, answers: Answers, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let headers = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
    let range = headers.filter_map(|line| Some(line.to_lowercase().strip_prefix("range: bytes=")?.to_string())).last();
    let name = request.split(' ').nth(1)?.rsplit('/').next()?;
    let digest = if name == "1" { &image.manifest } else { name };
    let kind = if name == "1" { super::fixture::MANIFEST } else { "application/octet-stream" };
    let bytes = image.blobs.get(digest).map_or(&b"{}"[..], Vec::as_slice);
    if *digest == image.layers[0] {
        asked.lock().ok()?.push(range.clone().unwrap_or_default());
    }
    let whole = bytes.len();
    let (from, to) = range.as_deref().and_then(|range| range.split_once('-')).unwrap_or_default();
    let is_part = !to.is_empty();
    let odd = |oddity| is_part && answers == oddity;
    let from: usize = from.parse().unwrap_or(0);
    let from = if odd(Answers::Overlapping) { from - 1000 } else { from };
    let end = to.parse::<usize>().map_or(whole, |last| last + 1);
    let (status, part) = match range {
        Some(_) if !odd(Answers::Whole) => ("206 Partial Content", bytes.get(from..end)?),
        _ => ("200 OK", bytes),
    };
    let (length, last, total) = (part.len(), end - 1, if odd(Answers::OfAnotherTotal) { whole + 1 } else { whole });
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nContent-Range: bytes {from}-{last}/{total}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    let second = asked.lock().ok()?.iter().filter(|range| !range.ends_with('-')).count() > 2;
    for (place, piece) in part.chunks(PIECE).enumerate() {
        match answers {
            Answers::TooLittle if is_part && place > 3 => return None,
            Answers::Silence if is_part && place > 3 && second => std::thread::sleep(Duration::from_secs(600)),
            Answers::Wrongly if is_part => stream.write_all(&vec![7; piece.len()]).ok()?,
            _ => stream.write_all(piece).ok()?,
        }
        std::thread::sleep(PAUSE); // that is the limit
    }
    if odd(Answers::TooMuch) {
        stream.write_all(b"and more").ok()?;
    }
    Some(())
}

/// Bytes of which each part is another.
fn counted(length: u32) -> Vec<u8> {
    (0..length / 4).flat_map(u32::to_le_bytes).collect()
}

async fn pull(answers: Answers) -> (Result<(), Kind>, Vec<String>) {
    let data = counted(12 << 20);
    let image = Image::new(&[(archive(&[("big", &data)]), Plain)], "amd64");
    let narrow = Narrow::start(&image, answers);
    let store = tempfile::tempdir().unwrap();
    let reference = format!("{}/image:1", narrow.address);
    let request = serde_json::json!({ "reference": reference, "store": store.path(), "skip_tls_verification": true });
    let request: Request = serde_json::from_value(request).unwrap();
    let pulled = super::pull(request).await;
    let pulled = pulled.map(|pulled| assert!(fs::read(pulled.layers[0].join("big")).unwrap() == data));
    (pulled.map_err(|error| error.kind()), narrow.asked())
}

#[tokio::test]
async fn a_large_blob_of_a_registry_that_limits_connections_comes_over_several() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (pulled, asked) = pull(Answers::Rightly).await;
    pulled.unwrap();
    let (whole, parts) = asked.split_first().unwrap();
    assert_eq!(whole, "", "{asked:?}");
    // Each part once, one after the other to the end.
    let number = |text: &str| text.parse::<u64>().unwrap();
    let mut parts: Vec<_> = parts
        .iter()
        .map(|part| part.split_once('-').map(|(from, to)| (number(from), number(to))))
        .map(Option::unwrap)
        .collect();
    parts.sort_unstable();
    assert!(parts.len() > 4, "{asked:?}");
    assert!(parts.windows(2).all(|two| two[0].1 + 1 == two[1].0), "{asked:?}");
}

#[tokio::test]
async fn who_gives_no_parts_or_wrong_ones_is_read_over_one_connection() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for answers in [Answers::Whole, Answers::Overlapping, Answers::OfAnotherTotal] {
        let (pulled, asked) = pull(answers).await;
        assert_eq!(pulled, Ok(()), "{answers:?} {asked:?}");
        // The first connection goes on: nothing is fetched twice.
        let wholes = asked.iter().filter(|part| part.is_empty() || part.ends_with('-')).count();
        assert!(wholes == 1 && (2..=4).contains(&asked.len()), "{answers:?} {asked:?}");
    }
}

#[tokio::test]
async fn a_part_that_breaks_off_ends_several_connections_and_not_the_pull() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for answers in [Answers::TooLittle, Answers::TooMuch, Answers::Silence] {
        let (pulled, asked) = pull(answers).await;
        assert_eq!(pulled, Ok(()), "{answers:?} {asked:?}");
    }
    assert_eq!(pull(Answers::Wrongly).await.0, Err(Kind::Corrupt));
}
