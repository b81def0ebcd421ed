//! Waiting for something that is told of by a descriptor: look, and look again at each event.
//!
//! An event is a reason to look again and no more: what it says is not read. So events that were lost do no harm, and there is nothing
//! in them to be deceived by.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

/// The most events that are taken for one.
const BURST: usize = 64;

/// Takes one event; tells whether it counts.
type Take = fn(&OwnedFd) -> Result<bool, Errno>;

/// Events from now on.
#[derive(Debug)]
pub struct Events {
    source: AsyncFd<OwnedFd>,
    take: Take,
}

impl Events {
    /// Those of `source`, which does not block.
    #[expect(
        deprecated,
        reason = "the other way is unsafe, for types whose descriptor may change; an OwnedFd's does not"
    )]
    pub fn of(source: OwnedFd, take: Take) -> io::Result<Events> {
        Ok(Events { source: AsyncFd::new(source)?, take })
    }

    /// Files that are whole in one of `directories`. Those that are not there are left out.
    pub fn of_directories(directories: &[impl AsRef<Path>]) -> io::Result<Events> {
        let source = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        for directory in directories {
            match inotify::add_watch(&source, directory.as_ref(), WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO) {
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // A read takes whole events: this buffer has room for the longest name.
        Events::of(source, |source| rustix::io::read(source, &mut [0; 512]).map(|_| true))
    }

    /// Look with `look`, which may block, until it finds something or `patience` is over; its last word is the answer.
    pub async fn wait<T, E>(
        &self,
        patience: Duration,
        mut look: impl FnMut() -> Result<T, E> + Send + 'static,
    ) -> io::Result<Result<T, E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let deadline = Instant::now() + patience;
        loop {
            let found;
            (found, look) = tokio::task::spawn_blocking(move || (look(), look)).await?;
            // Events may never cease to come.
            if found.is_ok() || Instant::now() >= deadline {
                return Ok(found);
            }
            match timeout_at(deadline, self.next()).await {
                Ok(heard) => heard?,
                Err(_) => return Ok(found),
            }
        }
    }

    /// Waits for the next event, and takes along those that are there already.
    async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.source.readable().await?;
            match ready.try_io(|source| self.take_all(source.get_ref())) {
                Ok(Ok(true)) => return Ok(()),
                Ok(heard) => drop(heard?),
                Err(_would_block) => {}
            }
        }
    }

    fn take_all(&self, source: &OwnedFd) -> io::Result<bool> {
        let mut heard = false;
        for _ in 0..BURST {
            match (self.take)(source) {
                Ok(counts) => heard |= counts,
                Err(Errno::WOULDBLOCK) if heard => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_seen_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        let events = Events::of_directories(&[dir.path(), Path::new("/nonexistent")]).unwrap();
        let seen = file.clone();
        let look = move || if seen.exists() { Ok(()) } else { Err("no") };
        assert_eq!(events.wait(Duration::ZERO, look.clone()).await.unwrap(), Err("no"));
        let waiting = tokio::spawn(async move { events.wait(Duration::from_secs(60), look).await });
        std::fs::write(&file, "").unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), Ok(()));
    }
}
