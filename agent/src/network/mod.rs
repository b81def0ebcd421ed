//! The guest's network, as the host describes it.
//!
//! A request describes what is to be, and what differs is changed: an interface has the addresses of the last request
//! for it and no others, and the routes that were set up by hand are those of the last request for routes. So the same
//! request twice does the same as once, and a host may correct itself. What the kernel made (link-local addresses, the
//! routes of addresses, those of router advertisements) is left alone.
//!
//! All calls that are not async block, for the kernel's answer only. They act on the network namespace of the calling thread.

pub mod iptables;
mod wanted;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;

use nacre_protocol::{agent, types};

use crate::device::Devices;
use nacre_netlink::Socket;
use nacre_netlink::kernel::{self, Address, IFF_NOARP, IFF_UP, Link, Neighbour, RTPROT_BOOT, Route};
use nacre_netlink::prefix::Prefix;
use wanted::{Interface, format_mac};

/// The network was not read or not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request carries nothing.
    #[error("empty {0} request")]
    Empty(&'static str),
    /// The request makes no sense.
    #[error("{object}: {field} {value:?} {reason}")]
    Field {
        /// What is described.
        object: &'static str,
        /// The field of it.
        field: &'static str,
        /// The field's value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No interface is the one that is meant.
    #[error("Link not found ({0})")]
    LinkNotFound(String),
    /// The kernel refused.
    #[error("{act} {object}")]
    Netlink {
        /// What was tried.
        act: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// Whether the request itself is at fault.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Error::Empty(_) | Error::Field { .. })
    }

    fn field(object: &'static str, field: &'static str, value: &str, reason: &'static str) -> Error {
        Error::Field { object, field, value: value.chars().take(64).collect(), reason }
    }

    fn netlink(act: &'static str, object: impl ToString) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Netlink { act, object: object.to_string(), source }
    }
}

/// Bring up the loopback interface.
pub fn bring_up_loopback() -> Result<(), Error> {
    let mut socket = open()?;
    let links = all_links(&mut socket)?;
    let lo = links.iter().find(|link| link.name == "lo").ok_or_else(|| Error::LinkNotFound("lo".into()))?;
    kernel::configure(&mut socket, lo.index, IFF_UP, IFF_UP, None).map_err(Error::netlink("bring up", "lo"))
}

/// What the interface is called now whose card `wanted` names by its place. Waits until it is plugged in.
pub async fn plugged(wanted: Option<&types::Interface>, devices: &Devices) -> Result<Option<String>, Error> {
    let wanted = Interface::parse(wanted.ok_or(Error::Empty("update interface"))?)?;
    let Some(card) = wanted.card else { return Ok(None) };
    let name = devices.interface(&card).await.map_err(|error| Error::LinkNotFound(crate::chain(&error)))?;
    Ok(Some(name))
}

/// Make the interface as `wanted`, which is returned as it came; `plugged` is what it is called, where its card is known.
pub fn update_interface(wanted: Option<&types::Interface>, plugged: Option<&str>) -> Result<types::Interface, Error> {
    let request = wanted.ok_or(Error::Empty("update interface"))?;
    let wanted = Interface::parse(request)?;
    let mut socket = open()?;
    let link = choose(all_links(&mut socket)?, &wanted, plugged);
    let link = link.ok_or_else(|| Error::LinkNotFound(wanted.to_string()))?;
    if let Some(mac) = wanted.mac.as_ref().filter(|mac| **mac != link.mac) {
        let set = |socket: &mut Socket| kernel::set_mac(socket, link.index, mac);
        while_down(&mut socket, &link, set).map_err(Error::netlink("set hardware address of", &link.name))?;
    }
    if let Some(name) = wanted.name.as_ref().filter(|name| **name != link.name) {
        take_name(&mut socket, &link, name)?;
    }
    let name = wanted.name.as_ref().unwrap_or(&link.name);
    set_addresses(&mut socket, link.index, name, &wanted.addresses)?;
    let flags = IFF_UP | if wanted.arp { 0 } else { IFF_NOARP };
    kernel::configure(&mut socket, link.index, flags, IFF_UP | IFF_NOARP, wanted.mtu)
        .map_err(Error::netlink("bring up", name))?;
    Ok(request.clone())
}

/// Make the routes that were set up by hand those of `wanted`, and tell all routes there are then.
pub fn update_routes(wanted: Option<&agent::Routes>) -> Result<agent::Routes, Error> {
    let wanted = wanted::Route::parse_all(&wanted.ok_or(Error::Empty("update routes"))?.Routes)?;
    let mut socket = open()?;
    let links = all_links(&mut socket)?;
    let by_name: HashMap<_, _> = links.iter().map(|link| (link.name.as_str(), link.index)).collect();
    let mut routes = Vec::with_capacity(wanted.len());
    for route in &wanted {
        let link = |name: &String| {
            by_name.get(name.as_str()).copied().ok_or_else(|| Error::LinkNotFound(format!("name {name:?}")))
        };
        let link = route.device.as_ref().map(link).transpose()?;
        let &wanted::Route { dest, gateway, source, scope, flags, mtu, .. } = route;
        routes.push(Route { dest, link, gateway, source, scope, protocol: RTPROT_BOOT, flags, mtu });
    }
    for (route, wanted) in routes.iter().zip(&wanted) {
        match kernel::add_route(&mut socket, route) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(Error::netlink("add", wanted))?,
        }
    }
    for old in stale(&all_routes(&mut socket)?, &routes) {
        match kernel::delete_route(&mut socket, old) {
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            other => other.map_err(Error::netlink("remove route", old.dest))?,
        }
    }
    list_routes()
}

