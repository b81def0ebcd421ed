//! The network against the kernel, in network namespaces made for the purpose.

use std::process::Command;
use std::thread;
use std::time::Duration;

use super::*;
use crate::device::tests::{Machine, stir};

/// Run `test` in a network namespace of its own, or say why not.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        // SAFETY of the process: only this thread moves, and it ends with the test.
        if let Err(e) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            println!("skipped: unshare(CLONE_NEWNET): {e}");
            return;
        }
        test();
    });
    thread.join().unwrap();
}

/// Child processes are in the network namespace of the thread that starts them.
fn ip(args: &str) -> bool {
    Command::new("ip").args(args.split(' ')).status().is_ok_and(|status| status.success())
}

/// A device to configure: one end of a pair, which more kernels have than a dummy.
fn device(name: &str, mac: &str) -> bool {
    let made = ip(&format!("link add {name} address {mac} type veth peer name peer-{name}"));
    if !made {
        println!("skipped: no veth device: is iproute2 installed and the kernel module there?");
    }
    made
}

const MAC_A: &str = "02:00:00:00:00:0a";
const MAC_B: &str = "02:00:00:00:00:0b";

fn interface(name: &str, mac: &str, addresses: &[(&str, &str)]) -> types::Interface {
    let address = |(address, mask): &(&str, &str)| types::IPAddress {
        address: (*address).into(),
        mask: (*mask).into(),
        ..types::IPAddress::new()
    };
    types::Interface {
        name: name.into(),
        hwAddr: mac.into(),
        IPAddresses: addresses.iter().map(address).collect(),
        ..types::Interface::new()
    }
}

fn listed(name: &str) -> types::Interface {
    let all = list_interfaces().unwrap().Interfaces;
    all.into_iter().find(|i| i.name == name).unwrap_or_else(|| panic!("no interface {name}"))
}

fn addresses(name: &str) -> Vec<String> {
    let listed = listed(name).IPAddresses.into_iter();
    listed.filter(|a| !a.address.starts_with("fe80:")).map(|a| format!("{}/{}", a.address, a.mask)).collect()
}

fn routes(wanted: &[(&str, &str, &str)]) -> agent::Routes {
    let route = |(dest, gateway, device): &(&str, &str, &str)| types::Route {
        dest: (*dest).into(),
        gateway: (*gateway).into(),
        device: (*device).into(),
        ..types::Route::new()
    };
    agent::Routes { Routes: wanted.iter().map(route).collect(), ..agent::Routes::new() }
}

fn destinations(routes: &agent::Routes) -> Vec<&str> {
    routes.Routes.iter().filter(|r| !r.dest.starts_with("fe80:")).map(|r| r.dest.as_str()).collect()
}

#[test]
fn a_fresh_guest_has_a_loopback_that_can_be_brought_up() {
    in_namespace(|| {
        bring_up_loopback().unwrap();
        let lo = listed("lo");
        assert_eq!(lo.hwAddr, "00:00:00:00:00:00");
        assert!(addresses("lo").contains(&"127.0.0.1/8".to_owned()));
        bring_up_loopback().unwrap();
    });
}

#[test]
fn an_interface_is_found_by_its_mac_and_configured() {
    in_namespace(|| {
        if !device("any0", MAC_A) {
            return;
        }
        let mut wanted = interface("eth0", MAC_A, &[("10.1.0.2", "24"), ("fd00::2", "64")]);
        wanted.mtu = 1400;
        wanted.raw_flags = IFF_NOARP;
        assert_eq!(update_interface(Some(&wanted), None).unwrap(), wanted);
        let eth0 = listed("eth0");
        assert_eq!((eth0.mtu, eth0.hwAddr.as_str()), (1400, MAC_A));
        assert_eq!(addresses("eth0"), ["10.1.0.2/24", "fd00::2/64"]);
        assert!(eth0.IPAddresses.iter().any(|a| a.family == types::IPFamily::v6.into()));
        let links = all_links(&mut open().unwrap()).unwrap();
        let flags = links.iter().find(|link| link.name == "eth0").unwrap().flags;
        assert_eq!(flags & (IFF_UP | IFF_NOARP), IFF_UP | IFF_NOARP);
    });
}

