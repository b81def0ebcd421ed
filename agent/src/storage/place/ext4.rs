//! An empty ext4, without a program to make it.
//!
//! Plain on purpose: no journal, for nothing on it outlives the guest; each block group holds its own bitmaps and inodes, so that those between
//! the first and the last can be left as they are, whatever the disk's size ("uninitialized": their descriptors say so, under a checksum). What is not written here
//! the kernel does not read before it has written it. The layout is the kernel's Documentation/filesystems/ext4.

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// The smallest file system, in bytes.
pub const SMALLEST: u64 = 16 << 20;

/// Blocks of a group: as many as one block of bits can tell.
const GROUP: u64 = 8 * BLOCK;

/// More blocks have no place in a superblock without the 64-bit feature: 16 TiB.
const MOST: u64 = u32::MAX as u64;

/// A last group with fewer blocks than its own records and this is left out.
const SPARE: u64 = 64;

/// Bytes for each of which there is half an inode: a file takes a block, and images have many small ones.
const INODE: u64 = 256;
const INODES_OF_BLOCK: u64 = BLOCK / INODE;
const MOST_INODES: u64 = GROUP / 2;

/// Bytes of a group's descriptor.
const DESCRIPTOR: u64 = 32;

/// Inodes that have a use: the root is number 2, and 11 is the first that is nobody's in particular.
const ROOT: u32 = 2;
const LOST_AND_FOUND: u32 = 11;

/// Features. Compatible: attributes, hashed directories, copies of the superblock only where it names them (nowhere).
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
/// Incompatible: directory entries have types; files are made of extents.
const INCOMPATIBLE: u32 = 0x2 | 0x40;
/// To write: files beyond 2 GiB and 2 TiB, checksums of descriptors, directories with many others in them, large inodes.
const TO_WRITE: u32 = 0x2 | 0x8 | 0x10 | 0x20 | 0x40;

/// Flags of a group. "Zeroed" keeps the kernel from writing zeros to the inodes' places.
const INODES_UNUSED: u16 = 0x1;
const BLOCKS_UNUSED: u16 = 0x2;
const INODES_ZEROED: u16 = 0x4;

/// What distinguishes one file system from another.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Its UUID, on which checksums depend.
    pub uuid: [u8; 16],
    /// The key of the hash by which names are found: nobody who makes names may know it.
    pub hash: [u8; 16],
}

/// Bytes to write, and where.
#[derive(Debug)]
pub struct Piece {
    /// From the device's begin.
    pub offset: u64,
    /// Whole blocks.
    pub bytes: Vec<u8>,
}

/// How a device is divided.
struct Layout {
    blocks: u64,
    groups: u64,
    inodes_of_group: u64,
    /// Blocks with the descriptors of all groups; they follow the superblock.
    descriptors: u64,
}

/// What makes a device of `bytes` an empty file system; `None` if it is too small.
pub fn format(bytes: u64, identity: &Identity) -> Option<Vec<Piece>> {
    if bytes < SMALLEST {
        return None;
    }
    let layout = Layout::of(bytes / BLOCK);
    let at = |block: u64, bytes: Vec<u8>| Piece { offset: block * BLOCK, bytes };
    let bitmaps = layout.first();
    let mut pieces = vec![
        at(0, superblock(&layout, identity)),
        at(1, descriptors(&layout, identity)),
        at(bitmaps, bitmap(layout.used(0), layout.blocks_of(0))),
        at(bitmaps + 1, bitmap(LOST_AND_FOUND.into(), layout.inodes_of_group)),
        at(bitmaps + 2, inodes(&layout)),
        at(layout.root(), directory(ROOT, &[("lost+found", LOST_AND_FOUND)])),
        at(layout.root() + 1, directory(LOST_AND_FOUND, &[])),
    ];
    let last = layout.groups - 1;
    if last > 0 {
        // It may be short, which e2fsck wants to see written.
        pieces.push(at(last * GROUP, bitmap(layout.used(last), layout.blocks_of(last))));
    }
    Some(pieces)
}

impl Layout {
    fn of(blocks: u64) -> Layout {
        let blocks = blocks.min(MOST);
        let inodes_of_group = (blocks / 2).min(MOST_INODES).next_multiple_of(INODES_OF_BLOCK);
        let rest = blocks % GROUP;
        let too_short = blocks > GROUP && rest < 2 + inodes_of_group / INODES_OF_BLOCK + SPARE;
        let blocks = if too_short { blocks - rest } else { blocks };
        let groups = blocks.div_ceil(GROUP);
        Layout { blocks, groups, inodes_of_group, descriptors: (groups * DESCRIPTOR).div_ceil(BLOCK) }
    }

    /// The first block of the first group that is not the superblock's or the descriptors'.
    fn first(&self) -> u64 {
        1 + self.descriptors
    }

    fn blocks_of_inodes(&self) -> u64 {
        self.inodes_of_group / INODES_OF_BLOCK
    }

