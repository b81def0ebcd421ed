//! EROFS, by erofs-utils: read-only, compressed, and read block by block as it is used.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::identity::{of_tree, uuid};
use super::staging::stage;
use crate::run::run;
use crate::tree::Tree;

/// Packs a tree. All of it is root's, at the beginning of time, and has no attributes; the name of the file system is derived from the tree.
///
/// # Errors
/// A tree with devices; erofs-utils that are missing or failed.
pub fn pack(tree: &Tree) -> Result<Vec<u8>> {
    let id = uuid("erofs", &of_tree(tree)?).to_string();
    let staged = stage(tree, "")?;
    let out = staged.path().join("erofs");
    // A cluster of 64 KiB is decompressed at once: a third less is read and hashed than with one of a page.
    let flags = ["-zlz4hc,12", "-C65536", "-T0", "-x-1", "--all-root", "--quiet"];
    run(Command::new("mkfs.erofs")
        .env_remove("SOURCE_DATE_EPOCH")
        .args(flags)
        .arg(format!("-U{id}"))
        .arg(&out)
        .arg(staged.path().join("root")))
    .context("pack an EROFS (erofs-utils has mkfs.erofs)")?;
    fs::read(&out).context("read the EROFS")
}
