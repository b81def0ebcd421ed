//! A vsock for QEMU's guests, as a vhost-user device in this process: no module of the host's kernel, and no other program, is needed for it.
//!
//! [`muxer`] knows the host's sockets and the guest's connections, [`connection`] one of them, [`packet`] what the two sides say, and [`device`]
//! the guest's queues. The guest is believed nothing: what it may have on its way, how many connections it has and what it is told are bounded.

mod connection;
mod device;
mod muxer;
mod packet;

use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use self::device::{Device, Memory, SOCKETS};
use self::muxer::Muxer;

/// The guest's CID: it has its device for itself.
const GUEST: u64 = 3;

/// The device of one VM. It ends with its VM, or when it is dropped.
#[derive(Debug)]
pub struct Vsock {
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Vsock {
    /// Waits at `socket` for a VMM, and at `path` for programs of the host that call the guest.
    ///
    /// # Errors
    /// Sockets that can't be made.
    pub fn start(socket: &Path, path: &Path) -> Result<Vsock> {
        let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
        let muxer = Muxer::new(path, GUEST).with_context(|| format!("listen on {}", path.display()))?;
        let sockets = muxer.epoll().as_raw_fd();
        let memory = Memory::new(GuestMemoryMmap::new());
        let device = Arc::new(Mutex::new(Device::new(muxer, GUEST, memory.clone())));
        let mut daemon = VhostUserDaemon::new("vsock".into(), device, memory)
            .map_err(|error| anyhow!("make a vsock device: {error}"))?;
        for handler in daemon.get_epoll_handlers() {
            handler.register_listener(sockets, EventSet::IN, SOCKETS).context("watch the vsock's sockets")?;
        }
        let serve = move || {
            if daemon.start(&mut Listener::from(listener)).is_ok() {
                let _ = daemon.wait(); // a VMM that ends says nothing
            }
        };
        let thread = std::thread::Builder::new().name("vsock".into()).spawn(serve).context("start a thread")?;
        Ok(Vsock { socket: socket.into(), thread: Some(thread) })
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Where no VMM has come, this call is what it waits for.
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
