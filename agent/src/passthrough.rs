//! Streams that pass the API by: connections that the host makes before it names them in a request.
//!
//! The host connects to a port of the agent's and says by what port of its own it has called. A connection waits here until a request claims
//! it as a process's standard input, output or error. How many wait, and for how long, is bounded: a host that floods the listener
//! finds its connections closed.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::listener::{Caller, Listener};

/// The most connections that wait to be claimed.
const MAX_WAITING: usize = 192;

/// How long one waits.
const KEPT: Duration = Duration::from_secs(60);

/// How long a request waits for its connections: the host has made them, but they may still be in the listener's queue.
const CLAIMED_WITHIN: Duration = Duration::from_secs(3);

/// The sockets of a process's standard input, output and error, where it has them.
pub type Sockets = [Option<OwnedFd>; 3];

/// A stream was not had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no listener.
    #[error("stdio ports: this agent takes none, agent.passfd_listener_port is not set")]
    Off,
    /// The host names a port by which it has not called.
    #[error("stdio ports: no connection from port {port} within {} s", CLAIMED_WITHIN.as_secs())]
    NoConnection {
        /// The host's port.
        port: u32,
    },
}

/// The connections that nobody has claimed yet, by their ports on the host.
#[derive(Debug)]
pub struct Connections(watch::Sender<BTreeMap<u32, Waiting>>);

#[derive(Debug)]
struct Waiting {
    since: Instant,
    socket: OwnedFd,
}

impl Connections {
    /// Accept connections for as long as the agent runs.
    pub fn listen(listener: Listener) -> Arc<Connections> {
        let connections = Arc::new(Connections(watch::channel(BTreeMap::new()).0));
        tokio::spawn(connections.clone().accept(listener));
        connections
    }

    /// Take the connections of these ports; 0 stands for none.
    pub async fn claim(&self, ports: [u32; 3]) -> Result<Sockets, Error> {
        let deadline = Instant::now() + CLAIMED_WITHIN;
        let mut sockets = [None, None, None];
        for (socket, port) in sockets.iter_mut().zip(ports).filter(|(_, port)| *port != 0) {
            let claimed = timeout_at(deadline, self.claim_one(port)).await;
            *socket = Some(claimed.map_err(|_| Error::NoConnection { port })?);
        }
        Ok(sockets)
    }

    async fn claim_one(&self, port: u32) -> OwnedFd {
        let mut arrivals = self.0.subscribe();
        loop {
            // The sender is `self`'s.
            let _ = arrivals.wait_for(|waiting| waiting.contains_key(&port)).await.map(drop);
            let mut claimed = None;
            self.change(|waiting| claimed = waiting.remove(&port));
            if let Some(Waiting { socket, .. }) = claimed {
                return socket;
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: Listener) {
        loop {
            let oldest = self.0.borrow().values().map(|waiting| waiting.since).min();
            let caller = match oldest {
                None => listener.next().await,
                Some(since) => tokio::select! {
                    caller = listener.next() => caller,
                    () = sleep_until(since + KEPT) => {
                        self.change(|waiting| waiting.retain(|_, waiting| waiting.since.elapsed() < KEPT));
                        continue;
                    }
                },
            };
            let Caller { port: Some(port), stream } = caller else {
                tracing::warn!("a connection for stdio that names no port is closed");
                continue;
            };
            match stream.to_fd() {
                Ok(socket) => self.keep(port, socket),
                Err(error) => tracing::warn!(port, "take a connection for stdio: {error}"),
            }
        }
    }

    fn keep(&self, port: u32, socket: OwnedFd) {
        self.0.send_if_modified(|waiting| {
            let has_room = waiting.len() < MAX_WAITING || waiting.contains_key(&port);
            if has_room {
                waiting.insert(port, Waiting { since: Instant::now(), socket });
            } else {
                tracing::warn!(port, "{MAX_WAITING} connections for stdio wait to be claimed, one more is closed");
            }
            has_room
        });
    }

    /// Change what no claim waits for.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<u32, Waiting>)) {
        self.0.send_if_modified(|waiting| {
            change(waiting);
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use nacre_protocol::address::Address;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{UnixSocket, UnixStream};

    async fn call(dir: &Path, port: u32) -> UnixStream {
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(dir.join(port.to_string())).unwrap();
        socket.connect(dir.join("listener")).await.unwrap()
    }

    fn listen(dir: &Path) -> Arc<Connections> {
        Connections::listen(Listener::bind(&Address::Unix(dir.join("listener")), "stdio").unwrap())
    }

    #[tokio::test]
    async fn a_claim_waits_for_its_connection_and_takes_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let connections = listen(dir.path());
        let _other = call(dir.path(), 8).await;
        let (claimed, mut host) = tokio::join!(connections.claim([0, 7, 0]), async {
            tokio::task::yield_now().await;
            call(dir.path(), 7).await
        });
        let [None, Some(socket), None] = claimed.unwrap() else { panic!("not the one that was named") };
        rustix::io::write(&socket, b"hello").unwrap();
        drop(socket);
        let mut text = String::new();
        host.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_nobody_called_by_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = listen(dir.path()).claim([0, 0, 9]).await.unwrap_err().to_string();
        assert_eq!(error, "stdio ports: no connection from port 9 within 3 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_nobody_claims_is_closed_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let _connections = listen(dir.path());
        let begun = Instant::now();
        assert_eq!(call(dir.path(), 7).await.read(&mut [0]).await.unwrap(), 0);
        assert!(begun.elapsed() >= KEPT);
    }

    #[tokio::test]
    async fn a_flood_is_closed_and_what_came_before_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let connections = listen(dir.path());
        let mut kept = Vec::new();
        for port in 1..=u32::try_from(MAX_WAITING).unwrap() {
            kept.push(call(dir.path(), port).await);
        }
        assert_eq!(call(dir.path(), 100_000).await.read(&mut [0]).await.unwrap(), 0);
        assert!(connections.claim([1, 2, 3]).await.is_ok());
        let _room = call(dir.path(), 100_001).await;
        assert!(connections.claim([100_001, 0, 0]).await.is_ok());
    }

    #[tokio::test]
    async fn a_connection_without_a_port_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let _connections = listen(dir.path());
        let mut host = UnixStream::connect(dir.path().join("listener")).await.unwrap();
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    }
}
