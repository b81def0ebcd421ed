//! What the kernel kills for want of memory, until the host has been told.
//!
//! The kernel counts, and each container's count is looked at when there is news of it, when the first process has ended, and once more before
//! the cgroup goes. So no kill is missed, however short-lived the container; and as an event is taken only by whoever answers with it, none goes with
//! a caller who does not wait any more.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use nacre_jail::OomKills;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::process::Process;
use super::{Error, lock, stream};

/// The most containers, live and gone, whose kills are kept for the host.
const MAX_WAITING: usize = 1024;

/// cgroup v1's news make a descriptor readable, cgroup v2's are of priority.
const NEWS: Interest = Interest::READABLE.add(Interest::PRIORITY);

/// The kills of all containers that the host has not been told of.
#[derive(Debug, Default)]
pub struct Events {
    /// Containers, and how many kills of each.
    waiting: Mutex<VecDeque<(String, u64)>>,
    news: Notify,
}

impl Events {
    fn add(&self, container: &str, kills: u64) {
        let mut waiting = lock(&self.waiting);
        match waiting.iter_mut().find(|(id, _)| id == container) {
            Some((_, count)) => *count = count.saturating_add(kills),
            None => waiting.push_back((container.into(), kills)),
        }
        if waiting.len() > MAX_WAITING
            && let Some((container, kills)) = waiting.pop_front()
        {
            tracing::warn!(container, kills, "the host has not asked for out-of-memory events: these are forgotten");
        }
        drop(waiting);
        self.news.notify_waiters();
    }

    /// The container of the next kill. Waits until there is one.
    pub async fn next(&self) -> String {
        loop {
            let news = self.news.notified(); // before the look, so that none comes between
            if let Some(container) = self.take() {
                return container;
            }
            news.await;
        }
    }

    /// Containers take turns: one with many kills does not keep the others' from the host.
    fn take(&self) -> Option<String> {
        let mut waiting = lock(&self.waiting);
        let (container, kills) = waiting.pop_front()?;
        if kills > 1 {
            waiting.push_back((container.clone(), kills - 1));
        }
        Some(container)
    }
}

/// A container's kills, watched. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    count: Arc<Count>,
    task: AbortHandle,
}

impl Watch {
    /// Have `events` told of `kills` in the container `id`, whose first process is `init`.
    pub fn begin(id: &str, kills: OomKills, init: Arc<Process>, events: Arc<Events>) -> Result<Watch, Error> {
        let failed = |source: io::Error| Error::Stream { act: "watch for out-of-memory kills", source };
        let news = stream::watch_fd(kills.news()?, NEWS).map_err(failed)?;
        let count = Arc::new(Count { id: id.into(), kills: Mutex::new((kills, 0)), events });
        let task = tokio::spawn(follow(count.clone(), news, init)).abort_handle();
        Ok(Watch { count, task })
    }

    /// Look once more.
    pub fn end(self) {
        self.count.look();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Count {
    id: String,
    /// The kernel's count, and how much of it `events` know.
    kills: Mutex<(OomKills, u64)>,
    events: Arc<Events>,
}

impl Count {
    fn look(&self) {
        let mut kills = lock(&self.kills);
        let (kernel, known) = &mut *kills;
        match kernel.count() {
            Ok(count) if count > *known => {
                tracing::warn!(container = self.id, kills = count - *known, "out of memory: the kernel has killed");
                self.events.add(&self.id, count - *known);
                *known = count;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(container = self.id, error = crate::chain(&error), "look for kills"),
        }
    }

    async fn listen(&self, news: &AsyncFd<OwnedFd>) {
        while let Ok(mut ready) = news.ready(NEWS).await {
            ready.clear_ready();
            self.look();
        }
    }
}

async fn follow(count: Arc<Count>, news: AsyncFd<OwnedFd>, init: Arc<Process>) {
    tokio::select! {
        () = count.listen(&news) => return,
        _ = init.exited() => count.look(),
    }
    count.listen(&news).await; // other processes may outlive the first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_kill_is_told_once_and_containers_take_turns() {
        let events = Events::default();
        events.add("a", 2);
        events.add("b", 1);
        events.add("a", 1);
        let mut told = Vec::new();
        for _ in 0..4 {
            told.push(events.next().await);
        }
        assert_eq!(told, ["a", "b", "a", "a"]);
        assert!(events.take().is_none());
    }

    #[tokio::test]
    async fn a_caller_who_goes_away_takes_nothing_along() {
        let events = Events::default();
        {
            let gone = events.next();
            tokio::pin!(gone);
            assert!(waits(gone.as_mut()).await);
            events.add("a", 1);
        }
        let (first, second) = tokio::join!(events.next(), async {
            events.add("b", 1);
            events.next().await
        });
        assert_eq!((first.as_str(), second.as_str()), ("a", "b"));
    }

    /// Whether `future` waits.
    async fn waits(future: impl Future<Output = String>) -> bool {
        tokio::select! {
            biased;
            _ = future => false,
            () = tokio::task::yield_now() => true,
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let events = Events::default();
        (0..=MAX_WAITING).for_each(|i| events.add(&i.to_string(), 1));
        assert_eq!(lock(&events.waiting).len(), MAX_WAITING);
        assert_eq!(events.take().as_deref(), Some("1"));
    }
}
