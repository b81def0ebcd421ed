//! One pull for all who ask for the same image with the same access.
//!
//! Each pull is a task of its own: it outlives a caller that gives up, so that a retry joins it, and ends by its timeout at the latest. It is
//! remembered only while it runs. Whoever asks later has the registry and the policy asked anew, which the layer store makes cheap.
//! [`AT_ONCE`] pulls run at once; the others wait in line, first come first served. One that lacks space has what nobody uses removed, and tries
//! once more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nacre_protocol::nacre::PullStatus;
use nacre_protocol::nacre::pull_status::Phase;
use nacre_pull::{Event, Kind, Request};
use tokio::sync::{Semaphore, watch};

use super::layers::{Layers, Pulled};
use super::pull::{PullError, Settings, lock};

/// How many images are pulled at once.
pub(super) const AT_ONCE: usize = 4;

/// How many more may wait for that.
pub(super) const IN_LINE: usize = 64;

/// How far a pull is.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// As it is told to the host; the revision is up to who tells it.
    pub(super) status: PullStatus,
    /// Its end.
    pub(super) result: Option<Result<Arc<Pulled>, PullError>>,
}

/// The pulls that run or wait in line.
#[derive(Debug)]
pub(super) struct Flights {
    settings: Arc<Settings>,
    layers: Arc<Layers>,
    /// By all that a worker is told: nobody gets what was pulled with another's credentials or by another policy.
    running: Mutex<HashMap<Request, watch::Sender<State>>>,
    slots: Semaphore,
    bytes: AtomicU64,
}

impl Flights {
    /// No pull yet.
    pub(super) fn new(settings: Arc<Settings>) -> Arc<Flights> {
        let (layers, slots) = (Layers::new(settings.store.clone()), Semaphore::new(AT_ONCE));
        Arc::new(Flights { settings, layers, running: Mutex::default(), slots, bytes: AtomicU64::new(0) })
    }

    /// The running pull that does what `request` says, or a new one. It goes on when the receiver is dropped.
    pub(super) fn join(self: &Arc<Self>, request: Request) -> watch::Receiver<State> {
        let mut running = lock(&self.running);
        if let Some(sender) = running.get(&request) {
            return sender.subscribe();
        }
        let reference = request.reference.clone();
        let mut status = PullStatus { reference: reference.clone(), ..PullStatus::new() };
        if running.len() >= AT_ONCE + IN_LINE {
            let error = PullError::TooMany { reference };
            fail(&mut status, &error);
            return watch::channel(State { status, result: Some(Err(error)) }).1;
        }
        let (sender, receiver) = watch::channel(State { status, result: None });
        running.insert(request.clone(), sender.clone());
        let result = Err(PullError::Ended { reference });
        let flight = Flight { flights: self.clone(), request, sender, begun: Instant::now(), result };
        tokio::spawn(flight.run());
        receiver
    }