#[test]
fn addresses_are_those_of_the_last_request() {
    in_namespace(|| {
        if !device("eth0", MAC_A) {
            return;
        }
        let first = interface("eth0", MAC_A, &[("10.1.0.2", "24"), ("10.1.0.3", "24"), ("10.9.0.1", "16")]);
        let second = interface("eth0", MAC_A, &[("10.1.0.3", "24"), ("10.2.0.1", "16")]);
        for (wanted, expected) in [
            (&first, &["10.1.0.2/24", "10.9.0.1/16", "10.1.0.3/24"][..]),
            (&first, &["10.1.0.2/24", "10.9.0.1/16", "10.1.0.3/24"]),
            (&second, &["10.1.0.3/24", "10.2.0.1/16"]),
        ] {
            update_interface(Some(wanted), None).unwrap();
            let (mut present, mut expected) = (addresses("eth0"), expected.to_vec());
            present.sort();
            expected.sort();
            assert_eq!(present, expected);
        }
    });
}

#[test]
fn an_interface_that_has_the_wanted_name_gets_the_other_one() {
    in_namespace(|| {
        if !device("eth0", MAC_A) || !device("eth1", MAC_B) {
            return;
        }
        update_interface(Some(&interface("eth0", MAC_A, &[])), None).unwrap();
        update_interface(Some(&interface("eth0", MAC_B, &[])), None).unwrap();
        assert_eq!(listed("eth0").hwAddr, MAC_B);
        assert_eq!(listed("eth1").hwAddr, MAC_A);
    });
}

#[test]
fn an_interface_found_by_name_gets_the_mac() {
    in_namespace(|| {
        if !device("eth0", MAC_A) {
            return;
        }
        update_interface(Some(&interface("eth0", MAC_A, &[])), None).unwrap();
        update_interface(Some(&interface("eth0", MAC_B, &[])), None).unwrap();
        assert_eq!(listed("eth0").hwAddr, MAC_B);
    });
}

#[test]
fn a_missing_interface_is_named() {
    in_namespace(|| {
        let error = update_interface(Some(&interface("eth7", MAC_A, &[])), None).unwrap_err().to_string();
        assert!(error.contains("Link not found (") && error.contains("eth7"), "{error}");
        let error = update_routes(Some(&routes(&[("", "10.0.0.1", "eth7")]))).unwrap_err().to_string();
        assert!(error.contains("Link not found (") && error.contains("eth7"), "{error}");
        assert_eq!(update_interface(None, None).unwrap_err().to_string(), "empty update interface request");
        assert_eq!(update_routes(None).unwrap_err().to_string(), "empty update routes request");
        let error = add_neighbours(Some(&neighbours(&[("10.0.0.1", "eth7", MAC_A)]))).unwrap_err().to_string();
        assert!(error.contains("Link not found (") && error.contains("eth7"), "{error}");
        assert_eq!(add_neighbours(None).unwrap_err().to_string(), "empty add arp neighbours request");
    });
}

#[test]
fn the_interface_of_a_card_gets_the_address_and_name_that_are_asked_for() {
    in_namespace(|| {
        if !device("card0", MAC_B) || !device("eth0", MAC_A) {
            return;
        }
        let mut wanted = interface("eth0", MAC_A, &[]);
        wanted.devicePath = "02/01".into();
        update_interface(Some(&wanted), Some("card0")).unwrap();
        assert_eq!(listed("eth0").hwAddr, MAC_A);
        assert_eq!(listed("card0").hwAddr, MAC_A); // which had the name
        let error = update_interface(Some(&wanted), Some("gone0")).unwrap_err();
        assert!(matches!(error, Error::LinkNotFound(_)), "{error}");
    });
}

#[tokio::test]
async fn an_interface_is_waited_for_at_the_place_of_its_card() {
    let machine = Machine::new();
    let devices = machine.devices(Duration::from_secs(60));
    let mut wanted = interface("eth0", MAC_A, &[]);
    assert_eq!(plugged(Some(&wanted), &devices).await.unwrap(), None);
    wanted.devicePath = "02/x".into();
    assert!(plugged(Some(&wanted), &devices).await.unwrap_err().is_invalid());
    wanted.devicePath = "02".into();
    let error = plugged(Some(&wanted), &machine.devices(Duration::ZERO)).await.unwrap_err().to_string();
    assert!(error.starts_with("Link not found (PCI device 00:02.0 is not there"), "{error}");
    let waiting = tokio::spawn(async move { plugged(Some(&wanted), &devices).await });
    machine.dir("sys/devices/pci0000:00/0000:00:02.0/virtio1/net/eth7");
    if stir() {
        assert_eq!(waiting.await.unwrap().unwrap(), Some("eth7".into()));
    }
    machine.dir("sys/devices/pci0000:00/0000:00:03.0/net/ens3");
    assert_eq!(machine.devices(Duration::ZERO).interface(&"03".parse().unwrap()).await.unwrap(), "ens3");
}

