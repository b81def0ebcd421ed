//! Pulls from a registry on loopback to unpacked, verified layers, beside what else does that: podman, containerd, and skopeo with umoci. All of
//! them write to memory, so that no disk is measured.

use std::fs;
use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use nacre_tests::image::{Compression, Image, Layer, Written};
use nacre_tests::registry::Registry;
use nacre_tests::{containerd, demo_image, dist};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::tree::{self, Cost, Look};
use crate::{Measured, limiter, ms};

/// How often each is measured: its time, and then its memory.
const RUNS: usize = 3;

/// How often the floor is, which is done in no time.
const FLOOR_RUNS: usize = 15;

/// The names of the rows.
pub(crate) const NAMES: [&str; 17] = [
    "pull.small.wall",
    "pull.small.cpu",
    "pull.small.peak_memory",
    "pull.python.wall",
    "pull.python.cpu",
    "pull.python.peak_memory",
    "pull.files.wall",
    "pull.files.cpu",
    "pull.files.peak_memory",
    "pull.layers.wall",
    "pull.layers.cpu",
    "pull.layers.peak_memory",
    "pull.limited.wall",
    "pull.limited.cpu",
    "pull.limited.peak_memory",
    FLOORS[0],
    FLOORS[1],
];

const FLOORS: [&str; 2] = ["pull.floor", "pull.floor_fetched"];

/// The least that programs need.
const SMALL: [&[&str]; 2] = [&["base-files", "libc6"], &["coreutils", "dash"]];

/// Python with what people compute with, a layer each.
pub(crate) const PYTHON: [&[&str]; 3] = [
    &["libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal", "libc6"],
    &["python3-numpy", "libopenblas0-pthread", "libgfortran5"],
    &["python3-scipy"],
];

/// The other ways to pull.
#[derive(Debug, Clone, Copy)]
enum Peer {
    Podman,
    Containerd,
    SkopeoUmoci,
}

const PEERS: [(Peer, &str); 3] = [
    (Peer::Podman, "podman pull"),
    (Peer::Containerd, "ctr image pull"),
    (Peer::SkopeoUmoci, "skopeo copy+umoci unpack"),
];

/// Writes an image into a directory.
type Write = fn(&Path) -> Result<Written>;

/// What of a cost a row is about, and its unit.
type Column = (&'static str, fn(&Cost) -> f64);

/// Where all is done.
struct Bench<'a> {
    dist: &'a Path,
    dir: tempfile::TempDir,
    registry: Registry,
    /// The same registry, each connection limited.
    limited: SocketAddr,
    containerd: Child,
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        let _ = self.containerd.kill(); // it may have ended
        let _ = self.containerd.wait();
    }
}

