//! ext4, by e2fsprogs: for guests whose kernel reads no other.
//!
//! `mke2fs -d` keeps the times of the files that it copies and the order in which a directory lists them. So an empty file system is made, and
//! filled by debugfs in the order of the tree and at a time that is told.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::identity::{of_tree, uuid};
use super::staging::stage;
use super::verity::BLOCK;
use crate::run::run;
use crate::tree::{Node, Tree};

const MKE2FS: &str = "/usr/sbin/mke2fs";
const DEBUGFS: &str = "/usr/sbin/debugfs";

/// When all of it happens. Zero would be now.
const TIME: &str = "1";

/// What a root that is never written does without, so that it is smaller.
const FEATURES: &str = "^has_journal,^resize_inode,^64bit,^metadata_csum,^orphan_file";

/// Bytes of an inode, and of a directory's entry with a name of some length.
const INODE: usize = 256;
const ENTRY: usize = 128;

/// Blocks for what grows with nothing: the superblock, descriptors, bitmaps, lost+found.
const FIXED_BLOCKS: usize = 64;

/// Packs a tree. All of it is root's.
///
/// # Errors
/// A tree with devices, or with names that debugfs can't be told; e2fsprogs that are missing or failed.
pub fn pack(tree: &Tree) -> Result<Vec<u8>> {
    let id = uuid("ext4", &of_tree(tree)?).to_string();
    let staged = stage(tree, "")?;
    let image = staged.path().join("ext4");
    let (blocks, inodes) = size(tree);
    let numbers = format!("-N{inodes}");
    run(Command::new(MKE2FS)
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .env_remove("MKE2FS_CONFIG")
        .args(["-q", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-O", FEATURES, "-U", &id, &numbers])
        .args(["-E", &format!("hash_seed={id},root_owner=0:0,lazy_itable_init=0")])
        .arg(&image)
        .arg(blocks.to_string()))
    .context("make an ext4 (e2fsprogs has mke2fs)")?;
    let script = staged.path().join("script");
    fs::write(&script, commands(tree, &staged.path().join("root"))?).context("write what debugfs is to do")?;
    let mut debugfs = Command::new(DEBUGFS);
    debugfs.arg("-w").arg("-f").arg(&script).arg(&image).stdin(Stdio::null());
    let output = debugfs.output().context("start debugfs (e2fsprogs has it)")?;
    // It never fails, and has its name and version to say even when all went well.
    let said = String::from_utf8_lossy(&output.stderr);
    let faults: Vec<&str> = said.lines().skip(1).collect();
    ensure!(output.status.success() && faults.is_empty(), "debugfs failed ({}):\n{}", output.status, faults.join("\n"));
    fs::read(&image).context("read the ext4")
}

/// How many blocks and inodes a tree takes, with some room: what is left free stays zero.
fn size(tree: &Tree) -> (usize, usize) {
    let (mut blocks, mut inodes) = (FIXED_BLOCKS, 16);
    for (_, node) in tree.iter() {
        inodes += 1;
        blocks += match node {
            Node::File(_, bytes) => bytes.len().div_ceil(BLOCK),
            _ => 1,
        };
    }
    (blocks + blocks / 64 + inodes * (INODE + ENTRY) / BLOCK, inodes)
}

/// What fills the file system with what was staged at `root`.
fn commands(tree: &Tree, root: &Path) -> Result<String> {
    let mut script = format!("set_current_time @{TIME}\n");
    for (path, node) in tree.iter() {
        let quoted = |text: &str| {
            let plain = !text.contains(['"', '\n', '\r', '\t']);
            plain.then(|| format!("\"{text}\"")).with_context(|| format!("/{path}: debugfs can't be told of it"))
        };
        let to = quoted(&format!("/{path}"))?;
        // Writing to a String can't fail.
        let _ = match node {
            Node::Directory(mode) => writeln!(script, "mkdir {to}\nset_inode_field {to} mode 04{mode:04o}"),
            Node::File(..) => writeln!(script, "write {} {to}", quoted(&root.join(path).to_string_lossy())?),
            Node::Symlink(target) => writeln!(script, "symlink {to} {}", quoted(target)?),
            Node::Device(..) => Ok(()), // none could be staged
        };
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hour_is_not_in_it() {
        let mut tree = Tree::default();
        tree.add("/a b/c", Node::File(0o4755, vec![7; 10_000])).unwrap();
        tree.add("/d", Node::Directory(0o1777)).unwrap();
        tree.add("/l", Node::Symlink("a b/c".into())).unwrap();
        let one = pack(&tree).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100)); // the unit of its times is a second
        assert!(pack(&tree).unwrap() == one);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), one).unwrap();
        let ask = |what: &str| {
            let output = run(Command::new(DEBUGFS).args(["-R", what]).arg(file.path())).unwrap();
            String::from_utf8_lossy(&output).into_owned()
        };
        assert!(ask("stat \"/a b/c\"").contains("Mode:  04755"));
        assert!(ask("stat /d").contains("Mode:  01777"));
        tree.add("/\"", Node::Symlink("x".into())).unwrap();
        assert!(pack(&tree).unwrap_err().to_string().contains("debugfs can't be told"));
    }
}
