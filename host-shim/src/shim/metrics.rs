//! The pod's metrics, on a socket in its directory: `GET /metrics`, and `/agent-url` for who wants to reach its agent.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use nacre_protocol::AGENT_PORT;
use tokio::net::UnixListener;
use tokio::task::AbortHandle;

use super::pod::Pod;
use crate::metrics::http::{Answer, Answers, Server};
use crate::metrics::{SOCKET, Sources, gather};

/// Serves the metrics of the pod in `dir`, until the handle is aborted.
///
/// # Errors
/// A socket that can't be made.
pub fn serve(dir: &Path, pod: Arc<Pod>) -> Result<AbortHandle> {
    let path = dir.join(SOCKET);
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    let server =
        Server::new(Metrics { agent: format!("hvsock://{}:{AGENT_PORT}\n", dir.join("vm.vsock").display()), pod });
    let task = tokio::spawn(async move {
        // An error is one connection's: it has hung up before it was heard.
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                server.take(stream).await;
            }
        }
    });
    Ok(task.abort_handle())
}

#[derive(Debug)]
struct Metrics {
    agent: String,
    pod: Arc<Pod>,
}

impl Answers for Metrics {
    async fn answer(&self, path: &str, _: &[(String, String)]) -> Answer {
        match path {
            "/metrics" => self.metrics().await,
            "/agent-url" => Answer::text(self.agent.clone()),
            _ => Answer::failed(404, "there are /metrics and /agent-url"),
        }
    }
}

impl Metrics {
    async fn metrics(&self) -> Answer {
        let agent = match self.pod.sandbox.guest_now() {
            Some(guest) => guest.metrics().await.ok(), // a policy may forbid it
            None => None,
        };
        let sources = Sources { shim: std::process::id(), vmm: self.pod.sandbox.vmm(), agent };
        gather(&sources).map_or_else(|error| Answer::failed(500, &format!("{error:#}")), Answer::metrics)
    }
}
