//! Where containers are remembered: the file `ROOT/ID`, and its start gate, the socket `ROOT/.ID`, while the container waits there. To make the file
//! is to take the name. It holds JSON values: what is known before there is a container, its specification as it was read among it; then a
//! note for each thing that is made for it; the last, when it is whole, has its record. Whoever works on a container has the file locked, its
//! maker first of all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nacre_jail::{Container, Note, Record};
use oci_spec::runtime::Spec;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The longest specification that is read.
const MAX_SPEC: u64 = 16 << 20;

/// The longest file of a container: besides the specification its record holds a compiled filter and a line for each step.
const MAX_REMEMBERED: u64 = MAX_SPEC + (16 << 20);

/// The directory of all containers.
#[derive(Debug)]
pub struct Root(PathBuf);

/// What is known before there is a container.
#[derive(Debug, Serialize, Deserialize)]
struct Intent<'a> {
    bundle: PathBuf,
    created: String,
    owner: u32,
    #[serde(borrow)]
    spec: &'a RawValue,
}

/// What is remembered of a container.
#[derive(Debug)]
pub struct Remembered {
    pub bundle: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// Whose it is: a user's number.
    pub owner: u32,
    pub spec: Spec,
    /// None of a container that was never made whole.
    pub record: Option<Record>,
    /// What has been made.
    pub notes: Vec<Note>,
    /// Why the rest can't be read, if it can't be: another version of the engine wrote it.
    pub broken: Option<String>,
}

/// One container's place.
#[derive(Debug)]
pub struct Entry {
    id: String,
    path: PathBuf,
}

/// A container's file, locked as long as it lives.
#[derive(Debug)]
pub struct Lock(File);

impl Root {
    pub fn new(path: PathBuf) -> Root {
        Root(path)
    }

    /// Takes the name `id` for a container of `bundle`, whose specification was read as `spec`.
    pub fn take(&self, id: &str, bundle: &Path, spec: &[u8]) -> Result<(Entry, Lock)> {
        let entry = self.entry(id)?;
        let act = || format!("make {}", entry.path.display());
        let make = || OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&entry.path);
        let made = match make() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let parents = DirBuilder::new().mode(0o700).recursive(true).create(&self.0);
                parents.with_context(|| format!("make {}", self.0.display()))?;
                make()
            }
            made => made,
        };
        let file = match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("container with given ID already exists: {id}")
            }
            made => made.with_context(act)?,
        };
        flock(&file, FlockOperation::NonBlockingLockExclusive).with_context(act)?;
        let intent = Intent {
            bundle: bundle.into(),
            created: super::time::now(),
            owner: rustix::process::geteuid().as_raw(),
            spec: serde_json::from_slice(spec).context("remember the specification")?,
        };
        let lock = Lock(file);
        lock.begin(&intent).with_context(act).inspect_err(|_| drop(entry.remove()))?;
        Ok((entry, lock))
    }

    /// The container `id`, of which something is there.
    pub fn find(&self, id: &str) -> Result<Entry> {
        let entry = self.entry(id)?;
        if !entry.path.is_file() {
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
            .filter(|entry| entry.path.is_file())
            .collect();
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(entries)
    }

    fn entry(&self, id: &str) -> Result<Entry> {
        nacre_jail::check_id(id)?;
        Ok(Entry { id: id.into(), path: self.0.join(id) })
    }
}

impl Lock {
    fn begin(&self, intent: &Intent<'_>) -> Result<()> {
        let mut bytes = serde_json::to_vec(intent)?;
        bytes.push(b'\n');
        Ok((&self.0).write_all(&bytes)?)
    }

    /// Where the engine notes what it makes.
    pub fn journal(&self) -> Result<File> {
        self.0.try_clone().context("remember the container")
    }

    /// Remembers the container; from now on it is known.
    pub fn save(&self, record: Record) -> Result<()> {
        Note::Whole(Box::new(record)).write(&self.0).context("remember the container")?;
        let length = self.0.metadata().context("remember the container")?.len();
        if length > MAX_REMEMBERED {
            bail!(
                "remember the container: {length} bytes are more than {MAX_REMEMBERED}: make its specification smaller"
            );
        }
        Ok(())
    }

    /// Lets others work on the container.
    pub fn release(&self) -> Result<()> {
        flock(&self.0, FlockOperation::Unlock).context("unlock the container")
    }

    /// Waits until nobody else works on the container; false if it is gone.
    pub fn take_again(&self) -> Result<bool> {
        flock(&self.0, FlockOperation::LockExclusive).context("lock the container")?;
        Ok(self.0.metadata().context("lock the container")?.nlink() > 0)
    }
}

