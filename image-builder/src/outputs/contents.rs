//! What archives and file systems hold, as a tree again: for who looks into an image.
//!
//! An archive is read here. File systems are unpacked by the tools that made them, as nobody in particular, into a directory that is gone
//! afterwards.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::compress::LZ4_MAGIC;
use crate::run::run;
use crate::tree::{Node, Tree};

/// What is unpacked of an archive at most, and how many entries it may have.
const MAX_BYTES: usize = 1 << 30;
const MAX_ENTRIES: usize = 1 << 20;

/// What a block of the old LZ4 form holds at most.
const LZ4_BLOCK: usize = 8 << 20;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const CPIO_MAGIC: &[u8; 6] = b"070701";
const SQUASHFS_MAGIC: &[u8; 4] = b"hsqs";
const EXT4_MAGIC: (usize, [u8; 2]) = (1024 + 56, [0x53, 0xef]);
const EROFS_MAGIC: (usize, [u8; 4]) = (1024, [0xe2, 0xe1, 0xf5, 0xe0]);

/// The header of an archive's entry: the magic and 13 numbers of eight digits.
const CPIO_HEADER: usize = 6 + 13 * 8;

/// What bytes are, as far as their beginning tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An archive, and how it is compressed.
    Archive(&'static str),
    /// A file system.
    FileSystem(&'static str),
}

/// Tells what `bytes` are.
pub fn kind(bytes: &[u8]) -> Option<Kind> {
    if bytes.starts_with(CPIO_MAGIC) {
        Some(Kind::Archive("none"))
    } else if bytes.starts_with(&LZ4_MAGIC) {
        Some(Kind::Archive("lz4"))
    } else if bytes.starts_with(&ZSTD_MAGIC) {
        Some(Kind::Archive("zstd"))
    } else if bytes.starts_with(SQUASHFS_MAGIC) {
        Some(Kind::FileSystem("squashfs"))
    } else if bytes.get(EROFS_MAGIC.0..).is_some_and(|rest| rest.starts_with(&EROFS_MAGIC.1)) {
        Some(Kind::FileSystem("erofs"))
    } else if bytes.get(EXT4_MAGIC.0..).is_some_and(|rest| rest.starts_with(&EXT4_MAGIC.1)) {
        Some(Kind::FileSystem("ext4"))
    } else {
        None
    }
}

/// The tree that an archive or a file system holds.
///
/// # Errors
/// What is neither, or damaged.
pub fn tree(bytes: &[u8]) -> Result<Tree> {
    match kind(bytes) {
        Some(Kind::Archive("lz4")) => archive(&unlz4(bytes)?),
        Some(Kind::Archive("zstd")) => archive(&unzstd(bytes)?),
        Some(Kind::Archive(_)) => archive(bytes),
        Some(Kind::FileSystem(name)) => file_system(bytes, name),
        None => bail!("it is neither an archive nor a file system"),
    }
}

fn unlz4(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut rest = bytes.strip_prefix(&LZ4_MAGIC).context("it is not LZ4")?;
    let mut out = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let (block, after) = after.split_at_checked(length).context("an LZ4 block ends early")?;
        out.extend(lz4_flex::block::decompress(block, LZ4_BLOCK).context("an LZ4 block is damaged")?);
        ensure!(out.len() <= MAX_BYTES, "it holds more than {MAX_BYTES} bytes");
        rest = after;
    }
    Ok(out)
}

fn unzstd(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(bytes).context("it is not Zstandard")?;
    decoder.take(MAX_BYTES as u64 + 1).read_to_end(&mut out).context("the Zstandard stream is damaged")?;
    ensure!(out.len() <= MAX_BYTES, "it holds more than {MAX_BYTES} bytes");
    Ok(out)
}

/// Reads a "newc" archive.
///
/// # Errors
/// One that is damaged, or has what no image of ours has.
pub fn archive(bytes: &[u8]) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut at = 0;
    for number in 0.. {
        ensure!(number < MAX_ENTRIES, "it has more than {MAX_ENTRIES} entries");
        let wrong = || format!("entry {number} at byte {at}");
        let header = bytes.get(at..at + CPIO_HEADER).filter(|header| header.starts_with(CPIO_MAGIC));
        let header = header.with_context(wrong)?;
        let [mode, length, major, minor, name] = [1, 6, 9, 10, 11].map(|field| number_at(header, field));
        let (mode, length) = (mode.with_context(wrong)?, length.with_context(wrong)? as usize);
        let start = at + CPIO_HEADER;
        let end = start + name.with_context(wrong)? as usize;
        let name = bytes.get(start..end).and_then(|name| name.strip_suffix(&[0])).with_context(wrong)?;
        let name = str::from_utf8(name).with_context(wrong)?;
        if name == "TRAILER!!!" {
            break;
        }
        let start = end.next_multiple_of(4);
        let data = bytes.get(start..start + length).with_context(wrong)?;
        let permissions = mode & 0o7777;
        let node = match mode & 0o170_000 {
            0o040_000 => Node::Directory(permissions),
            0o100_000 => Node::File(permissions, data.to_vec()),
            0o120_000 => Node::Symlink(str::from_utf8(data).with_context(wrong)?.into()),
            0o020_000 => Node::Device(permissions, major.with_context(wrong)?, minor.with_context(wrong)?),
            _ => bail!("{}: it is nothing that an image of ours has", wrong()),
        };
        tree.add(&format!("/{name}"), node).with_context(wrong)?;
        at = (start + length).next_multiple_of(4);
    }
    Ok(tree)
}

