//! What an image's manifest says, and the command line that its kernel gets.
//!
//! The builder writes both, the host boots by them, and a verifier compares them with what was measured: one blank more is another
//! measurement. So there is one account of them, and this is it.

pub mod command_line;

use serde::{Deserialize, Serialize};

pub use command_line::{CommandLine, Machine, command_line};

/// A file and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// The file's name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
}

/// A Debian package that went in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The package's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the `.deb`, in hex.
    pub sha256: String,
}

/// A dm-verity tree of SHA-256 over blocks of 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verity {
    /// How many blocks of data there are.
    pub data_blocks: u64,
    /// The block of the hash device where the tree begins.
    pub hash_start: u64,
    /// The root hash, in hex.
    pub root_hash: String,
    /// The salt, in hex.
    pub salt: String,
}

/// The root file system of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Its type, as mount(2) has it.
    pub filesystem: String,
    /// What it must hold.
    pub verity: Verity,
    /// The GUID of the partition with the file system.
    pub data_partition: String,
    /// The GUID of the partition with the hashes.
    pub hash_partition: String,
}

/// What `NAME.manifest.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The recipe's name.
    pub name: String,
    /// SHA-256 of the recipe's text.
    pub recipe_sha256: String,
    /// The packages, by name.
    pub packages: Vec<Input>,
    /// The agent's binary.
    pub agent: Output,
    /// The other programs of ours.
    pub helpers: Vec<Output>,
    /// What was built.
    pub outputs: Vec<Output>,
    /// The kernel's own manifest, where a kernel was named.
    pub kernel: Option<Kernel>,
    /// The image's own words for the kernel.
    #[serde(default)]
    pub parameters: Vec<String>,
    /// The disk's root, where there is a disk.
    #[serde(default)]
    pub root: Option<Root>,
    /// What the extension must hold, where this is one.
    #[serde(default)]
    pub extension: Option<Verity>,
    /// The whole command lines on a PC, which is what a confidential guest runs on.
    #[serde(default)]
    pub command_lines: CommandLines,
}

/// What the kernel is told, by what it boots from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandLines {
    /// With the initrd.
    pub initrd: Option<String>,
    /// With the disk.
    pub disk: Option<String>,
}

impl Manifest {
    /// Reads one. A word that is not known is an error: it may well say how to verify the rest.
    ///
    /// # Errors
    /// Text that is no manifest of this version.
    pub fn parse(text: &str) -> serde_json::Result<Manifest> {
        serde_json::from_str(text)
    }
}

/// What the kernel's manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Debian's version of the source.
    pub source_version: String,
    /// SHA-256 of the source's archive.
    pub source_sha256: String,
    /// SHA-256 of the final configuration.
    pub config_sha256: String,
    /// The first line of the compiler's and the linker's version.
    pub toolchain: Vec<String>,
    /// The kernel is loaded where it was linked: no boot-time randomisation without a decompressor.
    pub kaslr: bool,
    /// What was built.
    pub outputs: Vec<Output>,
}
