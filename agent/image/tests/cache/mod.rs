//! Pulls with a cache of blobs on the host: one that does as it should, and those that do not.

#![expect(clippy::unwrap_used, reason = "a cache that fails fails its test")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nacre_pull::{Auth, Event, Request, Server, client};
use serde_json::Value;

use crate::fixture::Compression::{Gzip, Zstd};
use crate::fixture::{self, Image, Middle, Moody, Registry, archive, digest, noise};
use crate::{count, plain, secure, worker};

/// What it does when it is asked for a blob.
type Answer = dyn Fn(&mut UnixStream, &Value) + Send + Sync;

/// Blobs by digest.
type Blobs = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// A cache on the host. It remembers what it was asked, a line each.
struct Cache {
    dir: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Cache {
    fn start(answer: impl Fn(&mut UnixStream, &Value) + Send + Sync + 'static) -> Cache {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let (answer, asked): (Arc<Answer>, Arc<Mutex<Vec<Value>>>) = (Arc::new(answer), Arc::default());
        let cache = Cache { dir, asked: asked.clone() };
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (answer, asked) = (answer.clone(), asked.clone());
                std::thread::spawn(move || {
                    let mut line = String::new();
                    BufReader::new(&stream).read_line(&mut line).unwrap();
                    let ask: Value = serde_json::from_str(&line).unwrap();
                    asked.lock().unwrap().push(ask.clone());
                    answer(&mut stream, &ask);
                });
            }
        });
        cache
    }

    /// One that keeps what it is given.
    fn honest() -> (Cache, Blobs) {
        let blobs = Blobs::default();
        let kept = blobs.clone();
        let cache = Cache::start(move |stream, ask| {
            let name = ask["digest"].as_str().unwrap().to_string();
            let known = kept.lock().unwrap().get(&name).cloned();
            let said = match known {
                Some(bytes) => stream.write_all(&[b"\"have\"\n", &bytes[..]].concat()),
                None if ask["fill"] == true => {
                    let mut bytes = vec![0; ask["size"].as_u64().unwrap() as usize];
                    stream.write_all(b"\"fill\"\n").unwrap();
                    stream.read_exact(&mut bytes).unwrap();
                    kept.lock().unwrap().insert(name, bytes);
                    stream.write_all(b"\"kept\"\n")
                }
                None => stream.write_all(b"\"missing\"\n"),
            };
            said.unwrap();
        });
        (cache, blobs)
    }

    fn address(&self) -> Option<String> {
        Some(format!("unix://{}", self.dir.path().join("s").display()))
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }
}

/// The image, and what was told of the cache.
async fn pull(request: Request) -> (nacre_pull::Image, Vec<String>) {
    let mut told = Vec::new();
    let pulled = client::pull(worker(Server::Own), request, |event| {
        if let Event::Cache { message } = event {
            told.push(message.clone());
        }
    });
    let pulled = pulled.await.unwrap();
    (pulled, told)
}

fn blobs_asked(moody: &Moody) -> usize {
    moody.asked().iter().filter(|asked| asked.contains("/blobs/")).count()
}

#[tokio::test]
async fn what_one_pull_has_brought_the_next_has_from_the_host() {
    let Some(_) = Registry::start() else { return };
    let data = noise(1 << 20);
    let image = Image::new(&[(archive(&[("a", &data)]), Gzip), (archive(&[("b", b"x")]), Zstd)], "amd64");
    let moody = Moody::start(&image, "", Middle::Goes);
    let (cache, kept) = Cache::honest();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with =
        |store: &tempfile::TempDir| Request { blob_cache: cache.address(), ..plain(Server::Own, &moody, store.path()) };

    let (_, told) = pull(with(&first)).await;
    // The configuration and two layers; of manifests the cache hears nothing.
    let mut names: Vec<_> = kept.lock().unwrap().keys().cloned().collect();
    names.sort();
    let mut all: Vec<_> = image.blobs.keys().filter(|name| **name != image.manifest).cloned().collect();
    all.sort();
    assert_eq!((told.as_slice(), names), (&[][..], all));
    let before = blobs_asked(&moody);
    let (pulled, told) = pull(with(&second)).await;
    assert_eq!((told.as_slice(), blobs_asked(&moody)), (&[][..], before));
    assert!(fs::read(pulled.layers[0].join("a")).unwrap() == data);
    assert_eq!(cache.asked().len(), 6);
}

