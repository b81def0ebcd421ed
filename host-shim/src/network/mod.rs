//! A pod's network: what CNI has put into the pod's network namespace is joined to the VM's own devices.
//!
//! Each interface gets a tap beside it, and traffic control sends what comes in on one out on the other: the guest's device has the
//! interface's hardware address and its IP addresses, and to the rest of the node it is the pod. The taps go with their descriptors,
//! and what was made besides goes with the namespace, which CNI removes.

mod messages;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nacre_netlink::kernel::{self, IFF_LOOPBACK, IFF_UP, Link, NUD_PERMANENT, Neighbour, RTPROT_KERNEL, Route};
use nacre_netlink::prefix::Prefix;
use nacre_netlink::{Socket, traffic};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How many interfaces a pod may have: a VM has places for few.
pub const MAX_INTERFACES: usize = 8;

/// How often an interface that is busy is tried.
const ATTEMPTS: u32 = 5;

/// The length of an Ethernet address.
const MAC: usize = 6;

/// A pod's network was not joined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace can't be entered.
    #[error("network namespace {path}: {act}")]
    Namespace {
        /// Where it is.
        path: PathBuf,
        /// What was tried.
        act: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("network: {act} {object}")]
    Kernel {
        /// What was tried.
        act: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
    /// There are more interfaces than a VM takes.
    #[error("network: the pod has {0} interfaces, and a VM takes {MAX_INTERFACES}")]
    TooMany(usize),
    /// The pod shares the host's network.
    #[error("network: a pod in a VM can't have the host's network")]
    Host,
}

/// A pod's network, joined to taps.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// Its routes, but those that the kernel makes for addresses.
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

/// An interface of the pod's.
#[derive(Debug, Clone)]
pub struct Interface {
    /// Its name, which the guest's has, too.
    pub name: String,
    /// Its hardware address, which the guest's has.
    pub mac: [u8; MAC],
    /// The largest packet that it takes.
    pub mtu: u32,
    /// The tap's end that is the VM's.
    pub tap: Arc<OwnedFd>,
    addresses: Vec<Prefix>,
    index: u32,
}

