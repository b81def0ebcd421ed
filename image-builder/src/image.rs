//! From a recipe to an image: packages, a tree of what the recipe names, the files that a VM boots from, and their manifest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::lock::{self, Lock};
use crate::manifest::{self, Input, Kernel, Manifest};
use crate::outputs::{self, Job};
use crate::packages;
use crate::recipe::Recipe;
use crate::run::say;
use crate::sbom::{self, Crates};
use crate::tree::{Node, Tree};
use crate::{elf, root};

/// Where the agent looks for what the image relies on.
const REQUIRED: &str = "/etc/nacre/required.json";

/// What to build.
#[derive(Debug)]
pub struct Request {
    /// The recipe's file.
    pub recipe: PathBuf,
    /// Take the packages that the lock beside the recipe names, and no others.
    pub locked: bool,
    /// The agent's binary. Helpers lie beside it.
    pub agent: PathBuf,
    /// The kernel that will boot the image, to be named in the manifest.
    pub kernel: Option<PathBuf>,
    /// Where fetched packages are kept.
    pub cache: PathBuf,
    /// Where the result is to lie.
    pub out: PathBuf,
    /// Where the lists of our programs' crates are, and Cargo.lock: then there are bills of materials.
    pub crates: Option<(PathBuf, PathBuf)>,
}

/// Builds the image and its manifest.
///
/// # Errors
/// A recipe that makes no sense, a package that can't be had, a library that is missing, an agent that is not static.
pub fn build(request: &Request) -> Result<()> {
    let recipe = Recipe::read(&request.recipe)?;
    say(&format!("image: {}: {}", recipe.name, recipe.description));
    let agent = own(&request.agent)?;
    let helpers: Vec<_> = recipe.helpers.iter().map(|name| request.agent.with_file_name(&name.value)).collect();
    let ours = helpers.iter().map(|file| Ok((file.clone(), own(file)?))).collect::<Result<_>>()?;
    let lock =
        if request.locked { Lock::read(&lock::beside(&request.recipe))? } else { Lock::today(&recipe.packages)? };
    let packages = lock.take(&recipe.packages)?;
    let mut tree = root::tree(&recipe, &packages::contents(&packages, &lock.archives, &request.cache)?, agent, ours)?;
    if let Some(kernel) = request.kernel.as_deref().filter(|_| recipe.outputs.extension.is_none()) {
        add_required(&mut tree, kernel)?;
    }
    let parameters = &recipe.kernel.parameters;
    let bz_image = request.kernel.as_deref().map(|kernel| kernel.with_file_name("bzImage"));
    let (name, outputs, bz_image) = (&*recipe.name, &recipe.outputs, bz_image.as_deref());
    let packed = outputs::pack(&Job { name, tree: &tree, outputs, parameters, bz_image })?;
    let mut files = Vec::new();
    for (name, bytes) in &packed.files {
        let path = request.out.join(name);
        manifest::publish(&path, bytes)?;
        files.push(manifest::output(&path)?);
        say(&format!("image: {} ({:.1} MB)", path.display(), bytes.len() as f64 / 1e6));
    }
    let kernel = request.kernel.as_deref().map(kernel_facts).transpose()?;
    if let Some((lists, cargo_lock)) = &request.crates {
        let programs: Vec<_> = [&request.agent].into_iter().chain(&helpers).map(PathBuf::as_path).collect();
        let made = sbom::Made {
            name,
            outputs: &files,
            packages: &packages,
            programs: &programs,
            crates: &Crates::read(lists, cargo_lock)?,
            kernel: kernel.as_ref(),
        };
        for (end, document) in sbom::documents(&made)? {
            let path = request.out.join(format!("{name}.{end}"));
            manifest::publish_json(&path, &document)?;
            files.push(manifest::output(&path)?);
        }
    }
    let facts = Manifest {
        name: recipe.name.clone(),
        recipe_sha256: recipe.sha256,
        packages: packages.into_iter().map(|p| Input { name: p.name, version: p.version, sha256: p.sha256 }).collect(),
        agent: manifest::output(&request.agent)?,
        helpers: helpers.iter().map(|helper| manifest::output(helper)).collect::<Result<_>>()?,
        outputs: files,
        kernel,
        parameters: parameters.clone(),
        root: packed.root,
        extension: packed.extension,
        command_lines: packed.command_lines,
    };
    manifest::publish_json(&request.out.join(format!("{}.manifest.json", recipe.name)), &facts)
}

/// A program of ours, which needs nothing else.
fn own(path: &Path) -> Result<Vec<u8>> {
    let bytes =
        fs::read(path).with_context(|| format!("read {} (make agent and make host build it)", path.display()))?;
    let needs = elf::needs(&bytes).with_context(|| path.display().to_string())?;
    ensure!(needs.interpreter.is_none(), "{} is not static: build it with make agent or make host", path.display());
    Ok(bytes)
}

/// What the image relies on of its kernel, for the agent to look for at boot.
fn add_required(tree: &mut Tree, kernel: &Path) -> Result<()> {
    let path = kernel.with_file_name("required.json");
    let table = fs::read(&path).with_context(|| format!("read {} (make kernel writes it)", path.display()))?;
    tree.add(REQUIRED, Node::File(0o644, table))
}

fn kernel_facts(kernel: &Path) -> Result<Kernel> {
    let path = kernel.with_extension("manifest.json");
    let text = fs::read_to_string(&path).with_context(|| format!("read {} (make kernel writes it)", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
