//! What a host asks of the guest's network, checked.

use std::fmt;
use std::net::IpAddr;

use nacre_protocol::types;

use super::Error;
use crate::device::PciPath;
use nacre_netlink::kernel::{IFF_NOARP, NUD_PERMANENT};
use nacre_netlink::prefix::{Prefix, parse_length};

/// The most addresses of one interface, and the most routes and neighbours, that a request may name.
const MAX_ENTRIES: usize = 1024;

/// IFNAMSIZ without its final zero.
const MAX_NAME: usize = 15;

/// linux/rtnetlink.h.
const RT_SCOPE_LINK: u8 = 253;

/// RTNH_F_ONLINK; the other flags of a route tell its state and cannot be asked for.
const ASKABLE_ROUTE_FLAGS: u32 = 0x4;

/// An interface as it is to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name; `None` keeps the one it has.
    pub name: Option<String>,
    /// Its hardware address.
    pub mac: Option<Vec<u8>>,
    /// All its addresses.
    pub addresses: Vec<Prefix>,
    /// Its MTU; `None` keeps the one it has.
    pub mtu: Option<u32>,
    /// Whether it uses ARP.
    pub arp: bool,
    /// Where its card is, which may still have to be plugged in; `None` where the host does not say.
    pub card: Option<PciPath>,
}

impl Interface {
    /// Check `wanted`.
    pub fn parse(wanted: &types::Interface) -> Result<Interface, Error> {
        let of = |field, value: &str, reason| Error::field("interface", field, value, reason);
        if wanted.IPAddresses.len() > MAX_ENTRIES {
            return Err(of("IPAddresses", "", "are more than 1024"));
        }
        let address = |a: &types::IPAddress| {
            let ip = a.address.parse().map_err(|_| of("address", &a.address, "is not an IP address"))?;
            parse_length(ip, &a.mask).map_err(|reason| of("address", &format!("{}/{}", a.address, a.mask), reason))
        };
        let card = |path: &str| path.parse().map_err(|_| of("devicePath", path, "is not a PCI path"));
        let mtu = u32::try_from(wanted.mtu).map_err(|_| of("mtu", &wanted.mtu.to_string(), "is too large"))?;
        let interface = Interface {
            name: some(&wanted.name).map(check_name).transpose()?,
            mac: parse_mac(&wanted.hwAddr).map_err(|reason| of("hwAddr", &wanted.hwAddr, reason))?,
            addresses: wanted.IPAddresses.iter().map(address).collect::<Result<_, _>>()?,
            mtu: (mtu > 0).then_some(mtu),
            arp: wanted.raw_flags & IFF_NOARP == 0,
            card: some(&wanted.devicePath).map(card).transpose()?,
        };
        if interface.name.is_none() && interface.mac.is_none() && interface.card.is_none() {
            return Err(of("name", "", "and hwAddr and devicePath are missing"));
        }
        Ok(interface)
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = self.mac.as_deref().map(format_mac).unwrap_or_default();
        write!(f, "name {:?}, hwAddr {mac:?}", self.name.as_deref().unwrap_or_default())
    }
}

/// A route as it is to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to, without host bits.
    pub dest: Prefix,
    /// Through whom.
    pub gateway: Option<IpAddr>,
    /// The interface's name; `None` leaves it to the kernel.
    pub device: Option<String>,
    /// The address to send from.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_…`.
    pub scope: u8,
    /// `RTNH_F_…`.
    pub flags: u32,
    /// The largest packet that may take it; 0 is the interface's.
    pub mtu: u32,
}

