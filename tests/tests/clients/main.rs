//! What Kata's own clients send, from the first call to the last, in their order and with their conventions: its two runtimes and its tool
//! for testing agents.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod agent_ctl;
mod go_shim;
mod runtime_rs;

use std::future::Future;

use nacre_protocol::agent::{ARPNeighbors, CopyFileRequest, Routes, Storage};
use nacre_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use nacre_protocol::{convert, oci};
use nacre_tests::agent::{Client, MAC, Process};
use nacre_tests::{dist, request, suite};
use serde_json::json;
use ttrpc::context::{Context, with_timeout};

/// Where hosts copy files to.
const SHARED: &str = "/run/kata-containers/shared/containers";

/// Where the pod's shared memory is mounted for all its containers.
const SHM: &str = "/run/kata-containers/sandbox/shm";

/// An agent of its own for one test; nothing where that can't be.
fn agent() -> Option<Process> {
    let can = dist::root() && dist::have(&["unshare", "ip", "busybox"]);
    can.then(|| Process::start(&dist::program("nacre-agent")).unwrap())
}

/// A time limit as it travels in `timeout_nano`; 0 is none.
fn seconds(seconds: i64) -> Context {
    with_timeout(seconds * 1_000_000_000)
}

/// An id as containerd's are: 64 hexadecimal digits.
fn id(number: u32) -> String {
    format!("{:032x}{number:032x}", std::process::id())
}

/// What `work` returns, while `health` goes on beside it.
async fn beside<T>(health: impl Future<Output = ()>, work: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        done = work => done,
        () = health => panic!("health checks have ended"),
    }
}

fn interface() -> Interface {
    let address = |family: IPFamily, address: &str, mask: &str| {
        request!(IPAddress { family: family.into(), address: address.into(), mask: mask.into() })
    };
    request!(Interface {
        device: "eth0".into(),
        name: "eth0".into(),
        IPAddresses: vec![address(IPFamily::v4, "10.88.0.2", "16"), address(IPFamily::v6, "fd00::2", "64")],
        mtu: 1450,
        hwAddr: MAC.into(),
        type_: "veth".into(),
    })
}

fn routes() -> Routes {
    let (device, gateway) = (|| "eth0".to_string(), || "10.88.0.1".to_string());
    let default = request!(Route { gateway: gateway(), device: device() });
    let link = request!(Route { dest: "10.99.0.0/16".into(), device: device(), scope: 253u32 });
    request!(Routes { Routes: vec![default, link] })
}

fn neighbours() -> ARPNeighbors {
    const PERMANENT: i32 = 0x80; // NUD_PERMANENT
    let gateway = request!(IPAddress { address: "10.88.0.1".into() });
    let neighbour = request!(ARPNeighbor {
        toIPAddress: Some(gateway).into(),
        device: "eth0".into(),
        lladdr: "02:00:00:00:00:01".into(),
        state: PERMANENT,
    });
    request!(ARPNeighbors { ARPNeighbors: vec![neighbour] })
}

/// The shared memory of the pod.
fn shm() -> Storage {
    request!(Storage {
        driver: "ephemeral".into(),
        source: "shm".into(),
        fstype: "tmpfs".into(),
        options: ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"].map(String::from).to_vec(),
        mount_point: SHM.into(),
    })
}

/// Copies a small file, as a runtime does that shares no file system.
async fn copy(client: &Client, limit: Context, name: &str, text: &str) -> String {
    let path = format!("{SHARED}/{name}");
    let request = request!(CopyFileRequest {
        path: path.clone(),
        file_size: text.len() as i64,
        file_mode: 0o100_644,
        dir_mode: 0o020_000_000_750,
        data: text.into(),
    });
    client.agent.copy_file(limit, &request).await.unwrap();
    path
}

/// What is left of containerd's specification when a runtime has gone over it: no namespace that the guest rules (network, cgroup, time,
/// pid), no devices, and sources of mounts that are paths of the guest's.
fn spec(id: &str, root: &str, args: &[&str], files: &[(&str, &str)]) -> oci::Spec {
    let mut spec = suite::spec_json(id, root, args, false);
    spec["linux"]["namespaces"] = json!([{ "type": "ipc" }, { "type": "uts" }, { "type": "mount" }]);
    spec["linux"]["resources"] = json!({ "cpu": { "shares": 2, "period": 100_000 }, "memory": { "limit": 256 << 20 } });
    spec["linux"]["readonlyPaths"] = json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    spec["process"]["oomScoreAdj"] = json!(993);
    let more = [
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }),
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }),
        json!({ "destination": "/dev/shm", "type": "bind", "source": SHM, "options": ["rbind"] }),
    ];
    let files = files.iter().map(|(source, destination)| {
        json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"] })
    });
    spec["mounts"].as_array_mut().unwrap().extend(more.into_iter().chain(files));
    convert::spec_from_oci(&serde_json::from_value(spec).unwrap()).unwrap()
}
