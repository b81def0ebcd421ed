//! Where containers are remembered: `ROOT/ID/` with the specification as it was read (`config.json`), the container's record once it is
//! made (`state.json`), and its start gate while it waits (`gate`). To make the directory is to take the name.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nacre_jail::{Container, Record};
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

/// The longest specification that is read.
const MAX_SPEC: u64 = 16 << 20;

/// The longest record: it holds a compiled filter and a line for each step.
const MAX_STATE: u64 = 16 << 20;

/// The directory of all containers.
#[derive(Debug)]
pub struct Root(PathBuf);

/// What is remembered of a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    pub bundle: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// Whose it is: a user's number.
    pub owner: u32,
    pub record: Record,
}

/// One container's directory.
#[derive(Debug)]
pub struct Entry {
    id: String,
    path: PathBuf,
}

impl Root {
    pub fn new(path: PathBuf) -> Root {
        Root(path)
    }

    /// Takes the name `id`.
    pub fn take(&self, id: &str) -> Result<Entry> {
        let entry = self.entry(id)?;
        let make = |path: &Path, recursive| DirBuilder::new().mode(0o700).recursive(recursive).create(path);
        make(&self.0, true).with_context(|| format!("make {}", self.0.display()))?;
        match make(&entry.path, false) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("container with given ID already exists: {id}")
            }
            result => result.with_context(|| format!("make {}", entry.path.display()))?,
        }
        Ok(entry)
    }

    /// The container `id`, of which something is there.
    pub fn find(&self, id: &str) -> Result<Entry> {
        let entry = self.entry(id)?;
        if !entry.path.is_dir() {
            bail!("container does not exist: {id}");
        }
        Ok(entry)
    }

    /// Every container.
    pub fn all(&self) -> Result<Vec<Entry>> {
        let names = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            names => names.with_context(|| format!("read {}", self.0.display()))?,
        };
        let mut entries: Vec<Entry> = names
            .filter_map(|name| self.entry(name.ok()?.file_name().to_str()?).ok())
            .filter(|entry| entry.path.is_dir())
            .collect();
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(entries)
    }

    fn entry(&self, id: &str) -> Result<Entry> {
        nacre_jail::check_id(id)?;
        Ok(Entry { id: id.into(), path: self.0.join(id) })
    }
}

impl Entry {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the start gate is.
    pub fn gate(&self) -> PathBuf {
        self.path.join("gate")
    }

    /// Nobody else works on the container while the file lives.
    pub fn lock(&self) -> Result<File> {
        let directory = File::open(&self.path).with_context(|| format!("open {}", self.path.display()))?;
        let locked = rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive);
        locked.with_context(|| format!("lock {}", self.path.display()))?;
        Ok(directory)
    }

    /// Remembers the specification.
    pub fn save_spec(&self, bytes: &[u8]) -> Result<()> {
        let path = self.path.join("config.json");
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    }

    /// Remembers the container; from now on it is known.
    pub fn save(&self, saved: &Saved) -> Result<()> {
        let bytes = serde_json::to_vec(saved).context("write the container's record")?;
        replace(&self.path.join("state.json"), &bytes)
    }

    /// What is remembered; `None` of a container that was never made whole.
    pub fn load(&self) -> Result<Option<Saved>> {
        let path = self.path.join("state.json");
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read(&path, MAX_STATE)?;
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("parse {}", path.display()))
    }

    /// The specification with which it was made.
    pub fn spec(&self) -> Result<Spec> {
        read_spec(&self.path.join("config.json")).map(|(spec, _)| spec)
    }

    /// The container itself.
    pub fn open(&self) -> Result<(Container, Saved, Spec)> {
        let saved = self.load()?.with_context(|| {
            format!("container {} was never made whole; `nacre-jail delete --force {}` removes it", self.id, self.id)
        })?;
        let spec = self.spec()?;
        let container = Container::open(&self.id, saved.record.clone(), &spec, &saved.bundle)?;
        Ok((container, saved, spec))
    }

    /// Forgets it.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a specification: parsed, and its bytes.
pub fn read_spec(path: &Path) -> Result<(Spec, Vec<u8>)> {
    let bytes = read(path, MAX_SPEC)?;
    let spec: Spec = serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))?;
    if spec.version().split('.').next() != Some("1") {
        bail!("{}: ociVersion {:?} is not 1.x", path.display(), spec.version());
    }
    Ok((spec, bytes))
}

/// Reads a file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let act = || format!("read {}", path.display());
    // A pipe without a writer would have us wait for one.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).with_context(act)?);
    if !file.metadata().with_context(act)?.is_file() {
        bail!("read {}: not a file", path.display());
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).with_context(act)?;
    if bytes.len() as u64 > limit {
        bail!("read {}: longer than {} MiB", path.display(), limit >> 20);
    }
    Ok(bytes)
}

/// Writes a file that is there whole or not at all.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || {
        File::create(&new)?.write_all(bytes)?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}