impl Route {
    /// Check `wanted`.
    pub fn parse(wanted: &types::Route) -> Result<Route, Error> {
        let of = |field, value: &str, reason| Error::field("route", field, value, reason);
        let ip = |field, text: &str| {
            some(text).map(|t| t.parse::<IpAddr>().map_err(|_| of(field, t, "is not an IP address"))).transpose()
        };
        let gateway = ip("gateway", &wanted.gateway)?;
        // Written as an address, or as the network of that address alone.
        let source = some(&wanted.source)
            .map(|text| match text.parse::<Prefix>() {
                Ok(prefix) if prefix == Prefix::host(prefix.address) => Ok(prefix.address),
                _ => Err(of("source", text, "is not an IP address")),
            })
            .transpose()?;
        let dest = match wanted.dest.as_str() {
            "" => None,
            text => Some(text.parse::<Prefix>().map_err(|reason| of("dest", text, reason))?),
        };
        let v6 = match dest.map(|d| d.address).or(gateway).or(source) {
            Some(address) => address.is_ipv6(),
            None => wanted.family.enum_value() == Ok(types::IPFamily::v6),
        };
        if [dest.map(|d| d.address), gateway, source].iter().flatten().any(|a| a.is_ipv6() != v6) {
            return Err(of("dest", &wanted.dest, "and the gateway or the source are of different families"));
        }
        // ListRoutes writes the default route as the address of no host.
        let dest = dest.filter(|d| !d.address.is_unspecified()).unwrap_or(Prefix::everything(v6));
        let device = some(&wanted.device).map(check_name).transpose()?;
        if device.is_none() && gateway.is_none() {
            return Err(of("device", "", "and gateway are both missing"));
        }
        // What has no gateway is on the link, and only a route on the link leads to a gateway (ip-route(8), "scope").
        let scope = match wanted.scope {
            0 if gateway.is_none() && !v6 => RT_SCOPE_LINK,
            scope => u8::try_from(scope).map_err(|_| of("scope", &scope.to_string(), "is too large"))?,
        };
        Ok(Route {
            dest: dest.network(),
            gateway,
            device,
            source,
            scope,
            flags: wanted.flags & ASKABLE_ROUTE_FLAGS,
            mtu: wanted.mtu,
        })
    }

    /// Check all of `wanted`; those without a gateway come first, as the others may need them.
    pub fn parse_all(wanted: &[types::Route]) -> Result<Vec<Route>, Error> {
        if wanted.len() > MAX_ENTRIES {
            return Err(Error::field("routes", "number", &wanted.len().to_string(), "is more than 1024"));
        }
        let mut routes = wanted.iter().map(Route::parse).collect::<Result<Vec<_>, _>>()?;
        routes.sort_by_key(|route| route.gateway.is_some());
        Ok(routes)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}", self.dest)?;
        self.gateway.iter().try_for_each(|gateway| write!(f, " via {gateway}"))?;
        self.device.iter().try_for_each(|device| write!(f, " dev {device}"))
    }
}

/// A neighbour as it is to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// The name of the interface on whose link it is.
    pub device: String,
    /// Its hardware address; `None` is for states without one, and keeps that of a neighbour who is known already.
    pub mac: Option<Vec<u8>>,
    /// `NUD_…`.
    pub state: u16,
    /// `NTF_…`.
    pub flags: u8,
}

impl Neighbour {
    /// Check `wanted`.
    pub fn parse(wanted: &types::ARPNeighbor) -> Result<Neighbour, Error> {
        let of = |field, value: &str, reason| Error::field("neighbour", field, value, reason);
        let address = wanted.toIPAddress.as_ref().map(|to| to.address.as_str()).unwrap_or_default();
        let state = u16::try_from(wanted.state);
        let state = state.map_err(|_| of("state", &wanted.state.to_string(), "is none of the kernel's"))?;
        let flags = u8::try_from(wanted.flags);
        Ok(Neighbour {
            address: address.parse().map_err(|_| of("toIPAddress", address, "is not an IP address"))?,
            device: check_name(some(&wanted.device).ok_or_else(|| of("device", "", "is missing"))?)?,
            mac: parse_mac(&wanted.lladdr).map_err(|reason| of("lladdr", &wanted.lladdr, reason))?,
            state: if state == 0 { NUD_PERMANENT } else { state },
            flags: flags.map_err(|_| of("flags", &wanted.flags.to_string(), "are none of the kernel's"))?,
        })
    }