#[tokio::test]
async fn the_host_keeps_what_it_may_see_and_no_more() {
    let Some(registry) = Registry::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut openssl = std::process::Command::new("openssl");
    fixture::run(openssl.args(["genrsa", "-out", &path("key"), "2048"]));
    let mut openssl = std::process::Command::new("openssl");
    fixture::run(openssl.args(["rsa", "-in", &path("key"), "-pubout", "-out", &path("pub")]));
    let secret = noise(1 << 20);
    let image = Image::new(&[(archive(&[("a", &secret)]), Gzip)], "amd64");
    registry.push("plain:1", &[(&image, "amd64")], &["--preserve-digests"]);
    registry.push("locked:1", &[(&image, "amd64")], &[&format!("--encryption-key=jwe:{}", path("pub"))]);

    let (cache, kept) = Cache::honest();
    let with = |name: &str, store: &tempfile::TempDir| {
        let decryption_keys = vec![fs::read_to_string(path("key")).unwrap()];
        Request { decryption_keys, blob_cache: cache.address(), ..secure(Server::Own, &registry, name, store.path()) }
    };
    // By a password or by an auth.json: an image that not everybody gets is nothing that the host is given.
    let store = tempfile::tempdir().unwrap();
    let request = with("plain:1", &store);
    let Some(Auth { username, password }) = request.auth.clone() else { panic!("no credentials") };
    let pair = crate::base64(format!("{username}:{password}").as_bytes());
    let host = request.reference.split('/').next().unwrap();
    let auth_file = serde_json::json!({ "auths": { host: { "auth": pair } } }).to_string();
    pull(Request { auth: None, auth_file: Some(auth_file), ..request.clone() }).await;
    fs::remove_dir_all(store.path().join("layers")).unwrap();
    pull(request).await;
    assert!(cache.asked().len() == 4 && cache.asked().iter().all(|ask| ask["fill"] == false), "{:?}", cache.asked());

    // An encrypted layer stays encrypted; the configuration beside it is as private as ever.
    for _ in 0..2 {
        let store = tempfile::tempdir().unwrap();
        let (pulled, told) = pull(with("locked:1", &store)).await;
        assert!(told.is_empty() && fs::read(pulled.layers[0].join("a")).unwrap() == secret, "{told:?}");
        let kept = kept.lock().unwrap();
        let [(name, bytes)] = kept.iter().collect::<Vec<_>>()[..] else { panic!("{:?}", kept.keys()) };
        assert!(digest(bytes) == *name && !image.blobs.contains_key(name));
        assert!(!bytes.windows(32).any(|window| window == &secret[4096..4128]));
    }
}

#[tokio::test]
async fn whatever_the_host_does_the_image_is_right_and_the_reason_is_told() {
    let Some(_) = Registry::start() else { return };
    type Lie = (&'static str, &'static str, fn(&mut UnixStream, &[u8]));
    /// A connection that waits until the other side is gone.
    fn hold(stream: &mut UnixStream) {
        let _ = stream.read(&mut [0]); // it sends nothing more
    }
    let lies: [Lie; 15] =
        [
            ("other bytes", "served something else", |stream, blob| {
                let _ = stream.write_all(&[b"\"have\"\n", &vec![7; blob.len()][..]].concat());
            }),
            ("a bit that fell over", "served something else", |stream, blob| {
                let mut blob = blob.to_vec();
                *blob.last_mut().unwrap() ^= 1;
                let _ = stream.write_all(&[b"\"have\"\n", &blob[..]].concat());
            }),
            ("an empty archive", "served something else", |stream, blob| {
                let mut empty = fixture::gzip(&[0; 1024]);
                empty.resize(blob.len(), 0);
                let _ = stream.write_all(&[b"\"have\"\n", &empty[..]].concat());
            }),
            ("another archive", "served something else", |stream, blob| {
                let mut other = fixture::gzip(&archive(&[("evil", b"x"), ("a", b"evil")]));
                other.resize(blob.len(), 0);
                let _ = stream.write_all(&[b"\"have\"\n", &other[..]].concat());
            }),
            ("no end", "served something else", |stream, _| {
                let _ = stream.write_all(b"\"have\"\n");
                while stream.write_all(&[7; 4096]).is_ok() {}
            }),
            ("a half", "sent too little", |stream, blob| {
                let _ = stream.write_all(&[b"\"have\"\n", &blob[..blob.len() / 2]].concat());
            }),
            ("a half and silence", "sent too little", |stream, blob| {
                let _ = stream.write_all(&[b"\"have\"\n", &blob[..blob.len() / 2]].concat());
                hold(stream);
            }),
            ("drops", "sent too little", |stream, blob| {
                let _ = stream.write_all(b"\"have\"\n");
                for byte in blob {
                    if stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(20)); // that is the fault to be noticed
                }
            }),
            ("silence", "has no answer (nothing came", |stream, _| hold(stream)),
            ("garbage", "has no answer (a line that makes no sense", |stream, _| {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\n");
            }),
            ("a line without end", "has no answer (a line of more than", |stream, _| {
                while stream.write_all(&[b'x'; 4096]).is_ok() {}
            }),
            ("nothing that was asked", "has no answer (it was not asked", |stream, _| {
                let _ = stream.write_all(b"\"kept\"\n");
            }),
            ("a hang-up", "has no answer", |_, _| {}),
            ("a hang-up in the middle of what it wanted", "does not take", |stream, _| {
                let _ = stream.write_all(b"\"fill\"\n").and_then(|()| stream.read_exact(&mut [0; 4096]));
            }),
            ("no hand for what it wanted", "does not take", |stream, _| {
                let _ = stream.write_all(b"\"fill\"\n");
                std::thread::sleep(Duration::from_secs(8)); // longer than a pull waits
            }),
        ];
    let data = Arc::new(noise(1 << 20));
    let image = Image::new(&[(archive(&[("a", &data)]), Gzip)], "amd64");
    let mut pulls = tokio::task::JoinSet::new();
    for (name, reason, lie) in lies {
        let (image, data) = (image.clone(), data.clone());
        pulls.spawn(async move {
            let (moody, store) = (Moody::start(&image, "", Middle::Goes), tempfile::tempdir().unwrap());
            let (layer, blob) = (image.layers[0].clone(), image.blobs[&image.layers[0]].clone());
            let cache = Cache::start(move |stream, ask| match ask["digest"] == layer {
                true => lie(stream, &blob),
                false => stream.write_all(b"\"missing\"\n").unwrap(),
            });
            let (pulled, told) =
                pull(Request { blob_cache: cache.address(), ..plain(Server::Own, &moody, store.path()) }).await;
            assert!(fs::read(pulled.layers[0].join("a")).unwrap() == *data, "{name}");
            assert_eq!(fs::read_dir(&pulled.layers[0]).unwrap().count(), 1, "{name}");
            assert_eq!((count(store.path(), "layers"), count(store.path(), "partial")), (1, 0), "{name}");
            let [told] = &told[..] else { panic!("{name}: {told:?}") };
            assert!(told.contains(reason) && told.contains(&image.layers[0]), "{name}: {told}");
        });
    }
    while let Some(pull) = pulls.join_next().await {
        pull.unwrap();
    }
}

