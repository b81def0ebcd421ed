//! The archive that the kernel unpacks as its first root: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

use anyhow::{Context as _, Result};

use crate::tree::{Node, Tree};

/// The bytes of the archive: a function of the tree alone.
///
/// # Errors
/// A file of 4 GiB or more, which the format can't hold.
pub fn archive(tree: &Tree) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (number, (path, node)) in (1u32..).zip(tree.iter()) {
        let (mode, data, device): (u32, &[u8], (u32, u32)) = match node {
            Node::Directory(mode) => (0o040_000 | mode, &[], (0, 0)),
            Node::File(mode, data) => (0o100_000 | mode, data, (0, 0)),
            Node::Symlink(target) => (0o120_777, target.as_bytes(), (0, 0)),
            Node::Device(mode, major, minor) => (0o020_000 | mode, &[], (*major, *minor)),
        };
        let links = if matches!(node, Node::Directory(_)) { 2 } else { 1 };
        entry(&mut out, number, path, mode, links, device, data).with_context(|| format!("/{path}"))?;
    }
    entry(&mut out, 0, "TRAILER!!!", 0, 1, (0, 0), &[])?;
    Ok(out)
}

fn entry(
    out: &mut Vec<u8>,
    number: u32,
    path: &str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    data: &[u8],
) -> Result<()> {
    let length = u32::try_from(data.len()).context("a file of 4 GiB or more")?;
    let name = u32::try_from(path.len() + 1).context("a name of 4 GiB or more")?;
    out.extend(b"070701");
    // inode, mode, owner, group, links, time, length, device of the archive, device, name's length, checksum
    for field in [number, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, name, 0] {
        out.extend(format!("{field:08x}").as_bytes());
    }
    out.extend(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend(data);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_laid_out_as_the_kernel_reads_it() {
        let mut tree = Tree::default();
        tree.add("/init", Node::File(0o755, b"hello".to_vec())).unwrap();
        tree.add("/bin", Node::Symlink("usr/bin".into())).unwrap();
        tree.add("/dev/console", Node::Device(0o600, 5, 1)).unwrap();
        let bytes = archive(&tree).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("0707010000000100" /* inode 1, mode… */), "{text}");
        let names: Vec<_> =
            text.match_indices("070701").map(|(at, _)| text[at + 110..].split('\0').next().unwrap()).collect();
        assert_eq!(names, ["bin", "dev", "dev/console", "init", "TRAILER!!!"]);
        assert_eq!(archive(&tree).unwrap(), bytes);
    }
}
