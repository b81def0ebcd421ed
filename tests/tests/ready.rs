//! Layers that come ready-made: sealed by `nacre-pull`, attached by `nacre run --layers`, and lies about them.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nacre_tests::dist;
use nacre_tests::image::{Compression, Image, Layer, Written, busybox, replace_manifest};
use nacre_tests::registry::Registry;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

/// All that can be seen of the image's own files. A directory's size is its file system's affair.
const LIST: &str = "busybox find /data /bin | busybox sort | while read -r f; do \
    busybox stat -c '%n %F %a %u %g %h %t:%T' $f; busybox stat -c %y $f; test -d $f || busybox stat -c %s $f; \
    test -L $f && busybox readlink $f; test -f $f && busybox md5sum $f; done";

/// What each test needs: the commands, a registry, a directory.
struct World {
    bin: PathBuf,
    registry: Registry,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Option<World> {
        let dist = dist::for_pulls()?;
        let registry = Registry::start(None).unwrap();
        Some(World { bin: dist.join("bin"), registry, dir: tempfile::tempdir().unwrap() })
    }

    /// Pushes the image as `plain:1`, makes its layers ready, and pushes it as `ready:1` with their root hashes.
    fn image(&self) -> Written {
        let layout = self.dir.path().join("layout");
        let image = Image::new(json!({ "Cmd": ["sh", "-c", LIST] }))
            .layer(busybox().unwrap().finish().unwrap(), Compression::Gzip)
            .layer(lower(), Compression::Zstd)
            .layer(upper(), Compression::None);
        let written = image.write(&layout).unwrap();
        self.registry.push(&layout, "plain:1", None).unwrap();
        let mut seal = Command::new(self.bin.join("nacre-pull"));
        seal.args(["seal", "--out"]).arg(self.layers()).arg(format!("oci:{}:image", layout.display()));
        let output = seal.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let manifest = fs::read(self.layers().join("manifest.json")).unwrap();
        replace_manifest(&layout, &manifest).unwrap();
        self.registry.push(&layout, "ready:1", None).unwrap();
        written
    }

    fn layers(&self) -> PathBuf {
        self.dir.path().join("layers")
    }

    /// The file of the layer with this number.
    fn file(&self, layer: usize) -> PathBuf {
        let manifest: Value = serde_json::from_slice(&fs::read(self.layers().join("manifest.json")).unwrap()).unwrap();
        let text = manifest["layers"][layer]["annotations"]["dev.nacre.layer.verity"].as_str().unwrap();
        let root = text.strip_prefix("sha256:").unwrap().split(';').next().unwrap();
        self.layers().join(format!("{root}.erofs"))
    }

    fn command(&self, image: &str, options: &[&str], script: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("nacre"));
        command.arg("--state-dir").arg(self.dir.path().join("s")).args(["run", "-q", "--accel", "tcg", "--tls-ca"]);
        command.arg(self.registry.ca()).args(options).arg(self.registry.from_guest(image)).args(script);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, image: &str, script: &[&str]) -> Output {
        self.command(image, &["--layers", &self.layers().display().to_string()], script).output().unwrap()
    }
}

fn entry(kind: EntryType, mode: u32, owner: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner + 1);
    header.set_mtime(1_234_567_890 + owner);
    header.set_size(0);
    header
}

fn lower() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |mut header: tar::Header, path: &str, data: &[u8]| {
        header.set_size(data.len() as u64);
        archive.append_data(&mut header, path, data).unwrap();
    };
    add(entry(EntryType::Directory, 0o1777, 5), "data/", b"");
    add(entry(EntryType::Directory, 0o755, 6), "data/hidden/", b"");
    add(entry(EntryType::Regular, 0o644, 7), "data/hidden/below", b"below");
    add(entry(EntryType::Regular, 0o644, 7), "data/gone", b"gone");
    add(entry(EntryType::Regular, 0o4755, 70_000), "data/program", &[b'p'; 5000]);
    add(entry(EntryType::Regular, 0o600, 8), "data/big", &noise(2 << 20));
    add(entry(EntryType::Regular, 0o600, 8), "data/zeros", &[0; 300_000]);
    let mut device = entry(EntryType::Char, 0o666, 9);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    add(device, "data/null", b"");
    add(entry(EntryType::Fifo, 0o640, 10), "data/fifo", b"");
    archive.append_link(&mut entry(EntryType::Link, 0o4755, 70_000), "data/same", "data/program").unwrap();
    archive.append_link(&mut entry(EntryType::Symlink, 0o777, 11), "data/link", "program").unwrap();
    archive.into_inner().unwrap()
}

