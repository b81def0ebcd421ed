//! Small directories of the host's that change, as ConfigMaps do, shown to containers in such a way that they are told.
//!
//! The kernel tells of what changes in the guest (inotify(7)), but not of what the host changes in a share. So a directory of a share is looked at
//! every other second, and copied; what lies elsewhere is bound as it is, and nothing runs for it.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nacre_protocol::agent::Storage;
use rustix::fs::{
    AtFlags, Dir, FileType, FsWord, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown, fstatfs, mkdirat,
    openat, openat2, readlinkat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::storage::directory::{self, Directory};
use crate::storage::drivers::bind::bind;
use crate::storage::mounts::Mounts;
use crate::storage::options::{Data, Options};
use crate::storage::pull::lock;
use crate::storage::undo::{Steps, Undo};
use crate::storage::{EPHEMERAL, Error, invalid, parse_options};

/// How often a share is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// What is copied. A ConfigMap and a Secret have at most a mebibyte, and for a moment there are two of each.
const MAX_ENTRIES: usize = 1024;
const MAX_BYTES: u64 = 4 << 20;
const MAX_DEPTH: usize = 8;

/// How often it is looked again at what changes at this very moment.
const MAX_RACES: usize = 16;

/// What fstatfs(2) says of a share (`FUSE_SUPER_MAGIC`).
const FUSE: FsWord = 0x6573_5546;

/// A name that is taken for a moment, while something is put in the place of something else.
const NEW: &str = ".nacre-new";

const SEARCH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// What there is, by where it is; what lies in a directory comes after it.
type Tree = BTreeMap<PathBuf, Entry>;

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    /// With what changes when its content does.
    File {
        inode: u64,
        size: u64,
        modified: (i64, u64),
    },
    Link(CString),
}

/// What came of a look.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// The copy is as the source.
    Same,
    /// The source changed meanwhile, the copy is as it was.
    Changing,
    /// The source is more than is copied, the copy is as it was.
    TooMuch,
}

/// A directory and its copy.
#[derive(Debug)]
struct Mirror {
    source: OwnedFd,
    copy: OwnedFd,
    tree: Tree,
}

/// The task that looks. Dropping it ends it; from then on the copy is left alone.
#[derive(Debug)]
struct Watch {
    mirror: Arc<Mutex<Option<Mirror>>>,
    task: JoinHandle<()>,
}

/// Where Kata's hosts have all mount points of such storages: in the share, which is read-only.
const PLACE: &str = "watchable";

/// A file system in memory to cover the place of the mount point `at` with, where the host lets nothing be made there.
pub async fn to_be_covered(at: &Path, mounts: &Arc<Mounts>) -> Result<Option<Storage>, Error> {
    let place = at.parent().filter(|place| place.ends_with(PLACE)).map(Path::to_path_buf);
    let Some(place) = place else { return Ok(None) };
    let cover = |place: &Path| Storage {
        driver: EPHEMERAL.into(),
        fstype: "tmpfs".into(),
        mount_point: place.to_string_lossy().into_owned(),
        shared: true, // others come after this one
        ..Storage::new()
    };
    let mounts = mounts.clone();
    // Who comes later uses the cover of who came first, and is counted.
    let find = move || (mounts.with(&place, EPHEMERAL, || ()).is_some() || is_read_only(&place)).then(|| cover(&place));
    spawn_blocking(find).await.map_err(|_| Error::Task)
}

/// Whether nothing can be made in it, which only an attempt tells of what a host shares.
fn is_read_only(place: &Path) -> bool {
    let Ok(directory) = Directory::find(place) else { return false };
    let attempt = mkdirat(&directory, ATTEMPT, Mode::RWXU);
    if attempt.is_ok() {
        let _ = unlinkat(&directory, ATTEMPT, AtFlags::REMOVEDIR); // it is the host's to remove, too
    }
    attempt == Err(Errno::ROFS)
}

/// No volume's name.
const ATTEMPT: &str = ".nacre-attempt";

