//! Links, addresses, routes and neighbours as rtnetlink(7) writes them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::prefix::Prefix;
use crate::socket::{self, Message, Socket, attributes, read_u16, read_u32};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// Use an IPv6 address at once: the host gave it to this guest alone.
const IFA_F_NODAD: u32 = 0x2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// The state of a neighbour that is always there: its hardware address is never asked for.
pub const NUD_PERMANENT: u16 = 0x80;

const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_NOWHERE: u8 = 255;
/// The mark of routes that the kernel makes for an address.
pub const RTPROT_KERNEL: u8 = 2;
/// The mark of routes that were set up by hand, as iproute2 and Kata's agent set it.
pub const RTPROT_BOOT: u8 = 3;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Interface flag: is up.
pub const IFF_UP: u32 = 0x1;
/// Interface flag: is the loopback.
pub const IFF_LOOPBACK: u32 = 0x8;
/// Interface flag: does not use ARP.
pub const IFF_NOARP: u32 = 0x80;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; empty where it has none.
    pub mac: Vec<u8>,
    /// The largest packet it takes.
    pub mtu: u32,
    /// `IFF_…`.
    pub flags: u32,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface's number.
    pub link: u32,
    /// The address with the length of its network's prefix.
    pub prefix: Prefix,
}

/// A unicast route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to; the length 0 is the default route.
    pub dest: Prefix,
    /// The interface's number; `None` for a route of several hops.
    pub link: Option<u32>,
    /// Through whom.
    pub gateway: Option<IpAddr>,
    /// The address to send from.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_…`.
    pub scope: u8,
    /// Who made it.
    pub protocol: u8,
    /// `RTNH_F_…`, of those that can be asked for.
    pub flags: u32,
    /// The largest packet that may take it; 0 is the interface's.
    pub mtu: u32,
}

/// Somebody on an interface's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface's number.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address, where it is known.
    pub mac: Option<Vec<u8>>,
    /// `NUD_…`.
    pub state: u16,
    /// `NTF_…`.
    pub flags: u8,
}

/// All interfaces.
///
/// # Errors
/// What the kernel says.
pub fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    socket.dump(&Message::new(RTM_GETLINK, &[0; 16]), parse_link)
}

/// All addresses.
///
/// # Errors
/// What the kernel says.
pub fn addresses(socket: &mut Socket) -> io::Result<Vec<Address>> {
    socket.dump(&Message::new(RTM_GETADDR, &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0]), parse_address)
}

/// The main table's unicast routes, IPv4's first.
///
/// # Errors
/// What the kernel says.
pub fn routes(socket: &mut Socket) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut fixed = [0; 12];
        fixed[0] = family;
        routes.extend(socket.dump(&Message::new(RTM_GETROUTE, &fixed), parse_route)?);
    }
    Ok(routes)
}

/// The neighbours of this state.
///
/// # Errors
/// What the kernel says.
pub fn neighbours(socket: &mut Socket, state: u16) -> io::Result<Vec<Neighbour>> {
    let all = socket.dump(&Message::new(RTM_GETNEIGH, &[0; 12]), parse_neighbour)?;
    Ok(all.into_iter().filter(|neighbour| neighbour.state == state).collect())
}

/// Remove an interface.
///
/// # Errors
/// What the kernel says.
pub fn delete_link(socket: &mut Socket, link: u32) -> io::Result<()> {
    let fixed = change_link(link, 0, 0).into_body();
    socket.request(&Message::new(RTM_DELLINK, &fixed), 0)
}

