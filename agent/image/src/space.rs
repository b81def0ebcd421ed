//! How much an image may take, and how much of that there is room for.
//!
//! A store in memory shares it with the containers that run. The kernel would let a pull fill it and then end whom it likes; so a pull looks how
//! much is left, before it begins and again as it goes on, and ends itself.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::{Error, Kind, Result};
use crate::frames::Windows;

/// The most bytes that an image unpacks to.
const MAX_UNPACKED: u64 = 256 << 30;

/// After so many unpacked bytes of all layers the store is asked anew.
const ASK_EVERY: u64 = 4 << 20;

/// Memory that is left to the others: a sixteenth, within these bounds.
const LEFT: std::ops::RangeInclusive<u64> = 16 << 20..=256 << 20;

/// Types of file systems that are the memory itself (linux/magic.h).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

const MEMINFO: &str = "/proc/meminfo";

/// Where layers are written.
#[derive(Debug)]
pub(crate) struct Space {
    root: PathBuf,
    /// What the kernel says of the memory, for a store that is in it. Open, for a thread that unpacks may open nothing outside of the store.
    memory: Option<File>,
}

impl Space {
    pub(crate) fn of(root: &Path) -> Result<Space> {
        let fail = |error: rustix::io::Errno| Error::system("ask what the image store is on", error);
        let kind = rustix::fs::statfs(root).map_err(fail)?.f_type as u64;
        let device = rustix::fs::stat(root).map_err(fail)?.st_dev;
        let in_memory = IN_MEMORY.contains(&kind) || is_zram(device);
        let memory = in_memory.then(|| File::open(MEMINFO)).transpose().map_err(unread)?;
        Ok(Space { root: root.to_path_buf(), memory })
    }

    /// Bytes that can still be written.
    pub(crate) fn free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.root);
        let stat = stat.map_err(|error| Error::system("ask for the image store's space", error))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let Some(memory) = &self.memory else { return Ok(free) };
        let mut text = vec![0; 16 << 10];
        let length = memory.read_at(&mut text, 0).map_err(unread)?;
        Ok(free.min(of_memory(&String::from_utf8_lossy(text.get(..length).unwrap_or_default()))))
    }

    /// # Errors
    /// No room for an image of that many bytes.
    pub(crate) fn check(&self, needed: u64) -> Result<()> {
        let (free, mib) = (self.free()?, |bytes: u64| bytes.div_ceil(1 << 20));
        if needed <= free {
            return Ok(());
        }
        let (needed, free) = (mib(needed), mib(free));
        Err(self.full(&format!("the image needs {needed} MiB or more, the image store has {free}")))
    }

    /// # Errors
    /// No room for what is written until this is asked again.
    fn check_more(&self) -> Result<()> {
        if self.free()? >= ASK_EVERY { Ok(()) } else { Err(self.full("the image needs more than the image store has")) }
    }

    fn full(&self, what: &str) -> Error {
        Error::new(Kind::NoSpace, format!("{what}: {}", self.remedy()))
    }

    fn remedy(&self) -> &'static str {
        if self.memory.is_some() { "give the VM more memory, or a scratch disk" } else { "make it larger" }
    }
}

fn unread(error: std::io::Error) -> Error {
    Error::system(format!("read {MEMINFO}"), error)
}

/// Whether the device is one of compressed memory. A kernel that does not say has none.
fn is_zram(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    link.is_ok_and(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"zram")))
}

/// What a store in memory may still take. Pages that are yet to be written to it count as free, but will not be.
fn of_memory(meminfo: &str) -> u64 {
    let bytes = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    let reserve = (bytes("MemTotal") / 16).clamp(*LEFT.start(), *LEFT.end());
    let taken = reserve.saturating_add(bytes("Dirty")).saturating_add(bytes("Writeback"));
    bytes("MemAvailable").saturating_sub(taken)
}

/// How many bytes all layers of an image may still unpack to, how many of them one layer has drawn, and the memory that they decode in.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    account: Arc<Account>,
    drawn: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Account {
    left: AtomicU64,
    space: Space,
    windows: Windows,
}