/// Show the source on the mount point; the copy, if it takes one, is `scratch`, a directory that is not there yet. Blocks.
pub fn make(storage: &Storage, at: &Path, scratch: &Path) -> Result<Steps, Error> {
    let source =
        directory::parse(&storage.source).map_err(|reason| invalid(storage, format!("the source {reason}")))?;
    let options = parse_options(storage, Data::Tmpfs)?;
    let failed = |error: Errno| Error::system("watch", &source, error);
    let found = directory::find(&source).map_err(failed)?;
    if fstatfs(&found).map_err(failed)?.f_type != FUSE {
        return bind(&source, at, &options, false);
    }
    show_copy(&source, at, scratch, &options)
}

/// Show a copy of `source`, and keep it up to date.
pub fn show_copy(source: &Path, at: &Path, scratch: &Path, options: &Options) -> Result<Steps, Error> {
    let failed = |error: Errno| Error::system("watch", source, error);
    let found = directory::find(source).map_err(failed)?;
    let readable = match openat(&found, ".", READ | OFlags::DIRECTORY, Mode::empty()) {
        // A file that is bound alone stays the file it was, whatever comes in its place.
        Err(Errno::NOTDIR) => return bind(source, at, options, false),
        readable => readable.map_err(failed)?,
    };
    let mut steps = Steps::default();
    let copy = Directory::make(scratch)?;
    steps.push(Undo::Tree(scratch.into()));
    let mut mirror = Mirror { source: readable, copy: copy.into(), tree: Tree::new() };
    match mirror.settle().map_err(|error| Error::system("copy", source, error))? {
        Look::Same => {}
        Look::Changing => return Err(failed(Errno::AGAIN)),
        Look::TooMuch => {
            tracing::warn!(?source, MAX_ENTRIES, MAX_BYTES, MAX_DEPTH, "too much to be watched: it is bound as it is");
            return bind(source, at, options, false);
        }
    }
    steps.append(bind(scratch, at, options, false)?);
    steps.push(Undo::Value(Box::new(Watch::begin(mirror, source.into()))));
    Ok(steps)
}

impl Watch {
    fn begin(mirror: Mirror, source: PathBuf) -> Watch {
        let mirror = Arc::new(Mutex::new(Some(mirror)));
        let task = tokio::spawn(watch(mirror.clone(), source));
        Watch { mirror, task }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
        lock(&self.mirror).take(); // waits for a look that is under way
    }
}

async fn watch(mirror: Arc<Mutex<Option<Mirror>>>, source: PathBuf) {
    let mut was_bad = false;
    loop {
        tokio::time::sleep(EVERY).await;
        let mirror = mirror.clone();
        let looked = spawn_blocking(move || lock(&mirror).as_mut().map(Mirror::look));
        let Ok(Some(looked)) = looked.await else { return };
        let is_bad = !matches!(looked, Ok(Look::Same | Look::Changing));
        if is_bad && !was_bad {
            tracing::warn!(?source, ?looked, "what is watched is not copied any more: containers see it as it was");
        }
        was_bad = is_bad;
    }
}

impl Mirror {
    /// As [`look`](Mirror::look), again while the source changes.
    fn settle(&mut self) -> io::Result<Look> {
        let looks = (0..MAX_RACES).map(|_| self.look());
        let mut settled = looks.skip_while(|look| matches!(look, Ok(Look::Changing)));
        settled.next().unwrap_or(Ok(Look::Changing))
    }

    /// Make the copy what the source is, if that is the same from the begin to the end of the look.
    fn look(&mut self) -> io::Result<Look> {
        let Some(new) = scan(&self.source)? else { return Ok(Look::TooMuch) };
        if new == self.tree {
            return Ok(Look::Same);
        }
        let Some(contents) = self.read(&new)? else { return Ok(Look::Changing) };
        if scan(&self.source)?.as_ref() != Some(&new) {
            return Ok(Look::Changing);
        }
        self.write(&new, &contents)?;
        self.tree = new;
        Ok(Look::Same)
    }

