//! Where the guest lies: beside `nacre` as installed, or where the user says.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The files that a VM is made from.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest image.
    pub image: PathBuf,
}

impl Layout {
    /// Finds everything, or says what is missing and how to get it.
    ///
    /// # Errors
    /// A file that is not there.
    pub fn find(kernel: Option<&Path>, image: Option<&Path>) -> Result<Layout> {
        let program = std::env::current_exe().context("find this program's own file")?;
        let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr/local"));
        let share = prefix.join("share/nacre");
        let or = |given: Option<&Path>, name: &str| given.map_or_else(|| share.join(name), Path::to_path_buf);
        let layout = Layout { kernel: or(kernel, "vmlinux"), image: or(image, "minimal.initrd") };
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
