//! A pull's memory is bounded, whatever the sender asks for.

use nacre_pull::{Server, client};
use tokio::process::Command;

use super::fixture::Compression::Window;
use super::fixture::{Image, Registry, archive};
use super::secure;

/// Enough for one window of 32 MiB, threads' stacks and all else, and not for two windows more.
const KIB: u32 = 96 << 10;

#[tokio::test]
async fn layers_that_are_decoded_in_large_windows_take_turns() {
    let Some(registry) = Registry::start() else { return };
    let layers = [1, 2, 3].map(|layer| (archive(&[("zeros", &vec![layer; 40 << 20])]), Window(25)));
    registry.push("windows:1", &[(&Image::new(&layers, "amd64"), "amd64")], &["--preserve-digests"]);
    let store = tempfile::tempdir().expect("a directory");
    let mut worker = Command::new("sh");
    worker.args(["-c", &format!("ulimit -d {KIB} && exec \"$0\" worker 4"), env!("CARGO_BIN_EXE_nacre-pull")]);
    let request = secure(Server::Own, &registry, "windows:1", store.path());
    let pulled = client::pull(worker, request, |_| {}).await.expect("an image");
    assert_eq!(pulled.layers.len(), 3);
}
