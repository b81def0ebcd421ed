//! Blobs in directories: `blobs/sha256/HEX`, as OCI layouts and containerd's content store have them.
//!
//! A blob is written to a file without a name, which gets its name when it is whole and right: many processes can fill the same directory, and
//! one that dies leaves nothing. The least recently used go first; when a blob was used last is its modification time.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::blob_cache::Digest;
use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags, flock, linkat};

use crate::size::Size;

/// What part of the cache's size one pod may have on its way at once; also the largest blob.
const PART: u64 = 4;

/// What the smallest blob counts for: it takes a block and an inode, and the time in which all are listed.
const LEAST: u64 = 64 << 10;

/// Where blobs are had, and kept.
#[derive(Debug)]
pub struct Store {
    kept: Option<Kept>,
    /// Directories that are only read.
    sources: Vec<PathBuf>,
}

#[derive(Debug)]
struct Kept {
    dir: PathBuf,
    limit: u64,
    is_full: AtomicBool,
}

impl Store {
    /// Blobs are kept in `kept`, up to its size, and had from there and from `sources`.
    ///
    /// # Errors
    /// A directory that can't be made or is not there.
    pub fn open(kept: Option<(&Path, Size)>, sources: &[PathBuf]) -> Result<Store> {
        for source in sources {
            ensure!(blobs(source).is_dir(), "--blob-source {}: there is no blobs/sha256 in it", source.display());
        }
        let kept = kept.map(|(dir, limit)| {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(blobs(dir));
            made.with_context(|| format!("--blob-cache {}", dir.display()))?;
            anyhow::Ok(Kept { dir: dir.to_path_buf(), limit: limit.bytes(), is_full: AtomicBool::new(false) })
        });
        Ok(Store { kept: kept.transpose()?, sources: sources.to_vec() })
    }

    /// A blob of this size, if it is there.
    pub(super) fn find(&self, digest: Digest, size: u64) -> Option<File> {
        let open = |dir: &Path| {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(place(dir, digest)).ok()?;
            file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == size).then_some(file)
        };
        if let Some(blob) = self.kept.as_ref().and_then(|kept| open(&kept.dir)) {
            let _ = blob.set_modified(SystemTime::now()); // on a disk that is read only it stays as it is
            return Some(blob);
        }
        self.sources.iter().find_map(|source| open(source))
    }

    /// How many bytes a pod may have on their way, if anything is kept.
    pub(super) fn takes(&self) -> Option<u64> {
        let kept = self.kept.as_ref()?;
        (!kept.is_full.load(Relaxed)).then_some(kept.limit / PART)
    }

    /// A file for a blob that comes.
    pub(super) fn begin(&self) -> io::Result<File> {
        let kept = self.kept.as_ref().ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600).custom_flags(OFlags::TMPFILE.bits() as i32);
        options.open(blobs(&kept.dir)).map_err(|error| self.full(error))
    }

    /// Names a blob that is whole and right. When another was faster, its copy is as good.
    pub(super) fn keep(&self, file: File, digest: Digest, size: u64) -> io::Result<()> {
        let kept = self.kept.as_ref().ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
        let dir = File::open(blobs(&kept.dir))?;
        flock(&dir, FlockOperation::LockExclusive)?;
        if place(&kept.dir, digest).exists() {
            return Ok(());
        }
        kept.make_room(size)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(CWD, unnamed, CWD, place(&kept.dir, digest), AtFlags::SYMLINK_FOLLOW) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a blob that is not what its name says; false when it is not ours.
    pub(super) fn discard(&self, digest: Digest) -> bool {
        self.kept.as_ref().is_some_and(|kept| fs::remove_file(place(&kept.dir, digest)).is_ok())
    }

    /// After this error, nothing more is kept.
    pub(super) fn full(&self, error: io::Error) -> io::Error {
        self.kept.iter().for_each(|kept| kept.is_full.store(true, Relaxed));
        error
    }
}

impl Kept {
    /// Removes what was not used for longest until `size` bytes more are within the limit.
    fn make_room(&self, size: u64) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir(blobs(&self.dir))? {
            let entry = entry?;
            // What has just gone is no longer counted.
            if let Some(meta) = entry.metadata().ok().filter(fs::Metadata::is_file) {
                all.push((meta.modified()?, meta.len().max(LEAST), entry.path()));
            }
        }
        let mut total: u64 = all.iter().map(|(_, length, _)| length).sum();
        all.sort_unstable();
        for (_, length, path) in all {
            if total.saturating_add(size.max(LEAST)) <= self.limit {
                break;
            }
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            total = total.saturating_sub(length);
        }
        Ok(())
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kept {
            Some(kept) => write!(f, "blob cache {}", kept.dir.display()),
            None => f.write_str("blob sources"),
        }
    }
}

fn blobs(dir: &Path) -> PathBuf {
    dir.join("blobs/sha256")
}

fn place(dir: &Path, digest: Digest) -> PathBuf {
    blobs(dir).join(hex::encode(digest.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    fn put(store: &Store, bytes: &[u8]) -> Digest {
        let digest = Digest(Sha256::digest(bytes).into());
        let mut file = store.begin().unwrap();
        file.write_all(bytes).unwrap();
        store.keep(file, digest, bytes.len() as u64).unwrap();
        digest
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        // Two fit, for each counts for more than it has.
        let store = Store::open(Some((dir.path(), "150K".parse().unwrap())), &[]).unwrap();
        let [a, b] = [[1; 40], [2; 40]].map(|bytes| put(&store, &bytes));
        for (digest, age) in [(a, 20), (b, 10)] {
            let file = File::options().write(true).open(place(dir.path(), digest)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        assert!(store.find(a, 40).is_some());
        put(&store, &[1; 40]); // what is there takes no other's place
        assert!(place(dir.path(), b).exists());
        let c = put(&store, &[3; 40]);
        assert!(store.find(b, 40).is_none() && store.find(a, 40).is_some() && store.find(c, 40).is_some());
    }

    #[test]
    fn a_blob_is_had_by_its_name_and_size_from_every_directory() {
        let (dir, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let there = put(&Store::open(Some((source.path(), Size::mib(1))), &[]).unwrap(), b"there");
        let store = Store::open(Some((dir.path(), Size::mib(1))), &[source.path().into()]).unwrap();
        let mut text = String::new();
        store.find(there, 5).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "there");
        assert!(store.find(there, 4).is_none() && !store.discard(there));
        // What is no file is no blob.
        for name in ["00", "11"].map(|byte| byte.repeat(32)) {
            let path = blobs(dir.path()).join(&name);
            if name.starts_with('0') {
                fs::create_dir(path).unwrap()
            } else {
                std::os::unix::fs::symlink("/etc/passwd", path).unwrap()
            };
        }
        let size = fs::metadata("/etc/passwd").unwrap().len();
        assert!(store.find(Digest([0x11; 32]), size).is_none() && store.find(Digest([0; 32]), 4096).is_none());
        assert!(Store::open(None, &[dir.path().join("nothing")]).is_err());
        assert!(Store::open(None, &[source.path().into()]).unwrap().takes().is_none());
    }
}
