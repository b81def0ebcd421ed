//! The guest kernel: Debian's source, `allnoconfig` plus our fragments, once as an uncompressed ELF with a PVH entry and once compressed, as firmware
//! wants it.
//!
//! The result is kept under the digest of everything that shapes it, so that it is built once a machine and not once a checkout.

pub mod config;
pub mod required;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};

use crate::elf;
use crate::kernel::config::Wanted;
use crate::kernel::required::Required;
use crate::manifest::{self, Kernel};
use crate::run::{run, run_long, say, stop_flag};

/// Raise it when the way of building changes the result.
const RECIPE: &str = "2";

/// What a kernel is kept as.
const FILES: [&str; 5] = ["vmlinux", "bzImage", "System.map", "vmlinux.config", "vmlinux.manifest.json"];

/// The note that tells a VMM where to enter: `XEN_ELFNOTE_PHYS32_ENTRY` (include/xen/interface/elfnote.h).
const PVH_NOTE: u32 = 18;

/// What to build.
#[derive(Debug)]
pub struct Request {
    /// The directory with the fragments, `*.config`, and `required.toml`.
    pub fragments: PathBuf,
    /// Names of fragments in its directory `optional`.
    pub with: Vec<String>,
    /// The source's archive.
    pub source: PathBuf,
    /// Where finished kernels are kept.
    pub cache: PathBuf,
    /// Where the result is to lie.
    pub out: PathBuf,
}

/// Builds the kernel, or takes it from the cache.
///
/// # Errors
/// A fragment that is malformed, an option that did not survive, a tool that is missing or failed.
pub fn build(request: &Request) -> Result<()> {
    let wanted = Wanted::read(&request.fragments, &request.with)?;
    let required = Required::read(&request.fragments.join("required.toml"), &request.with)?;
    ensure!(
        request.source.exists(),
        "{} is missing: install Debian's package linux-source-6.12 (make setup does)",
        request.source.display()
    );
    let source_sha256 = manifest::digest_file(&request.source)?;
    let toolchain = vec![first_line("gcc")?, first_line("ld")?, first_line("lz4")?];
    let key = manifest::digest([RECIPE, &source_sha256, &wanted.text(), &toolchain.join("\n")].join("\0").as_bytes());
    let kept = request.cache.join("kernel").join(&key[..32]);
    if !kept.join("vmlinux.manifest.json").exists() {
        build_into(&kept, request, &wanted, source_sha256, toolchain)?;
    }
    let config = fs::read_to_string(kept.join("vmlinux.config")).context("read the kept configuration")?;
    required.check(&config)?;
    manifest::publish_json(&request.out.join("required.json"), &required.seen())?;
    for name in FILES {
        let bytes = fs::read(kept.join(name)).with_context(|| format!("read {name} in {}", kept.display()))?;
        manifest::publish(&request.out.join(name), &bytes)?;
    }
    say(&format!("kernel: {} ({})", request.out.join("vmlinux").display(), &key[..12]));
    Ok(())
}

