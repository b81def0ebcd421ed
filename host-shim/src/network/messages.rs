//! The pod's network in the agent's words.

use std::net::IpAddr;

use nacre_netlink::kernel::{Neighbour, Route};
use nacre_netlink::prefix::Prefix;
use nacre_protocol::agent::{ARPNeighbors, AddARPNeighborsRequest, Routes};
use nacre_protocol::types;

use super::{Interface, Network};

impl Network {
    /// The interfaces, for `UpdateInterface`.
    pub fn interfaces_for_guest(&self) -> Vec<types::Interface> {
        self.interfaces.iter().map(interface).collect()
    }

    /// The routes, for `UpdateRoutes`: those on the links first.
    pub fn routes_for_guest(&self) -> Routes {
        Routes { Routes: self.routes.iter().map(|route| self.route(route)).collect(), ..Routes::new() }
    }

    /// The neighbours that don't change, for `AddARPNeighbors`; nothing where there are none.
    pub fn neighbours_for_guest(&self) -> Option<AddARPNeighborsRequest> {
        let all: Vec<_> = self.neighbours.iter().map(|neighbour| self.neighbour(neighbour)).collect();
        let all = (!all.is_empty()).then(|| ARPNeighbors { ARPNeighbors: all, ..ARPNeighbors::new() })?;
        Some(AddARPNeighborsRequest { neighbors: Some(all).into(), ..Default::default() })
    }

    fn name(&self, index: Option<u32>) -> String {
        let found = self.interfaces.iter().find(|interface| Some(interface.index) == index);
        found.map(|interface| interface.name.clone()).unwrap_or_default()
    }

    fn route(&self, route: &Route) -> types::Route {
        let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
        types::Route {
            // The default route has no destination.
            dest: if route.dest.length == 0 { String::new() } else { route.dest.to_string() },
            gateway: text(route.gateway),
            device: self.name(route.link),
            source: text(route.source),
            scope: route.scope.into(),
            family: family(route.dest.address).into(),
            flags: route.flags,
            mtu: route.mtu,
            ..types::Route::new()
        }
    }

    fn neighbour(&self, neighbour: &Neighbour) -> types::ARPNeighbor {
        let address = address(&Prefix::host(neighbour.address));
        types::ARPNeighbor {
            toIPAddress: Some(address).into(),
            device: self.name(Some(neighbour.link)),
            lladdr: neighbour.mac.as_deref().map(mac).unwrap_or_default(),
            state: neighbour.state.into(),
            flags: neighbour.flags.into(),
            ..types::ARPNeighbor::new()
        }
    }
}

impl Interface {
    /// The hardware address as people write it.
    pub fn mac(&self) -> String {
        mac(&self.mac)
    }
}

fn interface(interface: &Interface) -> types::Interface {
    types::Interface {
        device: interface.name.clone(),
        name: interface.name.clone(),
        IPAddresses: interface.addresses.iter().map(address).collect(),
        mtu: interface.mtu.into(),
        hwAddr: interface.mac(),
        ..types::Interface::new()
    }
}

fn address(prefix: &Prefix) -> types::IPAddress {
    types::IPAddress {
        family: family(prefix.address).into(),
        address: prefix.address.to_string(),
        mask: prefix.length.to_string(),
        ..types::IPAddress::new()
    }
}

fn family(address: IpAddr) -> types::IPFamily {
    if address.is_ipv4() { types::IPFamily::v4 } else { types::IPFamily::v6 }
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
