//! What is asked of containerd: the image of a container whose annotations do not name it, as `ctr` and nerdctl make them
//! (`containerd.services.containers.v1.Containers/Get`, gRPC over HTTP/2).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use containerd_shim_protos::protobuf::{self, CodedInputStream};
use http::Request;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::events::Events;

/// The method.
const GET: &str = "http://containerd/containerd.services.containers.v1.Containers/Get";

/// Fields of `GetContainerRequest`, `GetContainerResponse` and `Container`.
const ID: u8 = 1;
const CONTAINER: u32 = 1;
const IMAGE: u32 = 3;

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The longest answer: a container's specification is in it.
const MAX_ANSWER: usize = 16 << 20;

/// How long containerd may take.
const WITHIN: Duration = Duration::from_secs(5);

/// containerd, as a shim knows it.
#[derive(Debug, Clone)]
pub struct Containerd {
    /// Its socket.
    pub socket: PathBuf,
    /// The namespace of the pod's containers.
    pub namespace: String,
    /// Where it hears of them.
    pub events: Events,
}

impl Containerd {
    /// The name of the image that the container `id` was made of.
    ///
    /// # Errors
    /// A containerd that does not answer, or knows no image.
    pub async fn image_of(&self, id: &str) -> Result<String> {
        let asked = timeout(WITHIN, self.get(id)).await;
        let answer = asked.with_context(|| format!("there is no answer within {} s", WITHIN.as_secs()));
        let act = || format!("ask containerd at {} for the image", self.socket.display());
        let image = image(&answer.and_then(|answer| answer).with_context(act)?).with_context(act)?;
        image.with_context(|| format!("{}: the container has none", act()))
    }

    async fn get(&self, id: &str) -> Result<Bytes> {
        let stream = UnixStream::connect(&self.socket).await.context("connect")?;
        let (client, connection) = h2::client::handshake(stream).await.context("speak HTTP/2")?;
        let connection = tokio::spawn(connection);
        let answer = self.call(client, id).await;
        connection.abort();
        answer
    }

    async fn call(&self, client: h2::client::SendRequest<Bytes>, id: &str) -> Result<Bytes> {
        let request = Request::post(GET)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", &self.namespace)
            .body(())
            .context("make the request")?;
        let mut client = client.ready().await.context("speak HTTP/2")?;
        let (response, mut body) = client.send_request(request, false).context("ask")?;
        body.send_data(message(id), true).context("ask")?;
        let mut body = response.await.context("hear the answer")?.into_body();
        let mut answer = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.context("hear the answer")?;
            ensure!(answer.len() + data.len() <= MAX_ANSWER, "the answer is longer than {} MiB", MAX_ANSWER >> 20);
            body.flow_control().release_capacity(data.len()).context("hear the answer")?;
            answer.extend_from_slice(&data);
        }
        let trailers = body.trailers().await.context("hear the answer")?.unwrap_or_default();
        let trailer =
            |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_string();
        match trailer("grpc-status").as_str() {
            "0" => Ok(answer.freeze()),
            status => bail!("status {status}: {}", trailer("grpc-message")),
        }
    }
}

/// The request, behind its prefix. A name of containerd's is short.
fn message(id: &str) -> Bytes {
    let mut message = BytesMut::new();
    let length = id.len().min(0x7f);
    message.put_u8(0);
    message.put_u32(u32::try_from(length + 2).unwrap_or(0));
    message.put_u8(ID << 3 | 2);
    message.put_u8(u8::try_from(length).unwrap_or(0));
    message.put_slice(&id.as_bytes()[..length]);
    message.freeze()
}

/// The image that an answer names.
fn image(answer: &[u8]) -> Result<Option<String>> {
    let body = answer.get(PREFIX..).context("the answer is too short")?;
    let container = field(body, CONTAINER).context("read the answer")?.unwrap_or_default();
    let image = field(&container, IMAGE).context("read the answer")?.unwrap_or_default();
    let image = String::from_utf8(image).context("the image's name is no text")?;
    Ok(Some(image).filter(|image| !image.is_empty()))
}

/// The bytes of the field `wanted` of a message.
fn field(message: &[u8], wanted: u32) -> protobuf::Result<Option<Vec<u8>>> {
    let mut input = CodedInputStream::from_bytes(message);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match (tag >> 3, tag & 7) {
            (found, 2) if found == wanted => return input.read_bytes().map(Some),
            (_, 2) => drop(input.read_bytes()?),
            (_, 0) => drop(input.read_raw_varint64()?),
            (_, 1) => drop(input.read_fixed64()?),
            _ => drop(input.read_fixed32()?),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_found_in_the_answer() {
        // container { id: "a", labels: { k: v }, image: "r/i:1" }
        let container = b"\x0a\x01a\x12\x06\x0a\x01k\x12\x01v\x1a\x05r/i:1";
        let mut answer = vec![0, 0, 0, 0, 20, 0x0a, container.len() as u8];
        answer.extend_from_slice(container);
        assert_eq!(image(&answer).unwrap().as_deref(), Some("r/i:1"));
        assert_eq!(image(&[0, 0, 0, 0, 0]).unwrap(), None);
        assert!(image(&[0, 0]).is_err());
        assert!(image(&[0, 0, 0, 0, 2, 0x0a, 0x7f]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_the_reader_fail(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let _ = image(&bytes);
        }
    }

    #[test]
    fn a_name_is_asked_for() {
        assert_eq!(&message("abc")[..], b"\x00\x00\x00\x00\x05\x0a\x03abc");
    }
}