/// Make `wanted` known to the kernel as neighbours, so that it need not ask for their hardware addresses. Others stay.
pub fn add_neighbours(wanted: Option<&agent::ARPNeighbors>) -> Result<(), Error> {
    let wanted = wanted::Neighbour::parse_all(&wanted.ok_or(Error::Empty("add arp neighbours"))?.ARPNeighbors)?;
    let mut socket = open()?;
    let links = all_links(&mut socket)?;
    for wanted in wanted.into_iter().filter(|wanted| wanted.address.is_ipv4() || has_ipv6()) {
        let link = links.iter().find(|link| link.name == wanted.device);
        let link = link.ok_or_else(|| Error::LinkNotFound(format!("name {:?}", wanted.device)))?.index;
        let object = format!("neighbour {} dev {}", wanted.address, wanted.device);
        let wanted::Neighbour { address, mac, state, flags, .. } = wanted;
        kernel::add_neighbour(&mut socket, &Neighbour { link, address, mac, state, flags })
            .map_err(Error::netlink("add", object))?;
    }
    Ok(())
}

/// All interfaces, the loopback too.
pub fn list_interfaces() -> Result<agent::Interfaces, Error> {
    let mut socket = open()?;
    let links = all_links(&mut socket)?;
    let addresses = kernel::addresses(&mut socket).map_err(Error::netlink("list", "addresses"))?;
    let interface = |link: &Link| types::Interface {
        name: link.name.clone(),
        mtu: link.mtu.into(),
        hwAddr: format_mac(&link.mac),
        IPAddresses: addresses.iter().filter(|a| a.link == link.index).map(|a| describe(a.prefix)).collect(),
        ..types::Interface::new()
    };
    let mut interfaces = agent::Interfaces::new();
    interfaces.Interfaces = links.iter().map(interface).collect();
    Ok(interfaces)
}

/// The main table's routes, IPv4's first.
pub fn list_routes() -> Result<agent::Routes, Error> {
    let mut socket = open()?;
    let names: HashMap<_, _> = all_links(&mut socket)?.into_iter().map(|link| (link.index, link.name)).collect();
    let text = |address: Option<IpAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    let route = |route: &Route| types::Route {
        dest: if route.dest.length > 0 { route.dest.to_string() } else { route.dest.address.to_string() },
        gateway: text(route.gateway),
        device: route.link.and_then(|link| names.get(&link).cloned()).unwrap_or_default(),
        source: text(route.source),
        scope: route.scope.into(),
        family: family(route.dest.address).into(),
        mtu: route.mtu,
        ..types::Route::new()
    };
    let mut routes = agent::Routes::new();
    routes.Routes = all_routes(&mut socket)?.iter().map(route).collect();
    Ok(routes)
}

