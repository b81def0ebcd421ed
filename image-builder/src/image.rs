//! From a recipe to an initrd: the agent uncompressed as `/init`, and everything else in one compressed file, `/usr.squashfs`.
//!
//! The kernel unpacks an initrd before anything runs, and under an emulator it unpacks slowly; what is compressed in there costs again.
//! So only the agent is unpacked at boot. The rest is mounted by the agent, once it listens, and read when it is used.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cpio;
use crate::elf;
use crate::manifest::{self, Image};
use crate::packages::{self, Unpacked};
use crate::recipe::{self, Recipe};
use crate::run::{run, say};
use crate::tree::{Node, Tree};

/// Where Debian's loader looks on this machine.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// Where the agent looks for its helpers.
const HELPERS: &str = "/usr/libexec/nacre";

/// Where the agent looks for the processes that it is to run.
const HELPER_TABLE: &str = "/etc/nacre/helpers.json";

/// The longest chain of symbolic links that is followed, as the kernel has it.
const MAX_LINKS: usize = 40;

/// What to build.
#[derive(Debug)]
pub struct Request {
    /// The recipe's file.
    pub recipe: PathBuf,
    /// The agent's binary. Helpers lie beside it.
    pub agent: PathBuf,
    /// The kernel that will boot the image, to be named in the manifest.
    pub kernel: Option<PathBuf>,
    /// Where fetched packages are kept.
    pub cache: PathBuf,
    /// Where the result is to lie.
    pub out: PathBuf,
}

/// Builds the image and its manifest.
///
/// # Errors
/// A recipe that makes no sense, a package that can't be had, a library that is missing, an agent that is not static.
pub fn build(request: &Request) -> Result<()> {
    let (recipe, text) = Recipe::read(&request.recipe)?;
    let agent = own(&request.agent)?;
    let helpers: Vec<_> = recipe.usr.helpers.iter().map(|name| request.agent.with_file_name(name)).collect();
    let unpacked = packages::unpack(&recipe.packages, &request.cache)?;
    let squashfs = squashfs(&usr(&recipe, &unpacked, &helpers)?)?;
    let initrd = cpio::archive(&root(&recipe, agent, squashfs)?)?;
    let path = request.out.join(format!("{}.initrd", recipe.name));
    manifest::publish(&path, &initrd)?;
    let kernel = match &request.kernel {
        Some(kernel) => Some(kernel_facts(kernel)?),
        None => None,
    };
    let facts = Image {
        name: recipe.name.clone(),
        recipe_sha256: manifest::digest(text.as_bytes()),
        packages: unpacked.inputs,
        agent: manifest::output(&request.agent)?,
        helpers: helpers.iter().map(|helper| manifest::output(helper)).collect::<Result<_>>()?,
        outputs: vec![manifest::output(&path)?],
        kernel,
    };
    manifest::publish_json(&request.out.join(format!("{}.manifest.json", recipe.name)), &facts)?;
    say(&format!("image: {} ({:.1} MB)", path.display(), initrd.len() as f64 / 1e6));
    Ok(())
}

/// A program of ours, which needs nothing else.
fn own(path: &Path) -> Result<Vec<u8>> {
    let bytes =
        fs::read(path).with_context(|| format!("read {} (make agent and make host build it)", path.display()))?;
    let needs = elf::needs(&bytes).with_context(|| path.display().to_string())?;
    ensure!(needs.interpreter.is_none(), "{} is not static: build it with make agent or make host", path.display());
    Ok(bytes)
}

