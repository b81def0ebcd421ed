//! The initrd: `/usr` in one compressed file, `/usr.squashfs`, and the rest as it is.
//!
//! The kernel unpacks an initrd before anything runs, and under an emulator it unpacks slowly; what is compressed in there costs again.
//! So only the agent is unpacked at boot. The rest is mounted by the agent, once it listens, and read when it is used.

use anyhow::Result;
use serde::Deserialize;

use super::compress::Compression;
use super::{cpio, squashfs};
use crate::tree::{Node, Tree};

/// What the agent mounts on `/usr`.
const USR: &str = "/usr.squashfs";

/// How to pack it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initrd {
    /// How the archive is compressed.
    #[serde(default)]
    pub compression: Compression,
}

impl Initrd {
    /// The bytes for the kernel.
    ///
    /// # Errors
    /// A file that the archive can't hold; squashfs-tools that are missing or failed.
    pub fn pack(self, tree: &Tree) -> Result<Vec<u8>> {
        let (mut usr, mut rest) = (Tree::default(), Tree::default());
        for (path, node) in tree.iter() {
            let part = if path.starts_with("usr/") { &mut usr } else { &mut rest };
            part.add(&format!("/{path}"), node.clone())?;
        }
        rest.add("/usr", Node::Directory(0o755))?;
        rest.add(USR, Node::File(0o444, squashfs::pack(&usr, "usr")?))?;
        // The kernel opens it for the first process before anything is mounted.
        rest.add("/dev/console", Node::Device(0o600, 5, 1))?;
        self.compression.apply(cpio::archive(&rest)?)
    }
}
