//! The calls that need nobody to serve a pod: `delete`, after a crash, and the questions `-v` and `-info`.

use std::io::{self, Write as _};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use super::args::Args;
use super::bundle::Bundle;
use super::events::timestamp;
use super::group::{self, Role};
use super::process::KILLED;
use super::remnants;

/// The shim's name to containerd.
const NAME: &str = "io.containerd.nacre.v2";

/// Removes what the container, or the pod, has left, and says that it was killed.
///
/// # Errors
/// What can't be removed: it can be tried again.
pub fn delete(args: &Args) -> Result<()> {
    let dir = args.bundle.clone().map_or_else(std::env::current_dir, Ok).context("find the bundle")?;
    // A container of a pod has nothing on the host that is not the pod's. Where the bundle is gone, its name alone must do.
    let role = Bundle::read(&dir).map_or(Role::Single, |bundle| group::role(&bundle.annotations()));
    if !matches!(role, Role::Container(_)) {
        remnants::clear(&args.id)?;
    }
    let response = DeleteResponse {
        pid: std::process::id(),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
    say(&response.write_to_bytes().context("write the answer")?)
}

/// Says the version.
///
/// # Errors
/// A standard output that is closed.
pub fn version() -> Result<()> {
    let program = std::env::args().next().unwrap_or_default();
    say(format!("{program}:\n  Version:  {}\n", env!("CARGO_PKG_VERSION")).as_bytes())
}

/// Says what this shim can do.
///
/// # Errors
/// As [`version`].
pub fn info() -> Result<()> {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..RuntimeVersion::default() };
    let info = RuntimeInfo { name: NAME.into(), version: MessageField::some(version), ..RuntimeInfo::default() };
    say(&info.write_to_bytes().context("write the answer")?)
}

fn say(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout();
    out.write_all(bytes).and_then(|()| out.flush()).context("write to standard output")
}
