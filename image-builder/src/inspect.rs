//! `nacre-image inspect`: what an image holds, for people and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::manifest;
use crate::outputs::contents::{self, Kind};
use crate::outputs::gpt;
use crate::outputs::pe;
use crate::outputs::verity::Superblock;
use crate::tree::Node;

/// The largest file that is looked into.
const MAX_FILE: u64 = 4 << 30;

/// The bytes of a section that are text.
const MAX_TEXT: usize = 4096;

/// A file of an image, and what it holds.
#[derive(Debug, Serialize)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// What it is.
    pub kind: String,
    /// A disk's partitions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<Partition>,
    /// A program's sections.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<Section>,
    /// The files in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Entry>,
}

/// A partition.
#[derive(Debug, Serialize)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Its GUID.
    pub guid: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// What it is, as far as it begins with something known.
    pub holds: Option<String>,
}

/// A section.
#[derive(Debug, Serialize)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// The whole of it, if it is a short text.
    pub text: Option<String>,
}

/// A file in an image.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its path.
    pub path: String,
    /// Its permissions in octal, behind a letter for what it is.
    pub mode: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes in hex, if it has some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Where it leads, if it is a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Describes a file, or each file of a directory.
///
/// # Errors
/// A file that can't be read, or is damaged.
pub fn inspect(path: &Path) -> Result<Vec<Description>> {
    if !path.is_dir() {
        return Ok(vec![of_file(path)?]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.is_file());
    files.sort();
    files.iter().map(|file| of_file(file)).collect()
}

fn of_file(path: &Path) -> Result<Description> {
    let length = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
    ensure!(length <= MAX_FILE, "{} has {length} bytes, of {MAX_FILE} at most", path.display());
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    describe(name, &bytes).with_context(|| path.display().to_string())
}

fn describe(name: String, bytes: &[u8]) -> Result<Description> {
    let sha256 = manifest::digest(bytes);
    let (mut partitions, mut sections, mut files) = (Vec::new(), Vec::new(), Vec::new());
    let kind = if let Ok(table) = gpt::read(bytes) {
        for partition in &table.partitions {
            let content = partition.of(bytes).unwrap_or_default();
            partitions.push(of_partition(partition, content));
            if contents::kind(content).is_some() {
                files.extend(entries(content)?);
            }
        }
        format!("disk {}", table.disk)
    } else if let Some(kind) = contents::kind(bytes) {
        files = entries(bytes)?;
        text(kind)
    } else if let Ok(found) = pe::sections(bytes) {
        for section in &found {
            if section.name == ".initrd" {
                files.extend(entries(section.data)?);
            }
        }
        sections = found.iter().map(of_section).collect();
        "program for firmware".into()
    } else if bytes.starts_with(b"\x7fELF") {
        "ELF".into()
    } else {
        "data".into()
    };
    Ok(Description { name, bytes: bytes.len() as u64, sha256, kind, partitions, sections, files })
}

fn of_partition(partition: &gpt::Partition, content: &[u8]) -> Partition {
    let verity = Superblock::parse(content).ok();
    let holds = contents::kind(content).map(text).or_else(|| {
        verity.map(|found| format!("dm-verity of {} blocks, salt {}", found.data_blocks, hex::encode(found.salt)))
    });
    Partition {
        name: partition.name.clone(),
        kind: partition.kind.to_string(),
        guid: partition.guid.to_string(),
        offset: partition.first * gpt::SECTOR as u64,
        bytes: content.len() as u64,
        holds,
    }
}

fn of_section(section: &pe::Section<'_>) -> Section {
    let text = str::from_utf8(section.data).ok().filter(|text| text.len() <= MAX_TEXT && !text.contains('\0'));
    Section {
        name: section.name.clone(),
        bytes: section.data.len() as u64,
        sha256: manifest::digest(section.data),
        text: text.filter(|text| !text.is_empty()).map(String::from),
    }
}

/// The files of an archive or of a file system; what is in a packed `/usr` follows its file.
fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    for (path, node) in contents::tree(bytes)?.iter() {
        let (letter, mode, bytes, target) = match node {
            Node::Directory(mode) => ('d', *mode, 0, None),
            Node::File(mode, data) => ('-', *mode, data.len(), None),
            Node::Symlink(target) => ('l', 0o777, target.len(), Some(target.clone())),
            Node::Device(mode, ..) => ('c', *mode, 0, None),
        };
        let sha256 = if let Node::File(_, data) = node { Some(manifest::digest(data)) } else { None };
        let (path, mode, bytes) = (format!("/{path}"), format!("{letter}{mode:04o}"), bytes as u64);
        all.push(Entry { path: path.clone(), mode, bytes, sha256, target });
        if let Node::File(_, data) = node
            && matches!(contents::kind(data), Some(Kind::FileSystem(_)))
        {
            let inner = entries(data).with_context(|| path.clone())?;
            all.extend(inner.into_iter().map(|entry| Entry { path: format!("{path}:{}", entry.path), ..entry }));
        }
    }
    Ok(all)
}

fn text(kind: Kind) -> String {
    match kind {
        Kind::Archive(compression) => format!("initrd, compression {compression}"),
        Kind::FileSystem(name) => format!("file system {name}"),
    }
}

/// As people read it.
pub fn render(all: &[Description]) -> String {
    let mut out = String::new();
    for one in all {
        // Writing to a String can't fail.
        let _ = writeln!(out, "{}: {}, {} bytes, sha256 {}", one.name, one.kind, one.bytes, one.sha256);
        for part in &one.partitions {
            let holds = part.holds.as_deref().unwrap_or("nothing known");
            let _ = writeln!(out, "  partition {} at {}, {} bytes: {holds}", part.name, part.offset, part.bytes);
            let _ = writeln!(out, "    type {}, guid {}", part.kind, part.guid);
        }
        for section in &one.sections {
            let _ = writeln!(out, "  section {}, {} bytes, sha256 {}", section.name, section.bytes, section.sha256);
            for line in section.text.iter().flat_map(|text| text.lines()) {
                let _ = writeln!(out, "    {}", line.escape_debug());
            }
        }
        for file in &one.files {
            let target = file.target.iter().map(|target| format!(" -> {}", target.escape_debug())).collect::<String>();
            let _ = writeln!(out, "  {} {:>10} {}{target}", file.mode, file.bytes, file.path.escape_debug());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::{Disk, Initrd};
    use crate::tree::Tree;

    #[test]
    fn an_image_is_told_down_to_its_files() {
        let mut tree = Tree::default();
        tree.add("/init", Node::File(0o755, b"hello".to_vec())).unwrap();
        tree.add("/usr/bin/a", Node::File(0o555, b"a".to_vec())).unwrap();
        tree.add("/bin", Node::Symlink("usr/bin".into())).unwrap();
        let initrd = describe("a.initrd".into(), &Initrd::default().pack(&tree).unwrap()).unwrap();
        let disk = describe("a.disk".into(), &Disk::default().pack(&tree).unwrap().0).unwrap();
        let text = render(&[initrd, disk]);
        for expected in [
            "a.initrd: initrd, compression none, ",
            "  -0755          5 /init",
            "  -0555          1 /usr.squashfs:/bin/a",
            "  l0777          7 /bin -> usr/bin",
            "a.disk: disk ",
            "  partition root at 20480, ",
            "bytes: file system erofs",
            "bytes: dm-verity of ",
            "    type 4f68bce3-e8cd-4db1-96e7-fbcaf984b709, guid ",
            "  -0555          1 /usr/bin/a",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
}
