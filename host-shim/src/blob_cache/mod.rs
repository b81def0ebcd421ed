//! A cache of blobs for guests, who believe nothing of it: `nacre run --blob-cache`.
//!
//! Guests are believed as little: a blob is kept once its bytes have the digest that it is named by, and what a guest may cost is bounded.
//! [`store`] is the directory, [`serve`] one guest's connection.

pub mod serve;
pub mod store;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::store::Store;

/// The host's port that guests call for blobs.
pub const PORT: u32 = 1031;

/// The most connections at once; more are hung up on. A guest pulls four images at once, and three layers of each.
const CONNECTIONS: usize = 16;

/// How long a guest may neither send nor take anything. It may itself wait for a registry, which has 30 s for each of three tries.
const SILENCE: Duration = Duration::from_secs(150);

/// The pause after a call that could not be taken.
const AFTER_A_FAULT: Duration = Duration::from_millis(100);

/// What the cache did, for people: errors that the host should know of.
pub type Tell = Box<dyn Fn(&str) + Send + Sync>;

/// What all connections share.
pub(crate) struct Shared {
    store: Store,
    tell: Tell,
    /// Whether a disk that is full was told.
    told: AtomicBool,
    served: AtomicU64,
    filled: AtomicU64,
    /// Bytes that guests have announced and that are not kept yet.
    on_the_way: AtomicU64,
}

/// A cache that guests can call. Dropping it takes no more calls.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
    shared: Arc<Shared>,
}

impl Server {
    /// Serves `store` at the socket `path`; `tell` hears of what goes wrong.
    ///
    /// # Errors
    /// A socket that can't be made.
    pub fn start(path: &Path, store: Store, tell: Tell) -> Result<Server> {
        let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        let shared = Arc::new(Shared {
            store,
            tell,
            told: AtomicBool::new(false),
            served: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            on_the_way: AtomicU64::new(0),
        });
        Ok(Server { task: tokio::spawn(accept(listener, shared.clone())), shared })
    }

    /// Bytes that guests had from the cache, and that they brought.
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.served.load(Relaxed), self.shared.filled.load(Relaxed))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("store", &self.store).finish_non_exhaustive()
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(AFTER_A_FAULT).await; // it is the host that lacks something, and nothing tells when it no longer does
            continue;
        };
        let (Ok(slot), Ok(stream)) = (slots.clone().try_acquire_owned(), blocking(stream)) else { continue };
        let shared = shared.clone();
        let serve = move || {
            let _slot = slot;
            serve::connection(&shared, stream);
        };
        // Not of the runtime's: its end would wait for guests. Where there can't be another thread, the guest is hung up on.
        let _ = std::thread::Builder::new().name("blobs".into()).spawn(serve);
    }
}

fn blocking(stream: UnixStream) -> std::io::Result<std::os::unix::net::UnixStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(stream)
}