fn build_into(
    kept: &Path,
    request: &Request,
    wanted: &Wanted,
    source_sha256: String,
    toolchain: Vec<String>,
) -> Result<()> {
    let stop = stop_flag()?;
    let parent = kept.parent().context("the cache has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    // Removed when dropped, on an error and on Ctrl-C too.
    let work = tempfile::Builder::new().prefix(".build-").tempdir_in(parent).context("make a directory to build in")?;
    let log = work.path().join("log");
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&request.source).arg("-C").arg(work.path());
    run_long(&mut unpack, &log, "kernel: unpack the source", &stop)?;
    let tree = only_directory(work.path())?;

    let merged = work.path().join("merged.config");
    fs::write(&merged, wanted.text()).context("write the merged configuration")?;
    run(make(&tree).arg(format!("KCONFIG_ALLCONFIG={}", merged.display())).arg("allnoconfig"))?;
    let config = fs::read_to_string(tree.join(".config")).context("read the final configuration")?;
    let faults = wanted.faults(&config, &tree)?;
    if !faults.is_empty() {
        bail!("the configuration is not what was asked for:\n  {}", faults.join("\n  "));
    }
    run(make(&tree).arg("olddefconfig"))?;
    let again = fs::read_to_string(tree.join(".config")).context("read the final configuration again")?;
    ensure!(again == config, "the configuration changes when it is completed a second time");
    let jobs = thread::available_parallelism().map_or(2, |n| n.get());
    run_long(make(&tree).arg(format!("-j{jobs}")).args(["vmlinux", "bzImage"]), &log, "kernel: compile", &stop)?;

    let result = work.path().join("result");
    fs::create_dir(&result).context("make a directory for the result")?;
    let vmlinux = result.join("vmlinux");
    // Where memory is encrypted in place lies behind all that is zero, which would become part of the file. No PVH guest does that.
    let strip = ["--strip-all", "--remove-section=.init.scratch", "-o"];
    run(Command::new("strip").args(strip).arg(&vmlinux).arg(tree.join("vmlinux")))?;
    fs::copy(tree.join("System.map"), result.join("System.map")).context("keep the names of the kernel's addresses")?;
    let bytes = fs::read(&vmlinux).context("read the kernel")?;
    ensure!(elf::has_note(&bytes, "Xen", PVH_NOTE)?, "the kernel has no PVH entry: is CONFIG_PVH set?");
    let bz_image = result.join("bzImage");
    fs::copy(tree.join("arch/x86/boot/bzImage"), &bz_image).context("take the compressed kernel")?;
    fs::write(result.join("vmlinux.config"), &config).context("keep the configuration")?;
    let source_version = source_version(&request.source);
    let facts = Kernel {
        source_version,
        source_sha256,
        config_sha256: manifest::digest(config.as_bytes()),
        toolchain,
        kaslr: false,
        outputs: vec![manifest::output(&vmlinux)?, manifest::output(&bz_image)?],
    };
    manifest::publish_json(&result.join("vmlinux.manifest.json"), &facts)?;
    match fs::rename(&result, kept) {
        // Somebody else built the same in the meantime.
        Err(_) if kept.join("vmlinux.manifest.json").exists() => Ok(()),
        renamed => renamed.with_context(|| format!("keep the kernel in {}", kept.display())),
    }
}

/// Nothing of the machine, the user or the hour goes into the result.
fn make(tree: &Path) -> Command {
    let mut command = Command::new("make");
    command.current_dir(tree).env_remove("MAKEFLAGS").env_remove("MFLAGS").env("LC_ALL", "C").env("TZ", "UTC").args([
        "ARCH=x86_64",
        "KBUILD_BUILD_TIMESTAMP=@0",
        "KBUILD_BUILD_USER=nacre",
        "KBUILD_BUILD_HOST=nacre",
        "KBUILD_BUILD_VERSION=1",
        "KCONFIG_NOTIMESTAMP=1",
        "LOCALVERSION=",
    ]);
    command
}

fn only_directory(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut dirs = entries.filter_map(|entry| entry.ok().map(|e| e.path())).filter(|path| path.is_dir());
    match (dirs.next(), dirs.next()) {
        (Some(tree), None) => Ok(tree),
        _ => bail!("the kernel's archive does not hold exactly one directory"),
    }
}

fn first_line(program: &str) -> Result<String> {
    let text = run(Command::new(program).arg("--version"))?;
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_string())
}

/// The archive's name is the package's; a machine without dpkg has the digest alone.
fn source_version(source: &Path) -> String {
    let package = source.file_name().unwrap_or_default().to_string_lossy().replace(".tar.xz", "");
    let asked = run(Command::new("dpkg-query").args(["-W", "-f=${Version}", &package]));
    asked.map_or_else(|_| "unknown".into(), |text| String::from_utf8_lossy(&text).into_owned())
}