    /// The root directory's block; that of `lost+found` is the next.
    fn root(&self) -> u64 {
        self.first() + 2 + self.blocks_of_inodes()
    }

    fn blocks_of(&self, group: u64) -> u64 {
        (self.blocks - group * GROUP).min(GROUP)
    }

    /// Blocks in use at the begin of a group.
    fn used(&self, group: u64) -> u64 {
        if group == 0 { self.root() + 2 } else { 2 + self.blocks_of_inodes() }
    }

    fn free(&self) -> u64 {
        (0..self.groups).map(|group| self.blocks_of(group) - self.used(group)).sum()
    }
}

fn superblock(layout: &Layout, identity: &Identity) -> Vec<u8> {
    let inodes = layout.groups * layout.inodes_of_group;
    let mut block = Block::new(1);
    let mut word = |at: usize, value: u64| block.put(1024 + at, &(value as u32).to_le_bytes());
    word(0x0, inodes);
    word(0x4, layout.blocks);
    word(0xc, layout.free());
    word(0x10, inodes - u64::from(LOST_AND_FOUND));
    word(0x18, 2); // blocks are 1024 bytes, shifted by this
    word(0x1c, 2); // and so are what is given out at once
    word(0x20, GROUP);
    word(0x24, GROUP);
    word(0x28, layout.inodes_of_group);
    word(0x34, 0xffff << 16); // mounted any number of times
    word(0x38, 0xef53 | 1 << 16); // ext4, and whole
    word(0x3c, 2); // on errors: read-only
    word(0x4c, 1);
    word(0x54, LOST_AND_FOUND.into());
    word(0x58, INODE);
    word(0x5c, COMPATIBLE.into());
    word(0x60, INCOMPATIBLE.into());
    word(0x64, TO_WRITE.into());
    word(0xfc, 1); // names are hashed by half MD4
    word(0x15c, 32 | 32 << 16); // bytes that an inode has beyond the first 128
    word(0x160, 1); // characters have a sign when they are hashed
    block.put(1024 + 0x68, &identity.uuid);
    block.put(1024 + 0xec, &identity.hash);
    block.0
}

fn descriptors(layout: &Layout, identity: &Identity) -> Vec<u8> {
    let mut block = Block::new(layout.descriptors);
    for group in 0..layout.groups {
        block.put((group * DESCRIPTOR) as usize, &descriptor(layout, identity, group));
    }
    block.0
}