fn number_at(header: &[u8], field: usize) -> Option<u32> {
    let start = CPIO_MAGIC.len() + field * 8;
    let digits = header.get(start..start + 8).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

fn file_system(bytes: &[u8], name: &str) -> Result<Tree> {
    let work = tempfile::tempdir().context("make a directory to unpack to")?;
    let (image, root) = (work.path().join("image"), work.path().join("root"));
    fs::write(&image, bytes).context("write the file system to look into")?;
    let mut command = match name {
        "erofs" => {
            let mut command = Command::new("fsck.erofs");
            command.arg("--preserve-perms").arg("--no-preserve-owner").arg(format!("--extract={}", root.display()));
            command
        }
        "ext4" => {
            fs::create_dir(&root).context("make a directory to unpack to")?;
            let mut command = Command::new("/usr/sbin/debugfs");
            command.arg("-R").arg(format!("rdump / {}", root.display()));
            command
        }
        _ => {
            let mut command = Command::new("unsquashfs");
            command.args(["-quiet", "-no-progress", "-no-xattrs", "-dest"]).arg(&root);
            command
        }
    };
    run(command.arg(&image)).with_context(|| format!("unpack the {name}"))?;
    let mut tree = Tree::default();
    collect(&root, "", &mut tree)?;
    Ok(tree)
}

fn collect(dir: &Path, above: &str, tree: &mut Tree) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {above}/"))? {
        let entry = entry.with_context(|| format!("list {above}/"))?;
        let name = entry.file_name().into_string().ok().with_context(|| format!("a name in {above}/ is no text"))?;
        let (path, at) = (format!("{above}/{name}"), entry.path());
        let look = || -> Result<Node> {
            let facts = fs::symlink_metadata(&at)?;
            let mode = facts.permissions().mode() & 0o7777;
            Ok(match facts.file_type() {
                kind if kind.is_dir() => Node::Directory(mode),
                kind if kind.is_symlink() => Node::Symlink(fs::read_link(&at)?.to_string_lossy().into_owned()),
                kind if kind.is_file() => Node::File(mode, fs::read(&at)?),
                _ => bail!("it is nothing that an image of ours has"),
            })
        };
        let node = look().with_context(|| path.clone())?;
        let inner = matches!(node, Node::Directory(_));
        tree.add(&path, node)?;
        if inner {
            collect(&at, &path, tree)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::compress::Compression;
    use crate::outputs::{cpio, erofs, ext4, squashfs};

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.add("/init", Node::File(0o755, b"hello".repeat(1000))).unwrap();
        tree.add("/usr/bin/a", Node::File(0o4555, b"a".to_vec())).unwrap();
        tree.add("/bin", Node::Symlink("usr/bin".into())).unwrap();
        tree.add("/tmp", Node::Directory(0o1777)).unwrap();
        tree
    }

    #[test]
    fn what_was_packed_is_found() {
        let expected = sample();
        let archive = cpio::archive(&expected).unwrap();
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let found = tree(&compression.apply(archive.clone()).unwrap()).unwrap();
            assert!(found.iter().eq(expected.iter()), "{compression:?}: {found:?}");
        }
        for (name, bytes) in [("erofs", erofs::pack(&expected)), ("squashfs", squashfs::pack(&expected, ""))] {
            let found = tree(&bytes.unwrap()).unwrap();
            assert!(found.iter().eq(expected.iter()), "{name}: {found:?}");
        }
        // debugfs takes away all but what may be read, written and run, and every ext4 has a place for what is found without a name.
        let found = tree(&ext4::pack(&expected).unwrap()).unwrap();
        let found: Vec<_> = found.iter().filter(|(path, _)| *path != "lost+found").collect();
        let less = |node: &Node| match node {
            Node::File(mode, bytes) => Node::File(mode & 0o777, bytes.clone()),
            Node::Directory(mode) => Node::Directory(mode & 0o777),
            other => other.clone(),
        };
        let wanted: Vec<_> = expected.iter().map(|(path, node)| (path, less(node))).collect();
        assert_eq!(found.iter().map(|(path, node)| (*path, less(node))).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        let archive = cpio::archive(&sample()).unwrap();
        for cut in [0, 5, 60, 120, archive.len() / 2, archive.len() - 200] {
            assert!(tree(&archive[..cut]).is_err(), "{cut}");
        }
        let packed = Compression::Lz4.apply(archive).unwrap();
        assert!(tree(&packed[..packed.len() - 1]).is_err());
        assert!(tree(&[&LZ4_MAGIC[..], &[0xff; 8]].concat()).is_err());
        assert!(tree(&[&ZSTD_MAGIC[..], &[0xff; 8]].concat()).is_err());
        assert!(tree(b"what is this").is_err());
    }
}