fn kernel_facts(kernel: &Path) -> Result<serde_json::Value> {
    let path = kernel.with_extension("manifest.json");
    let text = fs::read_to_string(&path).with_context(|| format!("read {} (make kernel writes it)", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The root: the agent, the compressed part, and what the recipe says.
fn root(recipe: &Recipe, agent: Vec<u8>, squashfs: Vec<u8>) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.add("/init", Node::File(0o755, agent))?;
    tree.add("/usr", Node::Directory(0o755))?;
    tree.add("/usr.squashfs", Node::File(0o444, squashfs))?;
    // The kernel opens it for the first process before anything is mounted.
    tree.add("/dev/console", Node::Device(0o600, 5, 1))?;
    for directory in &recipe.directories {
        tree.add(&directory.path, Node::Directory(recipe::mode(&directory.mode)?))?;
    }
    for link in &recipe.symlinks {
        tree.add(&link.path, Node::Symlink(link.target.clone()))?;
    }
    for file in &recipe.files {
        tree.add(&file.path, Node::File(recipe::mode(&file.mode)?, file.content.clone().into_bytes()))?;
    }
    if !recipe.helpers.is_empty() {
        let table = serde_json::to_vec_pretty(&recipe.helpers).context("write the table of helpers")?;
        tree.add(HELPER_TABLE, Node::File(0o644, table))?;
    }
    Ok(tree)
}

/// What `/usr` holds: programs, the libraries they need, helpers, certificates.
fn usr(recipe: &Recipe, unpacked: &Unpacked, helpers: &[PathBuf]) -> Result<Tree> {
    let root = unpacked.root.path();
    let mut tree = Tree::default();
    let mut wanted = Vec::new();
    for program in &recipe.usr.programs {
        ensure!(program.starts_with("/usr/"), "{program}: programs must lie below /usr");
        let bytes = read_inside(root, program).with_context(|| format!("{program} (of which package?)"))?;
        let needs =
            if elf::is_elf(&bytes) { elf::needs(&bytes).with_context(|| program.clone())? } else { Default::default() };
        tree.add(program, Node::File(0o755, bytes))?;
        wanted.extend(needs.libraries.into_iter().map(|name| (name, program.clone())));
        if let Some(loader) = needs.interpreter {
            let name = Path::new(&loader).file_name().unwrap_or_default().to_string_lossy().into_owned();
            let link = format!("/usr{loader}");
            if !tree.iter().any(|(path, _)| format!("/{path}") == link) {
                tree.add(&link, Node::Symlink(format!("{LIBRARIES}/{name}")))?;
            }
            wanted.push((name, program.clone()));
        }
    }
    for (name, bytes) in closure(root, wanted)? {
        tree.add(&format!("{LIBRARIES}/{name}"), Node::File(0o755, bytes))?;
    }
    for helper in helpers {
        let name = helper.file_name().unwrap_or_default().to_string_lossy();
        tree.add(&format!("{HELPERS}/{name}"), Node::File(0o755, own(helper)?))?;
    }
    if let Some(certificates) = &recipe.usr.certificates {
        let bundle = bundle(root, &certificates.from)?;
        tree.add(&certificates.bundle, Node::File(0o644, bundle))?;
    }
    Ok(tree)
}

/// The libraries `wanted` (each with who wants it) and all that they need in turn, by name.
fn closure(root: &Path, mut wanted: Vec<(String, String)>) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    while let Some((name, by)) = wanted.pop() {
        if found.contains_key(&name) {
            continue;
        }
        ensure!(!name.contains('/'), "{by} needs {name:?}, which is no library's name");
        let places = ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib", "/lib", "/lib64"];
        let bytes = places
            .iter()
            .find_map(|dir| read_inside(root, &format!("{dir}/{name}")).ok())
            .with_context(|| format!("{by} needs {name}, which no package of the recipe has: add the one that does"))?;
        let needs = elf::needs(&bytes).with_context(|| name.clone())?;
        wanted.extend(needs.libraries.into_iter().map(|next| (next, name.clone())));
        found.insert(name, bytes);
    }
    Ok(found)
}

/// Reads a file of the unpacked packages; a link never leads out of them.
fn read_inside(root: &Path, path: &str) -> Result<Vec<u8>> {
    let mut todo: Vec<String> = parts(Path::new(path)).into_iter().rev().collect();
    let mut at: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        let here = root.join(at.join("/"));
        let meta = fs::symlink_metadata(&here).with_context(|| format!("/{} is missing", at.join("/")))?;
        if meta.is_symlink() {
            links += 1;
            ensure!(links <= MAX_LINKS, "{path}: too many symbolic links");
            let target = fs::read_link(&here)?;
            at.pop();
            if target.is_absolute() {
                at.clear();
            }
            todo.extend(parts(&target).into_iter().rev());
        }
    }
    let here = root.join(at.join("/"));
    fs::read(&here).with_context(|| format!("read /{}", at.join("/")))
}

