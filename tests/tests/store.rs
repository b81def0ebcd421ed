//! Where images lie, in real guests: in memory that is too small, compressed, and on a disk that a hostile host plays with.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nacre_protocol::convert;
use nacre_protocol::nacre::SetRegistryAccessRequest;
use nacre_shim::guest::{self, ProcessId};
use nacre_shim::size::Size;
use nacre_shim::vmm::Disk;
use nacre_tests::agent::{Guest, Machine};
use nacre_tests::image::{Compression, Image, Layer, busybox};
use nacre_tests::registry::Registry;
use nacre_tests::{dist, suite};
use serde_json::json;
use sha2::{Digest as _, Sha256};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

/// What stands in each block of a file, and must not stand on the host's disk.
const MARKER: &str = "this is the plaintext of a confidential image";

/// How long a pull may take.
const LIMIT: Duration = Duration::from_secs(300);

/// A registry, and the guest's programs.
struct World {
    dist: PathBuf,
    registry: Registry,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Option<World> {
        let dist = dist::for_pulls()?;
        Some(World { dist, registry: Registry::start(None).unwrap(), dir: tempfile::tempdir().unwrap() })
    }

    /// Pushes busybox with one layer more for each of `files`.
    fn push(&self, name: &str, files: &[(String, Vec<u8>, Compression)]) {
        let mut image = Image::new(json!({ "Env": ["PATH=/bin"] }));
        image = image.layer(busybox().unwrap().finish().unwrap(), Compression::None);
        for (name, bytes, compression) in files {
            let layer = Layer::default().file(name, 0o644, bytes).unwrap();
            image = image.layer(layer.finish().unwrap(), *compression);
        }
        let layout = self.dir.path().join(name.replace(':', "-"));
        image.write(&layout).unwrap();
        self.registry.push(&layout, name, None).unwrap();
        fs::remove_dir_all(layout).unwrap();
    }

    fn disk(&self, bytes: u64) -> Disk {
        let path = self.dir.path().join("disk");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        Disk { path, serial: "nacre-scratch".into(), read_only: false }
    }

    /// A guest of 192 MiB with a pod in it.
    async fn pod(&self, words: &[&str], disks: Vec<Disk>) -> Pod {
        let machine = Machine { memory: Size::mib(192), disks, words, ..Machine::default() };
        let mut guest = Guest::boot_as(&self.dist, machine).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let api = guest::Guest::connect(guest.vm().vsock(), deadline).await.unwrap();
        let access = SetRegistryAccessRequest {
            registry: self.registry.from_guest("").trim_end_matches('/').into(),
            ca_pem: self.registry.ca_pem().unwrap(),
            ..SetRegistryAccessRequest::new()
        };
        api.set_registry_access(&access).await.unwrap();
        api.set_up_pod("pod").await.unwrap();
        Pod { _guest: guest, api, count: 0.into() }
    }
}

struct Pod {
    _guest: Guest,
    api: guest::Guest,
    count: std::cell::Cell<u32>,
}

impl Pod {
    /// Makes and starts a container that waits.
    async fn container(&self, world: &World, id: &str, image: &str) -> anyhow::Result<()> {
        let root = format!("/run/kata-containers/{id}/rootfs");
        let spec = serde_json::from_value(suite::spec_json(id, &root, &["sleep", "100000"], false)).unwrap();
        self.api.create(id, &world.registry.from_guest(image), &spec, LIMIT).await?;
        self.api.start(id).await
    }

    /// What a script says in a container, and how it ends.
    async fn sh(&self, id: &str, script: &str) -> (String, i32) {
        self.count.set(self.count.get() + 1);
        let spec = suite::spec_json(id, "/", &["sh", "-c", &format!("exec 2>&1; {script}")], false);
        let process = convert::process_from_oci(&serde_json::from_value(spec["process"].clone()).unwrap()).unwrap();
        let id = ProcessId { container: id.into(), exec: format!("exec{}", self.count.get()) };
        self.api.exec(&id, &process).await.unwrap();
        let mut said = Vec::new();
        loop {
            match self.api.read(&id, false).await.unwrap() {
                piece if piece.is_empty() => break,
                piece => said.extend(piece),
            }
        }
        (String::from_utf8_lossy(&said).into_owned(), self.api.wait(&id).await.unwrap())
    }
}

