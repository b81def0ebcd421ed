//! Disks: a read-only root in one partition and its dm-verity tree in another.
//!
//! Partitions are the discoverable ones: their types say what they are for, and their GUIDs are the two halves of the root hash, so that
//! whoever trusts that hash finds both (<https://uapi-group.org/specifications/specs/discoverable_partitions_specification/>).

use anyhow::Result;
use nacre_manifest::{Root, Verity};
use serde::Deserialize;

use super::gpt::{self, Part};
use super::identity::{Guid, derive, halves, uuid};
use super::verity::{self, BLOCK, Superblock};
use super::{erofs, ext4, squashfs};
use crate::tree::{Node, Tree};

/// The type of a root for x86-64.
pub const ROOT: Guid = Guid(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709_u128.to_be_bytes());
/// The type of its tree.
pub const ROOT_VERITY: Guid = Guid(0x2c73_57ed_ebd2_46d9_aec1_23d4_37ec_2bf5_u128.to_be_bytes());

/// The block of the hash partition where the tree begins.
const TREE_AT: u64 = 1;

/// What is mounted on in a guest whose root can't be written.
const MOUNT_POINTS: [&str; 8] = ["dev", "etc", "proc", "run", "sys", "tmp", "var", "var/tmp"];

/// Another file is mounted on this one.
const RESOLV_CONF: &str = "etc/resolv.conf";

/// How to pack it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The root's file system.
    #[serde(default)]
    pub filesystem: Filesystem,
}

/// A root's file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// EROFS with LZ4.
    #[default]
    Erofs,
    /// Squashfs with Zstandard: smaller, and slower to read.
    Squashfs,
    /// ext4, not compressed: for kernels that read no other.
    Ext4,
}

impl Filesystem {
    /// Its name for mount(2).
    fn name(self) -> &'static str {
        match self {
            Filesystem::Erofs => "erofs",
            Filesystem::Squashfs => "squashfs",
            Filesystem::Ext4 => "ext4",
        }
    }

    fn pack(self, tree: &Tree) -> Result<Vec<u8>> {
        match self {
            Filesystem::Erofs => erofs::pack(tree),
            Filesystem::Squashfs => squashfs::pack(tree, ""),
            Filesystem::Ext4 => ext4::pack(tree),
        }
    }
}

impl Disk {
    /// The bytes of the disk, and what its root must hold.
    ///
    /// # Errors
    /// A tree with devices; a tool that is missing or failed.
    pub fn pack(self, tree: &Tree) -> Result<(Vec<u8>, Root)> {
        let mut data = self.filesystem.pack(&with_mount_points(tree)?)?;
        data.resize(data.len().next_multiple_of(BLOCK), 0);
        let salt = derive("salt", &data);
        let hashes = verity::hash(&data, &salt);
        let data_blocks = (data.len() / BLOCK) as u64;
        let superblock = Superblock { uuid: uuid("verity", &hashes.root), data_blocks, salt: salt.to_vec() };
        let hash_device = [superblock.bytes(), hashes.tree].concat();
        let [data_guid, hash_guid] = halves(hashes.root).map(Guid);
        let parts = [
            Part { kind: ROOT, guid: data_guid, name: "root", content: &data },
            Part { kind: ROOT_VERITY, guid: hash_guid, name: "root-verity", content: &hash_device },
        ];
        let root = Root {
            filesystem: self.filesystem.name().into(),
            verity: Verity {
                data_blocks,
                hash_start: TREE_AT,
                root_hash: hex::encode(hashes.root),
                salt: hex::encode(salt),
            },
            data_partition: data_guid.to_string(),
            hash_partition: hash_guid.to_string(),
        };
        Ok((gpt::write(uuid("disk", &hashes.root), &parts), root))
    }
}

/// The tree with what a guest must find in it, for it can't make it.
fn with_mount_points(tree: &Tree) -> Result<Tree> {
    let mut whole = tree.clone();
    let is_there = |path: &str| tree.iter().any(|(there, _)| there == path);
    for path in MOUNT_POINTS.into_iter().filter(|path| !is_there(path)) {
        whole.add(&format!("/{path}"), Node::Directory(0o755))?;
    }
    if !is_there(RESOLV_CONF) {
        whole.add(&format!("/{RESOLV_CONF}"), Node::File(0o644, Vec::new()))?;
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.add("/init", Node::File(0o755, b"hello".repeat(100_000))).unwrap();
        tree.add("/usr/bin/a", Node::File(0o555, b"a".to_vec())).unwrap();
        tree.add("/bin", Node::Symlink("usr/bin".into())).unwrap();
        tree.add("/tmp", Node::Directory(0o1777)).unwrap();
        tree
    }

    #[test]
    fn a_disk_is_a_function_of_its_tree_and_the_kernels_tools_find_it_whole() {
        for filesystem in [Filesystem::Erofs, Filesystem::Squashfs, Filesystem::Ext4] {
            let (disk, root) = Disk { filesystem }.pack(&tree()).unwrap();
            assert!(Disk { filesystem }.pack(&tree()).unwrap() == (disk.clone(), root.clone()), "{filesystem:?}");
            let table = gpt::read(&disk).unwrap();
            let [data, hashes] = &table.partitions[..] else { panic!("{table:?}") };
            assert_eq!((data.kind, hashes.kind), (ROOT, ROOT_VERITY));
            assert_eq!([data.guid, hashes.guid].map(|g| g.to_string()), [root.data_partition, root.hash_partition]);

            let dir = tempfile::tempdir().unwrap();
            let [data_file, hash_file] = ["data", "hashes"].map(|name| dir.path().join(name));
            fs::write(&data_file, data.of(&disk).unwrap()).unwrap();
            fs::write(&hash_file, hashes.of(&disk).unwrap()).unwrap();
            let check = match filesystem {
                Filesystem::Erofs => Command::new("fsck.erofs").arg(&data_file).output(),
                Filesystem::Squashfs => Command::new("unsquashfs").arg("-lls").arg(&data_file).output(),
                Filesystem::Ext4 => Command::new("/usr/sbin/e2fsck").arg("-fn").arg(&data_file).output(),
            };
            let output = check.unwrap();
            assert!(output.status.success(), "{output:?}");
            let verify = || {
                let mut command = Command::new("veritysetup");
                command.arg("verify").args([&data_file, &hash_file]).arg(&root.verity.root_hash).status().unwrap()
            };
            assert!(verify().success());
            fs::write(&data_file, vec![0; data.of(&disk).unwrap().len()]).unwrap();
            assert!(!verify().success());
        }
    }

    #[test]
    fn a_root_has_what_a_guest_mounts_on() {
        let tree = with_mount_points(&tree()).unwrap();
        let node = |name: &str| tree.iter().find(|(path, _)| *path == name).map(|(_, node)| node.clone());
        assert_eq!(node("tmp"), Some(Node::Directory(0o1777)));
        assert_eq!(node("proc"), Some(Node::Directory(0o755)));
        assert_eq!(node("etc/resolv.conf"), Some(Node::File(0o644, Vec::new())));
    }
}