    /// What is in the files that have changed; nothing, if one changes at this moment.
    fn read<'a>(&self, new: &'a Tree) -> io::Result<Option<BTreeMap<&'a Path, Vec<u8>>>> {
        let mut contents = BTreeMap::new();
        for (path, entry) in self.changed(new) {
            let Kind::File { size, .. } = entry.kind else { continue };
            let file = match beneath(&self.source, path, READ) {
                Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(None),
                file => File::from(file?),
            };
            let mut bytes = Vec::new();
            file.take(size + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != size {
                return Ok(None);
            }
            contents.insert(path, bytes);
        }
        Ok(Some(contents))
    }

    fn changed<'a>(&self, new: &'a Tree) -> impl Iterator<Item = (&'a Path, &'a Entry)> {
        new.iter()
            .filter(|(path, entry)| self.tree.get(*path) != Some(*entry))
            .map(|(path, entry)| (path.as_path(), entry))
    }

    /// Links come after what they lead to, and what is gone goes last: who follows one finds something at any time.
    fn write(&self, new: &Tree, contents: &BTreeMap<&Path, Vec<u8>>) -> Result<(), Errno> {
        for (path, entry) in self.changed(new) {
            let was = self.tree.get(path);
            // rename(2) puts neither a directory in the place of a file nor a file in that of a directory.
            if was.is_some_and(|was| (was.kind == Kind::Directory) != (entry.kind == Kind::Directory)) {
                self.remove(|old| old.starts_with(path))?;
            }
            match &entry.kind {
                Kind::Directory => self.put_directory(path, entry)?,
                Kind::File { .. } => {
                    self.put_file(path, entry, contents.get(path).map(Vec::as_slice).unwrap_or_default())?;
                }
                Kind::Link(_) => {}
            }
        }
        for (path, entry) in self.changed(new) {
            if let Kind::Link(target) = &entry.kind {
                self.put_link(path, entry, target)?;
            }
        }
        self.remove(|old| !new.contains_key(old))
    }

    fn put_directory(&self, path: &Path, entry: &Entry) -> Result<(), Errno> {
        let (above, name) = self.above(path)?;
        match mkdirat(&above, name, Mode::from_raw_mode(0o700)) {
            Err(error) if error != Errno::EXIST => return Err(error),
            _ => {}
        }
        let made = beneath(&above, Path::new(name), READ | OFlags::DIRECTORY)?;
        own(&made, entry)
    }

    fn put_file(&self, path: &Path, entry: &Entry, content: &[u8]) -> Result<(), Errno> {
        let (above, name) = self.above(path)?;
        unlinkat(&above, NEW, AtFlags::empty()).or_else(unless_missing)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&above, NEW, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(content).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        own(&file, entry)?;
        renameat(&above, NEW, &above, name)
    }

    fn put_link(&self, path: &Path, entry: &Entry, target: &CStr) -> Result<(), Errno> {
        let (above, name) = self.above(path)?;
        unlinkat(&above, NEW, AtFlags::empty()).or_else(unless_missing)?;
        symlinkat(target, &above, NEW)?;
        let (user, group) = (Uid::from_raw(entry.owner.0), Gid::from_raw(entry.owner.1));
        chownat(&above, NEW, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        renameat(&above, NEW, &above, name)
    }

    /// Remove what was copied and `is_gone`, the innermost first.
    fn remove(&self, is_gone: impl Fn(&Path) -> bool) -> Result<(), Errno> {
        for (path, entry) in self.tree.iter().rev().filter(|(path, _)| is_gone(path)) {
            let flags = if entry.kind == Kind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            match self.above(path) {
                Ok((above, name)) => unlinkat(&above, name, flags).or_else(unless_missing)?,
                Err(error) => unless_missing(error)?,
            }
        }
        Ok(())
    }

    /// The copy's directory that `path` is in, and its name there. A container may have planted links in the copy: none is followed.
    fn above<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Errno> {
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok((beneath(&self.copy, above, SEARCH)?, path.file_name().ok_or(Errno::INVAL)?))
    }
}

