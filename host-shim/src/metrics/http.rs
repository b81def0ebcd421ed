//! HTTP as far as metrics need it: a server for GET, and a client of such servers (RFC 9112). Each connection has one request.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The longest request.
const MAX_REQUEST: u64 = 8 << 10;

/// The longest answer that is taken.
const MAX_ANSWER: u64 = 8 << 20;

/// How long one connection may take.
const WITHIN: Duration = Duration::from_secs(10);

/// Connections at a time.
const MAX_CONNECTIONS: usize = 16;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its code.
    pub code: u16,
    /// What it is, as Content-Type has it.
    pub kind: &'static str,
    /// What it says.
    pub body: String,
}

impl Answer {
    /// Metrics in Prometheus' text format.
    pub fn metrics(body: String) -> Answer {
        Answer { code: 200, kind: "text/plain; version=0.0.4", body }
    }

    /// Text.
    pub fn text(body: String) -> Answer {
        Answer { code: 200, kind: "text/plain", body }
    }

    /// A failure.
    pub fn failed(code: u16, why: &str) -> Answer {
        Answer { code, kind: "text/plain", body: format!("{why}\n") }
    }
}

/// Who answers requests.
pub trait Answers: Send + Sync + 'static {
    /// The answer to a GET of `path`, with the pairs behind its question mark.
    fn answer(&self, path: &str, query: &[(String, String)]) -> impl Future<Output = Answer> + Send;
}

/// What serves connections.
#[derive(Debug)]
pub struct Server<A> {
    answers: Arc<A>,
    room: Arc<Semaphore>,
}

impl<A: Answers> Server<A> {
    /// A server of these answers.
    pub fn new(answers: A) -> Server<A> {
        Server { answers: Arc::new(answers), room: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    /// Serves a connection beside others; one too many waits.
    pub async fn take(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Ok(room) = self.room.clone().acquire_owned().await else { return };
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let _ = timeout(WITHIN, serve(stream, &*answers)).await; // who asks too slowly is not answered
            drop(room);
        });
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answers: &impl Answers) -> Result<()> {
    let head = head(&mut stream).await?;
    let answer = match target(&head) {
        Ok((path, query)) => answers.answer(path, &query).await,
        Err(error) => Answer::failed(400, &format!("{error:#}")),
    };
    let Answer { code, kind, body } = answer;
    let head = format!(
        "HTTP/1.1 {code} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        if code == 200 { "OK" } else { "Failed" },
        body.len()
    );
    stream.write_all(head.as_bytes()).await.context("answer")?;
    stream.write_all(body.as_bytes()).await.context("answer")?;
    stream.shutdown().await.context("answer")
}

/// A request's lines, to the empty one.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        ensure!((head.len() as u64) < MAX_REQUEST, "the request is longer than {MAX_REQUEST} bytes");
        match stream.read(&mut buffer).await.context("hear the request")? {
            0 => bail!("the request has no end"),
            read => head.extend_from_slice(&buffer[..read]),
        }
    }
    String::from_utf8(head).context("the request is no text")
}

fn target(head: &str) -> Result<(&str, Vec<(String, String)>)> {
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    ensure!(words.next() == Some("GET"), "only GET is known");
    let target = words.next().context("there is no target")?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pair = |pair: &str| pair.split_once('=').map(|(name, value)| (name.to_string(), decode(value)));
    Ok((path, query.split('&').filter_map(pair).collect()))
}

/// Percent-encoding (RFC 3986) and forms' blanks.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let hex = more.get(..2).and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &more[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(*other),
        }
        rest = more;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// GETs `path` from a server on the unix socket `socket`.
///
/// # Errors
/// Nobody there, an answer that is no success or too long, or none in time.
pub async fn get(socket: &Path, path: &str) -> Result<String> {
    let get = async {
        let mut stream = UnixStream::connect(socket).await.context("connect")?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.context("ask")?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER + 1).read_to_string(&mut answer).await.context("hear the answer")?;
        ensure!(answer.len() as u64 <= MAX_ANSWER, "the answer is longer than {} MiB", MAX_ANSWER >> 20);
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{}", head.lines().next().unwrap_or_default());
        Ok(body.to_string())
    };
    timeout(WITHIN, get).await.with_context(|| format!("there is no answer within {} s", WITHIN.as_secs()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let (path, query) = target("GET /metrics?sandbox=a%2Fb&filter=x+y HTTP/1.1\r\n\r\n").unwrap();
        let pairs = [("sandbox", "a/b"), ("filter", "x y")].map(|(name, value)| (name.to_string(), value.to_string()));
        assert_eq!((path, query), ("/metrics", pairs.into()));
        for bad in ["", "POST / HTTP/1.1", "GET", "\r\n"] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
        assert_eq!((decode("%"), decode("%zz"), decode("%41")), ("%".into(), "%zz".into(), "A".into()));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_request_without_an_end_is_not_kept() {
        let endless = vec![b'a'; 9 << 10];
        let refused = head(&mut &endless[..]).await.unwrap_err();
        assert!(refused.to_string().contains("longer than"), "{refused}");
        assert!(head(&mut &b"GET / HTTP/1.1\r\n"[..]).await.is_err());
    }
}
