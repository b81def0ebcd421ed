//! Waiting for what the kernel tells of as an event (`NETLINK_KOBJECT_UEVENT`).
//!
//! An event is a reason to look again and no more: what it says is not read. So events that were lost do no harm, and there is nothing
//! in them to be deceived by; those that do not come from the kernel are passed over all the same.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{self, AddressFamily, RecvFlags, SocketAddrAny, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

/// The multicast group of the kernel; group 2 is udev's.
const KERNEL: u32 = 1;

/// The most events that are taken for one.
const BURST: usize = 64;

/// Look with `look`, which may block, until it finds something or `patience` is over; its last word is the answer.
pub async fn wait<T, E>(
    patience: Duration,
    mut look: impl FnMut() -> Result<T, E> + Send + 'static,
) -> io::Result<Result<T, E>>
where
    T: Send + 'static,
    E: Send + 'static,
{
    let deadline = Instant::now() + patience;
    // Before the first look, so that nothing comes in between.
    let events = Events::subscribe()?;
    loop {
        let found;
        (found, look) = tokio::task::spawn_blocking(move || (look(), look)).await?;
        if found.is_ok() {
            return Ok(found);
        }
        match timeout_at(deadline, events.next()).await {
            Ok(heard) => heard?,
            Err(_) => return Ok(found),
        }
    }
}

/// The kernel's events from now on.
#[derive(Debug)]
struct Events(AsyncFd<OwnedFd>);

impl Events {
    #[expect(
        deprecated,
        reason = "the other way is unsafe, for types whose descriptor may change; an OwnedFd's does not"
    )]
    fn subscribe() -> io::Result<Events> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::RAW;
        let socket = net::socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::KOBJECT_UEVENT))?;
        net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Events(AsyncFd::new(socket)?))
    }

    /// Waits for the next event, and takes along those that are there already.
    async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| take(socket.get_ref())) {
                Ok(Ok(true)) => return Ok(()),
                Ok(heard) => drop(heard?),
                Err(_would_block) => {}
            }
        }
    }
}

/// Take what has come; tells whether any of it was the kernel's.
fn take(socket: &OwnedFd) -> io::Result<bool> {
    let mut heard = false;
    for _ in 0..BURST {
        match net::recvfrom(socket, &mut [0; 1], RecvFlags::empty()) {
            Ok((_, _, sender)) => heard |= sender.as_ref().is_some_and(is_kernel),
            Err(Errno::NOBUFS) => heard = true, // some were lost
            Err(Errno::WOULDBLOCK) if heard => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(heard)
}

fn is_kernel(sender: &SocketAddrAny) -> bool {
    SocketAddrNetlink::try_from(sender.clone()).is_ok_and(|address| address.pid() == 0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;
    use crate::device::tests::stir;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_is_there_is_found_without_a_wait_and_what_does_not_come_is_told() {
        assert_eq!(wait(LONG, || Ok::<_, ()>(7)).await.unwrap(), Ok(7));
        assert_eq!(wait(Duration::ZERO, || Err::<(), _>("no")).await.unwrap(), Err("no"));
    }

    #[tokio::test]
    async fn the_next_look_is_taken_when_the_kernel_tells_of_something() {
        let looks = Arc::new(AtomicUsize::new(0));
        let (looked, first_look) = mpsc::channel();
        let counted = looks.clone();
        let waiting = tokio::spawn(wait(LONG, move || {
            let _ = looked.send(());
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => Err(()),
                _ => Ok(()),
            }
        }));
        tokio::task::spawn_blocking(move || first_look.recv().unwrap()).await.unwrap();
        if stir() {
            assert_eq!(waiting.await.unwrap().unwrap(), Ok(()));
            assert_eq!(looks.load(Ordering::SeqCst), 2);
        }
    }

    #[tokio::test]
    async fn others_events_are_no_reason_to_look() {
        let events = Events::subscribe().unwrap();
        let other = Events::subscribe().unwrap();
        let own = SocketAddrNetlink::try_from(net::getsockname(other.0.get_ref()).unwrap()).unwrap();
        let group = SocketAddrNetlink::new(0, KERNEL);
        if let Err(error) = net::sendto(other.0.get_ref(), b"add@/devices/x\0", net::SendFlags::empty(), &group) {
            return println!("skipped: no event can be forged: {error}");
        }
        // The machine's own may come in between.
        loop {
            events.0.readable().await.unwrap().retain_ready();
            let (_, _, sender) = net::recvfrom(events.0.get_ref(), &mut [0; 1], RecvFlags::empty()).unwrap();
            if SocketAddrNetlink::try_from(sender.clone().unwrap()).unwrap().pid() == own.pid() {
                return assert!(!is_kernel(&sender.unwrap()));
            }
        }
    }
}
