//! Where the guest lies: beside `nacre` as installed, or where the user says.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nacre_manifest::{Manifest, Root};

/// The files that a VM is made from.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The guest kernel. Firmware finds it in the image.
    pub kernel: PathBuf,
    /// The guest image.
    pub image: PathBuf,
    /// What its builder says of it. An initrd does without.
    pub manifest: Option<Manifest>,
}

/// What an image is, which its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form<'a> {
    /// An archive that the kernel unpacks.
    Initrd,
    /// A disk with such a root.
    Disk(&'a Root),
    /// A program for firmware, with all that boots but the root where that is on the disk beside it.
    Firmware,
}

impl Layout {
    /// The guest of `kernel` and `image`, with the manifest that lies beside the image.
    ///
    /// # Errors
    /// A manifest that can't be read.
    pub fn of(kernel: PathBuf, image: PathBuf) -> Result<Layout> {
        let path = image.with_extension("manifest.json");
        let manifest = match std::fs::read_to_string(&path) {
            Ok(text) => Some(Manifest::parse(&text).with_context(|| path.display().to_string())?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Layout { kernel, image, manifest })
    }

    /// What the image is.
    ///
    /// # Errors
    /// A disk without the manifest that says what its root must hold.
    pub fn form(&self) -> Result<Form<'_>> {
        match self.image.extension().and_then(|extension| extension.to_str()) {
            Some("disk") => {
                let root = self.manifest.as_ref().and_then(|manifest| manifest.root.as_ref());
                let name = self.image.display();
                root.map(Form::Disk)
                    .with_context(|| format!("{name}: no manifest beside it says what its root must hold"))
            }
            Some("efi") => Ok(Form::Firmware),
            _ => Ok(Form::Initrd),
        }
    }

    /// The disk that the guest's root is on.
    ///
    /// # Errors
    /// As [`Layout::form`].
    pub fn root_disk(&self) -> Result<Option<PathBuf>> {
        let on_disk = self.manifest.as_ref().is_some_and(|manifest| manifest.root.is_some());
        Ok(match self.form()? {
            Form::Disk(_) => Some(self.image.clone()),
            Form::Firmware if on_disk => Some(self.image.with_extension("disk")),
            Form::Firmware | Form::Initrd => None,
        })
    }

    /// Finds everything, or says what is missing and how to get it.
    ///
    /// # Errors
    /// A file that is not there.
    pub fn find(kernel: Option<&Path>, image: Option<&Path>) -> Result<Layout> {
        let program = std::env::current_exe().context("find this program's own file")?;
        let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr/local"));
        let share = prefix.join("share/nacre");
        let or = |given: Option<&Path>, name: &str| given.map_or_else(|| share.join(name), Path::to_path_buf);
        let layout = Layout::of(or(kernel, "vmlinux"), or(image, "minimal.initrd"))?;
        for (what, path) in [("the guest kernel", &layout.kernel), ("the guest image", &layout.image)] {
            if !path.is_file() {
                bail!(
                    "{what} is missing: there is no {}; make image builds it, or say where it is (nacre run --help)",
                    path.display()
                );
            }
        }
        Ok(layout)
    }
}
