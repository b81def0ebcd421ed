//! What is made of a tree: the files that a VM boots from.
//!
//! Each is a function of the tree and of what the recipe asks for. Nothing here takes privileges or a loop device.

pub mod compress;
pub mod contents;
pub mod cpio;
pub mod disk;
mod erofs;
mod ext4;
mod extension;
pub mod gpt;
pub mod identity;
mod initrd;
pub mod pe;
mod squashfs;
mod staging;
pub mod uki;
pub mod verity;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nacre_manifest::{CommandLine, CommandLines, Machine, Root, Verity, command_line};
use serde::Deserialize;

pub use disk::Disk;
pub use extension::Extension;
pub use initrd::Initrd;

use crate::tree::Tree;

/// The outputs that a recipe asks for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outputs {
    /// An archive that the kernel unpacks to memory.
    pub initrd: Option<Initrd>,
    /// A disk whose root is verified as it is read.
    pub disk: Option<Disk>,
    /// One program for UEFI firmware, of the kernel, its command line, and the initrd where no disk is asked for.
    #[serde(default)]
    pub uki: bool,
    /// A file system that guests mount beside their root.
    pub extension: Option<Extension>,
}

impl Default for Outputs {
    fn default() -> Outputs {
        Outputs { initrd: Some(Initrd::default()), disk: None, uki: false, extension: None }
    }
}

/// A recipe's word on the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelChoice {
    /// Which of the two the image boots with.
    #[serde(default)]
    pub image: KernelImage,
    /// Words for its command line.
    #[serde(default)]
    pub parameters: Vec<String>,
}

/// A form of the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum KernelImage {
    /// Uncompressed: nothing boots faster.
    #[default]
    #[serde(rename = "vmlinux")]
    Vmlinux,
    /// Compressed: fewer bytes are to be measured, and firmware can start it.
    #[serde(rename = "bzImage")]
    BzImage,
}

/// What to pack.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The image's name.
    pub name: &'a str,
    /// What it holds.
    pub tree: &'a Tree,
    /// In what forms.
    pub outputs: &'a Outputs,
    /// Its words for the kernel.
    pub parameters: &'a [String],
    /// The compressed kernel, for the program for firmware.
    pub bz_image: Option<&'a Path>,
}

/// What was packed.
#[derive(Debug, Default)]
pub struct Packed {
    /// Files by their names.
    pub files: Vec<(String, Vec<u8>)>,
    /// The disk's root.
    pub root: Option<Root>,
    /// The extension's content.
    pub extension: Option<Verity>,
    /// The whole command lines on a PC.
    pub command_lines: CommandLines,
}

/// Packs the tree in every form that is asked for.
///
/// # Errors
/// A form that can't hold the tree, a tool that is missing or failed.
pub fn pack(job: &Job<'_>) -> Result<Packed> {
    let mut packed = Packed::default();
    let line = |root| {
        command_line(&CommandLine { machine: Machine::Pc, parameters: job.parameters, root, ..CommandLine::default() })
    };
    if let Some(initrd) = job.outputs.initrd {
        packed.files.push((format!("{}.initrd", job.name), initrd.pack(job.tree)?));
        packed.command_lines.initrd = Some(line(None)?);
    }
    if let Some(disk) = job.outputs.disk {
        let (bytes, root) = disk.pack(job.tree)?;
        packed.files.push((format!("{}.disk", job.name), bytes));
        packed.command_lines.disk = Some(line(Some(&root))?);
        packed.root = Some(root);
    }
    if job.outputs.uki {
        packed.files.push((format!("{}.efi", job.name), uki(job, &packed)?));
    }
    if let Some(extension) = &job.outputs.extension {
        let (bytes, verity) = extension.pack(job.tree)?;
        packed.files.push((format!("{}.extension", job.name), bytes));
        packed.extension = Some(verity);
    }
    ensure!(!packed.files.is_empty(), "[outputs] asks for nothing");
    Ok(packed)
}

/// What is verified as it is read comes before what has to be measured as a whole.
fn uki(job: &Job<'_>, packed: &Packed) -> Result<Vec<u8>> {
    let kernel = job.bz_image.context("[outputs] uki takes a kernel: say --kernel FILE")?;
    let kernel = fs::read(kernel).with_context(|| format!("read {} (make kernel writes it)", kernel.display()))?;
    let (line, initrd) = match (&packed.command_lines.disk, packed.files.first()) {
        (Some(line), _) => (line, None),
        (None, Some((_, initrd))) => {
            (packed.command_lines.initrd.as_ref().context("no command line")?, Some(&**initrd))
        }
        (None, None) => bail!("[outputs] uki takes an initrd or a disk to boot from"),
    };
    uki::pack(&uki::Parts { name: job.name, kernel: &kernel, command_line: line, initrd })
}
