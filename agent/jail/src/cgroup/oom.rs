//! What the kernel kills in a cgroup for want of memory: counted by it, and told as it happens.
//!
//! cgroup v2 has one file for both, `memory.events` (Documentation/admin-guide/cgroup-v2.rst). cgroup v1 counts in `memory.oom_control` and
//! tells by an eventfd (Documentation/admin-guide/cgroup-v1/memory.rst), and it tells before it counts.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use super::{Cgroup, counters_in, is_unified, write_file};
use crate::error::Error;

/// The kernel's count of what it has killed in a container for want of memory.
#[derive(Debug)]
pub struct OomKills {
    counter: File,
    /// What it was at the beginning: the cgroup may have been there before.
    before: u64,
    /// cgroup v1's news.
    told: Option<File>,
    /// How often it has told of one.
    times: u64,
}

impl Cgroup {
    /// Begins to count.
    pub(crate) fn watch_oom_kills(&self) -> Result<OomKills, Error> {
        let base = self.base("memory").ok_or_else(|| Error::Unsupported {
            property: "memory.events: this system has no cgroup controller \"memory\"".into(),
        })?;
        let path = base.join(if is_unified() { "memory.events" } else { "memory.oom_control" });
        let counter = File::open(&path).map_err(|source| Error::system(format!("open {}", path.display()), source))?;
        let mut kills = OomKills { counter, before: 0, told: None, times: 0 };
        kills.before = kills.count()?;
        if is_unified() {
            return Ok(kills);
        }
        let told = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::system("make an eventfd", error))?;
        let control = base.join("cgroup.event_control");
        let wanted = format!("{} {}", told.as_raw_fd(), kills.counter.as_raw_fd());
        write_file(&control, &wanted)
            .map_err(|source| Error::system(format!("write {wanted:?} to {}", control.display()), source))?;
        kills.told = Some(told.into());
        Ok(kills)
    }
}

impl OomKills {
    /// A descriptor that is readable (cgroup v1) or has news of priority (v2) whenever the count may have risen.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn news(&self) -> Result<OwnedFd, Error> {
        let news = self.told.as_ref().unwrap_or(&self.counter).as_fd().try_clone_to_owned();
        news.map_err(|source| Error::system("copy a descriptor", source))
    }

    /// How many processes have been killed since the beginning. Does not block.
    ///
    /// # Errors
    /// A cgroup that is gone.
    pub fn count(&mut self) -> Result<u64, Error> {
        let failed = |source| Error::system("read the count of out-of-memory kills", source);
        let mut text = String::new();
        self.counter.rewind().map_err(failed)?;
        (&self.counter).take(4096).read_to_string(&mut text).map_err(failed)?;
        let counted = counters_in(&text).get("oom_kill").copied().unwrap_or(0);
        let mut times = [0; 8];
        if let Some(Ok(8)) = self.told.as_mut().map(|told| told.read(&mut times)) {
            self.times = self.times.saturating_add(u64::from_ne_bytes(times));
        }
        Ok(counted.saturating_sub(self.before).max(self.times))
    }
}
