//! The bytes of an uncompressed EROFS image, as the kernel's fs/erofs/erofs_fs.h has them.

/// The size of a block.
pub(super) const BLOCK: usize = 4096;

/// Inodes are named by their place in units of this many bytes.
pub(super) const SLOT: u64 = 32;

/// An inode's own bytes. All are of the extended form: the compact one has no time.
pub(super) const INODE: usize = 64;

/// Where an inode has its number of links.
pub(super) const LINKS_AT: u64 = 44;

/// The address of a chunk that is not there: a hole.
pub(super) const HOLE: u32 = u32::MAX;

const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK_CHECKSUM: u32 = 1 << 0;
/// Inodes have times of modification, not of change.
const MTIME: u32 = 1 << 1;
/// Some files are a list of chunks.
const CHUNKED_FILES: u32 = 1 << 2;

/// The fixed part of an inode's extended attributes, and the most that there may be, which an inode counts in 16 bits by 4 bytes.
pub(super) const XATTR_HEADER: usize = 12;
const MAX_XATTRS: usize = XATTR_HEADER + 4 * (u16::MAX as usize - 1);

/// Attributes by the number of their prefix. Of the two access lists the prefix is the whole name.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// What the superblock says.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) root: u64,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    /// Where inodes are counted from.
    pub(super) inodes_at: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// The first block. The time is 0: each inode has its own.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut block = vec![0; SUPERBLOCK_AT];
        for field in [MAGIC, 0, SUPERBLOCK_CHECKSUM | MTIME] {
            block.extend(field.to_le_bytes());
        }
        block.extend([BLOCK.ilog2() as u8, 0]);
        block.extend((self.root as u16).to_le_bytes());
        block.extend(self.inodes.to_le_bytes());
        block.extend([0; 12]); // the time
        for field in [self.blocks, self.inodes_at, 0] {
            block.extend(field.to_le_bytes());
        }
        block.extend(self.uuid);
        block.extend([0; 16]); // the name
        block.extend(CHUNKED_FILES.to_le_bytes());
        block.resize(BLOCK, 0);
        let checksum = crc32c(block.get(SUPERBLOCK_AT..).unwrap_or_default());
        if let Some(field) = block.get_mut(SUPERBLOCK_AT + 4..SUPERBLOCK_AT + 8) {
            field.copy_from_slice(&checksum.to_le_bytes());
        }
        block
    }
}

/// As the kernel's function of that name computes it: without the last inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

/// What an inode has besides its attributes.
#[derive(Debug)]
pub(super) enum Body {
    /// Nothing: a FIFO or a socket.
    Empty,
    Device(u32, u32),
    /// Bytes from a block on.
    Blocks {
        at: u32,
    },
    /// Whole blocks from one on, and the rest behind the inode, in the same block as its start.
    Tail {
        at: u32,
        tail: Vec<u8>,
    },
    /// Pieces of as many blocks as two to this power, by their first blocks.
    Chunks {
        power: u32,
        at: Vec<u32>,
    },
}

/// What all inodes say.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    pub(super) size: u64,
    /// As [`xattrs`] made them.
    pub(super) xattrs: Vec<u8>,
}

impl Inode {
    /// The inode, its attributes, and what of `body` stands behind them.
    pub(super) fn bytes(&self, body: &Body) -> Vec<u8> {
        let (layout, field): (u16, u32) = match body {
            Body::Empty => (0, 0),
            Body::Device(major, minor) => (0, device(*major, *minor)),
            Body::Blocks { at } => (0, *at),
            Body::Tail { at, .. } => (2, *at),
            Body::Chunks { power, .. } => (4, *power),
        };
        let xattr_units = match self.xattrs.len() {
            0 => 0,
            length => (length - XATTR_HEADER) / 4 + 1,
        };
        let mut bytes = Vec::with_capacity(INODE + self.xattrs.len());
        for field in [layout << 1 | 1, xattr_units as u16, self.mode as u16, 0] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(self.size.to_le_bytes());
        for field in [field, self.number, self.uid, self.gid] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(self.mtime.0.to_le_bytes());
        bytes.extend(self.mtime.1.to_le_bytes());
        bytes.extend(self.links.to_le_bytes());
        bytes.resize(INODE, 0);
        bytes.extend(&self.xattrs);
        match body {
            Body::Tail { tail, .. } => bytes.extend(tail),
            Body::Chunks { at, .. } => at.iter().for_each(|at| bytes.extend(at.to_le_bytes())),
            _ => {}
        }
        bytes
    }
}

/// As the kernel's `new_encode_dev` does.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Extended attributes as they stand behind an inode. `None`: they are more than the format takes, or of a kind that it has no number for.
pub(super) fn xattrs(all: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    if all.is_empty() {
        return Some(Vec::new());
    }
    let mut bytes = vec![0; XATTR_HEADER];
    for (name, value) in all {
        let (number, rest) =
            PREFIXES.iter().find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)))?;
        bytes.extend([u8::try_from(rest.len()).ok()?, number]);
        bytes.extend(u16::try_from(value.len()).ok()?.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    (bytes.len() <= MAX_XATTRS).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn attributes_that_do_not_fit_are_told() {
        let one = |name: &str, length| vec![(name.as_bytes().to_vec(), vec![7; length])];
        assert_eq!(xattrs(&one("user.a", 3)).unwrap().len(), 12 + 4 + 4);
        assert!(xattrs(&one("user.a", 1 << 16)).is_none());
        assert!(xattrs(&one("other.a", 1)).is_none());
        assert!(xattrs(&vec![one("user.a", 60_000); 5].concat()).is_none());
    }
}
