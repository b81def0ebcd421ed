//! `nacre-image verify`: whether files are those of a manifest, and what differs where they are not.
//!
//! Digests tell whether; the partition table and the dm-verity tree tell where. What is compared with is the manifest: whoever wants to know
//! that it is the right one has to trust it for another reason.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nacre_manifest::{Manifest, Output, Root, Verity};

use crate::manifest;
use crate::outputs::disk::{ROOT, ROOT_VERITY};
use crate::outputs::gpt::{self, Partition, Table};
use crate::outputs::identity::Guid;
use crate::outputs::pe;
use crate::outputs::verity::{self, BLOCK, Corrupt, Superblock};

/// The largest file that is looked into, and the largest manifest.
const MAX_FILE: u64 = 4 << 30;
const MAX_MANIFEST: u64 = 64 << 20;

/// How many blocks of a file are named one by one.
const NAMED: usize = 16;

/// The end of a manifest's name.
const SUFFIX: &str = ".manifest.json";

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Files that are as they must be.
    pub good: Vec<String>,
    /// What differs.
    pub wrong: Vec<String>,
}

/// Compares a directory of images, or one file, with the manifests that lie there, or with the one named.
///
/// # Errors
/// A manifest that is missing or can't be read, and a file that can't be.
pub fn verify(path: &Path, named: Option<&Path>) -> Result<Findings> {
    let mut findings = Findings::default();
    if path.is_dir() {
        for of in &manifests(path, named)? {
            let (outputs, manifest) = read(of)?;
            for output in &outputs {
                file(&path.join(&output.name), output, manifest.as_ref(), &mut findings)?;
            }
        }
        return Ok(findings);
    }
    let of = manifests(path, named)?.swap_remove(0);
    let (outputs, manifest) = read(&of)?;
    let own = path.extension();
    let output = outputs.iter().find(|output| Path::new(&output.name).extension() == own);
    let output = output.with_context(|| format!("{} names no file like {}", of.display(), path.display()))?;
    file(path, output, manifest.as_ref(), &mut findings)?;
    Ok(findings)
}

/// The manifests that say what is at `path`, at least one: the one that is named, those of a directory, or the one beside a file.
///
/// # Errors
/// A directory that can't be read, or has none.
pub fn manifests(path: &Path, named: Option<&Path>) -> Result<Vec<PathBuf>> {
    match named {
        Some(named) => Ok(vec![named.to_path_buf()]),
        None if path.is_dir() => in_directory(path),
        None => Ok(vec![path.with_extension(&SUFFIX[1..])]),
    }
}

fn in_directory(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    found.retain(|path| path.to_string_lossy().ends_with(SUFFIX));
    found.sort();
    ensure!(!found.is_empty(), "{} holds no manifest (*{SUFFIX})", dir.display());
    Ok(found)
}

/// The files that a manifest names: an image's, or a kernel's.
fn read(path: &Path) -> Result<(Vec<Output>, Option<Manifest>)> {
    let bytes = bounded(path, MAX_MANIFEST)?;
    let text = str::from_utf8(&bytes).with_context(|| path.display().to_string())?;
    match Manifest::parse(text) {
        Ok(manifest) => Ok((manifest.outputs.clone(), Some(manifest))),
        Err(error) => match serde_json::from_str::<nacre_manifest::Kernel>(text) {
            Ok(kernel) => Ok((kernel.outputs, None)),
            Err(_) => Err(error).with_context(|| path.display().to_string()),
        },
    }
}