/// Text that shrinks to a tenth.
fn text(size: usize, seed: usize) -> Vec<u8> {
    let mut text = String::with_capacity(size + BLOCK);
    while text.len() < size {
        writeln!(text, "{seed}/{}: {MARKER}", text.len()).unwrap();
        let end = (text.len() + 1).next_multiple_of(BLOCK);
        text.extend(std::iter::repeat_n("lorem ipsum dolor sit amet ", (end - text.len()) / 27));
    }
    text.truncate(size);
    text.into_bytes()
}

/// Numbers that do not shrink.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..size / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn sha256(pieces: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    pieces.iter().for_each(|piece| hash.update(piece));
    hex::encode(hash.finalize())
}

fn contains(file: &Path, word: &[u8]) -> bool {
    let bytes = fs::read(file).unwrap();
    // A marker stands somewhere in each block: a look at every place would take long.
    bytes.split(|byte| *byte == word[0]).any(|rest| rest.starts_with(&word[1..]))
}

#[tokio::test]
async fn vm_an_image_that_memory_is_too_small_for_is_refused_there_and_kept_compressed_or_on_a_disk() {
    let Some(world) = World::new() else { return };
    let mut files: Vec<_> =
        (0..3).map(|seed| (format!("data/{seed}"), text(130 * MIB, seed), Compression::Zstd)).collect();
    files.push(("data/3".into(), noise(40 * MIB), Compression::None));
    let all: Vec<&[u8]> = files.iter().map(|(_, bytes, _)| bytes.as_slice()).collect();
    let digest = sha256(&all);
    world.push("small:1", &[]);
    world.push("large:1", &files);
    drop(files);
    refused_by_memory(&world).await;
    kept_compressed(&world, &digest).await;
    kept_on_disk(&world, &digest).await;
}

/// The image shrinks well, so that only unpacking it shows that it does not fit.
async fn refused_by_memory(world: &World) {
    let pod = world.pod(&[], vec![]).await;
    pod.container(world, "first", "small:1").await.unwrap();
    for _ in 0..2 {
        let error = format!("{:#}", pod.container(world, "second", "large:1").await.unwrap_err());
        assert!(error.contains("the image needs more than the image store has: give the VM more memory"), "{error}");
        // What was unpacked is gone, and who ran runs.
        let (said, code) = pod.sh("first", "free -m | grep Mem").await;
        let available: u64 = said.split_whitespace().last().unwrap().parse().unwrap();
        assert!(code == 0 && available > 100, "{said}");
    }
    pod.container(world, "third", "small:1").await.unwrap();
}

async fn kept_compressed(world: &World, digest: &str) {
    let pod = world.pod(&["nacre.image_store=zram", "nacre.image_store_size=1G"], vec![]).await;
    pod.container(world, "a", "large:1").await.unwrap();
    let (said, code) = pod.sh("a", "cat /data/* | busybox sha256sum").await;
    assert!(said.starts_with(digest) && code == 0, "{said}");
}

async fn kept_on_disk(world: &World, digest: &str) {
    let disk = world.disk(4 << 30);
    let path = disk.path.clone();
    let pod = world.pod(&[], vec![disk]).await;
    pod.container(world, "a", "large:1").await.unwrap();
    let (said, code) = pod.sh("a", "cat /data/* | busybox sha256sum").await;
    assert!(said.starts_with(digest) && code == 0, "{said}");
    // What is written goes there, too, and does not fit into memory either.
    let script = "cat /data/0 /data/1 >/copy && sync && cat /data/0 /data/1 | busybox cmp - /copy";
    let (said, code) = pod.sh("a", script).await;
    assert!(said.is_empty() && code == 0, "{said}");
    assert!(!contains(&path, MARKER.as_bytes()), "the host's file holds what the image holds");
}

