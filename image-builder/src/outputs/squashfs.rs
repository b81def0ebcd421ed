//! Squashfs, by squashfs-tools. Owners, times and order are fixed, so the bytes depend on the tree alone.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::staging::stage;
use crate::run::run;
use crate::tree::Tree;

/// Packs what is below `top`.
///
/// # Errors
/// A tree with devices; squashfs-tools that are missing or failed.
pub fn pack(tree: &Tree, top: &str) -> Result<Vec<u8>> {
    let staged = stage(tree, top)?;
    let out = staged.path().join("squashfs");
    run(Command::new("mksquashfs")
        .env_remove("SOURCE_DATE_EPOCH")
        .arg(staged.path().join("root").join(top))
        .arg(&out)
        .args([
            "-comp",
            "zstd",
            "-Xcompression-level",
            "19",
            "-b",
            "131072",
            "-all-root",
            "-all-time",
            "0",
            "-mkfs-time",
            "0",
            "-no-xattrs",
            "-no-exports",
            "-noappend",
            "-no-progress",
            "-quiet",
        ]))
    .context("pack a squashfs (squashfs-tools has mksquashfs)")?;
    fs::read(&out).context("read the squashfs")
}
