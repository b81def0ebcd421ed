//! A `.deb`: an `ar` archive with a compressed tar of its files. It is read in memory, and of its scripts nothing is even looked at.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Component, Path};

use anyhow::{Context as _, Result, bail, ensure};
use tar::EntryType;

/// The most that a package may unpack to, and the most entries that it may have.
const MAX_UNPACKED: u64 = 1 << 30;
const MAX_ENTRIES: usize = 200_000;

/// The memory that a decompressor may take, in KiB: four times what Debian's own use.
const MAX_XZ_MEMORY: u32 = 256 << 10;

/// The sizes of an `ar` archive's beginning and of each member's header.
const AR_MAGIC: &[u8] = b"!<arch>\n";
const AR_HEADER: usize = 60;

/// Directories of `/` that are links into `/usr`. Packages name files by either path.
pub const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory's permission bits.
    Directory(u32),
    /// A file's permission bits, and where its bytes are.
    File(u32, Range<usize>),
    /// A symbolic link's target.
    Symlink(String),
}

/// The files of a package.
#[derive(Debug)]
pub struct Deb {
    tar: Vec<u8>,
    /// By path, without a leading slash and through `/usr`.
    pub entries: BTreeMap<String, Entry>,
}

impl Deb {
    /// Reads a package.
    ///
    /// # Errors
    /// Bytes that are no package, or more of them than a package may hold.
    pub fn read(deb: &[u8]) -> Result<Deb> {
        let tar = data(deb)?;
        let mut entries = BTreeMap::new();
        let mut archive = tar::Archive::new(tar.as_slice());
        for entry in archive.entries().context("read the package's files")? {
            let entry = entry.context("read the package's files")?;
            ensure!(entries.len() < MAX_ENTRIES, "the package has more than {MAX_ENTRIES} files");
            let name = entry.path().context("read a file's name")?;
            let Some(path) = canonical(&name).with_context(|| format!("{}", name.display()))? else { continue };
            let node = node(&entry, &entries).with_context(|| path.clone())?;
            entries.insert(path, node);
        }
        Ok(Deb { tar, entries })
    }

    /// A file's bytes.
    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.tar.get(range.clone()).unwrap_or_default()
    }
}

fn node(entry: &tar::Entry<'_, &[u8]>, known: &BTreeMap<String, Entry>) -> Result<Entry> {
    let mode = entry.header().mode().context("read its mode")? & 0o7777;
    let target = || -> Result<String> {
        let link = entry.link_name().context("read a link")?.context("a link without a target")?;
        Ok(link.to_str().context("a link's target is not UTF-8")?.to_string())
    };
    Ok(match entry.header().entry_type() {
        EntryType::Directory => Entry::Directory(mode),
        EntryType::Symlink => Entry::Symlink(target()?),
        EntryType::Regular | EntryType::Continuous => {
            let start = usize::try_from(entry.raw_file_position())?;
            let end = usize::try_from(entry.size())?.checked_add(start).context("it has no end")?;
            Entry::File(mode, start..end)
        }
        // A second name of a file that came before.
        EntryType::Link => {
            let first = canonical(Path::new(&target()?))?.and_then(|path| known.get(&path).cloned());
            first.filter(|node| matches!(node, Entry::File(..))).context("a hard link to what is no file")?
        }
        other => bail!("an entry of the type {other:?}, which no image may hold"),
    })
}

/// The path without `./`, through `/usr`; nothing for the root and for the links into `/usr` themselves.
fn canonical(path: &Path) -> Result<Option<String>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().context("a name that is not UTF-8")?),
            Component::CurDir | Component::RootDir => {}
            _ => bail!("a path that leads out of its package"),
        }
    }
    match parts.as_slice() {
        [] => return Ok(None),
        [top] if MERGED.contains(top) => return Ok(None),
        [top, ..] if MERGED.contains(top) => parts.insert(0, "usr"),
        _ => {}
    }
    Ok(Some(parts.join("/")))
}

/// The unpacked tar of a package's files.
fn data(deb: &[u8]) -> Result<Vec<u8>> {
    let mut rest = deb.strip_prefix(AR_MAGIC).context("not a Debian package")?;
    while !rest.is_empty() {
        let (name, member, next) = member(rest)?;
        match name.strip_prefix("data.tar") {
            Some(".xz") => return unpack(lzma_rust2::XzReader::new_mem_limit(member, true, MAX_XZ_MEMORY)),
            Some(".zst") => return unpack(zstd::Decoder::new(member).context("start to decompress")?),
            Some(".gz") => return unpack(flate2::read::GzDecoder::new(member)),
            Some("") => return unpack(member),
            Some(other) => bail!("the package's files are compressed by {other:?}; .xz, .zst and .gz are known"),
            None => rest = next,
        }
    }
    bail!("the package has no files (data.tar)")
}