fn bounded(path: &Path, most: u64) -> Result<Vec<u8>> {
    let bytes = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
    ensure!(bytes <= most, "{} has {bytes} bytes, of {most} at most", path.display());
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Compares one file.
fn file(path: &Path, output: &Output, manifest: Option<&Manifest>, findings: &mut Findings) -> Result<()> {
    // A name leads nowhere else, whoever wrote the manifest.
    if Path::new(&output.name).file_name() != Some(output.name.as_ref()) {
        bail!("the manifest names {:?}, which is no file's name", output.name);
    }
    if !path.exists() {
        findings.wrong.push(format!("{}: it is missing", output.name));
        return Ok(());
    }
    let bytes = bounded(path, MAX_FILE)?;
    let mut wrong = Vec::new();
    if bytes.len() as u64 != output.bytes {
        wrong.push(format!("it has {} bytes, not {}", bytes.len(), output.bytes));
    }
    let sha256 = manifest::digest(&bytes);
    if sha256 != output.sha256 {
        wrong.push(format!("its SHA-256 is {sha256}, not {}", output.sha256));
    }
    wrong.extend(manifest.map_or_else(Vec::new, |manifest| content(&bytes, &output.name, manifest)));
    if wrong.is_empty() {
        findings.good.push(output.name.clone());
    }
    findings.wrong.extend(wrong.into_iter().map(|text| format!("{}: {text}", output.name)));
    Ok(())
}

/// What in an image of this name is not what its manifest says.
fn content(bytes: &[u8], name: &str, manifest: &Manifest) -> Vec<String> {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    match (extension, &manifest.root, &manifest.extension) {
        (Some("disk"), Some(root), _) => disk(bytes, root),
        (Some("extension"), _, Some(verity)) => tree(bytes, bytes, verity, ("the data", "the tree")),
        (Some("disk" | "extension"), ..) => vec!["the manifest does not say what it must hold".into()],
        (Some("efi"), ..) => program(bytes, manifest),
        _ => Vec::new(),
    }
}

/// What of a disk is not what `root` says: its partitions, and each block of them.
pub fn disk(bytes: &[u8], root: &Root) -> Vec<String> {
    let table = match gpt::read(bytes) {
        Ok(table) => table,
        Err(error) => return vec![error.to_string()],
    };
    let mut wrong = Vec::new();
    let data = partition(&table, ROOT, &root.data_partition, &mut wrong);
    let hashes = partition(&table, ROOT_VERITY, &root.hash_partition, &mut wrong);
    let (Some((data_number, data)), Some((hash_number, hashes))) = (data, hashes) else { return wrong };
    let (data, hashes) = (data.of(bytes).unwrap_or_default(), hashes.of(bytes).unwrap_or_default());
    let expected = (root.verity.data_blocks, root.verity.salt.clone());
    match Superblock::parse(hashes) {
        Ok(found) if (found.data_blocks, hex::encode(&found.salt)) == expected => {}
        Ok(_) => wrong.push(format!("partition {hash_number}: its superblock says something else than the manifest")),
        Err(error) => wrong.push(format!("partition {hash_number}: {error}")),
    }
    let names = (&*format!("partition {data_number}"), &*format!("partition {hash_number}"));
    wrong.extend(tree(data, hashes, &root.verity, names));
    wrong
}

/// The partition of this type, with its number.
fn partition<'a>(table: &'a Table, kind: Guid, guid: &str, wrong: &mut Vec<String>) -> Option<(usize, &'a Partition)> {
    let found = (1..).zip(&table.partitions).find(|(_, partition)| partition.kind == kind);
    match found {
        None => wrong.push(format!("there is no partition of type {kind}")),
        Some((number, partition)) if !partition.guid.to_string().eq_ignore_ascii_case(guid) => {
            wrong.push(format!("partition {number}: its GUID is {}, not {guid}", partition.guid));
        }
        Some(_) => {}
    }
    found
}

/// Each block of `data` and of the tree in `hashes` that is not what the root hash stands for, as a line; both may be one device.
fn tree(data: &[u8], hashes: &[u8], verity: &Verity, (data_name, hash_name): (&str, &str)) -> Vec<String> {
    let bytes = |blocks: u64| usize::try_from(blocks).ok()?.checked_mul(BLOCK);
    let range = || {
        let (salt, root) = (hex::decode(&verity.salt).ok()?, hex::decode(&verity.root_hash).ok()?.try_into().ok()?);
        let data = data.get(..bytes(verity.data_blocks)?)?;
        let tree = hashes.get(bytes(verity.hash_start)?..)?;
        // A partition ends with the last block of its tree.
        Some((data, tree.get(..verity::tree_bytes(data.len()))?, salt, root))
    };
    let Some((data, tree, salt, root)) = range() else {
        return vec![format!("{data_name} and {hash_name} have no room for what the manifest says")];
    };
    let corrupt = match verity::walk(data, tree, &salt, &root) {
        Ok(corrupt) => corrupt,
        Err(error) => return vec![error.to_string()],
    };
    let line = |corrupt: &Corrupt| match corrupt {
        Corrupt::Data(block) => format!("{data_name}, block {block}: it is not what the tree says"),
        Corrupt::Hash(block) => {
            format!("{hash_name}, block {}: it is not what the hash above says", block + verity.hash_start)
        }
    };
    let more = corrupt.len().saturating_sub(NAMED);
    let more = (more > 0).then(|| format!("{data_name} and {hash_name}: {more} more blocks are wrong"));
    corrupt.iter().take(NAMED).map(line).chain(more).collect()
}

