//! The overlay that makes one file system of an image's layers and a place to write.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use super::Error;
use super::directory::Directory;
use super::options::{MAX_DATA, Options};

/// Where an overlay is written.
#[derive(Debug, Clone, Copy)]
pub struct Writable<'a> {
    /// What is written.
    pub upper: &'a Directory,
    /// What overlayfs needs for it, on the same file system.
    pub work: &'a Directory,
}

/// Mount an image's `layers`, the lowest first, on `target`; what is written goes to directories made in `scratch`, which is `scratch_path`.
pub fn mount(
    layers: &[PathBuf],
    scratch: &Directory,
    scratch_path: &Path,
    target: &Directory,
    mount_point: &Path,
) -> Result<(), Error> {
    let made = |name: &str| {
        fs::create_dir(Path::new(&scratch.path()).join(name))
            .map_err(|error| Error::system("make directory", scratch_path.join(name), error))?;
        Directory::find(&scratch_path.join(name))
    };
    let (upper, work, nothing) = (made("upper")?, made("work")?, made("nothing")?);
    let failed = |error| Error::system("mount the image's layers (type overlay) on", mount_point, error);
    // A worker that an image has taken over may have left a link in a layer's place.
    let open = layers.iter().rev().map(|layer| Directory::open(layer)).collect::<Result<Vec<_>, _>>();
    let mut lower = open.map_err(|error| failed(error.into()))?;
    // An image without layers is legal, an overlay without lower directories is not.
    if lower.is_empty() {
        lower.push(nothing);
    }
    join(&lower, Some(Writable { upper: &upper, work: &work }), target, &Options::default()).map_err(failed)
}

/// Mount directories on `target`, the uppermost first.
pub fn join(
    lower: &[Directory],
    writable: Option<Writable<'_>>,
    target: &Directory,
    options: &Options,
) -> io::Result<()> {
    match by_parts(lower, writable, target, options) {
        // Before Linux 6.7 there is no `lowerdir+`.
        Err(Errno::INVAL | Errno::NOSYS) => at_once(lower, writable, target, options),
        other => other.map_err(io::Error::from),
    }
}

/// One call for each directory, so that there may be as many as an overlay takes: 500.
fn by_parts(
    lower: &[Directory],
    writable: Option<Writable<'_>>,
    target: &Directory,
    options: &Options,
) -> Result<(), Errno> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&overlay, "source", "overlay")?;
    for layer in lower {
        fsconfig_set_string(&overlay, "lowerdir+", layer.path())?;
    }
    if let Some(Writable { upper, work }) = writable {
        fsconfig_set_string(&overlay, "upperdir", upper.path())?;
        fsconfig_set_string(&overlay, "workdir", work.path())?;
    }
    for option in options.data.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&overlay, key, value)?,
            None => fsconfig_set_flag(&overlay, option)?,
        }
    }
    fsconfig_create(&overlay)?;
    let attributes = MountAttrFlags::from_bits_retain(options.attributes().set as u32);
    let mount = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(
        &mount,
        "",
        CWD,
        target.path(),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS,
    )
}

