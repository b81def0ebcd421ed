//! dm-verity: a tree of digests over blocks, of which the topmost is trusted (Documentation/admin-guide/device-mapper/verity.rst).
//!
//! Hash type 1, SHA-256, blocks of 4 KiB. The salt is derived from what is hashed, so same data have the same tree.

use sha2::{Digest as _, Sha256};

use super::identity::Guid;

/// The size of a block, of data and of digests.
pub const BLOCK: usize = 4096;

/// The size of a digest, and of our salts.
pub const DIGEST: usize = 32;

/// What a superblock begins with: signature, version, and hash type.
const MAGIC: &[u8; 16] = b"verity\0\0\x01\0\0\0\x01\0\0\0";

/// The hash's name, as a superblock has it.
const ALGORITHM: &[u8; 32] = b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Where a superblock has what: UUID, algorithm, both sizes of blocks, their number, the salt's length and the salt.
const UUID_AT: usize = 16;
const ALGORITHM_AT: usize = 32;
const SIZES_AT: usize = 64;
const BLOCKS_AT: usize = 72;
const SALT_LENGTH_AT: usize = 80;
const SALT_AT: usize = 88;

/// The longest salt.
const MAX_SALT: usize = 256;

/// A tree of digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// The digest that stands for all.
    pub root: [u8; DIGEST],
    /// The tree, the topmost level first. A single block of data has none.
    pub tree: Vec<u8>,
}

/// Hashes `data`, a number of whole blocks.
pub fn hash(data: &[u8], salt: &[u8]) -> Hashes {
    let mut levels: Vec<Vec<u8>> = Vec::new();
    loop {
        let below = levels.last().map_or(data, Vec::as_slice);
        if below.len() <= BLOCK {
            let root = digest(salt, below);
            return Hashes { root, tree: levels.into_iter().rev().flatten().collect() };
        }
        let mut level: Vec<u8> = below.chunks(BLOCK).flat_map(|block| digest(salt, block)).collect();
        level.resize(level.len().next_multiple_of(BLOCK), 0);
        levels.push(level);
    }
}

fn digest(salt: &[u8], block: &[u8]) -> [u8; DIGEST] {
    Sha256::new().chain_update(salt).chain_update(block).finalize().into()
}

/// A block that is not what the digest above it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corrupt {
    /// A block of data.
    Data(u64),
    /// A block of the tree.
    Hash(u64),
}

/// Data or a tree of the wrong length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{data} bytes of data and {tree} of hashes do not belong together")]
pub struct Mismatched {
    data: usize,
    tree: usize,
}

/// Walks the whole tree from the root hash down, and returns each block that is not as it must be. What is below a block of digests that
/// is itself wrong is compared with what stands there.
///
/// # Errors
/// Lengths that no tree over such data has.
pub fn walk(data: &[u8], tree: &[u8], salt: &[u8], root: &[u8; DIGEST]) -> Result<Vec<Corrupt>, Mismatched> {
    let mismatched = Mismatched { data: data.len(), tree: tree.len() };
    let sizes = levels(data.len());
    if data.is_empty() || !data.len().is_multiple_of(BLOCK) || tree_bytes(data.len()) != tree.len() {
        return Err(mismatched);
    }
    let mut wrong = Vec::new();
    let (mut above, mut rest, mut number) = (&root[..], tree, 0);
    for size in sizes.iter().rev() {
        let (level, below) = rest.split_at_checked(*size).ok_or(mismatched)?;
        wrong.extend(differing(level, above, salt).map(|block| Corrupt::Hash(number + block)));
        number += (size / BLOCK) as u64;
        (above, rest) = (level, below);
    }
    wrong.extend(differing(data, above, salt).map(Corrupt::Data));
    Ok(wrong)
}

/// The blocks whose digests are not those that stand `above` them.
fn differing(level: &[u8], above: &[u8], salt: &[u8]) -> impl Iterator<Item = u64> {
    let pairs = (0..).zip(level.chunks(BLOCK).zip(above.chunks(DIGEST)));
    pairs.filter(|(_, (block, expected))| digest(salt, block) != *expected).map(|(number, _)| number)
}

/// The bytes of a tree over so many of data.
pub fn tree_bytes(data: usize) -> usize {
    levels(data).iter().sum()
}

/// The bytes of each level over so many of data, the lowest first.
fn levels(data: usize) -> Vec<usize> {
    let above = |bytes: &usize| (*bytes > BLOCK).then(|| (bytes.div_ceil(BLOCK) * DIGEST).next_multiple_of(BLOCK));
    std::iter::successors(Some(data), above).skip(1).collect()
}

/// What stands before a tree, for tools to find out what it is. Nothing that boots trusts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The tree's identity.
    pub uuid: Guid,
    /// How many blocks of data there are.
    pub data_blocks: u64,
    /// What each block is hashed behind.
    pub salt: Vec<u8>,
}

/// It is no superblock of such a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no dm-verity superblock of version 1 with SHA-256 and blocks of 4096 bytes")]
pub struct NoSuperblock;

impl Superblock {
    /// The block that it fills. A salt of ours is never longer than it has room for.
    pub fn bytes(&self) -> Vec<u8> {
        let salt = self.salt.get(..MAX_SALT).unwrap_or(&self.salt);
        let size = (BLOCK as u32).to_le_bytes();
        let mut block = [&MAGIC[..], &self.uuid.0, ALGORITHM, &size, &size, &self.data_blocks.to_le_bytes()].concat();
        block.extend((salt.len() as u16).to_le_bytes());
        block.resize(SALT_AT, 0);
        block.extend(salt);
        block.resize(BLOCK, 0);
        block
    }

