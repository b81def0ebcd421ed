//! Reaching an agent, and being reached.
//!
//! [`connect`] retries until its deadline, because a guest's socket appears some time after its VM. Hybrid vsock (Cloud Hypervisor,
//! Firecracker, our own for QEMU) is a unix socket that takes one `CONNECT port` line and answers `OK …`; nothing past that line's
//! end is read, for the next byte belongs to the stream.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::{Listener, Socket};

use crate::address::Address;

/// The longest answer to `CONNECT`, in bytes: `OK 4294967295\n` and room to spare.
pub const MAX_ANSWER: usize = 64;

/// The pause between two attempts.
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// How long one attempt may take before the next: a device that is still attaching may swallow the `CONNECT` line.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Why an agent was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The deadline passed; the source says what the last attempt met.
    #[error("connect to {address}: no agent answered in time")]
    Deadline {
        /// Where the agent was expected.
        address: Address,
        /// The last attempt's error.
        source: io::Error,
    },
}

/// A connected stream of any kind.
#[derive(Debug)]
pub enum Stream {
    /// A unix or hybrid vsock connection.
    Unix(UnixStream),
    /// A vsock connection.
    Vsock(VsockStream),
}

/// Connects to the agent and speaks ttRPC over it. Retries until `deadline`.
pub async fn connect(address: &Address, deadline: Instant) -> Result<Client, ConnectError> {
    Ok(Client::new(Socket::new(stream(address, deadline).await?)))
}

/// Connects without speaking. Retries until `deadline`; a dropped future leaves no connection behind.
pub async fn stream(address: &Address, deadline: Instant) -> Result<Stream, ConnectError> {
    loop {
        let attempt = deadline.min(Instant::now() + ATTEMPT);
        let source = match timeout_at(attempt, dial(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer"),
        };
        let next = Instant::now() + RETRY_EVERY;
        if next >= deadline {
            return Err(ConnectError::Deadline { address: address.clone(), source });
        }
        sleep_until(next).await;
    }
}

/// Connects without speaking, at the first attempt.
///
/// # Errors
/// Those of the connection.
pub async fn dial(address: &Address) -> io::Result<Stream> {
    Ok(match address {
        Address::Vsock { cid, port } => Stream::Vsock(VsockStream::connect(VsockAddr::new(*cid, *port)).await?),
        Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
        Address::Abstract(name) => Stream::Unix(abstract_stream(name).await?),
        Address::Hybrid { path, port } => Stream::Unix(call(path, *port).await?.0),
    })
}

/// Calls a guest's `port` through the hybrid vsock at `path`. What the guest sees as the caller's port is told, where the vsock says it.
///
/// # Errors
/// Those of the connection, and a guest that nobody listens in.
pub async fn call(path: &Path, port: u32) -> io::Result<(UnixStream, Option<u32>)> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let own = parse_answer(&read_line(&mut stream).await?)?;
    Ok((stream, own))
}

async fn abstract_stream(name: &str) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt as _;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?; // local: answers at once
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Reads one line byte by byte, so that nothing past it is taken from the stream.
async fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(MAX_ANSWER);
    while line.len() < MAX_ANSWER {
        match stream.read_u8().await? {
            b'\n' => return Ok(line),
            byte => line.push(byte),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the answer to CONNECT exceeds {MAX_ANSWER} bytes")))
}

/// The host-side port in an answer to `CONNECT`, if it names one: `OK 1073741824`.
///
/// # Errors
/// Anything that does not begin with `OK`.
pub fn parse_answer(line: &[u8]) -> io::Result<Option<u32>> {
    let text = String::from_utf8_lossy(line);
    match text.trim().strip_prefix("OK") {
        Some(rest) if rest.is_empty() || rest.starts_with(' ') => Ok(rest.trim().parse().ok()),
        _ => {
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("the answer to CONNECT was {text:?}, not OK")))
        }
    }
}

/// Binds the address for a ttRPC server.
///
/// # Errors
/// Those of bind(2); a hybrid address can't be bound, for it is the VMM that listens there.
pub fn listen(address: &Address) -> io::Result<Listener> {
    match address {
        Address::Hybrid { .. } => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("listen on {address}: a hybrid address is the VMM's; listen on vsock or unix"),
        )),
        other => Listener::bind(other.to_string()),
    }
}

impl Stream {
    /// The connection itself, for a thread that may wait for it.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn to_fd(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(stream) => stream.as_fd().try_clone_to_owned(),
            Self::Vsock(stream) => stream.as_fd().try_clone_to_owned(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Vsock(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Vsock(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Vsock(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Vsock(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Calls out once and hangs up: how a guest says that it is ready.
///
/// # Errors
/// Those of the connection, after `deadline` at the latest.
pub async fn call_out(address: &Address, deadline: Instant) -> io::Result<()> {
    let dialled: Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>> = Box::pin(dial(address));
    let mut stream = timeout_at(deadline, dialled).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::UnixListener;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    /// A VMM's hybrid socket that answers each connection with the next of `answers`.
    async fn vmm(listener: UnixListener, answers: Vec<&'static [u8]>) -> Vec<String> {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            asked.push(String::from_utf8(read_line(&mut stream).await.unwrap()).unwrap());
            stream.write_all(answer).await.unwrap();
        }
        asked
    }

    #[tokio::test]
    async fn the_hybrid_handshake_takes_its_line_and_not_a_byte_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let address = Address::Hybrid { path, port: 1024 };
        let (asked, stream) = tokio::join!(vmm(listener, vec![b"OK 7\nhello"]), stream(&address, soon()));
        let mut rest = String::new();
        stream.unwrap().read_to_string(&mut rest).await.unwrap();
        assert_eq!((asked, rest.as_str()), (vec!["CONNECT 1024".to_string()], "hello"));
    }

    #[tokio::test]
    async fn a_guest_that_is_not_up_yet_is_dialled_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let address = Address::Hybrid { path, port: 1 };
        let (asked, stream) = tokio::join!(vmm(listener, vec![b"", b"NO\n", b"OK 9\n"]), stream(&address, soon()));
        assert!(stream.is_ok());
        assert_eq!(asked.len(), 3);
    }

    #[tokio::test]
    async fn an_absent_agent_is_an_error_that_names_it_when_the_deadline_passes() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("nobody"));
        let error = stream(&address, Instant::now() + Duration::from_millis(30)).await.unwrap_err();
        assert!(error.to_string().contains("nobody"), "{error}");
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut_off() {
        let (mut host, mut guest) = UnixStream::pair().unwrap();
        host.write_all(&[b'x'; MAX_ANSWER + 1]).await.unwrap();
        assert_eq!(read_line(&mut guest).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn only_ok_is_an_answer() {
        assert_eq!(parse_answer(b"OK 1073741824").unwrap(), Some(1_073_741_824));
        assert_eq!(parse_answer(b"OK").unwrap(), None);
        for bad in [&b""[..], b"ok 1", b"OKAY", b"ERR", b"\xff\xfe"] {
            assert!(parse_answer(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse_answer(&line);
        }
    }
}