/// All that is below `root`; nothing, if it is too much.
fn scan(root: &OwnedFd) -> Result<Option<Tree>, Errno> {
    let (mut tree, mut bytes) = (Tree::new(), 0);
    Ok(scan_directory(root, Path::new(""), &mut tree, &mut bytes)?.then_some(tree))
}

fn scan_directory(directory: &OwnedFd, below: &Path, tree: &mut Tree, bytes: &mut u64) -> Result<bool, Errno> {
    for found in Dir::read_from(directory)? {
        let found = found?;
        let name = found.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let path = below.join(OsStr::from_bytes(name.to_bytes()));
        let Some(entry) = entry(directory, name)? else { continue };
        if let Kind::File { size, .. } = entry.kind {
            *bytes = bytes.saturating_add(size);
        }
        if tree.len() >= MAX_ENTRIES || *bytes > MAX_BYTES {
            return Ok(false);
        }
        let is_directory = entry.kind == Kind::Directory;
        tree.insert(path.clone(), entry);
        if is_directory {
            if path.components().count() > MAX_DEPTH {
                return Ok(false);
            }
            match beneath(directory, Path::new(OsStr::from_bytes(name.to_bytes())), READ | OFlags::DIRECTORY) {
                // It has gone meanwhile, which the next scan sees.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                inner => {
                    if !scan_directory(&inner?, &path, tree, bytes)? {
                        return Ok(false);
                    }
                }
            }
        }
    }
    Ok(true)
}

/// What is there under this name, if it is something that is copied.
fn entry(directory: &OwnedFd, name: &CStr) -> Result<Option<Entry>, Errno> {
    let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        stat => stat?,
    };
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => Kind::File {
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(u64::MAX),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        },
        FileType::Symlink => match readlinkat(directory, name, Vec::new()) {
            Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
            target => Kind::Link(target?),
        },
        _ => return Ok(None),
    };
    Ok(Some(Entry { kind, mode: stat.st_mode & 0o777, owner: (stat.st_uid, stat.st_gid) }))
}

