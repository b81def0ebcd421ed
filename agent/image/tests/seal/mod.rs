//! Layers made ready by the command line, and pulls that find them attached.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says why it skips")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_pull::ready::{self, Known};
use nacre_pull::{Request, Server};
use serde_json::Value;

use crate::fixture::Compression::{Gzip, None as Plain, Zstd};
use crate::fixture::{Image, Middle, Moody, archive, digest, noise, on_path, run};
use crate::{plain, pull};

fn image() -> Image {
    let layers = [
        (archive(&[("etc/a", b"lowest"), ("big", &noise(3 << 20))]), Plain),
        (archive(&[("etc/.wh.a", b"")]), Gzip),
        (archive(&[("b", &[0; 300_000])]), Zstd),
    ];
    Image::new(&layers, "amd64")
}

/// Makes an image's layers ready. Returns the last line of what was said.
fn seal(moody: &Moody, out: &Path) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre-pull"));
    command.args(["seal", "--insecure", "--out"]).arg(out).arg(moody.reference());
    let said = String::from_utf8(run(&mut command)).unwrap();
    serde_json::from_str(said.lines().last().unwrap()).unwrap()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: layers are unpacked by root");
    }
    root
}

fn names(dir: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into()).collect()
}

/// How many blobs were asked for.
fn blobs(moody: &Moody) -> usize {
    moody.asked().iter().filter(|request| request.contains("/blobs/")).count()
}

fn list(out: &Path) -> Vec<Known> {
    ready::parse(&fs::read_to_string(out.join("layers")).unwrap()).unwrap()
}

/// The image as it is once its annotated manifest was pushed.
fn annotated(image: &Image, out: &Path) -> Image {
    let manifest = fs::read(out.join("manifest.json")).unwrap();
    let mut image = image.clone();
    image.manifest = digest(&manifest);
    image.blobs.insert(digest(&manifest), manifest);
    image
}

#[test]
fn sealed_layers_are_the_same_files_each_time_and_stand_for_what_was_pulled() {
    if !is_root() {
        return;
    }
    let moody = Moody::start(&image(), "", Middle::Goes);
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let said = seal(&moody, one.path());
    seal(&moody, other.path());
    assert_eq!(names(one.path()), names(other.path()));
    let manifest = fs::read(one.path().join("manifest.json")).unwrap();
    assert_eq!(manifest, fs::read(other.path().join("manifest.json")).unwrap());
    assert_eq!(said["Ready"]["manifest_digest"], digest(&manifest));
    assert_eq!(said["Ready"]["layers"].as_array().unwrap().len(), 3);

    for layer in list(one.path()) {
        let file = one.path().join(format!("{}.erofs", layer.verity.root_hash()));
        assert_eq!(fs::metadata(&file).unwrap().len(), layer.verity.bytes());
        if on_path("veritysetup") {
            let offset = layer.verity.blocks * 4096;
            let mut command = Command::new("veritysetup");
            command.args(["verify", "--no-superblock", "--salt=-"]).arg(format!("--hash-offset={offset}"));
            command.arg(format!("--data-blocks={}", layer.verity.blocks)).args([&file, &file]);
            run(command.arg(layer.verity.root_hash()));
        } else {
            println!("skipped: veritysetup is not installed (cryptsetup-bin)");
        }
    }
    // What is there is neither fetched nor made again.
    let before = blobs(&moody);
    assert_eq!(seal(&moody, one.path()), said);
    assert_eq!(blobs(&moody), before + 1, "the configuration");
    assert_eq!(names(one.path()), names(other.path()));
}

#[tokio::test]
async fn layers_that_are_attached_are_not_fetched_if_a_trusted_source_names_them() {
    if !is_root() {
        return;
    }
    let (image, dir) = (image(), tempfile::tempdir().unwrap());
    let moody = Moody::start(&image, "", Middle::Goes);
    seal(&moody, dir.path());
    let known = list(dir.path());
    let attached: Vec<_> = known.iter().map(|known| known.verity.serial()).collect();
    let with_annotations = Moody::start(&annotated(&image, dir.path()), "", Middle::Goes);
    let mut stores = Vec::new();
    let mut pulled = async |moody: &Moody, attached: &[String], known: &[Known]| {
        let store = tempfile::tempdir().unwrap();
        let before = blobs(moody);
        let request =
            Request { attached: attached.to_vec(), known: known.to_vec(), ..plain(Server::Own, moody, store.path()) };
        let pulled = pull(request).await.unwrap();
        assert!(pulled.ready.keys().all(|ready| ready.starts_with(store.path().join("ready"))));
        let unpacked = pulled.layers.iter().filter(|layer| layer.is_dir()).count();
        assert_eq!((unpacked + pulled.ready.len(), blobs(moody) - before), (3, unpacked + 1));
        stores.push(store);
        pulled.ready.len()
    };
    assert_eq!(pulled(&with_annotations, &attached, &[]).await, 3);
    assert_eq!(pulled(&with_annotations, &attached[..1], &[]).await, 1);
    assert_eq!(pulled(&with_annotations, &["0a".repeat(10)], &[]).await, 0);
    assert_eq!(pulled(&with_annotations, &[], &[]).await, 0);
    // The host's word alone is none.
    assert_eq!(pulled(&moody, &attached, &[]).await, 0);
    assert_eq!(pulled(&moody, &attached, &known[1..]).await, 2);
}