fn open() -> Result<Socket, Error> {
    Socket::open().map_err(Error::netlink("open", "a netlink socket"))
}

fn all_links(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    kernel::links(socket).map_err(Error::netlink("list", "interfaces"))
}

fn all_routes(socket: &mut Socket) -> Result<Vec<Route>, Error> {
    kernel::routes(socket).map_err(Error::netlink("list", "routes"))
}

fn describe(prefix: Prefix) -> types::IPAddress {
    types::IPAddress {
        family: family(prefix.address).into(),
        address: prefix.address.to_string(),
        mask: prefix.length.to_string(),
        ..types::IPAddress::new()
    }
}

fn family(address: IpAddr) -> types::IPFamily {
    if address.is_ipv6() { types::IPFamily::v6 } else { types::IPFamily::v4 }
}

/// The interface that is meant: the one of the card, or else with the hardware address, or else with the name.
fn choose(mut links: Vec<Link>, wanted: &Interface, plugged: Option<&str>) -> Option<Link> {
    let by_name = |name: &str| links.iter().position(|link| link.name == name);
    let by_mac = |mac: &Vec<u8>| links.iter().position(|link| link.mac == *mac);
    let position = match plugged {
        Some(name) => by_name(name),
        None => wanted.mac.as_ref().and_then(by_mac).or_else(|| wanted.name.as_deref().and_then(by_name)),
    };
    position.map(|position| links.swap_remove(position))
}

/// Give `link` its name. The interface that has it gets the other's old name.
fn take_name(socket: &mut Socket, link: &Link, name: &str) -> Result<(), Error> {
    let mut rename = |link: &Link, name: &str| {
        let rename = |socket: &mut Socket| kernel::rename(socket, link.index, name);
        while_down(socket, link, rename).map_err(Error::netlink("rename interface", format!("{} to {name}", link.name)))
    };
    let owner = all_links(&mut open()?)?.into_iter().find(|other| other.name == name);
    let Some(owner) = owner else {
        return rename(link, name);
    };
    rename(&owner, &format!("swap{}", link.index))?;
    rename(link, name)?;
    rename(&owner, &link.name)
}

/// Change `link`; if it must be down for that, which depends on kernel and driver, it is taken down for the moment.
fn while_down(socket: &mut Socket, link: &Link, change: impl Fn(&mut Socket) -> io::Result<()>) -> io::Result<()> {
    match change(socket) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
        other => return other,
    }
    kernel::configure(socket, link.index, 0, IFF_UP, None)?;
    let changed = change(socket);
    let restored = kernel::configure(socket, link.index, link.flags, IFF_UP, None);
    changed.and(restored)
}

fn set_addresses(socket: &mut Socket, link: u32, name: &str, wanted: &[Prefix]) -> Result<(), Error> {
    let all = kernel::addresses(socket).map_err(Error::netlink("list", "addresses"))?;
    let present: Vec<_> = all.into_iter().filter(|address| address.link == link).collect();
    for old in present.iter().filter(|a| !wanted.contains(&a.prefix) && !is_kernel_made(a.prefix)) {
        match kernel::delete_address(socket, *old) {
            // Gone with the network's first address.
            Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => {}
            other => other.map_err(Error::netlink("remove address", format!("{} from {name}", old.prefix)))?,
        }
    }
    for prefix in wanted {
        if prefix.address.is_ipv6() && !has_ipv6() {
            continue;
        }
        kernel::add_address(socket, Address { link, prefix: *prefix })
            .map_err(Error::netlink("add address", format!("{prefix} to {name}")))?;
    }
    Ok(())
}

fn is_kernel_made(prefix: Prefix) -> bool {
    matches!(prefix.address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|disabled| disabled.trim() == "0")
}

/// The routes among `present` that were set up by hand and are not among `wanted`.
fn stale<'a>(present: &'a [Route], wanted: &[Route]) -> Vec<&'a Route> {
    let is = |old: &Route, new: &Route| {
        let same_link = new.link.is_none() || new.link == old.link;
        old.dest == new.dest && old.gateway == new.gateway && same_link
    };
    present.iter().filter(|old| old.protocol == RTPROT_BOOT && !wanted.iter().any(|new| is(old, new))).collect()
}

#[cfg(test)]
mod tests;