#[test]
fn routes_are_those_of_the_last_request() {
    in_namespace(|| {
        if !device("eth0", MAC_A) {
            return;
        }
        let eth0 = interface("eth0", MAC_A, &[("10.1.0.2", "24"), ("fd00::2", "64")]);
        update_interface(Some(&eth0), None).unwrap();
        let first = routes(&[
            ("", "169.254.1.1", "eth0"),
            ("169.254.1.1", "", "eth0"),
            ("10.5.1.1/16", "10.1.0.1", "eth0"),
            ("", "fd00::1", "eth0"),
        ]);
        for _ in 0..2 {
            let now = update_routes(Some(&first)).unwrap();
            let expected = ["0.0.0.0", "10.1.0.0/24", "10.5.0.0/16", "169.254.1.1/32", "::", "fd00::/64"];
            let mut present = destinations(&now);
            present.sort();
            let mut expected = expected.to_vec();
            expected.sort();
            assert_eq!(present, expected);
        }
        let second = routes(&[("", "10.1.0.9", "eth0")]);
        let now = update_routes(Some(&second)).unwrap();
        let mut present = destinations(&now);
        present.sort();
        assert_eq!(present, ["0.0.0.0", "10.1.0.0/24", "fd00::/64"]);
        assert_eq!(now.Routes.iter().find(|r| r.dest == "0.0.0.0").unwrap().gateway, "10.1.0.9");
    });
}

#[test]
fn mtu_source_and_scope_of_a_route_are_kept() {
    in_namespace(|| {
        if !device("eth0", MAC_A) {
            return;
        }
        update_interface(Some(&interface("eth0", MAC_A, &[("10.1.0.2", "24")])), None).unwrap();
        let mut wanted = routes(&[("10.7.0.0/16", "", "eth0")]);
        wanted.Routes[0].mtu = 1300;
        wanted.Routes[0].source = "10.1.0.2".into();
        wanted.Routes[0].scope = 253;
        wanted.Routes[0].flags = 16; // RTNH_F_LINKDOWN, as a host that reads its own table may send it
        let now = update_routes(Some(&wanted)).unwrap();
        let route = now.Routes.iter().find(|r| r.dest == "10.7.0.0/16").unwrap();
        assert_eq!(
            (route.mtu, route.source.as_str(), route.scope, route.device.as_str()),
            (1300, "10.1.0.2", 253, "eth0")
        );
    });
}

fn neighbours(wanted: &[(&str, &str, &str)]) -> agent::ARPNeighbors {
    let neighbour = |(address, device, lladdr): &(&str, &str, &str)| {
        let to = types::IPAddress { address: (*address).into(), ..types::IPAddress::new() };
        types::ARPNeighbor {
            toIPAddress: Some(to).into(),
            device: (*device).into(),
            lladdr: (*lladdr).into(),
            ..types::ARPNeighbor::new()
        }
    };
    agent::ARPNeighbors { ARPNeighbors: wanted.iter().map(neighbour).collect(), ..agent::ARPNeighbors::new() }
}

/// What `ip` tells of the permanent neighbours, sorted.
fn permanent() -> Vec<String> {
    let listed = Command::new("ip").args(["neigh", "show", "nud", "permanent"]).output().unwrap();
    let mut lines: Vec<_> = String::from_utf8(listed.stdout).unwrap().lines().map(|l| l.trim().into()).collect();
    lines.sort();
    lines
}

#[test]
fn neighbours_are_added_and_replaced() {
    in_namespace(|| {
        if !device("eth0", MAC_A) {
            return;
        }
        update_interface(Some(&interface("eth0", MAC_A, &[("10.1.0.2", "24"), ("fd00::2", "64")])), None).unwrap();
        let (v4, v6) = ("10.1.0.1 dev eth0 lladdr", "fd00::1 dev eth0 lladdr");
        add_neighbours(Some(&neighbours(&[("10.1.0.1", "eth0", MAC_A), ("fd00::1", "eth0", MAC_A)]))).unwrap();
        assert_eq!(permanent(), [format!("{v4} {MAC_A} PERMANENT"), format!("{v6} {MAC_A} PERMANENT")]);
        // Without a hardware address a neighbour keeps the one that is known.
        add_neighbours(Some(&neighbours(&[("10.1.0.1", "eth0", MAC_B), ("fd00::1", "eth0", "")]))).unwrap();
        assert_eq!(permanent(), [format!("{v4} {MAC_B} PERMANENT"), format!("{v6} {MAC_A} PERMANENT")]);
        let mut passing = neighbours(&[("10.1.0.1", "eth0", MAC_B)]);
        passing.ARPNeighbors[0].state = 4; // NUD_STALE
        add_neighbours(Some(&passing)).unwrap();
        assert_eq!(permanent(), [format!("{v6} {MAC_A} PERMANENT")]);
    });
}
