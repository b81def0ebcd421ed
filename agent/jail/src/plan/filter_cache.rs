//! Compiled filters, kept. libseccomp takes more than ten milliseconds for the filter that most containers have, and most have the same.
//!
//! A program is found by all that was compiled, never by a digest of it alone. A command line, which lives for one call, keeps them in a
//! directory that only its user can write.

use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use nacre_sys::seccomp::Program;

/// The most filters that are kept, in memory and in the directory each.
const MOST: usize = 32;

static KEPT: Mutex<Vec<(Vec<u8>, Program)>> = Mutex::new(Vec::new());
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Keeps compiled filters in `directory` from now on, too, which is made when it is needed. Only the first call counts. Nobody but the
/// caller may be able to write there: what is found is what is loaded.
pub fn keep_filters_in(directory: &Path) {
    let _ = DIRECTORY.set(directory.into()); // see above
}

/// The program for `source`, compiled by `compile` unless it was before.
pub(super) fn get<E>(source: Vec<u8>, compile: impl FnOnce() -> Result<Program, E>) -> Result<Program, E> {
    let lock = || KEPT.lock().unwrap_or_else(PoisonError::into_inner); // each change is one call
    if let Some((_, program)) = lock().iter().find(|(kept, _)| *kept == source) {
        return Ok(program.clone());
    }
    let file = DIRECTORY.get().map(|directory| directory.join(name(&source)));
    let program = match file.as_deref().and_then(|file| read(file, &source)) {
        Some(program) => program,
        None => {
            let program = compile()?;
            if let Some(file) = &file {
                let _ = write(file, &source, &program); // the next one compiles it again
            }
            program
        }
    };
    let mut kept = lock();
    if kept.len() >= MOST {
        kept.remove(0);
    }
    kept.push((source, program.clone()));
    Ok(program)
}

fn name(source: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(source);
    format!("{:016x}", hasher.finish())
}

/// A file holds the length of the source in eight bytes, the source, and the program.
fn read(file: &Path, source: &[u8]) -> Option<Program> {
    let bytes = fs::read(file).ok()?;
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (kept, program) = rest.split_at_checked(length)?;
    if kept == source { Program::from_bytes(program) } else { None }
}

fn write(file: &Path, source: &[u8], program: &Program) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
    if fs::read_dir(directory)?.count() >= MOST {
        return Ok(());
    }
    let mut bytes = (source.len() as u64).to_le_bytes().to_vec();
    bytes.extend(source);
    bytes.extend(program.to_bytes());
    let new = file.with_extension(std::process::id().to_string());
    fs::write(&new, bytes)?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(k: u8) -> Program {
        Program::from_bytes(&[6, 0, 0, 0, k, 0, 0, 0]).unwrap()
    }

    #[test]
    fn what_was_compiled_is_not_compiled_again_and_nothing_else_is_taken_for_it() {
        let compiled = || -> Result<Program, ()> { Ok(program(1)) };
        get(b"a".to_vec(), compiled).unwrap();
        let again = get(b"a".to_vec(), || -> Result<Program, ()> { Err(()) }).unwrap();
        assert_eq!(again.to_bytes(), program(1).to_bytes());
        assert!(get(b"b".to_vec(), || -> Result<Program, ()> { Err(()) }).is_err());
    }

    #[test]
    fn a_kept_file_counts_for_its_own_source_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kept/filter");
        write(&file, b"source", &program(2)).unwrap();
        assert_eq!(read(&file, b"source").unwrap().to_bytes(), program(2).to_bytes());
        assert!(read(&file, b"another").is_none());
        for bytes in [&b""[..], b"short", &[0xff; 64]] {
            fs::write(&file, bytes).unwrap();
            assert!(read(&file, b"source").is_none());
        }
    }
}
