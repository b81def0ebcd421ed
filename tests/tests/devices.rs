//! Devices on a real machine's buses: there from the start, and plugged in while the guest waits for them.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use nacre_protocol::agent::{
    AddSwapRequest, CreateContainerRequest, Device, GetMetricsRequest, ListInterfacesRequest, UpdateInterfaceRequest,
};
use nacre_protocol::convert;
use nacre_protocol::types::Interface;
use nacre_shim::vmm::{self, Disk, Qmp};
use nacre_tests::agent::{Client, Guest, Machine, limit};
use nacre_tests::{dist, suite};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The hardware address of a card that is plugged in.
const MAC: &str = "52:54:00:6e:61:99";

/// A PC. Devices are slow to come under emulation.
async fn pc(disks: Vec<Disk>) -> Option<(Guest, Client)> {
    let dist = dist::dist()?;
    if !dist::have(&["qemu-system-x86_64", "busybox"]) {
        return None;
    }
    let machine =
        Machine { kind: vmm::Machine::Q35, disks, words: &["agent.hotplug_timeout=20"], ..Machine::default() };
    let guest = Guest::boot_as(&dist, machine).await.unwrap();
    let client = guest.connect().await.unwrap();
    Some((guest, client))
}

/// A disk that begins with `text`.
fn disk(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(4 << 20).unwrap();
    path
}

/// What a container reads from the disk that it has at `/dev/data`.
async fn read_disk(client: &Client, id: &str, device: Device) -> ttrpc::Result<String> {
    let root = suite::root_file_system(client, id).await.unwrap();
    let mut spec = suite::spec_json(id, &root, &["busybox", "head", "-n1", "/dev/data"], false);
    // As the host has it: the number is another one here.
    spec["linux"]["devices"] = json!([{ "path": "/dev/data", "type": "b", "major": 8, "minor": 77 }]);
    spec["linux"]["resources"]["devices"] = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "b", "major": 8, "minor": 77, "access": "r" },
    ]);
    let request = CreateContainerRequest {
        container_id: id.into(),
        OCI: Some(convert::spec_from_oci(&serde_json::from_value(spec).unwrap()).unwrap()).into(),
        devices: vec![device],
        ..Default::default()
    };
    client.agent.create_container(limit(), &request).await?;
    suite::start(client, id).await.unwrap();
    assert_eq!(suite::wait(client, id, "").await.unwrap(), 0);
    let said = suite::read_out(client, id, "").await.unwrap();
    suite::remove(client, id).await.unwrap();
    Ok(String::from_utf8(said).unwrap())
}

fn device(kind: &str, id: &str) -> Device {
    Device { type_: kind.into(), id: id.into(), container_path: "/dev/data".into(), ..Device::new() }
}

async fn plug_disk(qmp: &mut Qmp, file: &Path, name: &str, driver: Value) {
    let file = json!({ "driver": "file", "filename": file });
    qmp.execute("blockdev-add", json!({ "driver": "raw", "node-name": name, "file": file })).await.unwrap();
    qmp.execute("device_add", driver).await.unwrap();
}

#[tokio::test]
async fn vm_a_container_is_given_the_disk_at_a_pci_path() {
    let dir = tempfile::tempdir().unwrap();
    let cold = Disk { path: disk(&dir, "cold", "from the start\n"), serial: "cold".into(), read_only: true };
    let Some((mut guest, client)) = pc(vec![cold]).await else { return };
    let mut qmp = guest.vm().qmp().await.unwrap();
    let buses = qmp.execute("query-pci", json!({})).await.unwrap();
    let is_disk = |device: &&Value| device["id"]["device"] == 0x1042 || device["id"]["device"] == 0x1001;
    let slot = buses[0]["devices"].as_array().unwrap().iter().find(is_disk).unwrap()["slot"].as_u64().unwrap();
    let said = read_disk(&client, "cold", device("blk", &format!("{slot:02x}"))).await.unwrap();
    assert_eq!(said, "from the start\n");

    let hot = disk(&dir, "hot", "plugged in\n");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { read_disk(&client, "hot", device("blk", "13/00")).await }
    });
    plug_disk(&mut qmp, &hot, "hot", json!({ "driver": "virtio-blk-pci", "bus": "port3", "drive": "hot" })).await;
    assert_eq!(waiting.await.unwrap().unwrap(), "plugged in\n");
}

#[tokio::test]
async fn vm_a_container_is_given_the_disk_at_a_scsi_address() {
    let dir = tempfile::tempdir().unwrap();
    let Some((mut guest, client)) = pc(Vec::new()).await else { return };
    let mut qmp = guest.vm().qmp().await.unwrap();
    qmp.execute("device_add", json!({ "driver": "virtio-scsi-pci", "id": "scsi", "bus": "port1" })).await.unwrap();
    let file = disk(&dir, "disk", "on a bus\n");
    let place = json!({ "driver": "scsi-hd", "bus": "scsi.0", "scsi-id": 1, "lun": 2, "drive": "disk" });
    plug_disk(&mut qmp, &file, "disk", place).await;
    assert_eq!(read_disk(&client, "disk", device("scsi", "1:2")).await.unwrap(), "on a bus\n");
}

#[tokio::test]
async fn vm_swap_and_network_cards_are_found_at_pci_paths() {
    let dir = tempfile::tempdir().unwrap();
    let Some((mut guest, client)) = pc(Vec::new()).await else { return };
    if !dist::have(&["mkswap"]) {
        return;
    }
    let mut qmp = guest.vm().qmp().await.unwrap();
    let file = disk(&dir, "swap", "");
    assert!(std::process::Command::new("mkswap").arg(&file).output().unwrap().status.success());
    let request = AddSwapRequest { PCIPath: vec![0x12, 0], ..Default::default() };
    let (added, ()) = tokio::join!(
        client.agent.add_swap(limit(), &request),
        plug_disk(&mut qmp, &file, "swap", json!({ "driver": "virtio-blk-pci", "bus": "port2", "drive": "swap" })),
    );
    added.unwrap();
    let metrics = client.agent.get_metrics(limit(), &GetMetricsRequest::new()).await.unwrap().metrics;
    let total = metrics.lines().find(|line| line.contains("item=\"swap_total\"")).unwrap();
    assert!(!total.ends_with(" 0"), "{total}");

    let wanted = Interface { name: "plug0".into(), hwAddr: MAC.into(), devicePath: "14/00".into(), ..Interface::new() };
    let request = UpdateInterfaceRequest { interface: Some(wanted.clone()).into(), ..Default::default() };
    let plug = async {
        qmp.execute("netdev_add", json!({ "type": "user", "id": "net" })).await.unwrap();
        let card = json!({ "driver": "virtio-net-pci", "bus": "port4", "netdev": "net" });
        qmp.execute("device_add", card).await.unwrap();
    };
    let (updated, ()) = tokio::join!(client.agent.update_interface(limit(), &request), plug);
    assert_eq!(updated.unwrap(), wanted);
    let listed = client.agent.list_interfaces(limit(), &ListInterfacesRequest::new()).await.unwrap().Interfaces;
    assert!(listed.iter().any(|interface| interface.name == "plug0" && interface.hwAddr == MAC), "{listed:?}");
}
