//! Waiting for what the kernel tells of devices (`NETLINK_KOBJECT_UEVENT`).
//!
//! Who may administer a network namespace can send such messages, too: only those of the kernel count.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{self, AddressFamily, RecvFlags, SocketAddrAny, SocketFlags, SocketType};

use super::events::Events;

/// The multicast group of the kernel; group 2 is udev's.
const KERNEL: u32 = 1;

/// Look with `look`, which may block, until it finds something or `patience` is over; its last word is the answer.
pub async fn wait<T, E>(
    patience: Duration,
    look: impl FnMut() -> Result<T, E> + Send + 'static,
) -> io::Result<Result<T, E>>
where
    T: Send + 'static,
    E: Send + 'static,
{
    // Subscribed before the first look, so that nothing comes in between.
    Events::of(subscribe()?, take)?.wait(patience, look).await
}

fn subscribe() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::KOBJECT_UEVENT))?;
    net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
    Ok(socket)
}

fn take(socket: &OwnedFd) -> Result<bool, Errno> {
    match net::recvfrom(socket, &mut [0; 1], RecvFlags::empty()) {
        Ok((_, _, sender)) => Ok(sender.as_ref().is_some_and(is_kernel)),
        Err(Errno::NOBUFS) => Ok(true), // some were lost
        Err(error) => Err(error),
    }
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

    #[test]
    fn others_events_do_not_count() {
        let (socket, other) = (subscribe().unwrap(), subscribe().unwrap());
        let own = SocketAddrNetlink::try_from(net::getsockname(&other).unwrap()).unwrap();
        let group = SocketAddrNetlink::new(0, KERNEL);
        if let Err(error) = net::sendto(&other, b"add@/devices/x\0", net::SendFlags::empty(), &group) {
            return println!("skipped: no event can be forged: {error}");
        }
        // The machine's own may have come before; a message is there once it is sent.
        loop {
            let (_, _, sender) = net::recvfrom(&socket, &mut [0; 1], RecvFlags::empty()).unwrap();
            if SocketAddrNetlink::try_from(sender.clone().unwrap()).unwrap().pid() == own.pid() {
                return assert!(!is_kernel(&sender.unwrap()));
            }
        }
    }
}
