//! Devices in trees of the tests' making, and waits for them that the kernel's own events end.

use std::fs;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::*;

/// A machine: directories that stand for `/sys` and `/dev`.
pub struct Machine(tempfile::TempDir);

impl Machine {
    pub fn new() -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        fs::create_dir(machine.dev()).unwrap();
        machine.dir("sys");
        machine
    }

    pub fn sys(&self) -> PathBuf {
        self.0.path().join("sys")
    }

    pub fn dev(&self) -> PathBuf {
        self.0.path().join("dev")
    }

    pub fn devices(&self, patience: Duration) -> Devices {
        Devices::below(self.sys(), self.dev(), patience)
    }

    pub fn dir(&self, path: &str) -> PathBuf {
        let dir = self.0.path().join(path);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub fn file(&self, path: &str, text: &str) -> PathBuf {
        let file = self.0.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        file
    }

    /// A node in `/dev`; false where none can be made.
    pub fn node(&self, name: &str, major: u32, minor: u32) -> bool {
        let made = mknodat(CWD, self.dev().join(name), FileType::BlockDevice, Mode::RWXU, makedev(major, minor));
        made.inspect_err(|error| println!("skipped: no device can be made: {error}")).is_ok()
    }

    /// A disk in a directory of sysfs, with its node.
    pub fn disk(&self, directory: &str, name: &str, minor: u32) -> bool {
        self.file(&format!("sys/{directory}/{name}/dev"), &format!("254:{minor}\n"));
        self.node(name, 254, minor)
    }
}

const NOW: Duration = Duration::ZERO;

fn missing(error: Error) -> String {
    match error {
        Error::Missing { missing, .. } => missing,
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_disk_is_found_behind_its_bridges() {
    let machine = Machine::new();
    let bridge = "devices/pci0000:00/0000:00:02.0";
    machine.dir(&format!("sys/{bridge}/pci_bus/0000:01"));
    let root = "devices/platform/4010000000.pcie/pci0000:20/0000:20:00.0";
    machine.dir(&format!("sys/{root}/pci_bus/0000:21"));
    if !machine.disk(&format!("{bridge}/0000:01:01.1/virtio3/block"), "vdb", 16)
        || !machine.disk(&format!("{root}/0000:21:02.0/virtio4/block"), "vdc", 32)
    {
        return;
    }
    for (path, node, minor) in [("02/01.1", "vdb", 16), ("20/00/02", "vdc", 32)] {
        let found = machine.devices(NOW).block(&Locator::pci(path).unwrap()).await.unwrap();
        assert_eq!(found, Block { node: machine.dev().join(node), major: 254, minor });
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_with_what_was_looked_at() {
    let machine = Machine::new();
    let slot = "sys/devices/pci0000:00/0000:00:02.0";
    let devices = machine.devices(NOW);
    let look = async || missing(devices.block(&Locator::pci("02/01").unwrap()).await.unwrap_err());
    assert!(look().await.ends_with("/devices/pci0000:00\""));
    machine.dir(slot);
    assert!(look().await.contains("pci_bus"));
    machine.dir(&format!("{slot}/pci_bus/0000:01"));
    assert!(look().await.ends_with("/0000:01:01.0\""));
    machine.dir(&format!("{slot}/0000:01:01.0/virtio0/net/eth0"));
    assert!(look().await.contains("/virtio0/block\": No such file"));
    machine.file(&format!("{slot}/0000:01:01.0/virtio0/block/vda/dev"), "254:0\n");
    assert!(look().await.contains("/dev/vda\": No such file"));
    let error = devices.block(&Locator::pci("02/01").unwrap()).await.unwrap_err().to_string();
    assert!(error.starts_with("PCI device 00:02.0/01.0 is not there after 0ns: "), "{error}");
}

#[tokio::test]
async fn a_node_is_the_device_that_sysfs_says() {
    let machine = Machine::new();
    machine.file("sys/class/block/pmem0/dev", "259:3\n");
    let devices = machine.devices(NOW);
    let pmem = Locator::node("/dev/pmem0").unwrap();
    fs::write(machine.dev().join("pmem0"), "").unwrap();
    assert!(missing(devices.block(&pmem).await.unwrap_err()).ends_with("is not the block device 259:3"));
    fs::remove_file(machine.dev().join("pmem0")).unwrap();
    if machine.node("pmem0", 259, 4) {
        assert!(missing(devices.block(&pmem).await.unwrap_err()).ends_with("is not the block device 259:3"));
        fs::remove_file(machine.dev().join("pmem0")).unwrap();
        machine.node("pmem0", 259, 3);
        assert_eq!(devices.block(&pmem).await.unwrap().minor, 3);
    }
}

#[tokio::test]
async fn scsi_hosts_are_asked_for_a_disk_that_is_not_there() {
    let machine = Machine::new();
    let scan = machine.file("sys/class/scsi_host/host0/scan", "");
    let disk = Locator::scsi("1:3").unwrap();
    machine.devices(NOW).block(&disk).await.unwrap_err();
    assert_eq!(fs::read_to_string(&scan).unwrap(), "0 1 3");
    fs::write(&scan, "").unwrap();
    machine.dir("sys/class/scsi_device/2:0:11:3/device/block");
    if machine.disk("class/scsi_device/2:0:1:3/device/block", "sda", 0) {
        assert_eq!(machine.devices(NOW).block(&disk).await.unwrap().node, machine.dev().join("sda"));
        assert_eq!(fs::read_to_string(&scan).unwrap(), ""); // it is there: nobody is asked
    }
}

#[tokio::test]
async fn many_wait_at_once_and_each_gets_its_own_when_it_is_plugged_in() {
    let machine = Machine::new();
    let devices = Arc::new(machine.devices(Duration::from_secs(60)));
    let mut waiting = tokio::task::JoinSet::new();
    for slot in 1..9 {
        let devices = devices.clone();
        waiting.spawn(async move { (slot, devices.block(&Locator::pci(&slot.to_string()).unwrap()).await.unwrap()) });
    }
    for slot in (1..9).rev() {
        let directory = format!("devices/pci0000:00/0000:00:{slot:02x}.0/virtio{slot}/block");
        if !machine.disk(&directory, &format!("vd{slot}"), slot) || !stir() {
            return;
        }
        tokio::task::yield_now().await;
    }
    while let Some(found) = waiting.join_next().await {
        let (slot, block) = found.unwrap();
        assert_eq!(block.minor, slot);
    }
}

/// The kernel's word that something has changed: of a device that every machine has.
pub fn stir() -> bool {
    let stirred = fs::write("/sys/class/mem/null/uevent", "change");
    stirred.inspect_err(|error| println!("skipped: no event can be made: {error}")).is_ok()
}
