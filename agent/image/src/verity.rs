//! A dm-verity tree of digests over a file, right behind its data (Documentation/admin-guide/device-mapper/verity.rst).
//!
//! Hash type 1, SHA-256, blocks of 4 KiB, no salt and no superblock: the same data have the same root hash, whoever makes the tree. What such a file
//! holds says nothing of its tree; who uses it must know the root hash and the number of blocks from somewhere that is trusted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

/// The size of a block, of data and of digests.
pub const BLOCK: usize = 4096;

/// How many digests a block holds.
const FANOUT: usize = BLOCK / 32;

/// How many blocks of digests are above so many blocks of data.
pub fn tree_blocks(data_blocks: u64) -> u64 {
    levels(data_blocks).iter().sum()
}

/// The blocks of each level, the lowest first. One block of data needs none: its digest is the root hash.
fn levels(data_blocks: u64) -> Vec<u64> {
    let above = |blocks: &u64| (*blocks > 1).then(|| blocks.div_ceil(FANOUT as u64));
    std::iter::successors(Some(data_blocks), above).skip(1).collect()
}

/// Writes the tree of the first `data_blocks` blocks of `file` behind them, and returns its root hash.
///
/// # Errors
/// A file that is shorter, and those of reading and writing it.
pub fn append(file: &File, data_blocks: u64) -> io::Result<[u8; 32]> {
    // The kernel expects the topmost level first.
    let levels = levels(data_blocks);
    let (mut below, mut count, mut end) = (0, data_blocks, data_blocks + levels.iter().sum::<u64>());
    for blocks in levels {
        let at = end - blocks;
        level(file, below, count, at)?;
        (below, count, end) = (at, blocks, at);
    }
    let mut top = [0; BLOCK];
    file.read_exact_at(&mut top, below * BLOCK as u64)?;
    Ok(Sha256::digest(top).into())
}

/// Writes the digests of the `count` blocks from `below` on to the blocks from `at` on.
fn level(file: &File, below: u64, count: u64, at: u64) -> io::Result<()> {
    let mut buffer = vec![0; FANOUT * BLOCK];
    for number in 0..count.div_ceil(FANOUT as u64) {
        let first = number * FANOUT as u64;
        let blocks = (count - first).min(FANOUT as u64) as usize;
        let piece = buffer.get_mut(..blocks * BLOCK).unwrap_or_default();
        file.read_exact_at(piece, (below + first) * BLOCK as u64)?;
        let mut digests: Vec<u8> = piece.chunks_exact(BLOCK).flat_map(Sha256::digest).collect();
        digests.resize(BLOCK, 0);
        file.write_all_at(&digests, (at + number) * BLOCK as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Block *i* is the digest of *i*, 128 times.
    fn data(blocks: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        for number in 0..blocks {
            let block = Sha256::digest(number.to_le_bytes()).repeat(FANOUT);
            file.as_file().write_all_at(&block, number * BLOCK as u64).unwrap();
        }
        file
    }

    #[test]
    fn the_root_hash_is_the_one_that_the_kernels_tools_find() {
        let file = data(300);
        let root = append(file.as_file(), 300).unwrap();
        assert_eq!(hex::encode(root), "223ef7627833a3a37e9693106b47362bd864989d4acbca21b213bdd74b60f41d");
        assert_eq!(file.as_file().metadata().unwrap().len(), (300 + 4) * BLOCK as u64);
    }

    #[test]
    fn veritysetup_agrees_whatever_the_number_of_blocks() {
        if Command::new("veritysetup").arg("--version").output().is_err() {
            return println!("skipped: veritysetup is not installed (cryptsetup-bin)");
        }
        for blocks in [1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1] {
            let file = data(blocks);
            let root = append(file.as_file(), blocks).unwrap();
            let verified = |root: [u8; 32]| {
                let mut command = Command::new("veritysetup");
                command.args(["verify", "--no-superblock", "--salt=-", "--hash-offset"]);
                command.arg((blocks * BLOCK as u64).to_string()).arg("--data-blocks").arg(blocks.to_string());
                command.args([file.path(), file.path()]).arg(hex::encode(root));
                command.output().unwrap()
            };
            let output = verified(root);
            assert!(output.status.success(), "{blocks} blocks: {output:?}");
            assert!(!verified([7; 32]).status.success());
            assert_eq!(file.as_file().metadata().unwrap().len(), (blocks + tree_blocks(blocks)) * BLOCK as u64);
        }
    }
}