impl Budget {
    pub(crate) fn new(space: Space) -> Budget {
        Budget::of(MAX_UNPACKED, space)
    }

    fn of(left: u64, space: Space) -> Budget {
        let account = Account { left: AtomicU64::new(left), space, windows: Windows::new() };
        Budget { account: Arc::new(account), drawn: Arc::default() }
    }

    pub(crate) fn windows(&self) -> Windows {
        self.account.windows.clone()
    }

    /// One layer's part of it.
    pub(crate) fn part(&self) -> Budget {
        Budget { account: self.account.clone(), drawn: Arc::default() }
    }

    /// # Errors
    /// More than any image has, or than there is room for.
    pub(crate) fn draw(&self, bytes: u64) -> Result<()> {
        let Account { left, space, .. } = &*self.account;
        let before = left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes));
        let over = |_| Error::bad_image(format!("the image unpacks to more than {} GiB", MAX_UNPACKED >> 30));
        let before = before.map_err(over)?;
        self.drawn.fetch_add(bytes, Relaxed);
        let times = |left: u64| left / ASK_EVERY;
        if times(before) == times(before.saturating_sub(bytes)) { Ok(()) } else { space.check_more() }
    }

    /// What a layer has drawn that is fetched once more.
    pub(crate) fn give_back(&self) {
        self.account.left.fetch_add(self.drawn.swap(0, Relaxed), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "MemTotal:        1048576 kB\nMemFree:          500000 kB\nMemAvailable:     600000 kB\n\
                           Dirty:             10000 kB\nWriteback:          2000 kB\nWritebackTmp:      90000 kB\n";

    #[test]
    fn of_memory_a_part_is_left_to_others() {
        assert_eq!(of_memory(TEXT), (600_000 - 12_000 - 65_536) << 10);
        let small = "MemTotal: 131072 kB\nMemAvailable: 16000 kB\n";
        assert_eq!(of_memory(small), 0);
        assert_eq!(of_memory(""), 0);
        assert_eq!(of_memory("MemTotal: 9 kB\nMemAvailable: 99999999999999999999999 kB\nDirty"), 0);
    }

    #[test]
    fn only_a_store_in_memory_is_bounded_by_what_is_available() {
        let on = |in_memory: bool| Space { root: "/".into(), memory: in_memory.then(|| File::open(MEMINFO).unwrap()) };
        assert!(on(true).free().unwrap() <= on(false).free().unwrap());
        let error = on(true).check(u64::MAX).unwrap_err();
        assert!(error.kind == Kind::NoSpace && error.message.contains("scratch disk"), "{error}");
        on(false).check(0).unwrap();
    }

    #[test]
    fn file_systems_in_memory_are_known() {
        let of = |path: &str| Space::of(Path::new(path)).unwrap().memory.is_some();
        assert!(of("/dev/shm") && !of("/proc"));
    }

    #[test]
    fn an_image_that_unpacks_to_too_much_is_stopped() {
        let space = Space { root: "/".into(), memory: None };
        let budget = Budget::of(10, space);
        budget.draw(10).unwrap();
        let error = budget.draw(1).unwrap_err();
        assert!(error.kind == Kind::BadImage && error.message.contains("the image unpacks to more than"), "{error}");
    }

    #[test]
    fn a_store_that_fills_up_ends_the_pull_whichever_layer_it_is() {
        let nowhere = Space { root: "/nonexistent".into(), memory: None };
        let budget = Budget::new(nowhere);
        let other = budget.part();
        budget.draw(ASK_EVERY / 2).unwrap_err(); // the first of all asks, whatever it is
        other.draw(ASK_EVERY / 2).unwrap();
        budget.draw(ASK_EVERY / 4).unwrap_err();
    }

    #[test]
    fn what_a_liar_makes_a_layer_unpack_to_is_given_back() {
        let budget = Budget::new(Space { root: "/".into(), memory: None });
        let part = budget.part();
        part.draw(1 << 20).unwrap();
        budget.draw(1).unwrap();
        part.give_back();
        assert_eq!(budget.account.left.load(Relaxed), MAX_UNPACKED - 1);
    }
}