/// Joins the interfaces in the namespace at `path` to taps.
///
/// # Errors
/// A namespace that is none or the host's, more interfaces than a VM takes, or what the kernel says.
pub fn attach(path: &Path) -> Result<Network, Error> {
    within(path, || {
        let mut socket = open()?;
        let (found, routes, neighbours) = find(&mut socket)?;
        if found.len() > MAX_INTERFACES {
            return Err(Error::TooMany(found.len()));
        }
        let interfaces = found
            .into_iter()
            .enumerate()
            .map(|(number, (link, mac, addresses))| {
                let tap = join(&mut socket, &link, &tap_name(number))?;
                let Link { index, name, mtu, .. } = link;
                Ok(Interface { name, mac, mtu, tap: Arc::new(tap), addresses, index })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Network { interfaces, routes, neighbours })
    })
}

/// Undoes what [`attach`] did, as far as it does not go by itself. A namespace that is gone has nothing left.
///
/// # Errors
/// What the kernel says.
pub fn detach(path: &Path) -> Result<(), Error> {
    let undone = within(path, || {
        let mut socket = open()?;
        let links = kernel::links(&mut socket).map_err(kernel_error("list", "interfaces"))?;
        let joined = traffic::ingresses(&mut socket).map_err(kernel_error("list", "queues"))?;
        for link in links.iter().filter(|link| joined.contains(&link.index)) {
            traffic::remove_ingress(&mut socket, link.index).map_err(kernel_error("release", &link.name))?;
        }
        Ok(())
    });
    match undone {
        Err(Error::Namespace { .. }) => Ok(()),
        undone => undone,
    }
}

type Found = (Vec<(Link, [u8; MAC], Vec<Prefix>)>, Vec<Route>, Vec<Neighbour>);

/// What of the namespace is the pod's network: interfaces with addresses of more than this link, and what leads through them.
fn find(socket: &mut Socket) -> Result<Found, Error> {
    let links = kernel::links(socket).map_err(kernel_error("list", "interfaces"))?;
    let addresses = kernel::addresses(socket).map_err(kernel_error("list", "addresses"))?;
    let mut routes = kernel::routes(socket).map_err(kernel_error("list", "routes"))?;
    let mut neighbours = kernel::neighbours(socket, NUD_PERMANENT).map_err(kernel_error("list", "neighbours"))?;
    let of = |link: &Link| {
        let own = addresses.iter().filter(|address| address.link == link.index).map(|address| address.prefix);
        own.filter(|prefix| !is_of_link(prefix.address)).collect::<Vec<_>>()
    };
    let found: Vec<_> = links
        .into_iter()
        .filter(|link| link.flags & IFF_LOOPBACK == 0)
        .filter_map(|link| {
            let (mac, addresses) = (<[u8; MAC]>::try_from(link.mac.as_slice()).ok()?, of(&link));
            (!addresses.is_empty()).then_some((link, mac, addresses))
        })
        .collect();
    let is_ours = |index: u32| found.iter().any(|(link, ..)| link.index == index);
    routes.retain(|route| route.protocol != RTPROT_KERNEL && route.link.is_some_and(is_ours));
    // Those that lead to gateways come before those that lead through them.
    routes.sort_by_key(|route| route.gateway.is_some());
    neighbours.retain(|neighbour| is_ours(neighbour.link) && !neighbour.address.is_multicast());
    Ok((found, routes, neighbours))
}

/// The kernel gives these itself.
fn is_of_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn tap_name(number: usize) -> String {
    format!("nacre{number}")
}

/// Makes the tap `name`, and joins it to `link`.
fn join(socket: &mut Socket, link: &Link, name: &str) -> Result<OwnedFd, Error> {
    let fd = nacre_sys::tap::open(name).map_err(kernel_error("make the tap", name))?;
    let all = kernel::links(socket).map_err(kernel_error("list", "interfaces"))?;
    let tap = all.iter().find(|link| link.name == name).map(|link| link.index);
    let tap = tap.ok_or_else(|| kernel_error("find the tap", name)(Errno::NODEV.into()))?;
    kernel::configure(socket, tap, IFF_UP, IFF_UP, Some(link.mtu)).map_err(kernel_error("bring up", name))?;
    for index in [tap, link.index] {
        patiently(|| traffic::add_ingress(socket, index))
            .map_err(kernel_error("queue what comes in on", &link.name))?;
    }
    for (from, to) in [(tap, link.index), (link.index, tap)] {
        patiently(|| traffic::redirect(socket, from, to)).map_err(kernel_error("join the tap to", &link.name))?;
    }
    Ok(fd)
}

/// The kernel may be busy with an interface that was just made.
fn patiently(mut act: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut tried = 0;
    loop {
        tried += 1;
        match act() {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) && tried < ATTEMPTS => {
                std::thread::yield_now()
            }
            result => return result,
        }
    }
}

/// Does `act` in the network namespace at `path`, on a thread of its own: a namespace is a thread's.
fn within<T: Send>(path: &Path, act: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let error = |act| move |source| Error::Namespace { path: path.into(), act, source };
    let namespace = File::open(path).map_err(error("open it"))?;
    let own = File::open("/proc/thread-self/ns/net").map_err(error("open our own"))?;
    let number = |file: &File| {
        file.metadata().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta)).map_err(error("look at it"))
    };
    if number(&namespace)? == number(&own)? {
        return Err(Error::Host);
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|errno| error("enter it")(errno.into()))?;
            act()
        });
        thread.join().unwrap_or_else(|_| Err(error("work in it")(Errno::INTR.into())))
    })
}

fn open() -> Result<Socket, Error> {
    Socket::open().map_err(kernel_error("open", "a netlink socket"))
}

fn kernel_error(act: &'static str, object: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let object = object.to_string();
    move |source| Error::Kernel { act, object, source }
}

#[cfg(test)]
mod tests;
