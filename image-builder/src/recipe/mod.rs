//! What an image is to hold: a TOML file, what it extends, and all of it checked before anything is built.

mod helpers;
mod source;
mod users;
mod written;

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nacre_manifest::{CommandLine, command_line};
use toml::Spanned;

pub use helpers::{Helper, Restart};
pub use source::read_text;

use crate::manifest;
use crate::outputs::{KernelChoice, Outputs};
use crate::packages;
use crate::place::Place;
use crate::tree::{Node, Tree};
use source::Source;
use written::Written;

/// How many recipes may extend each other.
const MAX_DEPTH: usize = 8;

/// Where the agent is, and where it looks for programs of ours.
pub const AGENT: &str = "/init";
/// See [`AGENT`].
pub const HELPERS: &str = "/usr/libexec/nacre";

/// Files that the agent reads: processes that it is to run, what the host may ask for, whether there may be a debug console, and the words that
/// the host's command line can't take back.
const HELPER_TABLE: &str = "/etc/nacre/helpers.json";
const POLICY: &str = "/etc/nacre/policy.rego";
const DEBUG_CONSOLE: &str = "/etc/nacre/debug-console";
const SEALED: &str = "/etc/nacre/sealed";

/// How words for the agent begin.
const OURS: [&str; 3] = ["agent.", "kata.extension.", "nacre."];

/// A policy without rules allows nothing.
const DENY: &str = "package agent_policy\n";

/// What a debugged guest's kernel is told: a shell for whoever connects to this port.
const DEBUG_PARAMETERS: [&str; 2] = ["agent.debug_console", "agent.debug_console_vport=1026"];

/// A word and where it stands.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// Where.
    pub place: Place,
    /// The word.
    pub value: T,
}

/// A recipe, with what it extends.
#[derive(Debug, Default)]
pub struct Recipe {
    /// The image's name, and its files'.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// SHA-256 of its text, after the texts of what it extends.
    pub sha256: String,
    /// The Debian packages that files are taken from.
    pub packages: Vec<At<String>>,
    /// Programs of packages, by their paths. The libraries that they need come along, and nothing else.
    pub programs: Vec<At<String>>,
    /// Programs of ours, by their names: static ones that lie beside the agent.
    pub helpers: Vec<At<String>>,
    /// A directory of certificates, and the bundle that is made of it.
    pub certificates: Option<At<Certificates>>,
    /// Whatever else there is.
    pub entries: Vec<Entry>,
    /// What is made of it.
    pub outputs: Outputs,
    /// What its kernel is told.
    pub kernel: KernelChoice,
    table: Vec<At<Helper>>,
    users: Vec<At<users::User>>,
    policy: Policy,
    debug: bool,
}

/// Certificates to trust.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The directory of the packages that holds them, one `.crt` each.
    pub from: String,
    /// The bundle's path.
    pub bundle: String,
}

/// A path of the image.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Who asks for it: a place, or a word of the recipe's.
    pub by: String,
    /// Where it is.
    pub path: String,
    /// What stands there.
    pub content: Content,
}

/// What stands at a path.
#[derive(Debug, Clone)]
pub enum Content {
    /// Something that the recipe has itself.
    Own(Node),
    /// A file of a package, by its path there, with other permission bits where the recipe has some.
    Packaged(String, String, Option<u32>),
}

/// What the host may ask for.
#[derive(Debug, Default)]
enum Policy {
    #[default]
    Allow,
    Deny,
    Document(Vec<u8>),
}

