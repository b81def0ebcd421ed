//! Directories of the guest's on top of each other.

use std::path::{Path, PathBuf};

use nacre_protocol::agent::Storage;

use crate::storage::directory::{self, Directory};
use crate::storage::options::{Data, Options};
use crate::storage::overlay::{self, Writable};
use crate::storage::undo::{Steps, Undo};
use crate::storage::{Error, invalid};

/// The option that asks for a place to write.
const READ_WRITE: &str = "io.katacontainers.fs-opt.overlay-rw";

/// The driver's option that asks for a directory to be made before.
const CREATE: &str = "io.katacontainers.volume.overlayfs.create_directory=";

/// The most directories: overlayfs's own limit.
const MAX_LOWER: usize = 500;

/// The most directories that are made before.
const MAX_CREATED: usize = 64;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// The uppermost first.
    lower: Vec<PathBuf>,
    /// Where is written, and where overlayfs works.
    upper: Option<(PathBuf, PathBuf)>,
    options: Options,
}

/// Mount it. What is written to is below `root`, which is the host's; where a place to write is asked for, it is `scratch`, a directory that is not there yet. Blocks.
pub fn make(storage: &Storage, at: &Path, root: &Path, scratch: &Path) -> Result<Steps, Error> {
    let wanted = Wanted::parse(&storage.options, scratch).map_err(|reason| invalid(storage, reason))?;
    let mut steps = Steps::default();
    let created = created(storage)?;
    let theirs = wanted.upper.iter().flat_map(|(upper, work)| [upper, work]).filter(|path| !path.starts_with(scratch));
    if let Some(path) = created.iter().chain(theirs).find(|path| !path.starts_with(root)) {
        return Err(invalid(storage, format!("{path:?}, which is made or written to, is not below {root:?}")));
    }
    for directory in created {
        let was_there = directory::find(&directory).is_ok();
        Directory::make(&directory)?;
        if !was_there {
            steps.push(Undo::Empty(directory));
        }
    }
    if wanted.upper.as_ref().is_some_and(|(upper, _)| upper.starts_with(scratch)) {
        Directory::make(scratch)?;
        steps.push(Undo::Tree(scratch.into()));
    }
    let upper = match &wanted.upper {
        Some((upper, work)) if upper.starts_with(scratch) => Some((Directory::make(upper)?, Directory::make(work)?)),
        Some((upper, work)) => Some((Directory::find(upper)?, Directory::find(work)?)),
        None => None,
    };
    let lower = wanted.lower.iter().map(|path| Directory::find(path)).collect::<Result<Vec<_>, _>>()?;
    let target = Directory::make(at)?;
    steps.push(Undo::Empty(at.into()));
    let writable = upper.as_ref().map(|(upper, work)| Writable { upper, work });
    overlay::join(&lower, writable, &target, &wanted.options)
        .map_err(|error| Error::mount(Path::new("overlay"), at, "overlay", error))?;
    steps.push(Undo::Mount(at.into()));
    Ok(steps)
}

/// The directories that are to be made first.
fn created(storage: &Storage) -> Result<Vec<PathBuf>, Error> {
    let paths = storage.driver_options.iter().filter_map(|option| option.strip_prefix(CREATE));
    let paths: Vec<PathBuf> = paths
        .map(|path| directory::parse(path).map_err(|reason| invalid(storage, format!("{CREATE} {reason}"))))
        .collect::<Result<_, _>>()?;
    match paths.len() {
        0..=MAX_CREATED => Ok(paths),
        many => Err(invalid(storage, format!("{many} directories to be made; at most {MAX_CREATED} are"))),
    }
}

impl Wanted {
    fn parse(options: &[String], scratch: &Path) -> Result<Wanted, String> {
        let (mut lower, mut upper, mut work, mut rest) = (Vec::new(), None, None, Vec::new());
        let path = |text: &str| directory::parse(text).map_err(|reason| format!("the directory {text:?} {reason}"));
        for option in options {
            match option.split_once('=') {
                _ if option == READ_WRITE => {
                    (upper, work) = (Some(scratch.join("upper")), Some(scratch.join("work")));
                }
                Some(("lowerdir", paths)) => {
                    lower = paths.split(':').take(MAX_LOWER + 1).map(path).collect::<Result<_, _>>()?;
                }
                Some(("upperdir", text)) => upper = Some(path(text)?),
                Some(("workdir", text)) => work = Some(path(text)?),
                _ => rest.push(option.clone()),
            }
        }
        if lower.is_empty() || lower.len() > MAX_LOWER {
            return Err(format!("lowerdir: 1 to {MAX_LOWER} directories are expected"));
        }
        let options = Options::parse(&rest, Data::Any)?;
        match (upper, work) {
            (Some(upper), Some(work)) => Ok(Wanted { lower, upper: Some((upper, work)), options }),
            (None, None) => Ok(Wanted { lower, upper: None, options }),
            _ => Err("upperdir and workdir go together".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Wanted, String> {
        Wanted::parse(&options.iter().map(|o| (*o).to_string()).collect::<Vec<_>>(), Path::new("/scratch"))
    }

    #[test]
    fn directories_are_told_from_other_options() {
        let wanted = parse(&["lowerdir=/a:/b", READ_WRITE, "index=off", "ro"]).unwrap();
        assert_eq!(wanted.lower, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(wanted.upper, Some(("/scratch/upper".into(), "/scratch/work".into())));
        assert_eq!(wanted.options.data, "index=off");
        assert_eq!(parse(&["lowerdir=/a:/b"]).unwrap().upper, None);
        let many = format!("lowerdir={}", vec!["/a"; MAX_LOWER + 1].join(":"));
        let bad = [&["ro"][..], &["lowerdir="], &["lowerdir=/a:b"], &["lowerdir=/a", "upperdir=/u"], &[&many]];
        for bad in bad {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
