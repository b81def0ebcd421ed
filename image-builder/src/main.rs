//! `nacre-image`: the command line of the builder.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use nacre_image::lock::{self, Lock};
use nacre_image::measure::command::{self as measure, Measure};
use nacre_image::{diff, image, inspect, kernel, sign, verify};

/// Builds the guest: a kernel, and an image for it.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  nacre-image kernel --config-dir kernel-config --out out
  nacre-image build rootfs-recipes/minimal.toml --locked --agent nacre-agent --kernel out/vmlinux --out out
  nacre-image lock --update rootfs-recipes/*.toml"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Where kernels and packages are kept between runs [default: $XDG_CACHE_HOME/nacre or ~/.cache/nacre]
    #[arg(long, global = true, value_name = "DIR")]
    cache: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the guest kernel: vmlinux for a fast boot, bzImage for firmware
    Kernel {
        /// The directory with the fragments (*.config)
        #[arg(long, value_name = "DIR", default_value = "kernel-config")]
        config_dir: PathBuf,
        /// A fragment of its directory `optional` to add, as `debug`
        #[arg(long, value_name = "NAME")]
        with: Vec<String>,
        /// Debian's kernel source
        #[arg(long, value_name = "FILE", default_value = KERNEL_SOURCE)]
        source: PathBuf,
        /// The lock whose kernel source it must be
        #[arg(long, value_name = "FILE")]
        lock: Option<PathBuf>,
        /// Where the kernels, their configuration and manifest go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Build an image from a recipe
    Build {
        /// The recipe
        recipe: PathBuf,
        /// Take the packages that packages.lock beside the recipe names, and no others [without: what Debian has today]
        #[arg(long)]
        locked: bool,
        /// The agent, a static binary: the image's /init
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
        /// The kernel whose manifest the image's repeats
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// Where the image and its manifest go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Write bills of materials (SPDX and CycloneDX), too: the directory with each program's crates, as cargo tree lists them (PROGRAM.crates)
        #[arg(long, value_name = "DIR", requires = "cargo_lock")]
        crates: Option<PathBuf>,
        /// The digests of the crates
        #[arg(long, value_name = "FILE", requires = "crates")]
        cargo_lock: Option<PathBuf>,
    },
    /// Write packages.lock beside recipes: their packages and the kernel's source, by version and SHA-256
    Lock {
        /// All recipes that share the lock
        #[arg(required = true)]
        recipes: Vec<PathBuf>,
        /// Move what is locked on to what Debian has today, and say what changes
        #[arg(long)]
        update: bool,
        /// Debian's kernel source
        #[arg(long, value_name = "FILE", default_value = KERNEL_SOURCE)]
        kernel_source: PathBuf,
    },
    /// Check images, or one file of an image, against a manifest, and say what differs
    Verify {
        /// A directory with images, or a file of one
        path: PathBuf,
        /// The manifest to check against, in place of those beside the files
        #[arg(long, value_name = "FILE")]
        manifest: Option<PathBuf>,
        /// The public key (PEM) of whom the manifests must be signed by
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Sign a manifest: NAME.sig, which openssl and cosign check, and NAME.sigstore.json, a bundle
    #[command(after_help = "Examples:
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem
  openssl pkey -in key.pem -pubout -out key.pub
  nacre-image sign --key key.pem target/dist/share/nacre/confidential.manifest.json
  nacre-image verify --key key.pub target/dist/share/nacre/confidential.disk")]
    Sign {
        /// The private key: P-256, PKCS #8, PEM
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The manifests
        #[arg(required = true)]
        manifests: Vec<PathBuf>,
    },
    /// Show what an initrd, a disk, an extension or a program for firmware holds
    Inspect {
        /// The file, or a directory with such files
        path: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare two files, or two directories with images: packages, files, options, sizes (exit code 0: the same, 1: different, 2: an error)
    Diff {
        /// The one
        first: PathBuf,
        /// The other
        second: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell what hardware and firmware will have measured once an image has booted
    Measure {
        #[command(subcommand)]
        what: Measure,
        /// As JSON
        #[arg(long, global = true)]
        json: bool,
    },
}

/// Where Debian's package puts it.
const KERNEL_SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";

fn main() -> ExitCode {
    let args = Args::parse();
    let failure = if matches!(args.command, Command::Diff { .. }) { ExitCode::from(2) } else { ExitCode::FAILURE };
    run(args).unwrap_or_else(|error| {
        eprintln!("nacre-image: {error:#}");
        failure
    })
}

fn run(args: Args) -> Result<ExitCode> {
    let cache =
        args.cache.or_else(default_cache).ok_or_else(|| anyhow::anyhow!("no home directory: say --cache DIR"))?;
    match args.command {
        Command::Kernel { config_dir, with, source, lock, out } => {
            if let Some(locked) = lock.map(|file| Lock::read(&file)).transpose()?.and_then(|lock| lock.kernel) {
                locked.check(&source)?;
            }
            kernel::build(&kernel::Request { fragments: config_dir, with, source, cache, out })
        }
        Command::Build { recipe, locked, agent, kernel, out, crates, cargo_lock } => {
            let crates = crates.zip(cargo_lock);
            image::build(&image::Request { recipe, locked, agent, kernel, cache, out, crates })
        }
        Command::Lock { recipes, update, kernel_source } => lock::lock(&recipes, &kernel_source, update),
        Command::Verify { path, manifest, key } => check(&path, manifest.as_deref(), key.as_deref()),
        Command::Sign { key, manifests } => sign(&key, &manifests),
        Command::Inspect { path, json } => show(&path, json),
        Command::Measure { what, json } => print(&measure::run(&what, json)?),
        Command::Diff { first, second, json } => return compare(&first, &second, json),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn compare(first: &Path, second: &Path, json: bool) -> Result<ExitCode> {
    let found = diff::diff(first, second)?;
    let text =
        if json { serde_json::to_string_pretty(&found).context("write JSON")? + "\n" } else { diff::render(&found) };
    print(&text)?;
    Ok(ExitCode::from(u8::from(!found.is_empty())))
}

fn sign(key: &Path, manifests: &[PathBuf]) -> Result<()> {
    for manifest in manifests {
        for written in sign::sign(manifest, key)? {
            print(&format!("{}\n", written.display()))?;
        }
    }
    Ok(())
}

fn check(path: &Path, manifest: Option<&Path>, key: Option<&Path>) -> Result<()> {
    if let Some(key) = key {
        // Before anything that they say is believed.
        for of in verify::manifests(path, manifest)? {
            sign::check(&of, key)?;
            print(&format!("{}: signed\n", of.display()))?;
        }
    }
    let findings = verify::verify(path, manifest)?;
    for name in &findings.good {
        print(&format!("{name}: as the manifest says\n"))?;
    }
    for line in &findings.wrong {
        print(&format!("{line}\n"))?;
    }
    ensure!(findings.wrong.is_empty(), "{} is not what the manifest says", path.display());
    Ok(())
}

fn show(path: &Path, json: bool) -> Result<()> {
    let all = inspect::inspect(path)?;
    let text =
        if json { serde_json::to_string_pretty(&all).context("write JSON")? + "\n" } else { inspect::render(&all) };
    print(&text)
}

/// Whoever reads may stop when they have seen enough.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}

fn default_cache() -> Option<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|home| home.join(".cache"))).map(|cache| cache.join("nacre"))
}