fn descriptor(layout: &Layout, identity: &Identity, group: u64) -> Vec<u8> {
    let bitmaps = if group == 0 { layout.first() } else { group * GROUP };
    let (inodes, directories, flags) = match group {
        0 => (layout.inodes_of_group - u64::from(LOST_AND_FOUND), 2, INODES_ZEROED),
        last if last + 1 == layout.groups => (layout.inodes_of_group, 0, INODES_ZEROED | INODES_UNUSED),
        _ => (layout.inodes_of_group, 0, INODES_ZEROED | INODES_UNUSED | BLOCKS_UNUSED),
    };
    let mut bytes = Vec::with_capacity(DESCRIPTOR as usize);
    for block in [bitmaps, bitmaps + 1, bitmaps + 2] {
        bytes.extend((block as u32).to_le_bytes());
    }
    for count in [layout.blocks_of(group) - layout.used(group), inodes, directories] {
        bytes.extend((count as u16).to_le_bytes());
    }
    bytes.extend(flags.to_le_bytes());
    bytes.extend([0; 8]); // no snapshot, no checksums of bitmaps
    bytes.extend((inodes as u16).to_le_bytes()); // at the end, never used
    let sum = crc16(crc16(crc16(!0, &identity.uuid), &(group as u32).to_le_bytes()), &bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// The first `used` are taken, and so are those beyond `count`, which are not there.
fn bitmap(used: u64, count: u64) -> Vec<u8> {
    let taken = |bit: u64| bit < used || bit >= count;
    let byte = |byte: u64| (0..8).fold(0, |bits, bit| bits | u8::from(taken(byte * 8 + bit)) << bit);
    (0..BLOCK).map(byte).collect()
}

/// The first block of inodes: all that are in use.
fn inodes(layout: &Layout) -> Vec<u8> {
    let mut block = Block::new(1);
    for (number, mode, links, data) in
        [(ROOT, 0o40755, 3, layout.root()), (LOST_AND_FOUND, 0o40700, 2, layout.root() + 1)]
    {
        let at = (u64::from(number - 1) * INODE) as usize;
        block.put(at, &u16::to_le_bytes(mode));
        block.put(at + 0x4, &(BLOCK as u32).to_le_bytes());
        block.put(at + 0x1a, &u16::to_le_bytes(links));
        block.put(at + 0x1c, &(BLOCK as u32 / 512).to_le_bytes());
        block.put(at + 0x20, &0x80000_u32.to_le_bytes()); // made of extents
        block.put(at + 0x28, &[0x0a, 0xf3, 1, 0, 4, 0, 0, 0]); // one of at most four, and no tree
        block.put(at + 0x28 + 12 + 4, &1_u16.to_le_bytes()); // one block, the first
        block.put(at + 0x28 + 12 + 8, &(data as u32).to_le_bytes());
        block.put(at + 0x80, &32_u16.to_le_bytes());
    }
    block.0
}

/// A directory of the root's with these directories in it.
fn directory(number: u32, names: &[(&str, u32)]) -> Vec<u8> {
    let entries: Vec<(&str, u32)> = [(".", number), ("..", ROOT)].into_iter().chain(names.iter().copied()).collect();
    let mut block = Block::new(1);
    let mut at = 0;
    for (place, (name, number)) in entries.iter().enumerate() {
        // The last has all that is left.
        let length =
            if place + 1 == entries.len() { BLOCK as usize - at } else { (8 + name.len()).next_multiple_of(4) };
        block.put(at, &number.to_le_bytes());
        block.put(at + 4, &(length as u16).to_le_bytes());
        block.put(at + 6, &[name.len() as u8, 2]); // a directory
        block.put(at + 8, name.as_bytes());
        at += length;
    }
    block.0
}

/// Blocks of zeros to put records in.
struct Block(Vec<u8>);

impl Block {
    fn new(count: u64) -> Block {
        Block(vec![0; (count * BLOCK) as usize])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            place.copy_from_slice(bytes);
        }
    }
}

/// CRC-16/ARC, continued from `sum`.
fn crc16(sum: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(sum, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xa001 } else { sum >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;
    use std::process::Command;

    const IDENTITY: Identity = Identity { uuid: [7; 16], hash: [9; 16] };

    fn make(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        for piece in format(bytes, &IDENTITY).unwrap() {
            file.as_file().write_all_at(&piece.bytes, piece.offset).unwrap();
        }
        file
    }

    /// Debian's own judgement: nothing to correct.
    fn check(bytes: u64) {
        let file = make(bytes);
        let Ok(judged) = Command::new("e2fsck").arg("-fn").arg(file.path()).output() else {
            return println!("skipped: e2fsck is not installed");
        };
        assert!(judged.status.success(), "{bytes}: {}", String::from_utf8_lossy(&judged.stdout));
    }

    #[test]
    fn nothing_is_wrong_with_it_at_the_edges_of_groups() {
        let group = GROUP * BLOCK;
        let short = (2 + MOST_INODES / INODES_OF_BLOCK + SPARE) * BLOCK;
        for bytes in [
            SMALLEST,
            SMALLEST + 4095,
            group - BLOCK,
            group,
            group + BLOCK,
            group + short - BLOCK,
            group + short,
            128 * group,
            129 * group - BLOCK,
            3 << 40,
        ] {
            check(bytes);
        }
    }

    #[test]
    fn little_is_written_whatever_the_size() {
        let written = |bytes| format(bytes, &IDENTITY).unwrap().iter().map(|piece| piece.bytes.len()).sum::<usize>();
        assert_eq!(written(SMALLEST), 7 << 12);
        assert!(written(1 << 40) < 300 << 10);
        assert_eq!(format(1 << 60, &IDENTITY).unwrap().len(), 8);
        assert!(format(SMALLEST - 1, &IDENTITY).is_none());
    }

    #[test]
    fn checksums_are_the_kernels() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }

    /// The kernel's own judgement, with what a layer has: many files, links, attributes and one that is large.
    #[test]
    fn it_can_be_mounted_filled_and_is_still_sound() {
        let file = make(300 << 20);
        let script = "mount -o loop,init_itable=0,inode_readahead_blks=0 \"$0\" /mnt && cd /mnt && mkdir many && \
            for i in $(seq 2000); do echo $i >many/$i; done && head -c 100000000 /dev/zero >large && ln large other && \
            chown 5:6 large && rm many/1?? && cd / && umount /mnt";
        let run = Command::new("unshare").args(["-m", "sh", "-ec", script]).arg(file.path()).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        if !run.status.success() && (said.contains("loop") || said.contains("mount")) {
            return println!("skipped: {said}");
        }
        assert!(run.status.success(), "{said}");
        let judged = Command::new("e2fsck").arg("-fn").arg(file.path()).output().unwrap();
        assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]

        #[test]
        fn nothing_is_wrong_with_it_at_any_size(bits in 24_u32..38, part in 0.0..1.0_f64) {
            check((1_u64 << bits) + ((1_u64 << bits) as f64 * part) as u64);
        }

        #[test]
        fn nothing_lies_upon_another_and_all_lies_within(blocks in 4096_u64..=(1 << 33)) {
            let pieces = format(blocks * BLOCK, &IDENTITY).unwrap();
            let mut end = 0;
            for piece in pieces {
                assert!(piece.offset >= end);
                end = piece.offset + piece.bytes.len() as u64;
            }
            assert!(end <= blocks * BLOCK);
        }
    }
}
