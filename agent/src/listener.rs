//! Sockets on which hosts are heard besides the API's: a vsock port of the guest's, or a unix socket where there is no guest.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::time::Duration;

use nacre_protocol::address::{Address, CID_HOST};
use nacre_protocol::connect::Stream;
use tokio::net::UnixListener;
use tokio::time::sleep;
use tokio_vsock::{VsockAddr, VsockListener};

/// The pause after a connection that could not be accepted, for want of descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that is listened at.
#[derive(Debug)]
pub struct Listener {
    purpose: &'static str,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Vsock(VsockListener),
    Unix(UnixListener),
}

/// Who has connected.
#[derive(Debug)]
pub struct Caller {
    /// The port that the host calls by. A unix socket has none: the last part of the path that it is bound to is one.
    pub port: Option<u32>,
    /// The connection.
    pub stream: Stream,
}

impl Listener {
    /// Listen at `address` for what the log calls `purpose`.
    pub fn bind(address: &Address, purpose: &'static str) -> io::Result<Listener> {
        let socket = match address {
            Address::Vsock { cid, port } => Socket::Vsock(VsockListener::bind(VsockAddr::new(*cid, *port))?),
            Address::Unix(path) => {
                let listener = StdUnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Socket::Unix(UnixListener::from_std(listener)?)
            }
            Address::Abstract(_) | Address::Hybrid { .. } => {
                let text = format!("{purpose}: only vsock://CID:PORT and unix:///PATH are listened at");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        Ok(Listener { purpose, socket })
    }

    /// The next connection of the host's. Others are closed: what runs in the guest has no business here.
    pub async fn next(&self) -> Caller {
        loop {
            match self.accept().await {
                Ok(Some(caller)) => return caller,
                // Quietly: whoever it is can do so as often as it likes.
                Ok(None) => tracing::debug!("a connection for {} that is not the host's is closed", self.purpose),
                Err(error) => {
                    tracing::warn!("accept a connection for {}: {error}", self.purpose);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<Option<Caller>> {
        Ok(match &self.socket {
            Socket::Vsock(listener) => {
                let (stream, peer) = listener.accept().await?;
                let caller = Caller { port: Some(peer.port()), stream: Stream::Vsock(stream) };
                (peer.cid() == CID_HOST).then_some(caller)
            }
            Socket::Unix(listener) => {
                let (stream, peer) = listener.accept().await?;
                Some(Caller { port: peer.as_pathname().and_then(port_of), stream: Stream::Unix(stream) })
            }
        })
    }
}

fn port_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}