#[tokio::test]
async fn a_cache_that_has_lied_once_is_not_asked_again() {
    let Some(_) = Registry::start() else { return };
    let image = Image::new(&[(archive(&[("a", b"x")]), Gzip), (archive(&[("b", b"y")]), Gzip)], "amd64");
    let (moody, store) = (Moody::start(&image, "", Middle::Goes), tempfile::tempdir().unwrap());
    let liar = Cache::start(|stream, ask| {
        let size = ask["size"].as_u64().unwrap() as usize;
        stream.write_all(&[b"\"have\"\n", &vec![b'{'; size][..]].concat()).unwrap();
    });
    let (pulled, told) = pull(Request { blob_cache: liar.address(), ..plain(Server::Own, &moody, store.path()) }).await;
    assert_eq!((liar.asked().len(), told.len(), pulled.layers.len()), (1, 1, 2));
    let none = Request { blob_cache: Some("unix:///nowhere/s".into()), ..plain(Server::Own, &moody, store.path()) };
    let (again, told) = pull(none).await;
    assert!(again == pulled && told.len() == 1 && told[0].contains("No such file"), "{told:?}");
}

#[tokio::test]
async fn more_than_a_blob_is_not_read_and_an_image_that_is_bad_itself_is_not_fetched_twice() {
    let Some(_) = Registry::start() else { return };
    let wrong = ["00".repeat(32)].map(|hex| format!("sha256:{hex}"));
    let layers = [(archive(&[("a", b"x")]), Gzip)];
    for (image, is_good) in
        [(Image::new(&layers, "amd64"), true), (Image::with_diff_ids(&layers, "amd64", &wrong), false)]
    {
        let (moody, store) = (Moody::start(&image, "", Middle::Goes), tempfile::tempdir().unwrap());
        let blobs = image.blobs.clone();
        let cache = Cache::start(move |stream, ask| {
            let blob = &blobs[ask["digest"].as_str().unwrap()];
            let _ = stream.write_all(&[b"\"have\"\n", &blob[..], b"and more"].concat());
        });
        let request = Request { blob_cache: cache.address(), ..plain(Server::Own, &moody, store.path()) };
        let pulled = client::pull(worker(Server::Own), request, |_| {}).await;
        assert_eq!((pulled.is_ok(), blobs_asked(&moody)), (is_good, 0), "{pulled:?}");
    }
}
