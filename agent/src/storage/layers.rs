//! Which layers of the store are in use, and the end of the others.
//!
//! A layer stays when the last container that has it goes: a container that is started again wants it. What nobody uses goes when a pull lacks
//! space, and only while no pull runs, for a worker that has found a layer in the store counts on it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nacre_pull::Image;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::flight::AT_ONCE;
use super::pull::lock;

/// The layers of the whole agent.
#[derive(Debug)]
pub(super) struct Layers {
    store: PathBuf,
    users: Mutex<HashMap<PathBuf, usize>>,
    /// Each pull has one of its permits; who has all knows that none runs.
    running: Arc<Semaphore>,
}

/// An image, whose layers stay while it is there.
#[derive(Debug)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    layers: Arc<Layers>,
}

impl Layers {
    /// Nobody uses the layers of `store` yet.
    pub(super) fn new(store: PathBuf) -> Arc<Layers> {
        Arc::new(Layers { store, users: Mutex::default(), running: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    /// While a pull holds this, and until its image is held, no layer goes.
    pub(super) async fn pulling(&self) -> Option<OwnedSemaphorePermit> {
        self.running.clone().acquire_owned().await.ok() // it is never closed
    }

    /// The image has a user from now on.
    pub(super) fn hold(self: &Arc<Self>, image: Image) -> Arc<Pulled> {
        let mut users = lock(&self.users);
        for layer in &image.layers {
            *users.entry(layer.clone()).or_default() += 1;
        }
        Arc::new(Pulled { image, layers: self.clone() })
    }

    /// Removes what nobody uses, once no pull runs. Says whether there was something.
    pub(super) async fn collect(self: &Arc<Self>) -> bool {
        let alone = self.running.clone().acquire_many_owned(AT_ONCE as u32).await;
        let layers = self.clone();
        // It goes on to its end also when nobody waits for it any more, and no pull begins before that.
        let collecting = tokio::task::spawn_blocking(move || {
            let _alone = alone;
            let used: HashSet<PathBuf> = lock(&layers.users).keys().cloned().collect();
            nacre_pull::client::collect(&layers.store, &used)
        });
        match collecting.await {
            Ok(Ok(0)) => false,
            Ok(Ok(removed)) => {
                tracing::info!(removed, "layers that nobody uses have made room");
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(error = crate::chain(&error), "layers that nobody uses were not removed");
                false
            }
            Err(_) => false, // the agent is about to end
        }
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        let mut users = lock(&self.layers.users);
        for layer in &self.image.layers {
            if let Some(count) = users.get_mut(layer) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    users.remove(layer);
                }
            }
        }
    }
}