/// What of a program for firmware is not what the manifest says.
fn program(bytes: &[u8], manifest: &Manifest) -> Vec<String> {
    let sections = match pe::sections(bytes) {
        Ok(sections) => sections,
        Err(error) => return vec![error.to_string()],
    };
    let line = sections.iter().find(|section| section.name == ".cmdline").map(|section| section.data);
    let lines = &manifest.command_lines;
    let expected = lines.disk.as_ref().or(lines.initrd.as_ref()).map(String::as_bytes);
    if line == expected { Vec::new() } else { vec!["its section .cmdline is not the manifest's command line".into()] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::{Disk, Extension, Job, KernelChoice, Outputs, pack};
    use crate::tree::{Node, Tree};

    /// An image in all forms that take no kernel, in a directory with its manifest.
    fn image() -> (tempfile::TempDir, Manifest) {
        let mut tree = Tree::default();
        let noise: Vec<u8> = (0u32..1 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        tree.add("/init", Node::File(0o755, noise)).unwrap();
        let outputs = Outputs {
            disk: Some(Disk::default()),
            extension: Some(Extension { name: "x".into() }),
            ..Outputs::default()
        };
        let parameters = KernelChoice::default().parameters;
        let job = Job { name: "a", tree: &tree, outputs: &outputs, parameters: &parameters, bz_image: None };
        let packed = pack(&job).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (name, bytes) in &packed.files {
            fs::write(dir.path().join(name), bytes).unwrap();
            files.push(manifest::output(&dir.path().join(name)).unwrap());
        }
        let manifest = Manifest {
            name: "a".into(),
            recipe_sha256: String::new(),
            packages: Vec::new(),
            agent: files[0].clone(),
            helpers: Vec::new(),
            outputs: files,
            kernel: None,
            parameters,
            root: packed.root,
            extension: packed.extension,
            command_lines: packed.command_lines,
        };
        manifest::publish_json(&dir.path().join("a.manifest.json"), &manifest).unwrap();
        (dir, manifest)
    }

    fn flip(path: &Path, at: usize) {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn what_was_built_is_found_as_it_was_built() {
        let (dir, _) = image();
        let findings = verify(dir.path(), None).unwrap();
        assert_eq!(
            findings,
            Findings { good: vec!["a.initrd".into(), "a.disk".into(), "a.extension".into()], wrong: vec![] }
        );
        assert_eq!(verify(&dir.path().join("a.disk"), None).unwrap().good, ["a.disk"]);
    }

    #[test]
    fn a_flipped_byte_is_found_with_its_block() {
        let (dir, manifest) = image();
        let disk = dir.path().join("a.disk");
        let whole = fs::read(&disk).unwrap();
        let table = gpt::read(&whole).unwrap();
        let start = |partition: usize| table.partitions[partition].first as usize * gpt::SECTOR;
        for (at, expected) in [
            (512 + 20, "a.disk: the first header: a field or a checksum is wrong"),
            (start(0) + 1030, "a.disk: partition 1, block 0: it is not what the tree says"),
            (start(0) + 7 * BLOCK, "a.disk: partition 1, block 7: it is not what the tree says"),
            (
                start(1) + 3,
                "a.disk: partition 2: there is no dm-verity superblock of version 1 with SHA-256 and blocks of 4096 bytes",
            ),
            (start(1) + 90, "a.disk: partition 2: its superblock says something else than the manifest"),
            (start(1) + BLOCK + 1, "a.disk: partition 2, block 1: it is not what the hash above says"),
        ] {
            fs::write(&disk, &whole).unwrap();
            flip(&disk, at);
            let findings = verify(&disk, None).unwrap();
            assert!(findings.wrong.iter().any(|line| line == expected), "{at}: {findings:?}");
            assert!(findings.wrong.iter().any(|line| line.contains("its SHA-256 is")), "{findings:?}");
        }
        flip(&dir.path().join("a.extension"), 5 * BLOCK);
        let findings = verify(dir.path(), None).unwrap();
        assert!(
            findings.wrong.contains(&"a.extension: the data, block 5: it is not what the tree says".into()),
            "{findings:?}"
        );
        let mut other = manifest.root.unwrap();
        other.verity.root_hash = "00".repeat(32);
        assert!(
            super::disk(&whole, &other).contains(&"partition 2, block 1: it is not what the hash above says".into())
        );
    }

    #[test]
    fn what_is_missing_or_no_manifest_is_said() {
        let (dir, _) = image();
        fs::remove_file(dir.path().join("a.initrd")).unwrap();
        assert_eq!(verify(dir.path(), None).unwrap().wrong, ["a.initrd: it is missing"]);
        let manifest = dir.path().join("a.manifest.json");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("\"a.disk\"", "\"../a.disk\"")).unwrap();
        assert!(verify(dir.path(), None).unwrap_err().to_string().contains("no file's name"));
        fs::write(&manifest, text.replace("\"parameters\"", "\"parameter\"")).unwrap();
        assert!(format!("{:#}", verify(dir.path(), None).unwrap_err()).contains("unknown field `parameter`"));
        fs::remove_file(manifest).unwrap();
        assert!(verify(dir.path(), None).unwrap_err().to_string().contains("holds no manifest"));
    }
}
