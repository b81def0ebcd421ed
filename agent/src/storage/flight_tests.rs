//! Joined pulls, with a shell script as the worker.
//!
//! A worker says `+NAME` when it starts, then waits to be told how it ends (`done`, `fail` or `full`), says `-NAME` and ends so. It all goes through
//! FIFOs, so that a test waits for what happens and for nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::nacre::SetRegistryAccessRequest;
use nacre_protocol::nacre::pull_status::Phase;
use nacre_pull::{Event, Image, Kind};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::{AT_ONCE, IN_LINE};
use crate::storage::group::Group;
use crate::storage::layers::Pulled;
use crate::storage::place::Place;
use crate::storage::pull::{PullError, Pulls, Settings, WorkerCommand};
use crate::storage::rules::Rules;

const DIGEST: &str = "sha256:00";

/// In `$0`, the directory of the FIFOs; to say in the end: `$1` done, `$2` failed, `$4` no space; first `$3`, resolved.
const SCRIPT: &str = r#"
name=$(sed 's/.*"reference":"registry.example\/\([a-z0-9]*\)".*/\1/')
echo "$3"
echo "+$name" >"$0/log"
read word <"$0/$name"
echo "-$name" >"$0/log"
case "$word" in done) echo "$1" ;; full) echo "$4" ;; *) echo "$2" ;; esac
"#;

struct Bench {
    dir: TempDir,
    pulls: Arc<Pulls>,
    log: Lines<BufReader<pipe::Receiver>>,
}

impl Bench {
    fn new(images: &[&str]) -> Bench {
        Bench::with(images, Duration::from_secs(600), Rules::default())
    }

