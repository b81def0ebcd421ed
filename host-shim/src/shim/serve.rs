//! The process that serves a pod: on the socket that it inherits as its standard input.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use containerd_shim_protos::shim_async::create_task;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use ttrpc::r#async::Service as Methods;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::args::Args;
use super::containerd::Containerd;
use super::events::Events;
use super::life::Life;
use super::log::Log;
use super::service::Service;

/// The service that the generated code knows, and the one that it is to containerd before 2.0: the messages are the same.
const TASK: &str = "containerd.task.v3.Task";
const TASK_BEFORE: &str = "containerd.task.v2.Task";

/// How long the last answer and the last events may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Serves until the pod is gone.
///
/// # Errors
/// A socket that is none.
pub fn serve(args: &Args) -> Result<()> {
    let log = args.bundle.as_deref().map_or_else(Log::default, |bundle| Log::open(bundle, args.debug));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")?;
    let served = runtime.block_on(until_over(args, log.clone()));
    if let Err(error) = &served {
        log.warn(&format!("{error:#}"));
    }
    runtime.shutdown_background();
    served
}

async fn until_over(args: &Args, log: Log) -> Result<()> {
    let inherited = std::io::stdin().as_fd().try_clone_to_owned().context("take the socket")?;
    let listener = UnixListener::from(inherited);
    let address = listener.local_addr().context("take the socket")?;
    let path: Option<PathBuf> = address.as_pathname().map(Into::into);
    listener.set_nonblocking(true).context("take the socket")?;
    let listener = tokio::net::UnixListener::from_std(listener).context("take the socket")?;
    let (events, told) = Events::start(&args.namespace, log.clone());
    let containerd = Containerd { socket: args.address.clone().into(), namespace: args.namespace.clone(), events };
    let life = Life::new(containerd, log);
    let mut server = Server::new().add_listener(Listener::from(listener)).register_service(services(&life));
    server.start().await.context("serve the pod")?;
    let mut terminated = signal(SignalKind::terminate()).context("listen for signals")?;
    tokio::select! {
        () = life.over() => {}
        _ = terminated.recv() => {}
    }
    life.end().await;
    // Before the socket closes: a containerd that asks anew must find nobody there.
    if let Some(path) = path {
        let _ = std::fs::remove_file(path); // whoever cleaned up after us has removed it
    }
    let _ = timeout(LAST_WORDS, server.shutdown()).await; // those who still wait hear that the connection ends
    drop(server);
    drop(life);
    let _ = timeout(LAST_WORDS, told).await; // containerd may be gone
    Ok(())
}

/// One service, under both of its names.
fn services(life: &Arc<Life>) -> HashMap<String, Methods> {
    let mut all = create_task(Arc::new(Service::new(life.clone())));
    if let Some(methods) = create_task(Arc::new(Service::new(life.clone()))).remove(TASK) {
        all.insert(TASK_BEFORE.into(), methods);
    }
    all
}
