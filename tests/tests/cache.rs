//! The host's cache of blobs: real pulls that share it, and guests that mean it no good.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nacre_protocol::blob_cache::{self, Answer, Ask, Digest};
use nacre_shim::blob_cache::{Server, store::Store};
use nacre_shim::size::Size;
use nacre_tests::dist;
use nacre_tests::image::{Compression, Image, Layer, Written, busybox};
use nacre_tests::registry::Registry;
use sha2::{Digest as _, Sha256};

/// A cache that serves at a socket.
struct Cache {
    dir: tempfile::TempDir,
    server: Server,
    told: Arc<Mutex<Vec<String>>>,
}

impl Cache {
    fn start(limit: Size, sources: &[PathBuf]) -> Cache {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some((&dir.path().join("kept"), limit)), sources).unwrap();
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = told.clone();
        let tell = Box::new(move |text: &str| heard.lock().unwrap().push(text.to_string()));
        let server = Server::start(&dir.path().join("s"), store, tell).unwrap();
        Cache { dir, server, told }
    }

    fn address(&self) -> String {
        format!("unix://{}", self.dir.path().join("s").display())
    }

    fn call(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("s")).unwrap()
    }

    /// What is kept, by name.
    fn kept(&self) -> BTreeMap<String, Vec<u8>> {
        files(&self.dir.path().join("kept/blobs/sha256"))
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (name(&path), fs::read(&path).unwrap())).collect()
}

/// Bytes that do not shrink, in one of an image's layers.
const NOISE: usize = 4 << 20;

/// An image of two layers in the registry as `app:1`.
fn push(registry: &Registry, dir: &Path) -> Written {
    let noise = (0..NOISE as u64 / 32).flat_map(|n| Sha256::digest(n.to_le_bytes())).collect::<Vec<u8>>();
    let layer = Layer::default().file("noise", 0o644, &noise).unwrap().finish().unwrap();
    let image = Image::new(serde_json::json!({ "Env": ["PATH=/bin"], "Cmd": ["wc", "-c", "/noise"] }));
    let image = image.layer(busybox().unwrap().finish().unwrap(), Compression::Zstd).layer(layer, Compression::Gzip);
    let written = image.write(&dir.join("layout")).unwrap();
    registry.push(&dir.join("layout"), "app:1", None).unwrap();
    written
}