    fn with(images: &[&str], timeout: Duration, rules: Rules) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        for name in images.iter().chain([&"log"]) {
            mknodat(CWD, dir.path().join(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        // For writing too, so that it does not end with the first worker.
        let log = pipe::OpenOptions::new().read_write(true).open_receiver(dir.path().join("log")).unwrap();
        let events = [
            Event::Done(Box::new(image(&dir.path().join("store")))),
            Event::Failed { kind: Kind::NotFound, message: "no such image".into() },
            Event::Resolved { manifest_digest: DIGEST.into(), layers: 1, bytes: 7 },
            Event::Failed { kind: Kind::NoSpace, message: "no space".into() },
        ];
        let events = events.map(|event| serde_json::to_string(&event).unwrap().into());
        let args = ["-c".into(), SCRIPT.into(), dir.path().into()].into_iter().chain(events).collect();
        let worker = WorkerCommand { program: "sh".into(), args, alone: false };
        let pulls = Pulls::new(Settings {
            store: dir.path().join("store"),
            place: Place::default(),
            timeout,
            worker,
            group: Group::default(),
            rules,
        });
        Bench { dir, pulls, log: BufReader::new(log).lines() }
    }

    fn pull(&self, container: &'static str, image: &str) -> JoinHandle<Result<Arc<Pulled>, PullError>> {
        let (pulls, reference) = (self.pulls.clone(), format!("registry.example/{image}"));
        tokio::spawn(async move { pulls.pull(container, &reference).await })
    }

    fn image(&self) -> Image {
        image(&self.pulls.settings().store)
    }

    /// A whole layer of the store.
    fn layer(&self, byte: &str) -> PathBuf {
        let layer = self.image().layers[0].with_file_name(byte.repeat(32));
        std::fs::create_dir_all(&layer).unwrap();
        layer
    }

    /// What a worker says next.
    async fn heard(&mut self) -> String {
        self.log.next_line().await.unwrap().unwrap()
    }

    /// Tell the worker of an image, one that has started, how to end.
    fn end(&self, image: &str, how: &str) {
        std::fs::write(self.dir.path().join(image), format!("{how}\n")).unwrap();
    }

    /// The state of a container's pull once it is in `phase`.
    async fn in_phase(&self, container: &str, phase: Phase) -> nacre_protocol::nacre::PullStatus {
        let mut status = self.pulls.watch(container, 0).await;
        while status.phase.enum_value() != Ok(phase) {
            status = self.pulls.watch(container, status.revision).await;
        }
        status
    }
}

fn image(store: &Path) -> Image {
    let config =
        serde_json::json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": [] } });
    let layer: PathBuf = store.join("layers").join("0a".repeat(32));
    Image {
        reference: "a".into(),
        manifest_digest: DIGEST.into(),
        layers: vec![layer],
        ready: Default::default(),
        config: serde_json::from_value(config).unwrap(),
    }
}

#[tokio::test]
async fn two_who_want_an_image_have_one_worker_and_both_see_how_far_it_is() {
    let mut bench = Bench::new(&["a"]);
    let (one, two) = (bench.pull("c1", "a"), bench.pull("c2", "a"));
    assert_eq!(bench.heard().await, "+a");
    for container in ["c1", "c2"] {
        let status = bench.in_phase(container, Phase::FETCHING).await;
        assert_eq!((status.manifest_digest.as_str(), status.bytes_total), (DIGEST, 7));
        assert_eq!(status.reference, "registry.example/a");
    }
    bench.end("a", "done");
    let (one, two) = (one.await.unwrap().unwrap(), two.await.unwrap().unwrap());
    assert_eq!((&one.image, &two.image), (&bench.image(), &bench.image()));
    for container in ["c1", "c2"] {
        assert_eq!(bench.in_phase(container, Phase::DONE).await.bytes_done, 7);
    }
    assert_eq!(bench.pulls.bytes_total(), 7);
    assert_eq!(bench.heard().await, "-a");

    // Whoever comes later asks anew: the registry's mind, or the policy's, may be another.
    let three = bench.pull("c3", "a");
    assert_eq!(bench.heard().await, "+a");
    bench.end("a", "fail");
    assert!(three.await.unwrap().is_err());
}

#[tokio::test]
async fn a_pull_goes_on_without_its_caller_and_a_retry_has_its_result() {
    let mut bench = Bench::new(&["a"]);
    let gone = bench.pull("c1", "a");
    assert_eq!(bench.heard().await, "+a");
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let retry = bench.pull("c1", "a");
    bench.in_phase("c1", Phase::FETCHING).await;
    bench.end("a", "done");
    assert_eq!(retry.await.unwrap().unwrap().image, bench.image());
    assert_eq!(bench.heard().await, "-a");
}

#[tokio::test]
async fn a_failure_reaches_all_who_wait_and_is_not_remembered() {
    let mut bench = Bench::new(&["a"]);
    let (one, two) = (bench.pull("c1", "a"), bench.pull("c2", "a"));
    assert_eq!(bench.heard().await, "+a");
    bench.end("a", "fail");
    for error in [one.await.unwrap().unwrap_err(), two.await.unwrap().unwrap_err()] {
        assert_eq!(crate::chain(&error), "pull image registry.example/a: no such image");
    }
    for container in ["c1", "c2"] {
        assert!(bench.in_phase(container, Phase::FAILED).await.error.ends_with("no such image"));
    }
    assert_eq!(bench.heard().await, "-a");
    let retry = bench.pull("c1", "a");
    assert_eq!(bench.heard().await, "+a");
    bench.end("a", "done");
    assert_eq!(retry.await.unwrap().unwrap().image, bench.image());
}

#[tokio::test]
async fn of_five_images_four_are_pulled_at_once() {
    let images = ["a", "b", "c", "d", "e"];
    let mut bench = Bench::new(&images);
    let pulls = images.map(|image| bench.pull(image, image));
    let mut started = Vec::new();
    for _ in 0..AT_ONCE {
        started.push(bench.heard().await);
    }
    started.sort_unstable();
    assert_eq!(started, ["+a", "+b", "+c", "+d"]);
    assert_eq!(bench.pulls.watch("e", 0).await.phase.enum_value(), Ok(Phase::WAITING));
    bench.end("c", "fail");
    assert_eq!([bench.heard().await, bench.heard().await], ["-c", "+e"]);
    for image in ["a", "b", "d", "e"] {
        bench.end(image, "done");
    }
    for (image, pull) in images.iter().zip(pulls) {
        assert_eq!(pull.await.unwrap().is_ok(), *image != "c");
    }
}

#[tokio::test]
async fn an_image_wanted_early_is_joined_by_the_container_that_wants_it() {
    let early =
        ["oci:/etc", "dir:/etc", "registry.example/a", "registry.example/a", "registry.example/b"].map(String::from);
    let rules = Rules { prefetch: early.into(), ..Rules::default() };
    let mut bench = Bench::with(&["a", "b"], Duration::from_secs(600), rules);
    bench.pulls.prefetch();
    let mut started = [bench.heard().await, bench.heard().await];
    started.sort_unstable();
    assert_eq!(started, ["+a", "+b"]);
    let joined = bench.pull("c1", "a");
    bench.in_phase("c1", Phase::FETCHING).await;
    bench.end("a", "done");
    assert_eq!(joined.await.unwrap().unwrap().image, bench.image());
    assert_eq!(bench.heard().await, "-a");

    bench.pull("c2", "b");
    bench.in_phase("c2", Phase::FETCHING).await;
    bench.end("b", "fail");
    bench.in_phase("c2", Phase::FAILED).await;
    assert_eq!(bench.heard().await, "-b");
    let retry = bench.pull("c2", "b");
    assert_eq!(bench.heard().await, "+b");
    bench.end("b", "done");
    assert_eq!(retry.await.unwrap().unwrap().image, bench.image());
}

#[tokio::test]
async fn another_who_asks_with_other_credentials_does_not_join() {
    let mut bench = Bench::new(&["a"]);
    let one = bench.pull("c1", "a");
    assert_eq!(bench.heard().await, "+a");
    let mut access = SetRegistryAccessRequest::new();
    access.registry = "registry.example".into();
    for password in ["x", "y"] {
        access.password = password.into();
        bench.pulls.set_registry_access(&access).unwrap();
        bench.pull("c2", "a");
        assert_eq!(bench.heard().await, "+a");
    }
    assert!(!one.is_finished());
}

#[tokio::test]
async fn a_pull_that_takes_too_long_ends_for_all_who_wait() {
    let bench = Bench::with(&["a"], Duration::from_millis(100), Rules::default());
    let (one, two) = (bench.pull("c1", "a"), bench.pull("c2", "a"));
    for error in [one.await.unwrap().unwrap_err(), two.await.unwrap().unwrap_err()] {
        assert!(matches!(error, PullError::Deadline { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_line_that_is_too_long_takes_nobody_in_but_those_who_join() {
    let images: Vec<String> = (0..AT_ONCE + IN_LINE).map(|i| format!("i{i}")).collect();
    let bench = Bench::new(&images.iter().map(String::as_str).collect::<Vec<_>>());
    let waiting: Vec<_> = images.iter().map(|image| bench.pull("c1", image)).collect();
    tokio::task::yield_now().await; // each of them is in line now
    let last = bench.pull("c2", "more").await.unwrap().unwrap_err();
    assert!(matches!(last, PullError::TooMany { .. }), "{last}");
    assert!(bench.in_phase("c2", Phase::FAILED).await.error.contains("wait in line already"));
    bench.pull("c3", "i67");
    bench.in_phase("c3", Phase::WAITING).await;
    assert!(waiting.iter().all(|pull| !pull.is_finished()));
}

#[tokio::test]
async fn a_pull_that_lacks_space_gets_that_of_layers_that_nobody_uses() {
    let mut bench = Bench::new(&["a", "b"]);
    let (used, unused) = (bench.layer("0a"), bench.layer("0b"));
    let user = bench.pull("c1", "a");
    assert_eq!(bench.heard().await, "+a");
    bench.end("a", "done");
    let user = user.await.unwrap().unwrap();
    assert_eq!(bench.heard().await, "-a");

    let other = bench.pull("c2", "b");
    for (begins, ends, how) in [("+b", "-b", "full"), ("+b", "-b", "done")] {
        assert_eq!(bench.heard().await, begins);
        bench.end("b", how);
        assert_eq!(bench.heard().await, ends);
    }
    other.await.unwrap().unwrap();
    assert!(used.exists() && !unused.exists());

    drop(user);
    let last = bench.pull("c3", "b");
    for _ in 0..2 {
        assert_eq!(bench.heard().await, "+b");
        bench.end("b", "full");
        assert_eq!(bench.heard().await, "-b");
    }
    assert!(crate::chain(&last.await.unwrap().unwrap_err()).ends_with("no space"));
    assert!(!used.exists());
}

#[tokio::test]
async fn the_layers_of_an_image_wanted_early_stay_until_a_container_has_had_it() {
    let rules = Rules { prefetch: vec!["registry.example/a".into()], ..Rules::default() };
    let mut bench = Bench::with(&["a", "b"], Duration::from_secs(600), rules);
    let layer = bench.layer("0a");
    let full = async |bench: &mut Bench, times: usize| {
        let pull = bench.pull("c1", "b");
        for _ in 0..times {
            assert_eq!(bench.heard().await, "+b");
            bench.end("b", "full");
            assert_eq!(bench.heard().await, "-b");
        }
        assert!(pull.await.unwrap().is_err());
    };
    bench.pulls.prefetch();
    assert_eq!(bench.heard().await, "+a");
    bench.end("a", "done");
    assert_eq!(bench.heard().await, "-a");
    full(&mut bench, 1).await;
    assert!(layer.exists());

    let had = bench.pull("c2", "a");
    assert_eq!(bench.heard().await, "+a");
    bench.end("a", "done");
    assert_eq!(bench.heard().await, "-a");
    drop(had.await.unwrap().unwrap());
    full(&mut bench, 2).await;
    assert!(!layer.exists());
}
