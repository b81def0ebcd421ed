//! Events for containerd, in the order in which they happen (`containerd.services.events.ttrpc.v1.Events`).
//!
//! They are queued, for a containerd that restarts is back in a moment; the exits that it misses stay to be had by `Wait` and `State`.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
use nacre_protocol::address::Address;
use nacre_protocol::connect;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use ttrpc::context::with_timeout;

use super::log::Log;

/// How many events wait at most.
const MAX_WAITING: usize = 1024;

/// How often one is sent anew, and how long after.
const ATTEMPTS: u32 = 5;
const BACK_OFF: Duration = Duration::from_millis(200);

/// How long containerd may take for one.
const WITHIN: Duration = Duration::from_secs(5);

/// Where containerd hears events, as it says in its shims' environment. CRI-O has none.
const ENV: &str = "TTRPC_ADDRESS";

/// Where events go.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Envelope>,
    namespace: String,
    log: Log,
}

impl Events {
    /// Events of containerd's `namespace`. Returns the task that sends them, which ends with the last [`Events`].
    pub fn start(namespace: &str, log: Log) -> (Events, tokio::task::JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let address = std::env::var(ENV).ok().filter(|address| !address.is_empty());
        let sender = tokio::spawn(send_all(address, waiting, log.clone()));
        (Events { queue, namespace: namespace.into(), log }, sender)
    }

    /// Tells of `event`, now.
    pub fn tell<M: MessageFull>(&self, topic: &str, event: &M) {
        let Ok(value) = event.write_to_bytes() else { return };
        let type_url = M::descriptor().full_name().to_string();
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: MessageField::some(Any { type_url, value, ..Any::default() }),
            ..Envelope::default()
        };
        if self.queue.try_send(envelope).is_err() {
            self.log.warn(&format!("{topic}: {MAX_WAITING} events wait for containerd: one is lost"));
        }
    }
}

/// A time as protobuf has it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}

async fn send_all(address: Option<String>, mut waiting: mpsc::Receiver<Envelope>, log: Log) {
    let mut client = None;
    while let Some(envelope) = waiting.recv().await {
        let Some(address) = &address else { continue };
        let topic = envelope.topic.clone();
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
        for attempt in 1..=ATTEMPTS {
            match send(address, &mut client, &request).await {
                Ok(()) => break,
                Err(error) if attempt == ATTEMPTS => log.warn(&format!("{topic}: containerd was not told: {error}")),
                Err(_) => sleep(BACK_OFF * attempt).await,
            }
        }
    }
}

async fn send(address: &str, client: &mut Option<EventsClient>, request: &ForwardRequest) -> Result<(), String> {
    if client.is_none() {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let stream = connect::connect(&Address::Unix(path.into()), Instant::now() + WITHIN).await;
        *client = Some(EventsClient::new(stream.map_err(|error| error.to_string())?));
    }
    let Some(connected) = client else { return Ok(()) };
    let context = with_timeout(i64::try_from(WITHIN.as_nanos()).unwrap_or(i64::MAX));
    let sent = connected.forward(context, request).await;
    if sent.is_err() {
        *client = None;
    }
    sent.map(drop).map_err(|error| error.to_string())
}