/// One string for all directories. Each is named by a descriptor: such names are short, and hold no colon or comma that would end them.
fn at_once(
    lower: &[Directory],
    writable: Option<Writable<'_>>,
    target: &Directory,
    options: &Options,
) -> io::Result<()> {
    let mut rest = String::new();
    if let Some(Writable { upper, work }) = writable {
        rest = format!(",upperdir={},workdir={}", upper.path(), work.path());
    }
    if !options.data.is_empty() {
        rest = format!("{rest},{}", options.data);
    }
    let mut data = String::from("lowerdir=");
    for (count, layer) in lower.iter().enumerate() {
        if count > 0 {
            data.push(':');
        }
        data.push_str(&layer.path());
        if data.len() + rest.len() > MAX_DATA {
            let wanted = lower.len();
            let reason = format!("there are {wanted} layers, this kernel mounts {count} (Linux 6.7 and later: 500)");
            return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, reason));
        }
    }
    let data = CString::new(data + &rest)?;
    Ok(rustix::mount::mount("overlay", target.path(), "overlay", options.flags, data.as_c_str())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use rustix::mount::{MountFlags, MountPropagationFlags, mount_change};

    /// A place for layers, and where to mount them.
    struct Place {
        dir: PathBuf,
        scratch: Directory,
        target: Directory,
    }

    impl Place {
        fn layers(&self, count: usize) -> Vec<PathBuf> {
            let layer = |number: usize| {
                let layer = self.dir.join(format!("{number:064x}"));
                fs::create_dir(&layer).unwrap();
                for name in ["all".to_string(), format!("own{number}")] {
                    fs::write(layer.join(name), number.to_string()).unwrap();
                }
                layer
            };
            (0..count).map(layer).collect()
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.dir.join("target").join(name)).unwrap()
        }

        /// Each layer's own file is there, and of those that all have, the topmost.
        fn check(&self, count: usize) {
            assert_eq!(self.text("all"), (count - 1).to_string());
            for number in 0..count {
                assert_eq!(self.text(&format!("own{number}")), number.to_string());
            }
            fs::write(self.dir.join("target/new"), "new").unwrap();
            assert_eq!(fs::read_to_string(self.dir.join("scratch/upper/new")).unwrap(), "new");
        }

        fn mount(&self, layers: &[PathBuf]) -> Result<(), Error> {
            mount(layers, &self.scratch, &self.dir.join("scratch"), &self.target, &self.dir.join("target"))
        }

        fn mount_at_once(&self, layers: &[PathBuf]) -> io::Result<()> {
            let made = |name| Directory::make(&self.dir.join("scratch").join(name)).unwrap();
            let (upper, work) = (made("upper"), made("work"));
            let lower: Vec<_> = layers.iter().rev().map(|layer| Directory::open(layer).unwrap()).collect();
            at_once(&lower, Some(Writable { upper: &upper, work: &work }), &self.target, &Options::default())
        }
    }

    /// Run `test` in a mount namespace of its own, on a tmpfs below a directory of this name, or say why not.
    fn on_tmpfs(name: &str, test: impl FnOnce(&Place) + Send) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        let run = || {
            // Only this thread moves, and it ends with the test.
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
                return println!("skipped: unshare(CLONE_NEWNS): {error}");
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            rustix::mount::mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), c"").unwrap();
            let made = |name| Directory::make(&dir.join(name)).unwrap();
            test(&Place { dir: dir.clone(), scratch: made("scratch"), target: made("target") });
        };
        std::thread::scope(|scope| scope.spawn(run).join().unwrap());
    }

    #[test]
    fn an_image_of_500_layers_is_mounted_and_its_topmost_files_are_seen() {
        on_tmpfs("a", |place| {
            // Linux before 6.7 has no way to do it.
            match place.mount(&place.layers(500)) {
                Err(error) if crate::chain(&error).contains("this kernel mounts") => println!("skipped: {error}"),
                other => {
                    other.unwrap();
                    place.check(500);
                }
            }
        });
    }

    #[test]
    fn an_older_kernel_mounts_200_layers_and_says_what_its_limit_is() {
        on_tmpfs("a:b,c", |place| {
            let layers = place.layers(240);
            place.mount_at_once(&layers[..200]).unwrap();
            place.check(200);
        });
        on_tmpfs("a", |place| {
            let error = place.mount_at_once(&place.layers(240)).unwrap_err().to_string();
            assert!(error.contains("are 240 layers, this kernel mounts 2"), "{error}");
        });
    }

    #[test]
    fn paths_that_are_too_long_for_one_way_go_the_other() {
        let name = format!("{}/{}", "n".repeat(200), "m".repeat(100));
        on_tmpfs(&name, |place| {
            place.mount(&place.layers(3)).unwrap();
            place.check(3);
        });
    }

    #[test]
    fn a_link_in_a_layers_place_is_not_followed() {
        on_tmpfs("a", |place| {
            let link = place.dir.join("link");
            std::os::unix::fs::symlink("/etc", &link).unwrap();
            assert!(place.mount(&[link]).is_err());
        });
    }

    #[test]
    fn an_image_without_layers_is_an_empty_directory() {
        on_tmpfs("a", |place| {
            place.mount(&[]).unwrap();
            assert!(fs::read_dir(place.dir.join("target")).unwrap().next().is_none());
        });
    }
}
