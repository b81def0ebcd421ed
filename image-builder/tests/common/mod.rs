//! Programs of others to compare with.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A virtual environment with `packages` of PyPI's, of the tests' own, or why there is none. Its programs are in `bin`.
pub fn from_pypi(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let done = dir.join("complete");
    let run = |command: &mut Command| command.output().is_ok_and(|out| out.status.success());
    if !done.exists() {
        if !run(Command::new("python3").args(["-m", "venv"]).arg(&dir)) {
            return Err("python3 makes no virtual environment (python3-venv)".into());
        }
        if !run(Command::new(dir.join("bin/pip")).args(["install", "--quiet"]).args(packages)) {
            return Err(format!("{} can't be fetched", packages.join(" ")));
        }
        std::fs::write(done, "").map_err(|error| error.to_string())?;
    }
    Ok(dir)
}
