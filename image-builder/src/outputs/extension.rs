//! Extensions: file systems that a guest mounts by their names beside its root, each an EROFS with its dm-verity tree right behind it.
//!
//! Nothing in the file says what it must hold. The guest is told on the kernel's command line, which is measured.

use anyhow::{Result, ensure};
use nacre_manifest::Verity;
use serde::Deserialize;

use super::erofs;
use super::identity::derive;
use super::verity::{self, BLOCK};
use crate::tree::Tree;

/// The bytes of a disk's serial number that a guest sees, less those of `extension-`.
const MAX_NAME: usize = 10;

/// How to pack it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// The name by which guests know it.
    pub name: String,
}

impl Extension {
    /// The bytes of the file, and what the guest must be told of them.
    ///
    /// # Errors
    /// A name that no disk can have; a tree with devices; erofs-utils that are missing or failed.
    pub fn pack(&self, tree: &Tree) -> Result<(Vec<u8>, Verity)> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            (1..=MAX_NAME).contains(&self.name.len()) && self.name.chars().all(plain),
            "extension {:?}: expected a name of at most {MAX_NAME} small letters, digits and -",
            self.name
        );
        let mut bytes = erofs::pack(tree)?;
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let salt = derive("salt", &bytes);
        let hashes = verity::hash(&bytes, &salt);
        let data_blocks = (bytes.len() / BLOCK) as u64;
        bytes.extend(hashes.tree);
        let (root_hash, salt) = (hex::encode(hashes.root), hex::encode(salt));
        Ok((bytes, Verity { data_blocks, hash_start: data_blocks, root_hash, salt }))
    }
}
