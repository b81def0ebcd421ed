//! ttRPC by hand: frames as bytes, for what no client of ours would send, and for methods by their names alone.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use protobuf::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::Code;
use ttrpc::proto::{Request, Response};

/// The type of a request's frame.
pub const REQUEST: u8 = 1;

/// The type of a response's frame.
pub const RESPONSE: u8 = 2;

/// The largest frame's body.
pub const MAX_BODY: u32 = 4 << 20;

/// How long an answer may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// A frame that says of itself what it likes.
pub fn frame(length: u32, stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(body);
    bytes
}

/// A call's frame.
///
/// # Errors
/// None that can happen.
pub fn request(stream: u32, request: &Request) -> Result<Vec<u8>> {
    let body = request.write_to_bytes()?;
    Ok(frame(u32::try_from(body.len())?, stream, REQUEST, &body))
}

/// A call of `method`.
pub fn call(service: &str, method: &str, payload: Vec<u8>) -> Request {
    Request { service: service.into(), method: method.into(), payload, ..Request::new() }
}

/// A connection.
#[derive(Debug)]
pub struct Wire(UnixStream);

impl Wire {
    /// Speak over `stream`.
    pub fn new(stream: UnixStream) -> Wire {
        Wire(stream)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// An agent that has hung up.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        timeout(ANSWERS_WITHIN, self.0.write_all(bytes)).await.context("the agent does not read")?.context("send")
    }

    /// The next frame's bytes; `None` when the agent has hung up.
    ///
    /// # Errors
    /// An agent that says nothing, or breaks off.
    pub async fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        timeout(ANSWERS_WITHIN, self.read()).await.context("no answer")?
    }

    async fn read(&mut self) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; 10];
        match self.0.read(&mut bytes).await.context("receive")? {
            0 => return Ok(None),
            read => self.0.read_exact(bytes.get_mut(read..).unwrap_or_default()).await.context("receive a header")?,
        };
        let length: [u8; 4] = bytes.iter().copied().take(4).collect::<Vec<_>>().try_into().unwrap_or_default();
        let mut body = vec![0; u32::from_be_bytes(length).min(MAX_BODY) as usize];
        self.0.read_exact(&mut body).await.context("receive a body")?;
        bytes.extend(body);
        Ok(Some(bytes))
    }

    /// The next answer, and to which call.
    ///
    /// # Errors
    /// No answer.
    pub async fn answer(&mut self) -> Result<(u32, Response)> {
        let Some(bytes) = self.receive().await? else { bail!("the agent has hung up") };
        let (Some(&[_, _, _, _, a, b, c, d, kind, _]), Some(body)) = (bytes.first_chunk(), bytes.get(10..)) else {
            bail!("half a frame");
        };
        anyhow::ensure!(kind == RESPONSE, "a frame of type {kind}");
        Ok((u32::from_be_bytes([a, b, c, d]), Response::parse_from_bytes(body)?))
    }

    /// Calls and awaits the answer to it.
    ///
    /// # Errors
    /// No answer, or one to another call.
    pub async fn call(&mut self, stream: u32, call: &Request) -> Result<Response> {
        self.send(&request(stream, call)?).await?;
        let (answered, response) = self.answer().await?;
        anyhow::ensure!(answered == stream, "an answer to call {answered} instead of {stream}");
        Ok(response)
    }

    /// Whether the agent is well: it answers on this connection.
    ///
    /// # Errors
    /// It does not.
    pub async fn check(&mut self, stream: u32) -> Result<()> {
        let response = self.call(stream, &call("grpc.Health", "Check", Vec::new())).await?;
        anyhow::ensure!(response.payload == [8, 1], "not serving: {response}");
        Ok(())
    }
}

/// A response's code; `None` is one that this library does not know.
pub fn code(response: &Response) -> Option<Code> {
    response.status.code.enum_value().ok()
}
