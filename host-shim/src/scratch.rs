//! The disk on which a guest keeps what its memory is too small for.
//!
//! A sparse file without a name: it is gone when nobody has it open any more, however that comes about. What the guest writes there is encrypted.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nacre_protocol::disk;

use crate::size::Size;
use crate::vmm::Disk;

/// The file. It must be there until the VM is up.
#[derive(Debug)]
pub struct Scratch(File);

impl Scratch {
    /// Makes it in `dir`.
    ///
    /// # Errors
    /// A directory that takes no file, or none of this size.
    pub fn create(dir: &Path, size: Size) -> Result<Scratch> {
        let act = || format!("make a scratch disk of {size} in {} (--scratch-dir says where else)", dir.display());
        let file = tempfile::tempfile_in(dir).with_context(act)?;
        file.set_len(size.bytes()).with_context(act)?;
        Ok(Scratch(file))
    }

    /// As the VM has it.
    pub fn disk(&self) -> Disk {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        Disk { path: path.into(), serial: disk::SCRATCH.into(), read_only: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_no_space_and_has_no_name() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(dir.path(), Size::mib(1024)).unwrap();
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
        let seen = std::fs::metadata(scratch.disk().path).unwrap();
        assert_eq!((seen.len(), seen.blocks()), (1 << 30, 0));
        assert!(
            Scratch::create(&dir.path().join("none"), Size::mib(1)).unwrap_err().to_string().contains("--scratch-dir")
        );
    }
}
