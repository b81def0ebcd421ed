//! A tree as files on a disk, for the tools that read no other.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::tree::{Node, Tree};

/// Writes the tree below `root` of a directory that goes when it is dropped. `top` is there even in an empty tree.
///
/// # Errors
/// A device, which takes privileges; a disk that is full.
pub fn stage(tree: &Tree, top: &str) -> Result<TempDir> {
    let dir = tempfile::tempdir().context("make a directory to pack from")?;
    let root = dir.path().join("root");
    // Whatever the umask, and whatever the tree says of itself.
    for made in [root.clone(), root.join(top)] {
        fs::create_dir_all(&made)
            .and_then(|()| fs::set_permissions(&made, Permissions::from_mode(0o755)))
            .context("make the tree")?;
    }
    let mut modes = Vec::new();
    for (path, node) in tree.iter() {
        let to = root.join(path);
        let write = || -> Result<()> {
            match node {
                Node::Directory(_) => fs::create_dir_all(&to)?,
                Node::File(_, bytes) => fs::write(&to, bytes)?,
                Node::Symlink(target) => symlink(target, &to)?,
                Node::Device(..) => bail!("a device is made by the kernel, not by an image"),
            }
            Ok(())
        };
        write().with_context(|| format!("write /{path}"))?;
        if let Node::Directory(mode) | Node::File(mode, _) = node {
            modes.push((to, *mode));
        }
    }
    // Children before their parents, which may then be closed to us.
    for (path, mode) in modes.iter().rev() {
        fs::set_permissions(path, Permissions::from_mode(*mode))
            .with_context(|| format!("set the mode of {}", path.display()))?;
    }
    Ok(dir)
}
