//! Pods' networks in namespaces made for the purpose.

use std::io::{Read as _, Write as _};
use std::process::Command;

use super::*;

/// A pair of network namespaces, as CNI leaves them: the pod's, and one for the rest of the node. They go with the value.
struct Namespaces(String);

impl Namespaces {
    /// Says why there are none.
    fn new(name: &str, setup: &str) -> Option<Namespaces> {
        let name = format!("nacre-{name}-{}", std::process::id());
        let namespaces = Namespaces(name.clone());
        let script = format!("ip netns add {name} && ip netns add {name}-node && ip -n {name} link set lo up");
        if !sh(&script).0 {
            println!("skipped: network namespaces can't be made here: is this root?");
            return None;
        }
        let (made, said) = sh(&setup.replace("POD", &name));
        assert!(made, "{said}");
        Some(namespaces)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// What a command says in the pod's namespace.
    fn says(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.0)).1
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        sh(&format!("ip netns del {0}; ip netns del {0}-node", self.0));
    }
}

fn sh(script: &str) -> (bool, String) {
    let output = Command::new("sh").args(["-c", &format!("{{ {script}; }} 2>&1")]).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into())
}

const POD: &str = "ip -n POD link add eth0 mtu 1400 address 02:00:00:00:00:07 type veth peer name peer0 netns POD-node && \
    ip -n POD addr add 10.9.0.2/24 dev eth0 && ip -n POD addr add fd09::2/64 dev eth0 nodad && ip -n POD link set eth0 up && \
    ip -n POD-node addr add 10.9.0.1/24 dev peer0 && ip -n POD-node link set peer0 up && \
    ip -n POD route add default via 10.9.0.1 && ip -n POD route add 10.10.0.0/16 dev eth0 && \
    ip -n POD neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent";

#[test]
fn the_guest_is_told_what_cni_has_set_up() {
    let Some(namespaces) = Namespaces::new("told", POD) else { return };
    let network = attach(&namespaces.path()).unwrap();
    let [interface] = network.interfaces_for_guest().try_into().unwrap();
    assert_eq!(
        (interface.name.as_str(), interface.hwAddr.as_str(), interface.mtu),
        ("eth0", "02:00:00:00:00:07", 1400)
    );
    let addresses: Vec<_> = interface.IPAddresses.iter().map(|ip| format!("{}/{}", ip.address, ip.mask)).collect();
    assert_eq!(addresses, ["10.9.0.2/24", "fd09::2/64"]);
    let routes = network.routes_for_guest().Routes;
    let routes: Vec<_> =
        routes.iter().map(|route| (route.dest.as_str(), route.gateway.as_str(), route.device.as_str())).collect();
    assert_eq!(routes, [("10.10.0.0/16", "", "eth0"), ("", "10.9.0.1", "eth0")], "links come before gateways");
    let neighbours = network.neighbours_for_guest().unwrap().neighbors.unwrap().ARPNeighbors;
    assert_eq!(
        (neighbours[0].toIPAddress.address.as_str(), neighbours[0].lladdr.as_str()),
        ("10.9.0.9", "02:00:00:00:00:09")
    );
}

#[test]
fn frames_cross_between_the_node_and_the_guest() {
    let Some(namespaces) = Namespaces::new("cross", POD) else { return };
    let network = attach(&namespaces.path()).unwrap();
    let mut tap = File::from(network.interfaces[0].tap.try_clone().unwrap());
    rustix::io::ioctl_fionbio(&tap, false).unwrap();
    // The node asks for the pod's hardware address before it sends; the guest, played by the test, answers.
    let node = format!("{}-node", namespaces.0);
    let sent =
        Command::new("ip").args(["netns", "exec", &node, "bash", "-c", "echo hello > /dev/udp/10.9.0.2/9"]).status();
    assert!(sent.unwrap().success());
    const HEADER: usize = 10; // virtio_net_hdr
    let mut frame = [0; 2048];
    let mut seen = |what: &dyn Fn(&[u8]) -> bool| loop {
        let length = tap.read(&mut frame).unwrap();
        let frame = &frame[HEADER..length];
        if what(frame) {
            break frame.to_vec();
        }
    };
    let asked = seen(&|frame| frame[12..14] == [0x08, 0x06] && frame[38..42] == [10, 9, 0, 2]);
    let pod = [0x02, 0, 0, 0, 0, 0x07];
    let mut answer = vec![0; HEADER];
    answer.extend_from_slice(&asked[6..12]);
    answer.extend_from_slice(&pod);
    answer.extend_from_slice(&asked[12..20]);
    answer.extend_from_slice(&[0, 2]);
    answer.extend_from_slice(&pod);
    answer.extend_from_slice(&asked[38..42]);
    answer.extend_from_slice(&asked[22..32]);
    File::from(network.interfaces[0].tap.try_clone().unwrap()).write_all(&answer).unwrap();
    let packet = seen(&|frame| frame[..6] == pod && frame[12..14] == [0x08, 0x00]);
    assert!(packet.ends_with(b"hello\n"), "the node knows the guest, and sends");
}

#[test]
fn what_was_joined_is_as_before_when_it_is_released() {
    let Some(namespaces) = Namespaces::new("before", POD) else { return };
    let look = || namespaces.says("ip -o addr; ip -o route; tc qdisc show dev eth0");
    let before = look();
    let network = attach(&namespaces.path()).unwrap();
    assert_ne!(look(), before);
    drop(network);
    detach(&namespaces.path()).unwrap();
    assert_eq!(look(), before);
    detach(&namespaces.path()).unwrap();
    detach(Path::new("/run/netns/nowhere")).unwrap();
}

#[test]
fn a_pod_joined_again_after_a_crash_has_one_network() {
    let Some(namespaces) = Namespaces::new("again", POD) else { return };
    drop(attach(&namespaces.path()).unwrap());
    assert!(attach(&namespaces.path()).is_err(), "the queue of the one that crashed is in the way");
    detach(&namespaces.path()).unwrap();
    assert_eq!(attach(&namespaces.path()).unwrap().interfaces.len(), 1);
}

#[test]
fn what_is_no_pods_network_is_refused() {
    assert!(matches!(attach(Path::new("/nowhere")), Err(Error::Namespace { .. })));
    assert!(matches!(attach(Path::new("/proc/self/ns/net")), Err(Error::Host)));
    let many = format!(
        "for i in $(seq 0 {MAX_INTERFACES}); do ip -n POD link add e$i type veth peer name p$i netns POD-node && ip -n POD addr add 10.8.$i.1/24 dev e$i; done"
    );
    let Some(namespaces) = Namespaces::new("many", &many) else { return };
    assert!(matches!(attach(&namespaces.path()), Err(Error::TooMany(9))));
    assert!(!namespaces.says("ip -o link").contains("nacre0"), "nothing is left of it");
}