fn parts(path: &Path) -> Vec<String> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// Every certificate of a directory, in the order of their names.
fn bundle(root: &Path, from: &str) -> Result<Vec<u8>> {
    let dir = root.join(parts(Path::new(from)).join("/"));
    let entries = fs::read_dir(&dir).with_context(|| format!("list the certificates in {from}"))?;
    let mut files: Vec<_> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "crt"));
    files.sort();
    if files.is_empty() {
        bail!("{from} holds no certificate");
    }
    let mut all = Vec::new();
    for file in files {
        all.extend(fs::read(&file).with_context(|| format!("read {}", file.display()))?);
        if !all.ends_with(b"\n") {
            all.push(b'\n');
        }
    }
    Ok(all)
}

/// Packs `/usr` of the tree. Owners, times and order are fixed, so the bytes depend on the tree alone.
fn squashfs(tree: &Tree) -> Result<Vec<u8>> {
    let work = tempfile::tempdir().context("make a directory to pack from")?;
    let root = work.path().join("root");
    fs::create_dir_all(root.join("usr")).context("make the tree")?;
    for (path, node) in tree.iter() {
        let to = root.join(path);
        let write = || -> Result<()> {
            match node {
                Node::Directory(mode) => {
                    fs::create_dir_all(&to)?;
                    fs::set_permissions(&to, fs::Permissions::from_mode(*mode))?;
                }
                Node::File(mode, bytes) => {
                    fs::write(&to, bytes)?;
                    fs::set_permissions(&to, fs::Permissions::from_mode(*mode))?;
                }
                Node::Symlink(target) => std::os::unix::fs::symlink(target, &to)?,
                Node::Device(..) => bail!("a device can't lie below /usr"),
            }
            Ok(())
        };
        write().with_context(|| format!("write /{path}"))?;
    }
    fs::set_permissions(root.join("usr"), fs::Permissions::from_mode(0o755)).context("make the tree")?;
    let out = work.path().join("usr.squashfs");
    run(Command::new("mksquashfs").env_remove("SOURCE_DATE_EPOCH").arg(root.join("usr")).arg(&out).args([
        "-comp",
        "zstd",
        "-Xcompression-level",
        "19",
        "-b",
        "131072",
        "-all-root",
        "-all-time",
        "0",
        "-mkfs-time",
        "0",
        "-no-xattrs",
        "-no-exports",
        "-noappend",
        "-no-progress",
        "-quiet",
    ]))
    .context("pack /usr (squashfs-tools has mksquashfs)")?;
    fs::read(&out).context("read the packed /usr")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_a_package_leads_nowhere_outside() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        fs::write(root.path().join("usr/lib/real"), "inside").unwrap();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, root.path().join("usr/lib").join(name)).unwrap()
        };
        link("real", "relative");
        link("/usr/lib/real", "absolute");
        link("../../../../../../usr/lib/real", "deep");
        link("/etc/passwd", "outside");
        link("loop", "loop");
        for good in ["real", "relative", "absolute", "deep"] {
            assert_eq!(read_inside(root.path(), &format!("/usr/lib/{good}")).unwrap(), b"inside", "{good}");
        }
        for bad in ["outside", "loop", "missing"] {
            assert!(read_inside(root.path(), &format!("/usr/lib/{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_library_that_no_package_has_is_named_with_who_wants_it() {
        let root = tempfile::tempdir().unwrap();
        let error = closure(root.path(), vec![("libx.so.1".into(), "/usr/bin/y".into())]).unwrap_err().to_string();
        assert!(error.starts_with("/usr/bin/y needs libx.so.1"), "{error}");
    }
}