/// Rename an interface.
///
/// # Errors
/// What the kernel says.
pub fn rename(socket: &mut Socket, link: u32, name: &str) -> io::Result<()> {
    let message = change_link(link, 0, 0).attribute(IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    socket.request(&message, 0)
}

/// Set the hardware address of an interface.
///
/// # Errors
/// What the kernel says.
pub fn set_mac(socket: &mut Socket, link: u32, mac: &[u8]) -> io::Result<()> {
    socket.request(&change_link(link, 0, 0).attribute(IFLA_ADDRESS, mac), 0)
}

/// Set those of the interface's flags that are in `mask`, and its MTU where one is given.
///
/// # Errors
/// What the kernel says.
pub fn configure(socket: &mut Socket, link: u32, flags: u32, mask: u32, mtu: Option<u32>) -> io::Result<()> {
    let message = change_link(link, flags, mask);
    socket.request(&mtu.map_or(message.clone(), |mtu| message.number(IFLA_MTU, mtu)), 0)
}

/// Add an address, or bring it up to date.
///
/// # Errors
/// What the kernel says.
pub fn add_address(socket: &mut Socket, address: Address) -> io::Result<()> {
    let mut message = address_message(RTM_NEWADDR, address);
    if let Some(broadcast) = address.prefix.broadcast() {
        message = message.attribute(IFA_BROADCAST, &broadcast.octets());
    }
    if address.prefix.address.is_ipv6() {
        message = message.number(IFA_FLAGS, IFA_F_NODAD);
    }
    socket.request(&message, socket::CREATE | socket::REPLACE)
}

/// Remove an address.
///
/// # Errors
/// What the kernel says.
pub fn delete_address(socket: &mut Socket, address: Address) -> io::Result<()> {
    socket.request(&address_message(RTM_DELADDR, address), 0)
}

/// Add a route, instead of one to the same destination if there is one.
///
/// # Errors
/// What the kernel says.
pub fn add_route(socket: &mut Socket, route: &Route) -> io::Result<()> {
    let mut message = route_message(RTM_NEWROUTE, route, route.scope, RTN_UNICAST);
    if let Some(source) = route.source {
        message = message.attribute(RTA_PREFSRC, &octets(source));
    }
    if route.mtu > 0 {
        let metric = [&8u16.to_ne_bytes()[..], &RTAX_MTU.to_ne_bytes(), &route.mtu.to_ne_bytes()].concat();
        message = message.attribute(RTA_METRICS, &metric);
    }
    socket.request(&message, socket::CREATE | socket::REPLACE)
}

/// Remove a route.
///
/// # Errors
/// What the kernel says.
pub fn delete_route(socket: &mut Socket, route: &Route) -> io::Result<()> {
    socket.request(&route_message(RTM_DELROUTE, route, RT_SCOPE_NOWHERE, 0), 0)
}

/// Add a neighbour, instead of the one with the same address if there is one.
///
/// # Errors
/// What the kernel says.
pub fn add_neighbour(socket: &mut Socket, neighbour: &Neighbour) -> io::Result<()> {
    let mut fixed = vec![family(neighbour.address), 0, 0, 0];
    fixed.extend_from_slice(&neighbour.link.to_ne_bytes());
    fixed.extend_from_slice(&neighbour.state.to_ne_bytes());
    fixed.extend_from_slice(&[neighbour.flags, 0]);
    let mut message = Message::new(RTM_NEWNEIGH, &fixed).attribute(NDA_DST, &octets(neighbour.address));
    if let Some(mac) = &neighbour.mac {
        message = message.attribute(NDA_LLADDR, mac);
    }
    socket.request(&message, socket::CREATE | socket::REPLACE)
}

fn change_link(link: u32, flags: u32, mask: u32) -> Message {
    let mut fixed = vec![0; 4];
    for number in [link, flags, mask] {
        fixed.extend_from_slice(&number.to_ne_bytes());
    }
    Message::new(RTM_NEWLINK, &fixed)
}

fn address_message(kind: u16, address: Address) -> Message {
    let mut fixed = vec![family(address.prefix.address), address.prefix.length, 0, 0];
    fixed.extend_from_slice(&address.link.to_ne_bytes());
    let octets = octets(address.prefix.address);
    Message::new(kind, &fixed).attribute(IFA_LOCAL, &octets).attribute(IFA_ADDRESS, &octets)
}

fn route_message(kind: u16, route: &Route, scope: u8, unicast: u8) -> Message {
    let family = family(route.dest.address);
    let mut fixed = vec![family, route.dest.length, 0, 0, RT_TABLE_MAIN, route.protocol, scope, unicast];
    fixed.extend_from_slice(&route.flags.to_ne_bytes());
    let mut message = Message::new(kind, &fixed);
    if route.dest.length > 0 {
        message = message.attribute(RTA_DST, &octets(route.dest.address));
    }
    if let Some(gateway) = route.gateway {
        message = message.attribute(RTA_GATEWAY, &octets(gateway));
    }
    match route.link {
        Some(link) => message.number(RTA_OIF, link),
        None => message,
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link =
        Link { index: read_u32(body, 4)?, name: String::new(), mac: Vec::new(), mtu: 0, flags: read_u32(body, 8)? };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into(),
            IFLA_ADDRESS => link.mac = value.to_vec(),
            IFLA_MTU => link.mtu = read_u32(value, 0)?,
            _ => {}
        }
    }
    Some(link)
}

fn parse_address(body: &[u8]) -> Option<Address> {
    let (length, link) = (*body.get(1)?, read_u32(body, 4)?);
    // On a point-to-point link the plain address is the peer's.
    let find = |wanted| attributes(body.get(8..)?).find(|(kind, _)| *kind == wanted).and_then(|(_, v)| ip(v));
    let address = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    Some(Address { link, prefix: Prefix { address, length } })
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let (family, length, scope) = (*body.first()?, *body.get(1)?, *body.get(6)?);
    let any = if family == AF_INET6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let mut route = Route {
        dest: Prefix { address: any, length },
        link: None,
        gateway: None,
        source: None,
        scope,
        protocol: *body.get(5)?,
        flags: 0,
        mtu: 0,
    };
    let mut table = u32::from(*body.get(4)?);
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            RTA_DST => route.dest.address = ip(value)?,
            RTA_GATEWAY => route.gateway = ip(value),
            RTA_PREFSRC => route.source = ip(value),
            RTA_OIF => route.link = read_u32(value, 0),
            RTA_TABLE => table = read_u32(value, 0)?,
            RTA_METRICS => route.mtu = mtu_metric(value).unwrap_or(0),
            _ => {}
        }
    }
    (table == u32::from(RT_TABLE_MAIN) && *body.get(7)? == RTN_UNICAST).then_some(route)
}

fn parse_neighbour(body: &[u8]) -> Option<Neighbour> {
    let (link, state, flags) = (read_u32(body, 4)?, read_u16(body, 8)?, *body.get(10)?);
    let find = |wanted| attributes(body.get(12..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let mac = find(NDA_LLADDR).map(<[u8]>::to_vec);
    Some(Neighbour { link, address: ip(find(NDA_DST)?)?, mac, state, flags })
}

fn mtu_metric(metrics: &[u8]) -> Option<u32> {
    attributes(metrics).find(|(kind, _)| *kind == RTAX_MTU).and_then(|(_, value)| read_u32(value, 0))
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|&octets| octets.into()),
        16 => value.first_chunk::<16>().map(|&octets| octets.into()),
        _ => None,
    }
}
