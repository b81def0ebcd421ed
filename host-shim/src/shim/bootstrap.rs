//! `start`: says where a pod is served, and has a process of its own serve it (containerd, "Runtime v2").
//!
//! Nothing but the address may be written, to either stream: containerd takes all of it for the address.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::args::Args;
use super::bundle::Bundle;
use super::group::{self, Role};

/// Where sockets are made, unless containerd says where.
const SOCKETS: &str = "/run/containerd/s";

/// The file in each bundle from which a containerd that was restarted knows where its pod is served.
const ADDRESS: &str = "address";

/// Prints the address of the pod to which the bundle in the working directory belongs.
///
/// # Errors
/// A bundle that can't be read, a pod that is not served, or a process that can't be started.
pub fn start(args: &Args) -> Result<()> {
    let dir = std::env::current_dir().context("find the bundle")?;
    let bundle = Bundle::read(&dir)?;
    let pod = match group::role(&bundle.annotations()) {
        Role::Container(pod) => pod,
        Role::Sandbox | Role::Single => args.id.clone(),
    };
    let socket = socket_of(args, &pod);
    if UnixStream::connect(&socket).is_err() {
        anyhow::ensure!(pod == args.id, "container {}: its pod {pod} is not served", args.id);
        serve(args, &dir, &socket)?;
    }
    let address = format!("unix://{}", socket.display());
    fs::write(dir.join(ADDRESS), &address).context("write the address")?;
    let mut out = io::stdout();
    out.write_all(address.as_bytes()).and_then(|()| out.flush()).context("say the address")
}

/// Where the pod is served: a name that is the same for all its containers, and short enough for a socket (unix(7)).
fn socket_of(args: &Args, pod: &str) -> PathBuf {
    let name = Sha256::digest(format!("{}/{}/{pod}", args.address, args.namespace));
    args.socket_dir.as_deref().unwrap_or(Path::new(SOCKETS)).join(hex::encode(name))
}

/// Has a process serve the pod of the bundle in `dir` on `socket`, which it inherits as its standard input.
fn serve(args: &Args, dir: &Path, socket: &Path) -> Result<()> {
    let act = || format!("listen on {}", socket.display());
    if let Some(sockets) = socket.parent() {
        DirBuilder::new().recursive(true).mode(0o711).create(sockets).with_context(act)?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(act),
        _ => {} // nobody answered there
    }
    let listener = UnixListener::bind(socket).with_context(act)?;
    fs::set_permissions(socket, Permissions::from_mode(0o600)).with_context(act)?;
    let mut command = Command::new(std::env::current_exe().context("find this program's own file")?);
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address]);
    if args.debug {
        command.arg("-debug");
    }
    // The bundle must not be held by whoever serves it.
    command.arg("-bundle").arg(dir).current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own: what is sent to containerd's is not for the pod.
    command.process_group(0).spawn().context("start the process that serves the pod")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_socket_is_the_same_for_its_containers_and_fits() {
        let args = |id: &str, namespace: &str| Args {
            id: id.into(),
            namespace: namespace.into(),
            address: "/run/containerd/containerd.sock".into(),
            ..Args::default()
        };
        assert_eq!(socket_of(&args("a", "k8s.io"), "pod"), socket_of(&args("b", "k8s.io"), "pod"));
        assert_ne!(socket_of(&args("a", "k8s.io"), "pod"), socket_of(&args("a", "default"), "pod"));
        assert!(socket_of(&args("a", "k8s.io"), &"p".repeat(76)).as_os_str().len() < 107);
    }
}