    /// Reads it.
    ///
    /// # Errors
    /// Bytes that are none, or one of another kind of tree.
    pub fn parse(bytes: &[u8]) -> Result<Superblock, NoSuperblock> {
        let sizes = [(BLOCK as u32).to_le_bytes(); 2].concat();
        let field = |at: usize, length: usize| bytes.get(at..at + length).ok_or(NoSuperblock);
        if field(0, 16)? != MAGIC || field(ALGORITHM_AT, 32)? != ALGORITHM || field(SIZES_AT, 8)? != sizes {
            return Err(NoSuperblock);
        }
        let length = bytes.get(SALT_LENGTH_AT..).and_then(<[u8]>::first_chunk).ok_or(NoSuperblock)?;
        let salt = usize::from(u16::from_le_bytes(*length));
        if salt > MAX_SALT {
            return Err(NoSuperblock);
        }
        let blocks = bytes.get(BLOCKS_AT..).and_then(<[u8]>::first_chunk).ok_or(NoSuperblock)?;
        let uuid = bytes.get(UUID_AT..).and_then(<[u8]>::first_chunk).ok_or(NoSuperblock)?;
        let salt = field(SALT_AT, salt)?.to_vec();
        let found = Superblock { uuid: Guid(*uuid), data_blocks: u64::from_le_bytes(*blocks), salt };
        // What is free in it is zero.
        if field(0, BLOCK)? == found.bytes() { Ok(found) } else { Err(NoSuperblock) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Block *i* is the digest of *i*, 128 times.
    fn data(blocks: u64) -> Vec<u8> {
        (0..blocks).flat_map(|number| Sha256::digest(number.to_le_bytes()).repeat(BLOCK / DIGEST)).collect()
    }

    fn salt() -> Vec<u8> {
        hex::decode("00112233445566778899aabbccddeeff").unwrap().repeat(2)
    }

    /// As veritysetup finds them.
    #[test]
    fn a_root_hash_is_the_one_that_the_kernels_tools_find() {
        for (blocks, root, tree) in [
            (1, "9106565d09c9b9479cf302dc4bf7def3536503d24c105786243c45d60fe5089a", 0),
            (2, "55788f898bbfd4f34551b1a1415ed9a7ee84d06797dbba878a26d188d580e8e3", 4096),
            (128, "6bb14425576ceddc78575d3601f72dc25ffdd50518abfc2ee6e16ee030ceabf9", 4096),
            (129, "fce0352e2768e0a434ccd5897720efb0368a72d5ea77a7277a6ac221b4fb1c65", 12288),
            (300, "ed40c95b4000cdeb24195897ee6cdcb4a28b53f62f421ec973c229facfed1a39", 16384),
            (16385, "622bb47158bfe1d7624012347a058a6542680970b24ed4060e6614f3f8a6cf6a", 540_672),
        ] {
            let hashes = hash(&data(blocks), &salt());
            assert_eq!((&*hex::encode(hashes.root), hashes.tree.len()), (root, tree), "{blocks}");
        }
        assert_eq!(
            hex::encode(hash(&data(300), &[]).root),
            "223ef7627833a3a37e9693106b47362bd864989d4acbca21b213bdd74b60f41d"
        );
    }

    #[test]
    fn a_hash_device_is_the_one_that_the_kernels_tools_make() {
        let uuid = Guid::parse("01234567-89ab-4def-8123-456789abcdef").unwrap();
        let superblock = Superblock { uuid, data_blocks: 300, salt: salt() };
        let device = [superblock.bytes(), hash(&data(300), &salt()).tree].concat();
        assert_eq!(
            hex::encode(Sha256::digest(&device)),
            "7c9bb3194eee6f9d6d19786d59b8948f71c6e2a411936e9f4a22b43d5d54b12b"
        );
        assert_eq!(Superblock::parse(&device).unwrap(), superblock);
        for at in [0, 8, 12, 32, 64, 70, 81, 84, 200, 4095] {
            let mut other = device.clone();
            other[at] ^= 0xf0;
            assert_eq!(Superblock::parse(&other), Err(NoSuperblock), "{at}");
        }
        assert_eq!(Superblock::parse(&device[..100]), Err(NoSuperblock));
    }

    #[test]
    fn whatever_byte_is_changed_its_block_is_named() {
        for blocks in [1u64, 2, 128, 129, 300] {
            let (data, salt) = (data(blocks), salt());
            let Hashes { root, tree } = hash(&data, &salt);
            assert_eq!(walk(&data, &tree, &salt, &root).unwrap(), []);
            for block in [0, blocks / 2, blocks - 1] {
                let mut changed = data.clone();
                changed[block as usize * BLOCK + 7] ^= 1;
                assert_eq!(walk(&changed, &tree, &salt, &root).unwrap(), [Corrupt::Data(block)]);
            }
            for block in 0..tree.len() / BLOCK {
                let mut changed = tree.clone();
                // What pads a block of digests is hashed, too.
                changed[block * BLOCK + BLOCK - 1] ^= 1;
                assert!(walk(&data, &changed, &salt, &root).unwrap().contains(&Corrupt::Hash(block as u64)));
            }
            let top = if blocks == 1 { Corrupt::Data(0) } else { Corrupt::Hash(0) };
            assert_eq!(walk(&data, &tree, &salt, &[7; DIGEST]).unwrap(), [top]);
            assert!(walk(&data[1..], &tree, &salt, &root).is_err());
            assert!(walk(&data, &[&tree[..], &[0]].concat(), &salt, &root).is_err());
        }
        assert!(walk(&[], &[], &[], &[0; DIGEST]).is_err());
    }
}
