//! `/usr`, which an initramfs carries as one compressed image so that nothing of it has to be unpacked to boot.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

/// The image, in an initramfs that has one.
const IMAGE: &str = "/usr.squashfs";

/// `/usr` was not mounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image can't be read.
    #[error("open {IMAGE}")]
    Open(#[source] io::Error),
    /// No loop device.
    #[error("attach {IMAGE} to a loop device")]
    Attach(#[source] io::Error),
    /// The kernel does not take it.
    #[error("mount {IMAGE} on /usr (type squashfs)")]
    Mount(#[source] io::Error),
}

/// Mount the image on `/usr`, read-only. Says whether there is one.
pub fn mount_usr() -> Result<bool, Error> {
    let image = match File::open(IMAGE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(Error::Open)?,
    };
    let device = nacre_sys::loop_device::attach_read_only(&image).map_err(Error::Attach)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    mount(&device.path, Path::new("/usr"), "squashfs", flags, None).map_err(|error| Error::Mount(error.into()))?;
    Ok(true)
}