#[tokio::test]
async fn vm_a_host_that_changes_its_disk_or_puts_it_back_is_noticed() {
    let Some(world) = World::new() else { return };
    world.push("small:1", &[]);
    let disk = world.disk(512 << 20);
    let (path, old) = (disk.path.clone(), world.dir.path().join("old"));
    let pod = world.pod(&[], vec![disk]).await;
    pod.container(&world, "a", "small:1").await.unwrap();
    let busybox = fs::read("/bin/busybox").unwrap();
    // More than fits into memory, so that most of it is read from the disk.
    let copies = 300 * MIB / busybox.len();
    let fill = async |word: &str| {
        let each = format!("echo {word}; cat /bin/busybox; i=$((i + 1))");
        let script = format!("i=0; while [ $i -lt {copies} ]; do {each}; done | dd of=/file bs=1M conv=notrunc; sync");
        let (said, code) = pod.sh("a", &script).await;
        assert_eq!(code, 0, "{said}");
    };
    // Of another length, so that every block differs.
    fill("older").await;
    fs::copy(&path, &old).unwrap();
    fill("new").await;
    assert!(interfere(&path, &old) > 10_000);

    let period = [b"new\n", busybox.as_slice()].concat();
    let numbers: Vec<usize> = (0..60).map(|number| number * copies * busybox.len() / BLOCK / 60).collect();
    let list = numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let read = "dd if=/file bs=4096 skip=$i count=1 2>/dev/null | busybox sha256sum";
    let (said, _) = pod.sh("a", &format!("for i in {list}; do {read}; done")).await;
    let nothing = sha256(&[]);
    let mut refused = 0;
    for (number, line) in numbers.iter().zip(said.lines()) {
        let block: Vec<u8> = period.iter().copied().cycle().skip(number * BLOCK % period.len()).take(BLOCK).collect();
        let found = line.split(' ').next().unwrap();
        assert!(found == nothing || found == sha256(&[&block]), "block {number}: {said}");
        refused += usize::from(found == nothing);
    }
    assert!(said.lines().count() == numbers.len() && refused > 10, "{said}");
    let (said, _) = pod.sh("a", "cat /file >/dev/null").await;
    assert!(said.contains("Input/output error"), "{said}");
}

/// Puts every other block that was written anew back to what it was, and changes a byte of the rest. Returns how many blocks these were.
fn interfere(path: &Path, old: &Path) -> usize {
    let (disk, old) = (File::options().read(true).write(true).open(path).unwrap(), File::open(old).unwrap());
    let (mut now, mut before, mut count) = (vec![0; BLOCK], vec![0; BLOCK], 0);
    for offset in (0..disk.metadata().unwrap().len()).step_by(BLOCK) {
        disk.read_exact_at(&mut now, offset).unwrap();
        old.read_exact_at(&mut before, offset).unwrap();
        if now == before || before.iter().all(|byte| *byte == 0) {
            continue;
        }
        count += 1;
        if count % 2 == 0 {
            disk.write_all_at(&before, offset).unwrap();
        } else {
            disk.write_all_at(&[now[1000] ^ 1], offset + 1000).unwrap();
        }
    }
    count
}

/// A tmpfs that is soon full. Dropping it unmounts it.
struct Little(PathBuf);

impl Drop for Little {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn vm_no_image_is_used_after_the_host_failed_to_write() {
    let Some(world) = World::new() else { return };
    if !dist::root() {
        return;
    }
    world.push("small:1", &[]);
    world.push("large:1", &[("data".into(), noise(60 * MIB), Compression::None)]);
    let little = Little(world.dir.path().join("little"));
    fs::create_dir(&little.0).unwrap();
    rustix::mount::mount("tmpfs", &little.0, "tmpfs", rustix::mount::MountFlags::empty(), c"size=32m").unwrap();
    let path = little.0.join("disk");
    File::create(&path).unwrap().set_len(1 << 30).unwrap();
    let pod = world.pod(&[], vec![Disk { path, serial: "nacre-scratch".into(), read_only: false }]).await;
    for image in ["large:1", "large:1", "small:1"] {
        let error = format!("{:#}", pod.container(&world, "a", image).await.unwrap_err());
        assert!(error.contains("lost what was written") || error.contains("os error"), "{image}: {error}");
    }
}