impl Entry {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the start gate is. The name of a socket is shorter than an ID may be (unix(7)): of a long one it is a hash (FNV-1a).
    pub fn gate(&self) -> PathBuf {
        const LONG: usize = 64;
        if self.id.len() <= LONG {
            return self.path.with_file_name(format!(".{}", self.id));
        }
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = self.id.bytes().fold(0xcbf2_9ce4_8422_2325, step);
        self.path.with_file_name(format!("..{hash:016x}"))
    }

    /// Waits until nobody else works on the container.
    pub fn lock(&self) -> Result<Lock> {
        let act = || format!("lock {}", self.path.display());
        let lock = Lock(File::open(&self.path).with_context(act)?);
        if !lock.take_again()? {
            bail!("container does not exist: {}", self.id);
        }
        Ok(lock)
    }

    /// Whether somebody makes or changes it just now.
    pub fn is_locked(&self) -> bool {
        let locked = |file: File| flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
        File::open(&self.path).is_ok_and(locked)
    }

    /// What is remembered.
    pub fn load(&self) -> Result<Remembered> {
        self.load_begun()?.with_context(|| {
            format!("container {} was never made; `nacre-jail delete --force {}` removes its name", self.id, self.id)
        })
    }

    /// What is remembered; `None` if its maker was killed before it had written all that it was about to make, and so before it made anything.
    pub fn load_begun(&self) -> Result<Option<Remembered>> {
        let act = || format!("parse {}", self.path.display());
        let bytes = read(&self.path, MAX_REMEMBERED)?;
        let mut values = serde_json::Deserializer::from_slice(&bytes);
        let intent = match Intent::deserialize(&mut values) {
            Err(error) if error.is_eof() => return Ok(None),
            intent => intent.with_context(act)?,
        };
        let spec = nacre_jail::read_spec(intent.spec.get().as_bytes()).with_context(act)?.value;
        let Intent { bundle, created, owner, .. } = intent;
        let mut remembered = Remembered { bundle, created, owner, spec, record: None, notes: Vec::new(), broken: None };
        loop {
            match Note::deserialize(&mut values) {
                Ok(Note::Whole(record)) => remembered.record = Some(*record),
                Ok(note) => remembered.notes.push(note),
                // Or its maker was killed before it had written all of it.
                Err(error) if error.is_eof() => return Ok(Some(remembered)),
                Err(error) => {
                    remembered.broken = Some(format!("{}: {error}", act()));
                    return Ok(Some(remembered));
                }
            }
        }
    }

    /// The container itself.
    pub fn open(&self) -> Result<(Container, Remembered)> {
        let mut remembered = self.load()?;
        Ok((self.container(&mut remembered)?, remembered))
    }

    /// The container, as it is remembered.
    pub fn container(&self, remembered: &mut Remembered) -> Result<Container> {
        let record = remembered.record.take().with_context(|| {
            if let Some(broken) = &remembered.broken {
                return format!("{broken}; `nacre-jail delete --force {}` removes what there is", self.id);
            }
            format!("container {} was never made whole; `nacre-jail delete --force {}` removes it", self.id, self.id)
        })?;
        Ok(Container::open(&self.id, record, &remembered.spec, &remembered.bundle)?)
    }

    /// Forgets it.
    pub fn remove(&self) -> Result<()> {
        for path in [self.gate(), self.path.clone()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads a specification: parsed, and its bytes.
pub fn read_spec(path: &Path) -> Result<(Spec, Vec<u8>)> {
    let bytes = read(path, MAX_SPEC)?;
    let nacre_jail::Read { value: spec, warnings } =
        nacre_jail::read_spec(&bytes).with_context(|| format!("parse {}", path.display()))?;
    warnings.iter().for_each(|warning| super::log::warn(warning));
    if spec.version().split('.').next() != Some("1") {
        bail!("{}: ociVersion {:?} is not 1.x", path.display(), spec.version());
    }
    Ok((spec, bytes))
}

/// Reads a file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    if !file.metadata().with_context(|| format!("read {}", path.display()))?.is_file() {
        bail!("read {}: not a file", path.display());
    }
    read_to_end(path, file, limit)
}

/// As [`read`], but the file may be a pipe: that of a shell's `<(…)`.
pub fn read_stream(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    // Whoever writes may take some time. A pipe that nobody writes to is at its end.
    rustix::io::ioctl_fionbio(&file, false).with_context(|| format!("read {}", path.display()))?;
    read_to_end(path, file, limit)
}

/// A pipe without a writer would have us wait for one.
fn open(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("read {}", path.display()))?;
    Ok(File::from(file))
}

fn read_to_end(path: &Path, file: File, limit: u64) -> Result<Vec<u8>> {
    let act = || format!("read {}", path.display());
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
