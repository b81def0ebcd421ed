//! Key providers that are services: ocicrypt's protocol over ttRPC, as the Confidential Data Hub serves it.

use std::time::Duration;

use nacre_protocol::address::Address;
use nacre_protocol::connect;
use nacre_protocol::keyprovider::KeyProviderKeyWrapProtocolInput;
use nacre_protocol::keyprovider_ttrpc::KeyProviderServiceClient;
use tokio::time::{Instant, timeout_at};
use ttrpc::context::with_timeout;
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

/// What the service answers. Waits on a thread of its own: whoever asks may be one that a runtime needs.
pub(super) fn ask(address: &Address, request: &[u8], deadline: Duration) -> Result<Zeroizing<Vec<u8>>> {
    let ended = || Error::new(Kind::Internal, "a thread that asks a key provider has ended");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Error::system("ask a key provider", error))?;
            runtime.block_on(unwrap_key(address, request, deadline))
        });
        asking.join().map_err(|_| ended())?
    })
}

async fn unwrap_key(address: &Address, request: &[u8], deadline: Duration) -> Result<Zeroizing<Vec<u8>>> {
    let locked = |why: String| Error::new(Kind::Locked, format!("ask {address}: {why}"));
    let end = Instant::now() + deadline;
    let client = connect::connect(address, end).await.map_err(|error| locked(error.to_string()))?;
    let input =
        KeyProviderKeyWrapProtocolInput { KeyProviderKeyWrapProtocolInput: request.to_vec(), ..Default::default() };
    let context = with_timeout(i64::try_from(deadline.as_nanos()).unwrap_or(i64::MAX));
    let client = KeyProviderServiceClient::new(client);
    let answer = timeout_at(end, client.un_wrap_key(context, &input)).await;
    let answer = answer.map_err(|_| locked(format!("no answer within {} s", deadline.as_secs())))?;
    let answer = answer.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => locked(status.message),
        other => locked(other.to_string()),
    })?;
    Ok(Zeroizing::new(answer.KeyProviderKeyWrapProtocolOutput))
}
