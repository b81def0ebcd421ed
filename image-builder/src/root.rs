//! The tree of an image: nothing but what its recipe names, and the libraries without which that would not run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::elf::{self, Needs};
use crate::packages::Contents;
use crate::recipe::{AGENT, Content, HELPERS, Recipe};
use crate::tree::{Node, Tree};

/// Where libraries go, and where Debian's loader looks for them.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const PLACES: [&str; 3] = [LIBRARIES, "/usr/lib", "/usr/lib64"];

/// Permission bits that files of packages keep. Nothing of theirs runs with another's rights.
const KEPT: u32 = 0o755;

/// Makes the tree of `recipe`: `agent`, the programs of ours in `helpers` by their files, and what `contents` has of the rest.
///
/// # Errors
/// A file that no package has, a library that is missing, a path that two ask for.
pub fn tree(recipe: &Recipe, contents: &Contents, agent: Vec<u8>, helpers: Vec<(PathBuf, Vec<u8>)>) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.add_from("the agent", AGENT, Node::File(0o755, agent))?;
    for entry in &recipe.entries {
        let node = node(&entry.content, contents).with_context(|| entry.by.clone())?;
        tree.add_from(&entry.by, &entry.path, node)?;
    }
    programs(recipe, contents, &mut tree)?;
    for (file, bytes) in helpers {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        tree.add_from("our programs", &format!("{HELPERS}/{name}"), Node::File(0o755, bytes))?;
    }
    if let Some(certificates) = &recipe.certificates {
        let by = certificates.place.to_string();
        let bundle = bundle(contents, &certificates.value.from).with_context(|| by.clone())?;
        tree.add_from(&by, &certificates.value.bundle, Node::File(0o644, bundle))?;
    }
    Ok(tree)
}

fn node(content: &Content, contents: &Contents) -> Result<Node> {
    Ok(match content {
        Content::Own(node) => node.clone(),
        Content::Packaged(package, from, mode) => {
            let (packaged, bytes) = contents.file_of(package, from)?;
            Node::File(mode.unwrap_or(packaged & KEPT), bytes.to_vec())
        }
    })
}

/// Programs, whatever they are called by in the package, and their libraries.
fn programs(recipe: &Recipe, contents: &Contents, tree: &mut Tree) -> Result<()> {
    let mut wanted = Vec::new();
    for program in &recipe.programs {
        let (by, path) = (program.place.to_string(), &program.value);
        let (_, bytes) = contents.file(path).with_context(|| format!("{by}: {path} is in no package of the recipe"))?;
        let needs = needs(bytes).with_context(|| format!("{by}: {path}"))?;
        tree.add_from(&by, path, Node::File(0o755, bytes.to_vec()))?;
        wanted.extend(needs.libraries.into_iter().map(|name| (name, path.clone())));
        if let Some(loader) = needs.interpreter {
            let name = Path::new(&loader).file_name().unwrap_or_default().to_string_lossy().into_owned();
            let link = if loader.starts_with("/usr/") { loader.clone() } else { format!("/usr{loader}") };
            if !tree.contains(&link) {
                tree.add_from(&by, &link, Node::Symlink(format!("{LIBRARIES}/{name}")))?;
            }
            wanted.push((name, path.clone()));
        }
    }
    for (name, bytes) in closure(contents, wanted)? {
        let path = format!("{LIBRARIES}/{name}");
        // The recipe may have it from somewhere else.
        if !tree.contains(&path) {
            tree.add_from("the libraries of programs", &path, Node::File(0o755, bytes))?;
        }
    }
    Ok(())
}

/// A script needs nothing that could be read off it.
fn needs(program: &[u8]) -> Result<Needs> {
    if elf::is_elf(program) { elf::needs(program) } else { Ok(Needs::default()) }
}

/// The libraries `wanted` (each with who wants it) and all that they need in turn, by name.
fn closure(contents: &Contents, mut wanted: Vec<(String, String)>) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    while let Some((name, by)) = wanted.pop() {
        if found.contains_key(&name) {
            continue;
        }
        ensure!(!name.contains('/'), "{by} needs {name:?}, which is no library's name");
        let (_, bytes) = PLACES
            .iter()
            .find_map(|place| contents.file(&format!("{place}/{name}")).ok())
            .with_context(|| format!("{by} needs {name}, which no package of the recipe has: add the one that does"))?;
        let needs = elf::needs(bytes).with_context(|| name.clone())?;
        wanted.extend(needs.libraries.into_iter().map(|next| (next, name.clone())));
        found.insert(name, bytes.to_vec());
    }
    Ok(found)
}

/// Every certificate of a directory, in the order of their names.
fn bundle(contents: &Contents, from: &str) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for certificate in contents.below(from, ".crt")? {
        all.extend_from_slice(certificate);
        if !all.ends_with(b"\n") {
            all.push(b'\n');
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_no_package_has_is_named_with_who_wants_it() {
        let wanted = vec![("libx.so.1".into(), "/usr/bin/y".into())];
        let error = closure(&Contents::default(), wanted).unwrap_err().to_string();
        assert!(error.starts_with("/usr/bin/y needs libx.so.1"), "{error}");
    }
}