    /// Check all of `wanted`.
    pub fn parse_all(wanted: &[types::ARPNeighbor]) -> Result<Vec<Neighbour>, Error> {
        if wanted.len() > MAX_ENTRIES {
            return Err(Error::field("neighbours", "number", &wanted.len().to_string(), "is more than 1024"));
        }
        wanted.iter().map(Neighbour::parse).collect()
    }
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn check_name(name: &str) -> Result<String, Error> {
    let fits = name.len() <= MAX_NAME && name != "." && name != "..";
    if fits && name.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':') {
        Ok(name.into())
    } else {
        Err(Error::field("interface", "name", name, "is not one that the kernel takes"))
    }
}

/// `None` where nothing is written.
fn parse_mac(text: &str) -> Result<Option<Vec<u8>>, &'static str> {
    let Some(text) = some(text) else { return Ok(None) };
    // from_str_radix would take a sign too.
    let plain = |octet: &str| octet.len() == 2 && octet.bytes().all(|b| b.is_ascii_hexdigit());
    let octet = |text: &str| u8::from_str_radix(text, 16).ok().filter(|_| plain(text));
    let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
    octets.filter(|o| o.len() == 6).map(Some).ok_or("is not a MAC address")
}

/// Six octets, or however many the link has, in hexadecimal with colons between.
pub fn format_mac(octets: &[u8]) -> String {
    octets.iter().map(|o| format!("{o:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(change: impl FnOnce(&mut types::Route)) -> Result<Route, Error> {
        let mut route = types::Route { device: "eth0".into(), ..types::Route::new() };
        change(&mut route);
        Route::parse(&route)
    }

    #[test]
    fn every_way_to_write_the_default_route_is_understood() {
        for (dest, gateway, family, expected) in [
            ("", "10.0.0.1", types::IPFamily::v4, "0.0.0.0/0"),
            ("", "fd00::1", types::IPFamily::v4, "::/0"),
            ("", "", types::IPFamily::v6, "::/0"),
            ("", "", types::IPFamily::v4, "0.0.0.0/0"),
            ("0.0.0.0/0", "10.0.0.1", types::IPFamily::v4, "0.0.0.0/0"),
            ("0.0.0.0", "10.0.0.1", types::IPFamily::v4, "0.0.0.0/0"),
            ("::/0", "", types::IPFamily::v4, "::/0"),
        ] {
            let parsed = route(|r| {
                (r.dest, r.gateway) = (dest.into(), gateway.into());
                r.family = family.into();
            });
            assert_eq!(parsed.unwrap().dest.to_string(), expected);
        }
    }

    #[test]
    fn routes_without_a_gateway_come_first_and_otherwise_stay_in_order() {
        let named = |dest: &str, gateway: &str| types::Route {
            dest: dest.into(),
            gateway: gateway.into(),
            device: "eth0".into(),
            ..types::Route::new()
        };
        let wanted =
            [named("", "10.0.0.1"), named("10.0.0.1", ""), named("10.2.0.0/16", "10.0.0.1"), named("10.3.1.1/16", "")];
        let order: Vec<_> = Route::parse_all(&wanted).unwrap().iter().map(|r| r.dest.to_string()).collect();
        assert_eq!(order, ["10.0.0.1/32", "10.3.0.0/16", "0.0.0.0/0", "10.2.0.0/16"]);
    }

    #[test]
    fn routes_that_make_no_sense_are_refused() {
        for bad in [
            route(|r| r.dest = "somewhere".into()),
            route(|r| r.gateway = "10.0.0.0/8".into()),
            route(|r| r.source = "10.0.0.0/8".into()),
            route(|r| r.scope = 256),
            route(|r| r.device = "a/b".into()),
            route(|r| r.device = String::new()),
            route(|r| (r.dest, r.gateway) = ("fd00::/64".into(), "10.0.0.1".into())),
        ] {
            assert!(bad.unwrap_err().is_invalid());
        }
        assert!(Route::parse_all(&vec![types::Route::new(); MAX_ENTRIES + 1]).unwrap_err().is_invalid());
    }

    #[test]
    fn a_plain_source_address_is_the_preferred_source() {
        let plain = route(|r| r.source = "10.0.0.2".into()).unwrap();
        assert_eq!(plain.source, Some("10.0.0.2".parse().unwrap()));
        assert_eq!(plain, route(|r| r.source = "10.0.0.2/32".into()).unwrap());
    }

    #[test]
    fn neighbours_that_make_no_sense_are_refused() {
        let parse = |change: fn(&mut types::ARPNeighbor)| {
            let to = types::IPAddress { address: "10.0.0.1".into(), ..types::IPAddress::new() };
            let mut wanted = types::ARPNeighbor {
                toIPAddress: Some(to).into(),
                device: "eth0".into(),
                lladdr: "02:00:00:00:00:01".into(),
                ..types::ARPNeighbor::new()
            };
            change(&mut wanted);
            Neighbour::parse(&wanted)
        };
        assert_eq!(parse(|_| {}).unwrap().state, NUD_PERMANENT);
        assert_eq!(parse(|n| n.lladdr = String::new()).unwrap().mac, None);
        for bad in [
            parse(|n| n.toIPAddress = None.into()),
            parse(|n| n.toIPAddress = Some(types::IPAddress::new()).into()),
            parse(|n| n.device = String::new()),
            parse(|n| n.lladdr = "here".into()),
            parse(|n| n.state = -1),
            parse(|n| n.flags = 256),
        ] {
            assert!(bad.unwrap_err().is_invalid());
        }
        assert!(Neighbour::parse_all(&vec![types::ARPNeighbor::new(); MAX_ENTRIES + 1]).unwrap_err().is_invalid());
    }

    #[test]
    fn interfaces_that_make_no_sense_are_refused() {
        let parse = |change: fn(&mut types::Interface)| {
            let mut wanted = types::Interface { name: "eth0".into(), ..types::Interface::new() };
            change(&mut wanted);
            Interface::parse(&wanted)
        };
        let address = |address: &str, mask: &str| types::IPAddress {
            address: address.into(),
            mask: mask.into(),
            ..types::IPAddress::new()
        };
        assert!(parse(|_| {}).unwrap().arp);
        assert!(!parse(|i| i.raw_flags = IFF_NOARP).unwrap().arp);
        assert_eq!(parse(|i| i.hwAddr = "02:00:CA:fe:00:01".into()).unwrap().mac.unwrap(), [2, 0, 0xca, 0xfe, 0, 1]);
        for bad in [
            parse(|i| i.name = String::new()),
            parse(|i| i.name = "sixteen-letters-".into()),
            parse(|i| i.name = "a b".into()),
            parse(|i| i.name = "..".into()),
            parse(|i| i.hwAddr = "02:00:00:00:00".into()),
            parse(|i| i.hwAddr = "2:0:0:0:0:1".into()),
            parse(|i| i.hwAddr = "+2:00:00:00:00:00".into()),
            parse(|i| i.mtu = 1 << 32),
        ] {
            assert!(bad.unwrap_err().is_invalid());
        }
        for (ip, mask) in [("10.0.0.1", "33"), ("10.0.0.1", ""), ("x", "8"), ("fd00::1", "129")] {
            let mut wanted = types::Interface { name: "eth0".into(), ..types::Interface::new() };
            wanted.IPAddresses = vec![address(ip, mask)];
            assert!(Interface::parse(&wanted).unwrap_err().is_invalid(), "{ip}/{mask}");
        }
    }
}