/// A pull of `app:1` into a new store, and what it said.
async fn pull(registry: &Registry, cache: &Cache) -> String {
    let mut command = Command::new(dist::program("nacre-pull"));
    let store = tempfile::tempdir().unwrap();
    command.args(["pull", "--ca"]).arg(registry.ca()).arg("--store").arg(store.path());
    command.args(["--blob-cache", &cache.address(), &registry.here("app:1")]).stdin(Stdio::null());
    let output = tokio::process::Command::from(command).output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

/// Runs `app:1` in a VM whose pod shares `cache`, and tells what `nacre` said.
fn run(registry: &Registry, dist: &Path, dir: &Path, cache: &Path) -> String {
    let mut command = Command::new(dist.join("bin/nacre"));
    command.arg("--state-dir").arg(dir.join("s")).args(["run", "--accel", "tcg", "--tls-ca"]).arg(registry.ca());
    command.arg("--blob-cache").arg(cache).arg(registry.from_guest("app:1")).stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{NOISE} /noise\n"), "{said}");
    said
}

fn can_pull() -> bool {
    dist::root() && dist::have(&["docker-registry", "skopeo", "openssl"])
}

#[tokio::test]
async fn pulls_that_share_a_cache_fetch_each_blob_once() {
    if !can_pull() {
        return;
    }
    let (registry, dir) = (Registry::start(None).unwrap(), tempfile::tempdir().unwrap());
    push(&registry, dir.path());
    let cache = Cache::start(Size::mib(100), &[]);
    for _ in 0..3 {
        let said = pull(&registry, &cache).await;
        assert!(!said.contains("\"Cache\""), "{said}");
    }
    // Two layers and the configuration; manifests are the registry's alone.
    let fetched = registry.fetched().unwrap();
    assert!(fetched.len() == 3 && fetched.values().all(|times| *times == 1), "{fetched:?}");
    let kept = cache.kept();
    assert!(kept.len() == 3 && kept.iter().all(|(name, bytes)| hex::encode(Sha256::digest(bytes)) == *name));
    let size: u64 = kept.values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(cache.server.bytes(), (2 * size, size));
    assert_eq!(cache.told(), [""; 0]);
}

#[test]
fn vm_ten_pods_one_after_another_fetch_each_blob_once() {
    let Some(dist) = dist::for_pulls() else { return };
    let (registry, dir) = (Registry::start(None).unwrap(), tempfile::tempdir().unwrap());
    push(&registry, dir.path());
    for _ in 0..10 {
        let said = run(&registry, &dist, dir.path(), &dir.path().join("cache"));
        assert!(!said.contains("cache does not take") && !said.contains("fetched from the registry"), "{said}");
    }
    let fetched = registry.fetched().unwrap();
    assert!(fetched.len() == 3 && fetched.values().all(|times| *times == 1), "{fetched:?}");
}

#[tokio::test]
async fn an_image_that_the_host_has_already_is_not_fetched_and_what_has_rotted_is_fetched_again() {
    if !can_pull() {
        return;
    }
    let (registry, dir) = (Registry::start(None).unwrap(), tempfile::tempdir().unwrap());
    let written = push(&registry, dir.path());
    let cache = Cache::start(Size::mib(100), &[dir.path().join("layout")]);
    pull(&registry, &cache).await;
    assert_eq!((registry.fetched().unwrap(), cache.kept()), (BTreeMap::new(), BTreeMap::new()));

    let name = written.layers[0].strip_prefix("sha256:").unwrap();
    let bytes = fs::read(dir.path().join("layout/blobs/sha256").join(name)).unwrap();
    let rotten = cache.dir.path().join("kept/blobs/sha256").join(name);
    fs::write(&rotten, vec![0; bytes.len()]).unwrap();
    let said = pull(&registry, &cache).await;
    assert!(said.contains("served something else"), "{said}");
    assert!(!rotten.exists() && cache.told()[0].contains("removed"), "{:?}", cache.told());
    // Now it is there again by the layout.
    assert!(!pull(&registry, &cache).await.contains("\"Cache\""));
}

#[tokio::test]
async fn many_pulls_at_once_fill_one_cache() {
    if !can_pull() {
        return;
    }
    let (registry, dir) = (Registry::start(None).unwrap(), tempfile::tempdir().unwrap());
    push(&registry, dir.path());
    let cache = Cache::start(Size::mib(100), &[]);
    let (a, b, c, d) = tokio::join!(
        pull(&registry, &cache),
        pull(&registry, &cache),
        pull(&registry, &cache),
        pull(&registry, &cache)
    );
    assert!([a, b, c, d].iter().all(|said| !said.contains("\"Cache\"")));
    let kept = cache.kept();
    assert!(kept.len() == 3 && kept.iter().all(|(name, bytes)| hex::encode(Sha256::digest(bytes)) == *name));
}

/// Asks, and gives what is wanted. `None` when the cache hung up.
fn give(stream: &mut UnixStream, ask: Ask, bytes: &[u8]) -> Option<Answer> {
    stream.write_all(&blob_cache::to_line(&ask)).ok()?;
    let answer = blob_cache::read(stream).ok()?;
    if answer != Answer::Fill {
        return Some(answer);
    }
    stream.write_all(bytes).ok()?;
    stream.shutdown(std::net::Shutdown::Write).ok()?;
    blob_cache::read(stream).ok()
}

fn ask(bytes: &[u8]) -> Ask {
    Ask { digest: Digest(Sha256::digest(bytes).into()), size: bytes.len() as u64, fill: true }
}

#[tokio::test]
async fn a_guest_can_leave_nothing_in_the_cache_but_blobs_under_their_own_names() {
    let cache = Cache::start(Size::mib(4), &[]);
    let hostile = move || {
        let good = ask(b"good");
        let other = Ask { digest: Digest([7; 32]), ..good };
        // Another digest, fewer bytes, more of them.
        assert_eq!(give(&mut cache.call(), other, b"good"), None);
        assert_eq!(give(&mut cache.call(), Ask { size: 5, ..good }, b"good"), None);
        assert_eq!(give(&mut cache.call(), Ask { size: 3, ..good }, b"good"), None);
        // More than a pod may have on its way, in one blob or in many.
        let large = Ask { digest: Digest([8; 32]), size: (1 << 20) + 1, fill: true };
        assert_eq!(give(&mut cache.call(), large, b""), Some(Answer::Missing));
        assert_eq!(give(&mut cache.call(), Ask { size: u64::MAX, ..large }, b""), Some(Answer::Missing));
        let begin = || {
            let mut stream = cache.call();
            let half = Ask { size: 500 << 10, ..large };
            stream.write_all(&blob_cache::to_line(&half)).unwrap();
            let answer: Answer = blob_cache::read(&mut stream).unwrap();
            (stream, answer)
        };
        let slow = [begin(), begin(), begin()];
        assert_eq!(slow.each_ref().map(|(_, answer)| *answer), [Answer::Fill, Answer::Fill, Answer::Missing]);
        drop(slow);
        // Nonsense, and a line without an end.
        for nonsense in ["{}\n", "\n", "GET / HTTP/1.1\r\n\r\n", &"x".repeat(100_000)] {
            let mut stream = cache.call();
            let _ = stream.write_all(nonsense.as_bytes()); // it may have hung up already
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert_eq!(answer, b"");
        }
        let escape = format!("{{\"digest\":\"sha256:../../{}\",\"size\":1,\"fill\":true}}\n", "a".repeat(58));
        let mut stream = cache.call();
        stream.write_all(escape.as_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert_eq!(cache.kept(), BTreeMap::new());

        // Once the slow ones are gone.
        let mut tries = std::iter::repeat_with(|| give(&mut cache.call(), good, b"good")).take(10_000);
        assert!(tries.any(|answer| answer == Some(Answer::Kept)));
        assert_eq!(give(&mut cache.call(), good, b"good"), Some(Answer::Have));
        assert_eq!(give(&mut cache.call(), Ask { size: 3, fill: false, ..good }, b""), Some(Answer::Missing));
        assert_eq!(cache.told(), [""; 0]);
        // What it has is bounded: the oldest go.
        for n in 0..10u8 {
            let bytes = vec![n; 1 << 20];
            assert_eq!(give(&mut cache.call(), ask(&bytes), &bytes), Some(Answer::Kept));
        }
        assert!(cache.kept().len() == 4, "{:?}", cache.kept().keys());
    };
    tokio::task::spawn_blocking(hostile).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_holds_all_connections_holds_no_more() {
    let cache = Cache::start(Size::mib(4), &[]);
    let calls = move || {
        let held: Vec<_> = (0..16).map(|_| cache.call()).collect();
        // The seventeenth is hung up on.
        assert_eq!(cache.call().read(&mut [0]).unwrap(), 0);
        drop(held);
        let mut tries = std::iter::repeat_with(|| give(&mut cache.call(), ask(b"good"), b"good")).take(10_000);
        assert!(tries.any(|answer| answer == Some(Answer::Kept)));
    };
    tokio::task::spawn_blocking(calls).await.unwrap();
}

#[tokio::test]
async fn a_cache_on_a_full_disk_still_gives_what_it_has_and_says_once_that_it_is_full() {
    if !dist::root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=128k", "tmpfs"]).arg(dir.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        return dist::skip("a tmpfs can't be mounted");
    }
    let store = Store::open(Some((dir.path(), Size::mib(4))), &[]).unwrap();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let (heard, socket) = (told.clone(), tempfile::tempdir().unwrap());
    let tell = Box::new(move |text: &str| heard.lock().unwrap().push(text.to_string()));
    let _server = Server::start(&socket.path().join("s"), store, tell).unwrap();
    let path = socket.path().join("s");
    let calls = move || {
        let call = || UnixStream::connect(&path).unwrap();
        assert_eq!(give(&mut call(), ask(b"good"), b"good"), Some(Answer::Kept));
        for n in 0..2 {
            let large = vec![n; 512 << 10];
            let expected = if n == 0 { None } else { Some(Answer::Missing) };
            assert_eq!(give(&mut call(), ask(&large), &large), expected);
        }
        assert_eq!(give(&mut call(), ask(b"good"), b"good"), Some(Answer::Have));
    };
    let result = tokio::task::spawn_blocking(calls).await;
    Command::new("umount").arg("--lazy").arg(dir.path()).status().unwrap();
    result.unwrap();
    let told = told.lock().unwrap();
    assert!(
        told.len() == 1 && told[0].contains("No space left") && told[0].contains("nothing more is kept"),
        "{told:?}"
    );
}
