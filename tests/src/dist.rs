//! Where the programs are that are tested.

use std::path::{Path, PathBuf};

/// Says that a test can't run here, and why. CI counts these lines.
#[expect(clippy::print_stdout, reason = "the test harness shows what a test prints")]
pub fn skip(why: &str) {
    println!("skipped: {why}");
}

/// A program that `make test-unit` has built beside this test.
///
/// # Panics
/// When it is not there.
#[expect(clippy::panic, reason = "a test without its program has failed")]
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let dirs = own.ancestors().skip(1).take(2);
    let found = dirs.map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built: run make test-unit"))
}

/// The directory with what ships: `make` says where. Without it there is no guest to test.
pub fn dist() -> Option<PathBuf> {
    match std::env::var_os("NACRE_DIST") {
        Some(dir) => Some(PathBuf::from(dir)),
        None => {
            skip("NACRE_DIST is not set: make test-vm sets it");
            None
        }
    }
}

/// What it takes to have guests pull from a registry of their own.
pub const PULLING: &[&str] = &["qemu-system-x86_64", "busybox", "docker-registry", "skopeo", "openssl"];

/// The directory with what ships, where guests can do so.
pub fn for_pulls() -> Option<PathBuf> {
    dist().filter(|_| have(PULLING))
}

/// Whether all of these programs are installed; what is missing is said.
pub fn have(programs: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let missing = programs.iter().find(|name| !path.split(':').any(|dir| Path::new(dir).join(name).is_file()));
    if let Some(name) = missing {
        skip(&format!("{name} is not installed (make setup)"));
    }
    missing.is_none()
}

/// Whether this is root, which namespaces and mounts take.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("this takes root");
    }
    root
}
