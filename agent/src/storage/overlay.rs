//! The overlay that makes one file system of an image's layers and a place to write.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use super::Error;
use super::directory::Directory;

/// What mount(2) takes of options, where the kernel does not know `lowerdir+` (before 6.7).
const MAX_DATA: usize = 4095;

/// Mount `layers`, the lowest first, on `target`; what is written goes to directories made in `scratch`, which is `scratch_path`.
pub fn mount(
    layers: &[PathBuf],
    scratch: &Directory,
    scratch_path: &Path,
    target: &Directory,
    mount_point: &Path,
) -> Result<(), Error> {
    let (upper, work, nothing) = (scratch_path.join("upper"), scratch_path.join("work"), scratch_path.join("nothing"));
    for directory in [&upper, &work, &nothing] {
        let made = fs::create_dir(Path::new(&scratch.path()).join(directory.file_name().unwrap_or_default()));
        made.map_err(|error| Error::system("make directory", directory, error))?;
    }
    // An image without layers is legal, an overlay without lower directories is not.
    let lower: Vec<&Path> = match layers {
        [] => vec![&nothing],
        layers => layers.iter().rev().map(PathBuf::as_path).collect(),
    };
    let mounted = match by_parts(&lower, &upper, &work, target) {
        Err(Errno::INVAL) => at_once(&lower, &upper, &work, target),
        other => other.map_err(io::Error::from),
    };
    mounted.map_err(|error| Error::system("mount the image's layers (type overlay) on", mount_point, error))
}

/// One call for each layer, so that their number does not matter.
fn by_parts(lower: &[&Path], upper: &Path, work: &Path, target: &Directory) -> Result<(), Errno> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&overlay, "source", "overlay")?;
    for layer in lower {
        fsconfig_set_string(&overlay, "lowerdir+", *layer)?;
    }
    fsconfig_set_string(&overlay, "upperdir", upper)?;
    fsconfig_set_string(&overlay, "workdir", work)?;
    fsconfig_create(&overlay)?;
    let mount = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(
        &mount,
        "",
        CWD,
        target.path(),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS,
    )
}

fn at_once(lower: &[&Path], upper: &Path, work: &Path, target: &Directory) -> io::Result<()> {
    let lower: Vec<_> = lower.iter().map(|layer| layer.to_string_lossy()).collect();
    let data = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    if data.len() > MAX_DATA {
        return Err(io::Error::new(
            io::ErrorKind::ArgumentListTooLong,
            format!("{} layers are more than this kernel mounts", lower.len()),
        ));
    }
    let data = CString::new(data)?;
    Ok(rustix::mount::mount("overlay", target.path(), "overlay", MountFlags::empty(), data.as_c_str())?)
}
