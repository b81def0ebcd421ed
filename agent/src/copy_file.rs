//! Files that the host copies into the guest, chunk by chunk, where it shares no file system.
//!
//! Every path is resolved beneath one root by the kernel (`openat2` with `RESOLVE_BENEATH`), as containers that have the
//! same directories mounted may plant links there at any time. A file appears at its name only when it is whole: until
//! then its chunks gather under a temporary name beside it, which is derived from the whole file name, so that two files
//! being copied never meet.

use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nacre_protocol::agent::CopyFileRequest;
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::storage::directory;

/// The directory below which hosts copy files.
pub const ROOT: &str = "/run/kata-containers/shared/containers";

/// How deep a copied path, or a directory that a copy replaces, may go.
const MAX_DEPTH: usize = 128;

/// How long a copied path may be; PATH_MAX.
const MAX_PATH: usize = 4096;

/// S_IFMT of inode(7): the bits of a mode that tell the type.
const FILE_TYPE: u32 = 0o170_000;

/// A file was not copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is not one below the root.
    #[error("copy to {path:?}: {reason}")]
    Path {
        /// As requested.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another field of the request makes no sense.
    #[error("copy to {path:?}: {field} {value} {reason}")]
    Field {
        /// As requested.
        path: String,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: i64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel refused.
    #[error("{act} {path:?} below the shared directory")]
    System {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// Whether the request itself is at fault.
    pub fn is_invalid(&self) -> bool {
        !matches!(self, Error::System { .. })
    }
}

/// What a request asks for, checked.
struct Copy<'a> {
    /// Directories between the root and the file, then the file's name.
    parents: PathBuf,
    name: &'a OsStr,
    kind: Kind<'a>,
    mode: Mode,
    dir_mode: Mode,
    uid: Option<Uid>,
    gid: Option<Gid>,
}

enum Kind<'a> {
    Directory,
    Symlink { target: &'a OsStr },
    Chunk { data: &'a [u8], offset: u64, file_size: u64 },
}

/// The directory that files are copied into.
#[derive(Debug)]
pub struct CopyFile {
    root: OwnedFd,
}

impl CopyFile {
    /// Copy into `root`, which is made if it is missing. Requests name files below [`ROOT`] whatever the root is.
    pub fn open(root: &Path) -> Result<CopyFile, Error> {
        let failed = |source| Error::System { act: "open", path: root.into(), source };
        std::fs::create_dir_all(root).map_err(failed)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(CopyFile { root: fs::open(root, flags, Mode::empty()).map_err(|e| failed(e.into()))? })
    }

    /// Make the directory or the link, or add the chunk, that `request` carries.
    pub fn copy(&self, request: &CopyFileRequest) -> Result<(), Error> {
        let copy = Copy::parse(request)?;
        let parent = self.make_parents(&copy)?;
        let entry = Entry { parent: parent.as_fd(), copy: &copy };
        match copy.kind {
            Kind::Directory => entry.make_directory(),
            Kind::Symlink { target } => entry.make_symlink(target),
            Kind::Chunk { data, offset, file_size } => entry.add_chunk(data, offset, file_size),
        }
    }

    fn make_parents(&self, copy: &Copy<'_>) -> Result<OwnedFd, Error> {
        let mut path = PathBuf::new();
        let mut parent = self.open_beneath(Path::new(".")).map_err(failed("open", &path))?;
        for component in copy.parents.components() {
            path.push(component);
            parent = match self.open_beneath(&path) {
                Err(Errno::NOENT) => {
                    match fs::mkdirat(&parent, component.as_os_str(), copy.dir_mode) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(failed("make directory", &path)(e)),
                    }
                    let made = self.open_beneath(&path).map_err(failed("open directory", &path))?;
                    fs::fchmod(&made, copy.dir_mode).map_err(failed("set mode of", &path))?; // whatever the umask is
                    made
                }
                other => other.map_err(failed("open directory", &path))?,
            };
        }
        if !path.as_os_str().is_empty() {
            fs::fchown(&parent, copy.uid, copy.gid).map_err(failed("set owner of", &path))?;
        }
        Ok(parent)
    }

    fn open_beneath(&self, path: &Path) -> Result<OwnedFd, Errno> {
        directory::open_beneath(&self.root, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC)
    }
}

impl<'a> Copy<'a> {
    fn parse(request: &'a CopyFileRequest) -> Result<Copy<'a>, Error> {
        let wrong = |reason| Error::Path { path: request.path.chars().take(MAX_PATH).collect(), reason };
        if request.path.len() > MAX_PATH {
            return Err(wrong("is too long"));
        }
        let below = Path::new(&request.path)
            .strip_prefix(ROOT)
            .map_err(|_| wrong("is not below /run/kata-containers/shared/containers"))?;
        if below.components().any(|c| !matches!(c, Component::Normal(_))) {
            return Err(wrong("has a component that is no name"));
        }
        if below.components().count() > MAX_DEPTH {
            return Err(wrong("is too deep"));
        }
        let name = below.file_name().ok_or_else(|| wrong("names no file"))?;
        let (uid, gid) = (id(request, "uid", request.uid)?, id(request, "gid", request.gid)?);
        Ok(Copy {
            parents: below.parent().unwrap_or(Path::new("")).into(),
            name,
            kind: Kind::parse(request)?,
            mode: Mode::from_raw_mode(request.file_mode & 0o7777),
            dir_mode: Mode::from_raw_mode(request.dir_mode & 0o777),
            uid: uid.map(Uid::from_raw),
            gid: gid.map(Gid::from_raw),
        })
    }
}

impl<'a> Kind<'a> {
    fn parse(request: &'a CopyFileRequest) -> Result<Kind<'a>, Error> {
        match FileType::from_raw_mode(request.file_mode) {
            FileType::Directory => Ok(Kind::Directory),
            FileType::Symlink if request.data.is_empty() || request.data.len() >= MAX_PATH => {
                Err(field(request, "link target's length", request.data.len() as i64, "is none"))
            }
            FileType::Symlink => Ok(Kind::Symlink { target: OsStr::from_bytes(&request.data) }),
            FileType::RegularFile => Kind::chunk(request),
            _ if request.file_mode & FILE_TYPE == 0 => Kind::chunk(request),
            _ => Err(field(request, "file_mode", request.file_mode.into(), "is of no type that can be copied")),
        }
    }

    fn chunk(request: &'a CopyFileRequest) -> Result<Kind<'a>, Error> {
        let negative = |name, value| field(request, name, value, "is negative");
        let file_size = u64::try_from(request.file_size).map_err(|_| negative("file_size", request.file_size))?;
        let offset = u64::try_from(request.offset).map_err(|_| negative("offset", request.offset))?;
        let end = offset.saturating_add(request.data.len() as u64);
        if end > file_size {
            return Err(field(request, "file_size", request.file_size, "is less than this chunk's end"));
        }
        Ok(Kind::Chunk { data: &request.data, offset, file_size })
    }
}

/// -1 leaves the owner as it is, as with chown(2).
fn id(request: &CopyFileRequest, name: &'static str, value: i32) -> Result<Option<u32>, Error> {
    match u32::try_from(value) {
        Ok(id) => Ok(Some(id)),
        Err(_) if value == -1 => Ok(None),
        Err(_) => Err(field(request, name, value.into(), "is negative")),
    }
}

fn field(request: &CopyFileRequest, field: &'static str, value: i64, reason: &'static str) -> Error {
    Error::Field { path: request.path.clone(), field, value, reason }
}

/// The name to be made, in its directory.
struct Entry<'a> {
    parent: BorrowedFd<'a>,
    copy: &'a Copy<'a>,
}

impl Entry<'_> {
    fn make_directory(&self) -> Result<(), Error> {
        let open = || {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
            fs::openat(self.parent, self.copy.name, flags, Mode::empty())
        };
        let directory = match open() {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.remove(self.copy.name)?;
                fs::mkdirat(self.parent, self.copy.name, self.copy.mode).map_err(self.failed("make directory"))?;
                open().map_err(self.failed("open directory"))?
            }
            Err(e) => return Err(self.failed("open directory")(e)),
        };
        self.own(&directory)
    }

    fn make_symlink(&self, target: &OsStr) -> Result<(), Error> {
        let temporary = self.temporary();
        self.remove(OsStr::new(&temporary))?;
        fs::symlinkat(target, self.parent, &temporary).map_err(self.failed("make symbolic link"))?;
        fs::chownat(self.parent, &temporary, self.copy.uid, self.copy.gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.failed("set owner of"))?;
        self.publish(&temporary)
    }

    fn add_chunk(&self, data: &[u8], offset: u64, file_size: u64) -> Result<(), Error> {
        let temporary = self.temporary();
        let mut flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if offset == 0 {
            self.remove(OsStr::new(&temporary))?;
            flags |= OFlags::CREATE | OFlags::EXCL;
        }
        let file = fs::openat(self.parent, &temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(self.failed("open the partial copy of"))?;
        let written = fs::fstat(&file).map_err(self.failed("stat the partial copy of"))?;
        if FileType::from_raw_mode(written.st_mode) != FileType::RegularFile {
            return Err(self.failed("write the partial copy, which is no file any more, of")(Errno::INVAL));
        }
        let file = std::fs::File::from(file);
        file.write_all_at(data, offset).map_err(|source| self.error("write", source))?;
        let size = file.metadata().map_err(|source| self.error("stat", source))?.len();
        if size != file_size {
            return Ok(());
        }
        self.own(&file)?;
        self.publish(&temporary)
    }

    /// Owner first: a change of owner takes the set-id bits away.
    fn own(&self, file: impl AsFd) -> Result<(), Error> {
        fs::fchown(&file, self.copy.uid, self.copy.gid).map_err(self.failed("set owner of"))?;
        fs::fchmod(&file, self.copy.mode).map_err(self.failed("set mode of"))
    }

    /// Give the finished file its name, whatever had it before.
    fn publish(&self, temporary: &str) -> Result<(), Error> {
        let rename = || fs::renameat(self.parent, temporary, self.parent, self.copy.name);
        match rename() {
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                self.remove(self.copy.name)?;
                rename().map_err(self.failed("rename the finished copy to"))
            }
            other => other.map_err(self.failed("rename the finished copy to")),
        }
    }

    fn remove(&self, name: &OsStr) -> Result<(), Error> {
        remove_tree(self.parent, name, MAX_DEPTH).map_err(self.failed("remove what was at"))
    }

    /// Short whatever the file's name is, and the same for each of its chunks.
    fn temporary(&self) -> String {
        let mut hash = DefaultHasher::new();
        hash.write(self.copy.name.as_bytes());
        format!(".nacre-copy-{:016x}", hash.finish())
    }

    fn failed(&self, act: &'static str) -> impl Fn(Errno) -> Error {
        move |source| self.error(act, source.into())
    }

    fn error(&self, act: &'static str, source: io::Error) -> Error {
        Error::System { act, path: self.copy.parents.join(self.copy.name), source }
    }
}

fn failed(act: &'static str, path: &Path) -> impl Fn(Errno) -> Error {
    move |source| Error::System { act, path: path.into(), source: source.into() }
}

/// Remove `name` and all below it, following no link.
fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> Result<(), Errno> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        other => return other,
    }
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let directory = fs::openat(parent, name, flags, Mode::empty())?;
    for entry in fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove_tree(directory.as_fd(), name, depth)?;
        }
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
#[path = "copy_file_tests.rs"]
mod tests;
