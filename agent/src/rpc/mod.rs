//! The wire: services, the gate that every request passes, and the one place where errors become codes.

mod agent;
mod guest;
mod health;
mod status;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use nacre_protocol::{agent_ttrpc, health_ttrpc, nacre_ttrpc};
use protobuf::MessageFull;
use tokio::sync::watch;
use ttrpc::asynchronous::Server;

use crate::boot::Boot;
use crate::console::Consoles;
use crate::device::Devices;
use crate::helpers::Helpers;
use crate::metrics::Metrics;
use crate::policy::{Authorized, Policy};
use crate::sandbox::Sandbox;

pub use status::Error;

/// The longest text of an error, in bytes: what it quotes is the host's.
const MAX_TEXT: usize = 4096;

/// What the services are made of.
#[derive(Debug)]
pub struct Services {
    /// Who judges requests.
    pub policy: Policy,
    /// Whether initialisation is done; requests wait for it.
    pub ready: watch::Receiver<bool>,
    /// The pod.
    pub sandbox: Arc<Sandbox>,
    /// The stages of the guest's start.
    pub boot: Arc<Boot>,
    /// The metrics.
    pub metrics: Metrics,
    /// The debug consoles.
    pub consoles: Arc<Consoles>,
    /// The helper processes.
    pub helpers: Arc<Helpers>,
    /// Whether process 1 is ours.
    pub init_daemon: bool,
    /// The guest's devices.
    pub devices: Arc<Devices>,
}

/// Serve all of `services` on `server`.
pub fn register(server: Server, services: Arc<Services>) -> Server {
    server
        .register_service(agent_ttrpc::create_agent_service(services.clone()))
        .register_service(health_ttrpc::create_health(services.clone()))
        .register_service(nacre_ttrpc::create_guest(services))
}

impl Services {
    /// The gate: waits until the guest is up, asks the policy, has `serve` do the work, says in the log what came of it, and maps
    /// the error.
    async fn pass<R, T, F>(
        &self,
        name: &'static str,
        request: R,
        serve: impl FnOnce(Authorized<R>) -> F + Send,
    ) -> ttrpc::Result<T>
    where
        R: MessageFull,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let begun = Instant::now();
        tracing::trace!(rpc = name, "request");
        // The sender is gone only when the agent is about to be.
        let _ = self.ready.clone().wait_for(|ready| *ready).await.map(drop);
        let result = match self.policy.admit(request).await {
            Ok(request) => serve(request).await,
            Err(denied) => Err(denied.into()),
        };
        let elapsed = begun.elapsed();
        self.metrics.calls.count(name, elapsed, result.is_ok());
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        match result {
            Ok(answer) => {
                tracing::debug!(rpc = name, micros, "answered");
                Ok(answer)
            }
            Err(error) => {
                let mut text = crate::chain(&error);
                text.truncate(text.floor_char_boundary(MAX_TEXT));
                match error {
                    Error::Unimplemented(_) => tracing::debug!(rpc = name, error = text, "refused"),
                    _ => tracing::warn!(rpc = name, micros, error = text, "failed"),
                }
                Err(ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), text)))
            }
        }
    }

    /// What is not offered passes the gate like everything else.
    async fn refuse<R: MessageFull, T: Send>(&self, name: &'static str, request: R) -> ttrpc::Result<T> {
        self.pass(name, request, |_| async move { Err(Error::Unimplemented(name)) }).await
    }
}

/// Work that blocks the thread for more than a moment.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Error>
where
    T: Send + 'static,
    E: Into<Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Task)?.map_err(Into::into)
}

#[cfg(test)]
mod tests;
