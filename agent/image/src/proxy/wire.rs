//! The protocol's packets (skopeo's `cmd/skopeo/proxy.go`): one JSON document each, at most 32 KiB, with descriptors beside it.

use std::io::{IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};

/// The longest packet.
const MAX_PACKET: usize = 32 << 10;

/// The longest text of an error: with escapes it must fit into a packet.
pub(super) const MAX_ERROR: usize = 4 << 10;

/// How much a pipe holds (fcntl(2), `F_SETPIPE_SZ`); more than a mebibyte takes privileges.
const PIPE: usize = 1 << 20;

/// The socket to the client.
pub(super) struct Socket(OwnedFd);

/// What the client asks for.
#[derive(Debug, Deserialize)]
pub(super) struct Request {
    pub(super) method: String,
    #[serde(default)]
    args: Vec<Value>,
}

/// The answer.
#[derive(Debug)]
pub(super) struct Reply {
    value: Value,
    pipe: u64,
    fds: Vec<OwnedFd>,
    error: Option<(String, &'static str)>,
}

impl Request {
    fn wrong(&self, place: usize, what: &str) -> Error {
        Error::new(Kind::Internal, format!("{:.40}: argument {place} is not {what}", self.method))
    }

    pub(super) fn text(&self, place: usize) -> Result<&str> {
        self.args.get(place).and_then(Value::as_str).ok_or_else(|| self.wrong(place, "a text"))
    }

    pub(super) fn number(&self, place: usize) -> Result<u64> {
        self.args.get(place).and_then(Value::as_u64).ok_or_else(|| self.wrong(place, "a number"))
    }
}

impl Reply {
    pub(super) fn value(value: Value) -> Reply {
        Reply { value, pipe: 0, fds: Vec::new(), error: None }
    }

    pub(super) fn with(self, fds: Vec<OwnedFd>, pipe: u64) -> Reply {
        Reply { fds, pipe, ..self }
    }

    pub(super) fn failed(error: &Error) -> Reply {
        Reply { error: Some((error.to_wire(MAX_ERROR), code(error.kind))), ..Reply::value(Value::Null) }
    }
}

/// How the protocol classes an error.
fn code(kind: Kind) -> &'static str {
    if matches!(kind, Kind::Stalled | Kind::Unreachable) { "retryable" } else { "other" }
}

impl Socket {
    /// A copy of standard input.
    pub(super) fn stdin() -> Result<Socket> {
        let fd = std::io::stdin().as_fd().try_clone_to_owned();
        fd.map(Socket).map_err(|error| Error::system("take the socket", error))
    }

    /// The next request; `None` when the client is gone.
    pub(super) fn receive(&self) -> Result<Option<Request>> {
        let mut buffer = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space); // nothing is expected beside a request; what comes is closed
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        let length = match received {
            Ok(received) => received.bytes,
            Err(Errno::CONNRESET) => 0,
            Err(error) => return Err(Error::system("receive a request", error)),
        };
        let packet = buffer.get(..length).unwrap_or_default();
        if packet.is_empty() {
            return Ok(None);
        }
        let request = serde_json::from_slice(packet);
        request.map(Some).map_err(|error| Error::new(Kind::Internal, format!("a request makes no sense: {error}")))
    }

    pub(super) fn send(&self, reply: &Reply) -> Result<()> {
        let (error, code) = reply.error.as_ref().map_or(("", ""), |(text, code)| (text.as_str(), *code));
        let packet = json!({
            "success": reply.error.is_none(), "value": reply.value, "pipeid": reply.pipe, "error": error, "error_code": code,
        });
        let packet = packet.to_string();
        if packet.len() > MAX_PACKET {
            return Err(Error::new(Kind::Internal, "an answer does not fit into a packet"));
        }
        let fds: Vec<_> = reply.fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let bytes = [IoSlice::new(packet.as_bytes())];
        let sent = rustix::io::retry_on_intr(|| sendmsg(&self.0, &bytes, &mut ancillary, SendFlags::NOSIGNAL));
        match sent {
            Err(Errno::PIPE) => Ok(()), // the client is gone, as the next call finds
            sent => sent.map(drop).map_err(|error| Error::system("answer a request", error)),
        }
    }
}

/// A pipe that holds as much as it may: its reading and its writing end.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| Error::system("make a pipe", error))?;
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE); // a smaller one is only slower
    Ok((read, write))
}

/// Tells on the error pipe of a raw blob what became of it. A reader that has hung up is no error.
pub(super) fn tell(pipe: &OwnedFd, copied: Result<()>) {
    let Err(error) = copied else { return };
    let text = json!({ "code": code(error.kind), "message": error.to_wire(MAX_ERROR) }).to_string();
    let Ok(pipe) = pipe.try_clone() else { return };
    let _ = std::fs::File::from(pipe).write_all(text.as_bytes()); // nobody may be there
}
