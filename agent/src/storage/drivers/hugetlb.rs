//! A file system of huge pages (the kernel's admin-guide/mm/hugetlbpage.rst), and the pages that it takes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nacre_protocol::agent::Storage;
use rustix::mount::MountFlags;

use crate::storage::options::{Data, Options};
use crate::storage::pull::lock;
use crate::storage::undo::{Steps, Undo};
use crate::storage::{Error, drivers, invalid};

/// Where the kernel has the pages of each size.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// The kernel is told how many there are to be: who adds some must know how many there were.
static POOL: Mutex<()> = Mutex::new(());

/// Pages that were added to those of their size. Dropping it takes them away.
#[derive(Debug)]
struct Reserved {
    pool: PathBuf,
    pages: u64,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    page: u64,
    bytes: u64,
    rest: Vec<String>,
}

/// Reserve the pages, and mount their file system. Blocks.
pub fn mount(storage: &Storage, at: &Path) -> Result<Steps, Error> {
    let wanted = Wanted::parse(&storage.options).map_err(|reason| invalid(storage, reason))?;
    let mut options = Options::parse(&wanted.rest, Data::Tmpfs).map_err(|reason| invalid(storage, reason))?;
    options.flags |= MountFlags::NODEV;
    let of_file_system = format!("pagesize={},size={}", wanted.page, wanted.bytes);
    options.data = if options.data.is_empty() { of_file_system } else { format!("{of_file_system},{}", options.data) };
    let mut steps = Steps::default();
    let pool = Path::new(POOLS).join(format!("hugepages-{}kB", wanted.page >> 10)).join("nr_hugepages");
    steps.push(Undo::Value(Box::new(Reserved::make(pool, wanted.bytes / wanted.page)?)));
    steps.append(drivers::mount(Path::new("nodev"), at, "hugetlbfs", &options)?);
    drivers::own(&options, at)?;
    Ok(steps)
}

impl Wanted {
    fn parse(options: &[String]) -> Result<Wanted, String> {
        let (mut page, mut bytes, mut rest) = (0, 0, Vec::new());
        for option in options.iter().flat_map(|option| option.split(',')) {
            match option.split_once('=') {
                Some(("pagesize", value)) => page = number(value).ok_or("pagesize: is no number of bytes")?,
                Some(("size", value)) => bytes = number(value).ok_or("size: is no number of bytes")?,
                _ => rest.push(option.into()),
            }
        }
        if !page.is_power_of_two() || bytes == 0 || !bytes.is_multiple_of(page) {
            return Err(format!("size={bytes} is no number of pages of pagesize={page}"));
        }
        Ok(Wanted { page, bytes, rest })
    }
}

/// Bytes, or thousands of them by a letter.
fn number(text: &str) -> Option<u64> {
    let shift = match text.bytes().last()?.to_ascii_uppercase() {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        _ => return text.parse().ok(),
    };
    text.get(..text.len() - 1)?.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl Reserved {
    /// All of `pages`, or none.
    fn make(pool: PathBuf, pages: u64) -> Result<Reserved, Error> {
        let _pool = lock(&POOL);
        let failed = |error| Error::system("reserve huge pages by", &pool, error);
        let before = read(&pool).map_err(failed)?;
        let wanted = before.checked_add(pages).ok_or(io::ErrorKind::InvalidInput).map_err(|e| failed(e.into()))?;
        fs::write(&pool, wanted.to_string()).map_err(failed)?;
        // The kernel adds as many as it finds room for.
        let found = read(&pool).map_err(failed)?;
        if found < wanted {
            let reason = format!("of {pages} pages the kernel found {}", found.saturating_sub(before));
            fs::write(&pool, before.to_string()).map_err(failed)?;
            return Err(failed(io::Error::new(io::ErrorKind::OutOfMemory, reason)));
        }
        Ok(Reserved { pool, pages })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _pool = lock(&POOL);
        // Pages in use become ordinary ones when they are freed.
        let given_back =
            read(&self.pool).and_then(|pages| fs::write(&self.pool, pages.saturating_sub(self.pages).to_string()));
        if let Err(error) = given_back {
            tracing::warn!(%error, pool = ?self.pool, "huge pages were not given back");
        }
    }
}

fn read(pool: &Path) -> io::Result<u64> {
    fs::read_to_string(pool)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Wanted, String> {
        Wanted::parse(&options.iter().map(|o| (*o).to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn sizes_are_bytes_or_have_a_letter() {
        let wanted = Wanted { page: 2 << 20, bytes: 4 << 20, rest: vec!["noexec".into(), "mode=770".into()] };
        assert_eq!(parse(&["pagesize=2097152", "size=4194304", "noexec,mode=770"]).unwrap(), wanted);
        assert_eq!(parse(&["pagesize=2M,size=4096k", "noexec", "mode=770"]).unwrap(), wanted);
        for bad in ["size=4M", "pagesize=2M", "pagesize=2M,size=3M", "pagesize=0,size=0", "pagesize=2M,size=-1"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
        assert!(parse(&["pagesize=2M,size=17179869184G"]).is_err());
    }

    /// A pool that takes any number, unlike the kernel's.
    #[test]
    fn pages_are_added_to_what_there_is_and_taken_away_again() {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("nr_hugepages");
        fs::write(&pool, "3\n").unwrap();
        let (one, two) = (Reserved::make(pool.clone(), 4).unwrap(), Reserved::make(pool.clone(), 1).unwrap());
        assert_eq!(read(&pool).unwrap(), 8);
        drop(one);
        drop(two);
        assert_eq!(read(&pool).unwrap(), 3);
    }
}