impl Recipe {
    /// Reads a recipe and what it extends, and checks all that can be checked without a package.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn read(file: &Path) -> Result<Recipe> {
        Recipe::parse(file, read_text(file)?)
    }

    /// Parses the `text` of `file`, and reads what it extends.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(file: &Path, text: String) -> Result<Recipe> {
        let mut chain = vec![Source::parse(file, text)?];
        while let Some((source, written)) = chain.last()
            && let Some(base) = &written.extends
        {
            let place = source.place(base);
            ensure!(is_plain(base.get_ref()), place.fault("extends names a recipe that lies beside, without .toml"));
            let file = source.file.with_file_name(format!("{}.toml", base.get_ref()));
            ensure!(chain.iter().all(|(other, _)| other.file != file), place.fault("a recipe can't extend itself"));
            ensure!(chain.len() < MAX_DEPTH, place.fault(format!("more than {MAX_DEPTH} recipes extend each other")));
            let text = read_text(&file).with_context(|| format!("{place}: extends {:?}", base.get_ref()))?;
            chain.push(Source::parse(&file, text)?);
        }
        let mut recipe = Recipe::default();
        let mut texts = String::new();
        for (source, written) in chain.into_iter().rev() {
            texts.push_str(&source.text);
            recipe.extend(&source, written)?;
        }
        recipe.sha256 = manifest::digest(texts.as_bytes());
        recipe.finish()?;
        Ok(recipe)
    }

    /// Adds what a file says to what the files before it have said.
    fn extend(&mut self, source: &Source, written: Written) -> Result<()> {
        let name = source.word(&written.name);
        ensure!(is_plain(&name.value), name.place.fault("a name has small letters, digits and -"));
        self.name = name.value;
        self.description.clone_from(&written.description);
        for package in &written.packages {
            let package = source.word(package);
            let known = packages::is_name(&package.value);
            ensure!(known, package.place.fault(format!("{:?} is no Debian package's name", package.value)));
            if self.packages.iter().all(|other| other.value != package.value) {
                self.packages.push(package);
            }
        }
        for helper in &written.usr.helpers {
            let helper = source.word(helper);
            ensure!(is_plain(&helper.value), helper.place.fault(format!("{:?} is no program of ours", helper.value)));
            self.helpers.push(helper);
        }
        self.programs.extend(written.usr.programs.iter().map(|program| source.word(program)));
        if let Some(certificates) = &written.usr.certificates {
            let written::Certificates { from, bundle } = certificates.get_ref();
            let value = Certificates { from: from.clone(), bundle: bundle.get_ref().clone() };
            self.certificates = Some(source.at(bundle, value));
        }
        self.extend_entries(source, &written)?;
        for helper in written.helpers {
            self.table.push(helpers::checked(source, helper)?);
        }
        for user in &written.users {
            self.users.push(users::checked(source, user.get_ref())?);
        }
        if let Some(policy) = &written.policy {
            self.policy = match policy.get_ref().as_str() {
                "allow" => Policy::Allow,
                "deny" => Policy::Deny,
                file if file.ends_with(".rego") => Policy::Document(source.beside(policy)?),
                _ => bail!(
                    source.place(policy).fault("a policy is \"allow\", \"deny\" or a file *.rego beside the recipe")
                ),
            };
        }
        self.debug = written.debug.unwrap_or(self.debug);
        self.outputs = written.outputs.unwrap_or_else(|| self.outputs.clone());
        self.kernel.image = written.kernel.image.unwrap_or(self.kernel.image);
        for word in &written.kernel.parameters {
            let word = source.word(word);
            let alone = [word.value.clone()];
            let usable = command_line(&CommandLine { parameters: &alone, ..CommandLine::default() });
            usable.map_err(|error| word.place.fault(error.to_string()))?;
            self.kernel.parameters.push(word.value);
        }
        Ok(())
    }

    fn extend_entries(&mut self, source: &Source, written: &Written) -> Result<()> {
        for directory in &written.directories {
            let directory = directory.get_ref();
            let mode = directory.mode.as_ref().map_or(Ok(0o755), |mode| source.mode(mode))?;
            self.add(source, &directory.path, Content::Own(Node::Directory(mode)));
        }
        for link in &written.symlinks {
            let written::Symlink { path, target } = link.get_ref();
            let is_whole = !target.get_ref().is_empty() && !target.get_ref().contains('\0');
            ensure!(is_whole, source.place(target).fault("a link leads somewhere"));
            self.add(source, path, Content::Own(Node::Symlink(target.get_ref().clone())));
        }
        for file in &written.files {
            self.add(source, &file.get_ref().path, content_of(source, file)?);
        }
        Ok(())
    }

    fn add(&mut self, source: &Source, path: &Spanned<String>, content: Content) {
        let by = source.place(path).to_string();
        self.entries.push(Entry { by, path: path.get_ref().clone(), content });
    }

    /// What follows from the whole, and whether it fits together.
    fn finish(&mut self) -> Result<()> {
        if self.debug {
            self.kernel.parameters.extend(DEBUG_PARAMETERS.map(String::from));
            self.own("debug", DEBUG_CONSOLE, Vec::new());
        }
        let document = match &self.policy {
            Policy::Allow => None,
            Policy::Deny => Some(DENY.as_bytes().to_vec()),
            Policy::Document(text) => Some(text.clone()),
        };
        if let Some(document) = document {
            self.own("policy", POLICY, document);
            let is_ours = |word: &&String| OURS.iter().any(|prefix| word.starts_with(prefix));
            let words: Vec<_> = self.kernel.parameters.iter().filter(is_ours).cloned().collect();
            self.own("policy", SEALED, format!("{}\n", words.join(" ")).into_bytes());
        }
        let (passwd, group) = users::accounts(&self.users)?;
        self.own("users", "/etc/passwd", passwd.into_bytes());
        self.own("users", "/etc/group", group.into_bytes());
        let plan = self.plan()?;
        helpers::check(&self.table, &plan)?;
        if !self.table.is_empty() {
            let helpers: Vec<_> = self.table.iter().map(|helper| &helper.value).collect();
            let table = serde_json::to_vec_pretty(&helpers).context("write the table of helpers")?;
            self.own("helpers", HELPER_TABLE, table);
        }
        Ok(())
    }

    /// Adds a file that the recipe asks for in other words.
    fn own(&mut self, by: &str, path: &str, bytes: Vec<u8>) {
        let content = Content::Own(Node::File(0o644, bytes));
        self.entries.push(Entry { by: format!("{by} of {}", self.name), path: path.into(), content });
    }

    /// The tree as far as its paths go: two owners of a path are found before anything is fetched.
    fn plan(&self) -> Result<Tree> {
        let mut tree = Tree::default();
        let file = || Node::File(0o755, Vec::new());
        tree.add_from("the agent", AGENT, file())?;
        for entry in &self.entries {
            let node = if let Content::Own(node) = &entry.content { node.clone() } else { file() };
            tree.add_from(&entry.by, &entry.path, node)?;
        }
        for program in &self.programs {
            ensure!(program.value.starts_with("/usr/"), program.place.fault("programs lie below /usr"));
            tree.add_from(&program.place.to_string(), &program.value, file())?;
        }
        for helper in &self.helpers {
            tree.add_from(&helper.place.to_string(), &format!("{HELPERS}/{}", helper.value), file())?;
        }
        if let Some(certificates) = &self.certificates {
            let bundle = &certificates.value.bundle;
            ensure!(bundle.starts_with("/usr/"), certificates.place.fault("the certificates' bundle lies below /usr"));
            tree.add_from(&certificates.place.to_string(), bundle, file())?;
        }
        Ok(tree)
    }
}

fn content_of(source: &Source, file: &Spanned<written::File>) -> Result<Content> {
    let written::File { path, mode, content, source: beside, package, from } = file.get_ref();
    let mode = mode.as_ref().map(|mode| source.mode(mode)).transpose()?;
    let own = |bytes| Content::Own(Node::File(mode.unwrap_or(0o644), bytes));
    Ok(match (content, beside, package, from) {
        (Some(text), None, None, None) => own(text.clone().into_bytes()),
        (None, Some(name), None, None) => own(source.beside(name)?),
        (None, None, Some(package), from) => {
            Content::Packaged(package.get_ref().clone(), from.as_ref().unwrap_or(path).get_ref().clone(), mode)
        }
        _ => bail!(
            source
                .place(path)
                .fault("a file has content, a source, or a package (and from, if it has another path there)")
        ),
    })
}

/// Whether `name` can be a file's without surprises.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

#[cfg(test)]
mod tests;
