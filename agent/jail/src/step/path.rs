//! Paths of a container, resolved inside its root by the kernel (openat2(2), `RESOLVE_IN_ROOT`), and made where they lead nowhere yet.
//!
//! The image is hostile: what a path leads to is held by its descriptor, and never looked for by name again.

use std::ffi::{CStr, CString};
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The longest path that the kernel takes, with its NUL (PATH_MAX, limits.h).
const PATH_MAX: usize = 4096;

/// How often a path with `..` in it is tried: when anything was renamed or mounted on the system meanwhile, the kernel can't tell whether it left the
/// root (openat2(2), EAGAIN).
const MOST_TRIES: u32 = 256;

/// How many links that lead nowhere yet are followed on the way to one path.
const MOST_LINKS: u32 = 8;

/// An absolute path inside the container, without `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inside {
    path: CString,
    /// Where its last name begins.
    name: usize,
}

impl Inside {
    /// `None` when the path holds a NUL.
    pub(crate) fn new(path: &std::path::Path) -> Option<Inside> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut whole = Vec::new();
        for component in path.components() {
            if let std::path::Component::Normal(name) = component {
                whole.push(b'/');
                whole.extend(name.as_bytes());
            }
        }
        if whole.is_empty() {
            whole.push(b'/');
        }
        let name = whole.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        Some(Inside { path: CString::new(whole).ok()?, name })
    }

    /// Whether it is the root itself.
    pub(crate) fn is_root(&self) -> bool {
        self.path.as_c_str() == c"/"
    }

    pub(crate) fn path(&self) -> &CStr {
        &self.path
    }

    /// Its last name.
    fn name(&self) -> &CStr {
        self.path
            .as_bytes_with_nul()
            .get(self.name..)
            .and_then(|name| CStr::from_bytes_with_nul(name).ok())
            .unwrap_or(c"")
    }

    /// The path of the directory that it is in, without a NUL.
    fn parent(&self) -> &[u8] {
        self.path.as_bytes().get(..self.name).unwrap_or_default()
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path().to_string_lossy())
    }
}

/// A path that grows, without allocation.
struct Way {
    bytes: [u8; PATH_MAX],
    length: usize,
}

impl Way {
    fn new() -> Way {
        Way { bytes: [0; PATH_MAX], length: 0 }
    }

    /// Adds each name of `path`.
    fn extend(&mut self, path: &[u8]) -> Result<(), Errno> {
        names(path).try_for_each(|name| self.push(name))
    }

    fn push(&mut self, name: &[u8]) -> Result<(), Errno> {
        let end = self.length + 1 + name.len();
        // One byte stays 0, for the end of the string.
        let place = self.bytes.get_mut(self.length..end).filter(|_| end < PATH_MAX).ok_or(Errno::NAMETOOLONG)?;
        if let Some((slash, rest)) = place.split_first_mut() {
            *slash = b'/';
            rest.copy_from_slice(name);
        }
        self.length = end;
        Ok(())
    }

    fn from(&self, at: usize) -> Result<&CStr, Errno> {
        let bytes = self.bytes.get(at..=self.length).ok_or(Errno::INVAL)?;
        CStr::from_bytes_with_nul(bytes).map_err(|_| Errno::INVAL)
    }

    fn path(&self) -> Result<&CStr, Errno> {
        if self.length == 0 { Ok(c"/") } else { self.from(0) }
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

/// Opens a path of the container as the container would see it: links stay inside the root, and none of the magic ones is followed.
pub(super) fn open(root: BorrowedFd<'_>, path: &CStr, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..MOST_TRIES {
        opened = rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    opened
}

/// What to make where a path leads nowhere yet.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Leaf {
    Directory,
    File,
}

/// Opens a path of the container; what is missing of it is made.
pub(super) fn ensure(root: BorrowedFd<'_>, path: &Inside, leaf: Leaf, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    match open(root, path.path(), OFlags::PATH, resolve) {
        Err(Errno::NOENT) => make(root, path.path().to_bytes(), leaf, resolve, MOST_LINKS),
        result => result,
    }
}

/// The directory that holds the last name of `path`, made if missing, and that name.
pub(super) fn ensure_parent<'a>(root: BorrowedFd<'_>, path: &'a Inside) -> Result<(OwnedFd, &'a CStr), Errno> {
    if path.is_root() {
        return Err(Errno::EXIST);
    }
    Ok((make(root, path.parent(), Leaf::Directory, ResolveFlags::empty(), MOST_LINKS)?, path.name()))
}

/// Walks to `path`, making what is missing. What a link leads to is made where the link says: images have links that lead nowhere until
/// something is mounted there (`/etc/resolv.conf`).
fn make(root: BorrowedFd<'_>, path: &[u8], leaf: Leaf, resolve: ResolveFlags, links: u32) -> Result<OwnedFd, Errno> {
    let mut here = open(root, c"/", OFlags::PATH | OFlags::DIRECTORY, resolve)?;
    let mut way = Way::new();
    let mut names = names(path).peekable();
    while let Some(name) = names.next() {
        let above = way.length;
        way.push(name)?;
        here = match open(root, way.path()?, OFlags::PATH, resolve) {
            Err(Errno::NOENT) => {
                let leaf = if names.peek().is_some() { Leaf::Directory } else { leaf };
                let mut target = [MaybeUninit::uninit(); PATH_MAX];
                match rustix::fs::readlinkat_raw(&here, way.from(above + 1)?, &mut target) {
                    Ok(_) if links == 0 || resolve.contains(ResolveFlags::NO_SYMLINKS) => return Err(Errno::LOOP),
                    Ok((target, _)) => {
                        let mut to = Way::new();
                        if target.first() != Some(&b'/') {
                            to.extend(way.bytes.get(..above).unwrap_or_default())?;
                        }
                        to.extend(target)?;
                        make(root, to.path()?.to_bytes(), leaf, resolve, links - 1)?;
                    }
                    Err(Errno::NOENT) => make_one(here.as_fd(), way.from(above + 1)?, leaf)?,
                    Err(error) => return Err(error),
                }
                open(root, way.path()?, OFlags::PATH, resolve)?
            }
            result => result?,
        };
    }
    Ok(here)
}

fn make_one(parent: BorrowedFd<'_>, name: &CStr, leaf: Leaf) -> Result<(), Errno> {
    match leaf {
        Leaf::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Leaf::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_parent_and_a_name() {
        let inside = |path: &str| Inside::new(path.as_ref()).unwrap();
        let deep = inside("//a/./b/c");
        assert_eq!((deep.path(), deep.parent(), deep.name()), (c"/a/b/c", &b"/a/b/"[..], c"c"));
        assert!(inside("/").is_root() && inside("").is_root() && !deep.is_root());
        assert_eq!(Inside::new("/a\0b".as_ref()), None);
    }

    #[test]
    fn a_way_is_no_longer_than_the_kernel_takes() {
        let mut way = Way::new();
        assert_eq!(way.path(), Ok(c"/"));
        way.extend(b"/usr//lib/").unwrap();
        assert_eq!((way.path(), way.from(5)), (Ok(c"/usr/lib"), Ok(c"lib")));
        let mut names = 0;
        while way.push(&[b'x'; 100]).is_ok() {
            names += 1;
        }
        assert_eq!((names, way.path().unwrap().to_bytes().len()), (40, 8 + 40 * 101));
        assert_eq!(way.push(&[b'x'; 100]), Err(Errno::NAMETOOLONG));
    }
}
