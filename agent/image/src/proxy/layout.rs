//! An image in a directory, or in a tar archive of one (image specification, "image-layout.md").

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use serde::Deserialize;

use super::body::{Part, Source};
use super::manifest::{Found, MAX_MANIFEST};
use super::stripes::Lines;
use crate::error::{Error, Kind, Result};

/// The most members of an archive.
const MAX_MEMBERS: usize = 65_536;

/// The annotation that names an entry.
const NAME: &str = "org.opencontainers.image.ref.name";

/// Where the files are.
enum Files {
    Directory(PathBuf),
    /// The archive, and where each member's bytes are in it.
    Archive(Arc<File>, HashMap<PathBuf, (u64, u64)>),
}

/// A layout.
pub(super) struct Layout(Files);

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Layout {
    /// Opens `place`, which is `PATH[:NAME]`. Returns the layout and the digest of what the name stands for.
    pub(super) fn open(transport: &str, place: &str) -> Result<(Layout, String)> {
        let (path, name) = match place.rsplit_once(':') {
            Some((path, name)) if !name.contains('/') => (path, Some(name)),
            _ => (place, None),
        };
        let layout = Layout(match transport {
            "oci-archive" => archive(Path::new(path))?,
            _ => Files::Directory(path.into()),
        });
        let bytes = layout.small(Path::new("index.json"))?;
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| Error::bad_image(format!("{path}: index.json makes no sense: {error}")))?;
        let named =
            |entry: &&Entry| name.is_none_or(|name| entry.annotations.get(NAME).is_some_and(|other| other == name));
        let mut entries = index.manifests.iter().filter(named);
        match (entries.next(), entries.next()) {
            (Some(entry), None) => Ok((layout, entry.digest.clone())),
            (None, _) => Err(Error::new(Kind::NotFound, format!("{place}: there is no such image"))),
            _ => Err(Error::new(Kind::BadRequest, format!("{place}: there are several images: name one (PATH:NAME)"))),
        }
    }

    /// The bytes of a file from `from` on, and how long it is.
    fn read(&self, path: &Path, from: u64) -> Result<(Box<dyn Read + Send>, u64)> {
        let act = || format!("read {}", path.display());
        let missing = || Error::new(Kind::NotFound, format!("{}: is not there", path.display()));
        match &self.0 {
            Files::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = match rustix::fs::openat(CWD, directory.join(path), flags, Mode::empty()) {
                    Err(rustix::io::Errno::NOENT) => return Err(missing()),
                    opened => File::from(opened.map_err(|error| Error::system(act(), error))?),
                };
                let meta = file.metadata().map_err(|error| Error::system(act(), error))?;
                if !meta.is_file() {
                    return Err(Error::bad_image(format!("{}: is no file", path.display())));
                }
                (&file).seek(SeekFrom::Start(from)).map_err(|error| Error::system(act(), error))?;
                Ok((Box::new(file), meta.len()))
            }
            Files::Archive(file, members) => {
                let (start, length) = members.get(path).ok_or_else(missing)?;
                let at = start.saturating_add(from.min(*length));
                Ok((Box::new(Member { file: file.clone(), at, end: start.saturating_add(*length) }), *length))
            }
        }
    }

    fn small(&self, path: &Path) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.read(path, 0)?.0.take(MAX_MANIFEST + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::system(format!("read {}", path.display()), error))?;
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(Error::bad_image(format!("{} is larger than {MAX_MANIFEST} bytes", path.display())));
        }
        Ok(bytes)
    }
}

impl Source for Layout {
    fn manifest(&self, name: &str) -> Result<Found> {
        crate::reference::sha256(name)?;
        Ok(Found { bytes: self.small(&blob(name))?, media_type: None })
    }

    fn open(&self, digest: &str, from: u64) -> Result<Part> {
        let (reader, whole) = self.read(&blob(digest), from)?;
        Ok(Part { reader, whole: Some(whole), skip: 0 })
    }

    fn range(&self, digest: &str, part: Range<u64>, _: u64) -> Result<Box<dyn Read + Send>> {
        let (reader, _) = self.read(&blob(digest), part.start)?;
        Ok(Box::new(reader.take(part.end.saturating_sub(part.start))))
    }

    fn lines(&self) -> Option<&Arc<Lines>> {
        None // a file is not faster when it is read in several places
    }
}

fn blob(digest: &str) -> PathBuf {
    Path::new("blobs").join(digest.replacen(':', "/", 1))
}

/// A member of an archive, read without moving the file's own place: several are read at once.
struct Member {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..left) else { return Ok(0) };
        let length = std::os::unix::fs::FileExt::read_at(self.file.as_ref(), buffer, self.at)?;
        self.at = self.at.saturating_add(length as u64);
        Ok(length)
    }
}

fn archive(path: &Path) -> Result<Files> {
    let fail = |error| Error::system(format!("read {}", path.display()), error);
    let file = File::open(path).map_err(fail)?;
    let mut members = HashMap::new();
    let mut archive = tar::Archive::new(&file);
    for entry in archive.entries_with_seek().map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if members.len() >= MAX_MEMBERS {
            return Err(Error::bad_image(format!("{} has more than {MAX_MEMBERS} members", path.display())));
        }
        if entry.header().entry_type().is_file() {
            let name = entry.path().map_err(fail)?;
            let name = name.strip_prefix("./").unwrap_or(&name).to_path_buf();
            members.insert(name, (entry.raw_file_position(), entry.size()));
        }
    }
    Ok(Files::Archive(Arc::new(file), members))
}