/// Measures the rows that are `wanted`.
pub(crate) fn measure(dist: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<Measured>> {
    if !dist::have(&["podman", "containerd", "ctr", "skopeo", "umoci", "docker-registry", "curl"]) {
        return Ok(Vec::new());
    }
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.context("make a directory")?;
    let containerd = containerd::start(dir.path())?;
    let registry = Registry::start(None)?;
    let limited = limiter::start(registry.here("").trim_end_matches('/').parse().context("find the registry")?)?;
    let bench = Bench { dist, dir, registry, limited, containerd };
    let mut all = Vec::new();
    let images: [(&str, [&'static str; 3], Write); 5] = [
        ("small", names(0), |dir| packages(&SMALL, dir)),
        ("python", names(1), |dir| packages(&PYTHON, dir)),
        ("files", names(2), many_files),
        ("layers", names(3), many_layers),
        ("limited", names(4), one_large),
    ];
    for (image, names, write) in images {
        let with_floors = image == "python" && FLOORS.iter().any(|name| wanted(name));
        let with_peers = names.iter().any(|name| wanted(name));
        if !with_floors && !with_peers {
            continue;
        }
        let layout = bench.dir.path().join(image);
        let written = write(&layout)?;
        eprintln!("pull.{image}: {}", json!({ "layers": written.layers.len(), "bytes": written.bytes }));
        bench.registry.push(&layout, &format!("{image}:1"), None)?;
        if with_peers {
            all.extend(bench.image(image, names)?);
        }
        if with_floors {
            all.extend(bench.floors(image, &layout, &written)?);
        }
        fs::remove_dir_all(&layout).context("remove an image")?;
    }
    Ok(all)
}

fn names(image: usize) -> [&'static str; 3] {
    let name = |row: usize| NAMES.get(image * 3 + row).copied().unwrap_or_default();
    [name(0), name(1), name(2)]
}

/// The times of one run, and the memory of another.
fn both(run: impl Fn(Look) -> Result<Cost>) -> Result<Cost> {
    let (clocks, memory) = (run(Look::Clocks)?, run(Look::Memory)?);
    Ok(Cost { peak_kib: memory.peak_kib, ..clocks })
}

impl Bench<'_> {
    /// The three rows of an image: ours beside the fastest.
    fn image(&self, image: &str, names: [&'static str; 3]) -> Result<Vec<Measured>> {
        let (mut ours, mut theirs) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
        for _ in 0..RUNS {
            ours.push(both(|look| self.ours(image, look))?);
            for ((peer, _), costs) in PEERS.iter().zip(&mut theirs) {
                costs.push(both(|look| self.peer(*peer, image, look))?);
            }
        }
        let column = |costs: &[Cost], of: fn(&Cost) -> f64| costs.iter().map(of).collect::<Vec<f64>>();
        for ((_, name), costs) in PEERS.iter().zip(&theirs) {
            let median = |of| crate::median(&mut column(costs, of)).0;
            let (wall, cpu, peak) = (median(|c| c.wall_ms), median(|c| c.cpu_ms), median(|c| c.peak_kib));
            eprintln!("pull.{image}: {name}: {wall:.0} ms, {cpu:.0} ms of processors, {peak:.0} KiB");
        }
        let wall = |costs: &Vec<Cost>| crate::median(&mut column(costs, |cost| cost.wall_ms)).0;
        let fastest = PEERS.iter().zip(&theirs).min_by(|a, b| wall(a.1).total_cmp(&wall(b.1)));
        let ((_, peer), theirs) = fastest.context("there is no peer")?;
        let columns: [Column; 3] =
            [("ms", |cost| cost.wall_ms), ("ms", |cost| cost.cpu_ms), ("KiB", |cost| cost.peak_kib)];
        let row = |(name, (unit, of)): (&'static str, Column)| {
            Measured::many(name, unit, &mut column(&ours, of)).beside(peer, &mut column(theirs, of))
        };
        Ok(names.into_iter().zip(columns).map(row).collect())
    }

    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(path)
    }

    fn ours(&self, image: &str, look: Look) -> Result<Cost> {
        let mut command = Command::new(self.dist.join("bin/nacre-pull"));
        command.args(["pull", "--ca"]).arg(self.registry.ca()).arg("--store").arg(self.fresh("ours")?);
        tree::run(command.arg(self.here(image)), None, look)
    }

    fn here(&self, image: &str) -> String {
        if image == "limited" {
            format!("{}/{image}:1", self.limited)
        } else {
            self.registry.here(&format!("{image}:1"))
        }
    }

    /// containerd's way to say that a registry on loopback speaks TLS, too.
    fn hosts(&self, reference: &str) -> Result<PathBuf> {
        let host = reference.split('/').next().unwrap_or_default();
        let (all, dir) = (self.dir.path().join("hosts"), self.dir.path().join("hosts").join(host));
        fs::create_dir_all(&dir).context("make a directory")?;
        let ca = self.registry.ca();
        let text = format!("server = \"https://{host}\"\n[host.\"https://{host}\"]\nca = {ca:?}\n");
        fs::write(dir.join("hosts.toml"), text).context("write a configuration")?;
        Ok(all)
    }

    fn peer(&self, peer: Peer, image: &str, look: Look) -> Result<Cost> {
        let reference = self.here(image);
        match peer {
            Peer::Podman => {
                let mut command = Command::new("podman");
                command.args(["--storage-driver", "overlay", "--root"]).arg(self.dir.path().join("podman"));
                command.arg("--runroot").arg(self.dir.path().join("run"));
                let cost = tree::run(command.args(["pull", "--quiet", "--tls-verify=false", &reference]), None, look)?;
                let mut remove = Command::new("podman");
                remove.args(["--storage-driver", "overlay", "--root"]).arg(self.dir.path().join("podman"));
                remove.arg("--runroot").arg(self.dir.path().join("run")).args(["rmi", "--all", "--force"]);
                crate::succeed(&mut remove)?;
                Ok(cost)
            }
            Peer::Containerd => {
                let ctr = |args: &[&str]| {
                    let mut command = Command::new("ctr");
                    command.arg("--address").arg(containerd::socket(self.dir.path())).args(args);
                    command
                };
                let mut pull = ctr(&["images", "pull", "--snapshotter", "overlayfs", "--hosts-dir"]);
                pull.arg(self.hosts(&reference)?).arg(&reference);
                let cost = tree::run(&mut pull, Some(self.containerd.id()), look)?;
                crate::succeed(&mut ctr(&["images", "rm", "--sync", &reference]))?;
                Ok(cost)
            }
            Peer::SkopeoUmoci => {
                let (layout, bundle) = (self.fresh("layout")?, self.fresh("bundle")?);
                let layout = layout.display().to_string();
                let mut command = Command::new("sh");
                command.args(["-c", "skopeo copy --quiet --src-tls-verify=false \"docker://$1\" \"oci:$2:image\" && umoci unpack --image \"$2:image\" \"$3\""]);
                tree::run(command.args(["sh", &reference, &layout]).arg(bundle), None, look)
            }
        }
    }

    /// Ours beside what can't be done without: the same bytes read, hashed, decompressed, hashed and written, on a thread for each layer. Once
    /// from memory; and once from the registry, whose share of the processors is then in both.
    fn floors(&self, image: &str, layout: &Path, written: &Written) -> Result<[Measured; 2]> {
        let (mut ours, mut memory, mut fetched) = (Vec::new(), Vec::new(), Vec::new());
        let file =
            |digest: &str| fs::File::open(layout.join("blobs").join(digest.replace(':', "/"))).context("open a blob");
        for _ in 0..FLOOR_RUNS {
            ours.push(self.ours(image, Look::Clocks)?.wall_ms);
            memory.push(self.floor(written, file)?);
            fetched.push(self.floor(written, |digest| self.fetch(image, digest))?);
        }
        Ok([
            Measured::many(FLOORS[0], "ms", &mut ours).beside("decompress+hash+write", &mut memory),
            Measured::many(FLOORS[1], "ms", &mut ours).beside("curl+decompress+hash+write", &mut fetched),
        ])
    }

    fn floor<R: Read>(&self, written: &Written, open: impl Fn(&str) -> Result<R> + Sync) -> Result<f64> {
        let (out, open) = (self.fresh("floor")?, &open);
        fs::create_dir(&out).context("make a directory")?;
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let paths = written.layers.iter().map(|digest| (digest, out.join(digest)));
            let threads: Vec<_> = paths.map(|(digest, to)| scope.spawn(move || least(open(digest)?, &to))).collect();
            let ended =
                |thread: ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread ended")));
            threads.into_iter().try_for_each(ended)
        })?;
        Ok(ms(begun.elapsed()))
    }

    /// A blob as curl fetches it.
    fn fetch(&self, image: &str, digest: &str) -> Result<ChildStdout> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--cacert"]).arg(self.registry.ca());
        curl.arg(format!("https://{}", self.registry.here(&format!("v2/{image}/blobs/{digest}"))));
        let child = curl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start curl")?;
        child.stdout.context("there is no pipe")
    }
}

