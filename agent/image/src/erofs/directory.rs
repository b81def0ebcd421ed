//! A directory's content: names and the inodes that they stand for, sorted, in blocks that each can be searched by itself.

use std::ops::Range;

use super::format::BLOCK;

/// The bytes of an entry without its name.
const ENTRY: usize = 12;

/// Names that will be a directory. What they stand for is not known yet.
#[derive(Debug)]
pub(super) struct Names {
    sorted: Vec<Vec<u8>>,
    /// Which of them are in each block.
    blocks: Vec<Range<usize>>,
}

/// An inode as its directory names it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Named {
    pub(super) inode: u64,
    /// The inode's type.
    pub(super) kind: u8,
}

impl Names {
    /// Of a directory with these names, besides its own and its parent's.
    pub(super) fn new(mut names: Vec<Vec<u8>>) -> Names {
        names.extend([b".".to_vec(), b"..".to_vec()]);
        names.sort_unstable();
        let (mut blocks, mut first, mut used) = (Vec::new(), 0, 0);
        for (place, name) in names.iter().enumerate() {
            if used + ENTRY + name.len() > BLOCK {
                blocks.push(first..place);
                (first, used) = (place, 0);
            }
            used += ENTRY + name.len();
        }
        blocks.push(first..names.len());
        Names { sorted: names, blocks }
    }

    /// Every name with its place.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.sorted.iter().map(Vec::as_slice).enumerate()
    }

    /// How many there are, with the directory's own and its parent's.
    pub(super) fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The content's length.
    pub(super) fn size(&self) -> u64 {
        let last = self.blocks.last().and_then(|block| self.sorted.get(block.clone())).unwrap_or_default();
        let last: usize = last.iter().map(|name| ENTRY + name.len()).sum();
        (self.blocks.len().saturating_sub(1) * BLOCK + last) as u64
    }

    /// The content: `named` has what each name stands for, in the same order.
    pub(super) fn content(&self, named: &[Named]) -> Vec<u8> {
        let mut content = Vec::with_capacity(self.size() as usize);
        for block in &self.blocks {
            content.resize(content.len().next_multiple_of(BLOCK), 0);
            let names = self.sorted.get(block.clone()).unwrap_or_default();
            let mut name_at = names.len() * ENTRY;
            for (name, Named { inode, kind }) in names.iter().zip(named.get(block.clone()).unwrap_or_default()) {
                content.extend(inode.to_le_bytes());
                content.extend((name_at as u16).to_le_bytes());
                content.extend([*kind, 0]);
                name_at += name.len();
            }
            names.iter().for_each(|name| content.extend(name));
        }
        content
    }
}