fn beneath(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn own(file: impl AsFd, entry: &Entry) -> Result<(), Errno> {
    fchown(&file, Some(Uid::from_raw(entry.owner.0)), Some(Gid::from_raw(entry.owner.1)))?;
    fchmod(&file, Mode::from_raw_mode(entry.mode))
}

/// Nor is there anything in what is a directory no more.
fn unless_missing(error: Errno) -> Result<(), Errno> {
    if matches!(error, Errno::NOENT | Errno::NOTDIR) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    struct World {
        dir: tempfile::TempDir,
        mirror: Option<Mirror>,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let open = |name| {
                Directory::make(&dir.path().join(name)).unwrap();
                openat(rustix::fs::CWD, dir.path().join(name), READ | OFlags::DIRECTORY, Mode::empty()).unwrap()
            };
            let mirror = Some(Mirror { source: open("source"), copy: open("copy"), tree: Tree::new() });
            World { dir, mirror }
        }

        fn source(&self, name: &str) -> PathBuf {
            self.dir.path().join("source").join(name)
        }

        fn copy(&self, name: &str) -> PathBuf {
            self.dir.path().join("copy").join(name)
        }

        fn look(&mut self) -> Look {
            self.mirror.as_mut().unwrap().settle().unwrap()
        }

        /// As kubelet writes a ConfigMap: a directory of its own for each version, and a link to it that is swapped.
        fn publish(&self, version: &str, files: &[(&str, &str)]) {
            let directory = self.source(&format!("..{version}"));
            fs::create_dir(&directory).unwrap();
            for (name, text) in files {
                fs::write(directory.join(name), text).unwrap();
                let _ = symlink(format!("..data/{name}"), self.source(name));
            }
            symlink(format!("..{version}"), self.source("..tmp")).unwrap();
            fs::rename(self.source("..tmp"), self.source("..data")).unwrap();
        }

        fn names(&self) -> Vec<String> {
            let names =
                fs::read_dir(self.copy("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        }
    }

    #[test]
    fn a_config_map_is_followed_through_its_versions() {
        let mut world = World::new();
        world.publish("1", &[("a", "one"), ("b", "one")]);
        fs::set_permissions(world.source("..1/a"), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(world.look(), Look::Same);
        assert_eq!(world.names(), ["..1", "..data", "a", "b"]);
        assert_eq!(fs::metadata(world.copy("a")).unwrap().permissions().mode() & 0o777, 0o640);
        world.publish("2", &[("a", "two")]);
        fs::remove_dir_all(world.source("..1")).unwrap();
        fs::remove_file(world.source("b")).unwrap();
        assert_eq!(world.look(), Look::Same);
        assert_eq!(world.names(), ["..2", "..data", "a"]);
        assert_eq!(fs::read_to_string(world.copy("a")).unwrap(), "two");
    }

    #[test]
    fn what_becomes_something_else_is_replaced() {
        let mut world = World::new();
        fs::create_dir_all(world.source("x/deep")).unwrap();
        fs::write(world.source("x/deep/file"), "").unwrap();
        fs::write(world.source("y"), "file").unwrap();
        assert_eq!(world.look(), Look::Same);
        fs::remove_dir_all(world.source("x")).unwrap();
        fs::write(world.source("x"), "file now").unwrap();
        fs::remove_file(world.source("y")).unwrap();
        fs::create_dir(world.source("y")).unwrap();
        fs::write(world.source("y/z"), "deeper").unwrap();
        assert_eq!(world.look(), Look::Same);
        assert_eq!(fs::read_to_string(world.copy("x")).unwrap(), "file now");
        assert_eq!(fs::read_to_string(world.copy("y/z")).unwrap(), "deeper");
        assert_eq!(world.names(), ["x", "y"]);
    }

    #[test]
    fn more_than_is_copied_leaves_the_copy_as_it_was() {
        let mut world = World::new();
        fs::write(world.source("a"), "a").unwrap();
        assert_eq!(world.look(), Look::Same);
        let big = File::create(world.source("big")).unwrap();
        big.set_len(MAX_BYTES).unwrap();
        assert_eq!(world.look(), Look::TooMuch);
        assert_eq!(world.names(), ["a"]);
        fs::remove_file(world.source("big")).unwrap();
        fs::create_dir_all(world.source(&"d/".repeat(MAX_DEPTH + 1))).unwrap();
        assert_eq!(world.look(), Look::TooMuch);
        fs::remove_dir_all(world.source("d")).unwrap();
        (0..MAX_ENTRIES).for_each(|number| fs::write(world.source(&number.to_string()), "").unwrap());
        assert_eq!(world.look(), Look::TooMuch);
        fs::remove_file(world.source("0")).unwrap();
        assert_eq!(world.look(), Look::Same);
    }

    #[test]
    fn a_link_that_a_container_has_planted_in_the_copy_is_not_followed() {
        let mut world = World::new();
        fs::create_dir(world.source("d")).unwrap();
        assert_eq!(world.look(), Look::Same);
        let outside = tempfile::tempdir().unwrap();
        fs::remove_dir(world.copy("d")).unwrap();
        symlink(outside.path(), world.copy("d")).unwrap();
        fs::write(world.source("d/file"), "").unwrap();
        assert!(world.mirror.as_mut().unwrap().settle().is_err());
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_seen_by_itself_until_the_watch_ends() {
        let mut world = World::new();
        let watch = Watch::begin(world.mirror.take().unwrap(), world.source(""));
        fs::write(world.source("a"), "a").unwrap();
        for _ in 0..4 {
            tokio::time::sleep(EVERY).await;
        }
        assert_eq!(fs::read_to_string(world.copy("a")).unwrap(), "a");
        drop(watch);
        fs::write(world.source("b"), "b").unwrap();
        for _ in 0..4 {
            tokio::time::sleep(EVERY).await;
        }
        assert_eq!(world.names(), ["a"]);
    }
}