    /// Compressed bytes of all images pulled so far.
    pub(super) fn bytes_total(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

/// A pull. Dropping it is its end, also when that comes before it is done: everybody who waits hears the result.
#[derive(Debug)]
struct Flight {
    flights: Arc<Flights>,
    request: Request,
    sender: watch::Sender<State>,
    begun: Instant,
    result: Result<Arc<Pulled>, PullError>,
}

impl Flight {
    async fn run(mut self) {
        let timeout = self.flights.settings.timeout;
        let deadline = || PullError::Deadline { reference: self.request.reference.clone(), timeout };
        // Who waits in line does so on its own time, not on the pull's.
        let flights = self.flights.clone();
        let pulled = match tokio::time::timeout(timeout, flights.slots.acquire()).await {
            Ok(_slot) => tokio::time::timeout(timeout, self.pull()).await.unwrap_or_else(|_| Err(deadline())),
            Err(_) => Err(deadline()),
        };
        if pulled.as_ref().is_err_and(PullError::leaves_remains) {
            let store = self.flights.settings.store.clone();
            // What a worker that was ended leaves would take the guest's memory until the next pull.
            tokio::task::spawn_blocking(move || nacre_pull::client::sweep(&store));
        }
        self.result = pulled;
    }

    async fn pull(&self) -> Result<Arc<Pulled>, PullError> {
        let (layers, lacks_space) = (&self.flights.layers, |error: &PullError| error.kind() == Some(Kind::NoSpace));
        let first = self.attempt().await;
        if !first.as_ref().is_err_and(lacks_space) || !layers.collect().await {
            return first;
        }
        let second = self.attempt().await;
        if second.as_ref().is_err_and(lacks_space) {
            layers.collect().await; // the layers that it had fetched
        }
        second
    }

    async fn attempt(&self) -> Result<Arc<Pulled>, PullError> {
        let settings = &self.flights.settings;
        let nowhere = |source| PullError::Place { reference: self.request.reference.clone(), source };
        settings.place.ready().await.map_err(nowhere)?;
        let _pulling = self.flights.layers.pulling().await;
        self.tell(|status| status.phase = Phase::RESOLVING.into());
        let mut worker = settings.worker.command();
        worker.envs(settings.rules.environment.iter().map(|(name, value)| (name, value)));
        settings.group.join(worker.as_std_mut());
        let image = nacre_pull::client::pull(worker, self.request.clone(), |event| self.event(event)).await;
        let failed = |source| PullError::Engine { reference: self.request.reference.clone(), source: Arc::new(source) };
        let pulled = image.map(|image| self.flights.layers.hold(image)).map_err(failed)?;
        settings.place.keep().await.map_err(nowhere)?;
        Ok(pulled)
    }

    fn event(&self, event: &Event) {
        match event {
            Event::Resolving => self.tell(|status| status.phase = Phase::RESOLVING.into()),
            Event::Resolved { manifest_digest, layers, bytes } => {
                self.tell(|status| {
                    status.phase = Phase::FETCHING.into();
                    status.manifest_digest = manifest_digest.clone();
                    status.layers_total = u32::try_from(*layers).unwrap_or(u32::MAX);
                    status.bytes_total = *bytes;
                });
                tracing::info!(image = self.request.reference, digest = manifest_digest, "image resolved");
            }
            Event::Progress { layers_done, bytes_done } => self.tell(|status| {
                status.layers_done = u32::try_from(*layers_done).unwrap_or(u32::MAX);
                status.bytes_done = *bytes_done;
            }),
            Event::Cache { message } => tracing::warn!(image = self.request.reference, "{message}"),
            // The end is told by the worker's result.
            Event::Done(_) | Event::Failed { .. } => {}
        }
    }

    fn tell(&self, change: impl FnOnce(&mut PullStatus)) {
        self.sender.send_modify(|state| {
            change(&mut state.status);
            state.status.elapsed_ns = self.elapsed_ns();
        });
    }

    fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn finish(&self, status: &mut PullStatus) {
        match &self.result {
            Ok(pulled) => {
                status.phase = Phase::DONE.into();
                status.manifest_digest = pulled.image.manifest_digest.clone();
                status.layers_done = status.layers_total;
                status.bytes_done = status.bytes_total;
                self.flights.bytes.fetch_add(status.bytes_total, Relaxed);
            }
            Err(error) => fail(status, error),
        }
    }
}

fn fail(status: &mut PullStatus, error: &PullError) {
    status.phase = Phase::FAILED.into();
    status.error = crate::chain(error);
}

impl Drop for Flight {
    fn drop(&mut self) {
        // First, so that nobody who has heard the end can join it.
        lock(&self.flights.running).remove(&self.request);
        if let (Err(error), 0) = (&self.result, self.sender.receiver_count()) {
            tracing::warn!(error = crate::chain(error), "an image for which nobody waits any more was not pulled");
        }
        // The status and the result at once: whoever sees the one has the other.
        self.sender.send_modify(|state| {
            self.finish(&mut state.status);
            state.status.elapsed_ns = self.elapsed_ns();
            state.result = Some(self.result.clone());
        });
    }
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