/// What unpacking takes at least.
fn least(blob: impl Read, to: &Path) -> Result<()> {
    struct Hashed<R>(R, Sha256);
    impl<R: Read> Read for Hashed<R> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let length = self.0.read(buffer)?;
            self.1.update(buffer.get(..length).unwrap_or_default());
            Ok(length)
        }
    }
    let mut archive = Hashed(flate2::read::MultiGzDecoder::new(Hashed(blob, Sha256::new())), Sha256::new());
    let mut out = fs::File::create(to).context("make a file")?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = archive.read(&mut buffer).context("decompress")?;
        if length == 0 {
            return Ok(());
        }
        out.write_all(buffer.get(..length).unwrap_or_default()).context("write")?;
    }
}

fn packages(layers: &[&[&str]], dir: &Path) -> Result<Written> {
    let mut image = Image::new(json!({}));
    for packages in layers {
        image = image.layer(demo_image::layer(packages, &demo_image::cache())?, Compression::Gzip);
    }
    image.write(dir)
}

/// 40,000 files of up to 4 KiB in one layer.
fn many_files(dir: &Path) -> Result<Written> {
    let mut layer = Layer::default();
    for number in 0..40_000u32 {
        if number % 100 == 0 {
            layer = layer.directory(&format!("d{}/", number / 100), 0o755)?;
        }
        let text = format!("{number} is the number of this file\n").repeat(1 + number as usize % 120);
        layer = layer.file(&format!("d{}/f{number}", number / 100), 0o644, text.as_bytes())?;
    }
    Image::new(json!({})).layer(layer.finish()?, Compression::Gzip).write(dir)
}

/// 60 layers of a mebibyte that compresses to a half.
fn many_layers(dir: &Path) -> Result<Written> {
    let mut image = Image::new(json!({}));
    for number in 0..60u64 {
        let layer = Layer::default().file(&format!("f{number}"), 0o644, &half_noise(number, 1 << 20))?;
        image = image.layer(layer.finish()?, Compression::Gzip);
    }
    image.write(dir)
}

/// One layer of 128 MiB that compresses to a half.
fn one_large(dir: &Path) -> Result<Written> {
    let layer = Layer::default().file("large", 0o644, &half_noise(0, 128 << 20))?;
    Image::new(json!({})).layer(layer.finish()?, Compression::Gzip).write(dir)
}

/// Numbers and zeros by turns, which shrink to a half, as programs and their data do. `number` tells one such content from another.
pub(crate) fn half_noise(number: u64, length: u64) -> Vec<u8> {
    let block = |block: u64| {
        let digest: [u8; 32] = Sha256::digest((number << 32 | block).to_le_bytes()).into();
        digest.into_iter().chain([0; 32])
    };
    (0..length / 64).flat_map(block).collect()
}