/// The first member of an `ar` archive: its name, its bytes, and what follows it.
fn member(archive: &[u8]) -> Result<(&str, &[u8], &[u8])> {
    let short = || "the package ends in the middle";
    let (header, rest) = archive.split_at_checked(AR_HEADER).with_context(short)?;
    let field = |range: Range<usize>| {
        header.get(range).and_then(|bytes| str::from_utf8(bytes).ok()).map(str::trim_end).context("a broken header")
    };
    ensure!(header.ends_with(b"`\n"), "the package is not made of members");
    let size: usize = field(48..58)?.parse().context("a member without a size")?;
    let (bytes, rest) = rest.split_at_checked(size).with_context(short)?;
    // Members begin at even offsets.
    let rest = if size % 2 == 1 { rest.get(1..).unwrap_or_default() } else { rest };
    Ok((field(0..16)?.trim_end_matches('/'), bytes, rest))
}

fn unpack(reader: impl Read) -> Result<Vec<u8>> {
    let mut tar = Vec::new();
    let read = io::copy(&mut reader.take(MAX_UNPACKED + 1), &mut tar).context("decompress the package's files")?;
    ensure!(read <= MAX_UNPACKED, "the package unpacks to more than {MAX_UNPACKED} bytes");
    Ok(tar)
}

/// Packages made up for tests.
#[cfg(test)]
pub(crate) mod made {
    use super::*;

    /// One with these entries: `path/` for a directory, `path -> target` for a link, else a file that holds its own path.
    pub(crate) fn deb(entries: &[&str]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for entry in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(if entry.ends_with('/') { 0o755 } else { 0o644 });
            header.set_size(0);
            if let Some((path, target)) = entry.split_once(" -> ") {
                header.set_entry_type(EntryType::Symlink);
                tar.append_link(&mut header, path, target).unwrap();
            } else if let Some((path, target)) = entry.split_once(" = ") {
                header.set_entry_type(EntryType::Link);
                tar.append_link(&mut header, path, target).unwrap();
            } else if entry.ends_with('/') {
                header.set_entry_type(EntryType::Directory);
                tar.append_data(&mut header, entry, &[][..]).unwrap();
            } else {
                header.set_size(entry.len() as u64);
                tar.append_data(&mut header, entry, entry.as_bytes()).unwrap();
            }
        }
        let data = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 1).unwrap();
        ar(&[("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.zst", &data)])
    }

    pub(crate) fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut all = AR_MAGIC.to_vec();
        for (name, bytes) in members {
            all.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len()).bytes());
            all.extend_from_slice(bytes);
            all.resize(all.len().next_multiple_of(2), b'\n');
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::made::{ar, deb};
    use super::*;

    #[test]
    fn files_are_found_by_their_paths_through_usr() {
        let entries =
            ["./", "./bin/", "./bin/sh", "./lib64 -> usr/lib64", "./usr/bin/dash -> sh", "./usr/b = ./bin/sh"];
        let read = Deb::read(&deb(&entries)).unwrap();
        let paths: Vec<_> = read.entries.keys().map(String::as_str).collect();
        assert_eq!(paths, ["usr/b", "usr/bin/dash", "usr/bin/sh"]);
        for path in ["usr/bin/sh", "usr/b"] {
            let Entry::File(0o644, range) = &read.entries[path] else { panic!("{path} is no file") };
            assert_eq!(read.bytes(range), b"./bin/sh");
        }
        assert_eq!(read.entries["usr/bin/dash"], Entry::Symlink("sh".into()));
    }

    #[test]
    fn what_is_no_package_says_why() {
        let whole = deb(&["./a"]);
        for (bad, reason) in [
            (b"".to_vec(), "not a Debian package"),
            (b"!<arch>\n".to_vec(), "has no files"),
            (whole[..whole.len() - 30].to_vec(), "ends in the middle"),
            (whole[..40].to_vec(), "ends in the middle"),
            (ar(&[("data.tar.br", b"")]), "compressed by \".br\""),
            (ar(&[("data.tar.xz", b"nothing of the kind")]), "decompress"),
            (deb(&["a = b"]), "a hard link to what is no file"),
        ] {
            let error = format!("{:#}", Deb::read(&bad).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn no_path_leads_out() {
        assert!(canonical(Path::new("./a/../../b")).is_err());
        assert_eq!(canonical(Path::new("/lib/x")).unwrap().unwrap(), "usr/lib/x");
    }
}