fn upper() -> Vec<u8> {
    let layer = Layer::default().file("data/.wh.gone", 0, b"").unwrap();
    let layer = layer.file("data/hidden/.wh..wh..opq", 0, b"").unwrap();
    layer.file("data/hidden/above", 0o644, b"above").unwrap().finish().unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    (0u64..).flat_map(|block| Sha256::digest(block.to_le_bytes())).take(length).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn flip(file: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn vm_layers_that_come_ready_made_are_what_a_pull_brings_and_are_not_fetched() {
    let Some(world) = World::new() else { return };
    let written = world.image();
    let pulled = world.command("plain:1", &[], &[]).output().unwrap();
    assert!(pulled.status.success() && pulled.stdout.len() > 2000, "{pulled:?}");

    // Unannotated, none of them counts.
    let unnamed = world.run("plain:1", &[]);
    assert_eq!(text(&unnamed.stdout), text(&pulled.stdout), "{}", text(&unnamed.stderr));

    // The registry has no layers any more. Two pods have the same files at once.
    for layer in &written.layers {
        fs::remove_file(world.registry.blob(layer)).unwrap();
    }
    let layers = world.layers().display().to_string();
    let other = world.command("ready:1", &["--layers", &layers], &[]).stdout(Stdio::piped()).spawn().unwrap();
    for ready in [world.run("ready:1", &[]), other.wait_with_output().unwrap()] {
        assert_eq!(text(&ready.stdout), text(&pulled.stdout), "{}", text(&ready.stderr));
    }
    assert!(!world.run("plain:1", &[]).status.success());
}

#[test]
fn vm_a_layer_that_is_not_what_its_root_hash_says_is_pulled_or_not_read() {
    let Some(world) = World::new() else { return };
    let written = world.image();
    // Refused when it is mounted; too short; and what is left is mixed with those that are pulled.
    flip(&world.file(0), 1024);
    File::options().write(true).open(world.file(2)).unwrap().set_len(4096).unwrap();
    fs::remove_file(world.registry.blob(&written.layers[1])).unwrap();
    let script = ["sh", "-c", "cat /data/hidden/*; busybox wc -c </data/program"];
    let mixed = world.run("ready:1", &script);
    assert_eq!(text(&mixed.stdout), "above5000\n", "{}", text(&mixed.stderr));

    // Wrong further inside: an error for who reads it, never other bytes.
    let content = fs::read(world.file(1)).unwrap();
    let big = noise(2 << 20);
    let at = content.windows(4096).position(|window| window == &big[1 << 20..(1 << 20) + 4096]).unwrap();
    flip(&world.file(1), at as u64);
    let script = ["sh", "-c", "busybox wc -c </data/program; cat /data/big >/dev/null || echo unreadable"];
    let spoilt = world.run("ready:1", &script);
    assert_eq!(text(&spoilt.stdout), "5000\nunreadable\n", "{}", text(&spoilt.stderr));
    assert!(text(&spoilt.stderr).contains("I/O error") || text(&spoilt.stderr).contains("Input/output"), "{spoilt:?}");
}

#[test]
fn vm_layers_that_are_not_there_are_said_before_anything_boots() {
    let Some(world) = World::new() else { return };
    let output = world.run("ready:1", &[]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("nacre-pull seal"), "{output:?}");
}
