//! Devices in trees of the tests' making, and waits for them that the kernel's own events end.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use nacre_protocol::agent::Device;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Process, Spec};

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
    pub fn node(&self, name: &str, kind: FileType, major: u32, minor: u32) -> bool {
        let node = self.dev().join(name);
        fs::create_dir_all(node.parent().unwrap()).unwrap();
        let made = mknodat(CWD, node, kind, Mode::RWXU, makedev(major, minor));
        made.inspect_err(|error| println!("skipped: no device can be made: {error}")).is_ok()
    }

    /// A disk in a directory of sysfs, with its node.
    pub fn disk(&self, directory: &str, name: &str, minor: u32) -> bool {
        self.file(&format!("sys/{directory}/{name}/dev"), &format!("254:{minor}\n"));
        self.node(name, FileType::BlockDevice, 254, minor)
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
    assert!(missing(devices.block(&pmem).await.unwrap_err()).contains("is not the device 259:3"));
    fs::remove_file(machine.dev().join("pmem0")).unwrap();
    if machine.node("pmem0", FileType::BlockDevice, 259, 4) {
        assert!(missing(devices.block(&pmem).await.unwrap_err()).contains("is not the device 259:3"));
        fs::remove_file(machine.dev().join("pmem0")).unwrap();
        machine.node("pmem0", FileType::BlockDevice, 259, 3);
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

fn requested(kind: &str, id: &str, vm_path: &str, container_path: &str, options: &[&str]) -> Device {
    Device {
        type_: kind.into(),
        id: id.into(),
        vm_path: vm_path.into(),
        container_path: container_path.into(),
        options: options.iter().map(|option| (*option).into()).collect(),
        ..Device::new()
    }
}

/// A specification with devices as the host has them.
fn spec(devices: &[(&str, LinuxDeviceType)]) -> Spec {
    let device = |(path, kind): &(&str, LinuxDeviceType)| {
        let mut device = LinuxDevice::default();
        device.set_path(path.into()).set_typ(*kind).set_major(8).set_minor(path.len() as i64);
        device
    };
    let mut spec = Spec::default();
    spec.linux_mut().as_mut().unwrap().set_devices(Some(devices.iter().map(device).collect()));
    spec
}

fn devices_of(spec: &Spec) -> Vec<(&Path, i64, i64)> {
    let devices = spec.linux().as_ref().unwrap().devices().as_ref().unwrap();
    devices.iter().map(|device| (device.path().as_path(), device.major(), device.minor())).collect()
}

#[tokio::test]
async fn a_container_is_given_disks_by_every_kind_of_address() {
    let machine = Machine::new();
    if !machine.disk("devices/pci0000:00/0000:00:02.0/virtio1/block", "vda", 1)
        || !machine.disk("class/block", "vdb", 2)
        || !machine.disk("class/scsi_device/0:0:1:0/device/block", "sda", 3)
        || !machine.disk("class/block", "pmem0", 4)
    {
        return;
    }
    let mut spec = spec(&["/dev/a", "/dev/bb", "/dev/ccc", "/dev/dddd"].map(|path| (path, LinuxDeviceType::B)));
    let wanted = [
        requested("blk", "02", "", "/dev/a", &[]),
        requested("mmioblk", "", "/dev/vdb", "/dev/bb", &[]),
        requested("scsi", "1:0", "", "/dev/ccc", &[]),
        requested("nvdimm", "", "/dev/pmem0", "/dev/dddd", &[]),
    ];
    assert_eq!(machine.devices(NOW).give(&wanted, &mut spec).await.unwrap(), Addresses::default());
    let expected = [("/dev/a", 1), ("/dev/bb", 2), ("/dev/ccc", 3), ("/dev/dddd", 4)];
    assert_eq!(devices_of(&spec), expected.map(|(path, minor)| (Path::new(path), 254, minor)));
}

#[tokio::test]
async fn requests_for_devices_are_judged_before_any_is_waited_for() {
    let devices = Machine::new().devices(Duration::from_secs(3600));
    let missing = requested("blk", "02", "", "/dev/a", &[]);
    let many = vec![missing.clone(); 129];
    for (wrong, reason) in [
        (requested("", "02", "", "/dev/a", &[]), "has no type"),
        (requested("blk", "", "", "/dev/a", &[]), "neither id nor vm_path"),
        (requested("blk", "02", "", "", &[]), "no container_path"),
        (requested("blk", "02", "", "a", &[]), "no container_path"),
        (requested("blk", "..", "", "/dev/a", &[]), "PCI path"),
        (requested("mmioblk", "02", "", "/dev/a", &[]), "not below /dev"),
        (requested("scsi", "1", "", "/dev/a", &[]), "SCSI address"),
        (requested("vfio-pci", "x", "", "/dev/a", &[]), "1 to 8"),
        (requested("vfio-pci", "x", "", "/dev/a", &["0000:00:00.0"]), "VFIO option"),
        (requested("vfio-pci-gk", "x", "", "/dev/a", &["0:0=02"]), "PCI address"),
        (requested("vfio-pci-gk", "x", "", "/dev/a", &["0000:00:00.0=/"]), "PCI path"),
    ] {
        let error = devices.give(&[missing.clone(), wrong], &mut Spec::default()).await.unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(reason), "{error}");
    }
    assert!(devices.give(&many, &mut Spec::default()).await.unwrap_err().is_invalid());
    for kind in ["blk-ccw", "vfio-ap", "nvme"] {
        let wrong = requested(kind, "x", "", "/dev/a", &[]);
        let error = devices.give(&[missing.clone(), wrong], &mut Spec::default()).await.unwrap_err();
        assert!(error.is_unimplemented() && error.to_string().contains(kind), "{error}");
    }
}

#[tokio::test]
async fn a_device_that_does_not_come_leaves_the_specification_as_it_was() {
    let machine = Machine::new();
    if !machine.disk("class/block", "vdb", 2) {
        return;
    }
    let original = spec(&["/dev/a", "/dev/bb"].map(|path| (path, LinuxDeviceType::B)));
    let mut spec = original.clone();
    let there = requested("mmioblk", "", "/dev/vdb", "/dev/a", &[]);
    let missing = requested("mmioblk", "", "/dev/vdc", "/dev/bb", &[]);
    let error = machine.devices(NOW).give(&[there, missing], &mut spec).await.unwrap_err();
    assert!(error.is_deadline() && error.to_string().starts_with("device /dev/vdc is not there"), "{error}");
    assert_eq!(spec, original);
}

/// A function of a passed-through device at `address` on bus 0, as sysfs has it; which driver has it, and its IOMMU group.
fn function(machine: &Machine, address: &str, driver: Option<&str>, group: &str) -> String {
    let directory = format!("sys/devices/pci0000:00/{address}");
    machine.file(&format!("{directory}/driver_override"), "");
    machine.file("sys/bus/pci/drivers_probe", "");
    let link = |target: String, name: &str| {
        let target = machine.dir(&target);
        std::os::unix::fs::symlink(target, machine.dir(&directory).join(name)).unwrap();
    };
    link(format!("sys/kernel/iommu_groups/{group}"), "iommu_group");
    if let Some(driver) = driver {
        machine.file(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
        link(format!("sys/bus/pci/drivers/{driver}"), "driver");
    }
    directory
}

#[tokio::test]
async fn a_passed_through_device_is_taken_from_its_driver_and_given_by_its_group() {
    let machine = Machine::new();
    machine.file("sys/class/vfio/3/dev", "511:0\n");
    if !machine.node("vfio/3", FileType::CharacterDevice, 511, 0)
        || !machine.node("infiniband/uverbs0", FileType::CharacterDevice, 231, 192)
    {
        return;
    }
    fs::write(machine.dev().join("infiniband/notes"), "").unwrap();
    let first = function(&machine, "0000:00:05.0", Some("nvidia"), "3");
    function(&machine, "0000:00:05.1", Some("vfio-pci"), "3");
    let mut spec = spec(&[("/dev/vfio/17", LinuxDeviceType::C)]);
    let mut process = Process::default();
    process.set_env(Some(vec!["PCIDEVICE_GPU=0000:41:00.0,0000:41:00.1".into()]));
    spec.set_process(Some(process));
    let options = ["0000:41:00.0=05", "0000:41:00.1=05.1"];
    let wanted = requested("vfio-pci", "x", "", "/dev/vfio/17", &options);
    machine.devices(NOW).give(&[wanted], &mut spec).await.unwrap();
    let read = |path: &str| fs::read_to_string(machine.dir("").join(path)).unwrap();
    assert_eq!(read(&format!("{first}/driver_override")), "vfio-pci");
    assert_eq!(read("sys/bus/pci/drivers/nvidia/unbind"), "0000:00:05.0");
    assert_eq!(read("sys/bus/pci/drivers/vfio-pci/unbind"), "");
    assert_eq!(read("sys/bus/pci/drivers_probe"), "0000:00:05.0");
    let expected = [(Path::new("/dev/vfio/3"), 511, 0), (Path::new("/dev/infiniband/uverbs0"), 231, 192)];
    assert_eq!(devices_of(&spec), expected);
    let env = spec.process().as_ref().unwrap().env().clone().unwrap();
    assert_eq!(env, ["PCIDEVICE_GPU=0000:00:05.0,0000:00:05.1"]);
}

#[tokio::test]
async fn functions_of_two_groups_are_not_one_device() {
    let machine = Machine::new();
    function(&machine, "0000:00:05.0", None, "3");
    function(&machine, "0000:00:05.1", None, "4");
    let wanted = requested("vfio-pci", "x", "", "/dev/vfio/17", &["0000:41:00.0=05", "0000:41:00.1=05.1"]);
    let error = machine.devices(NOW).give(&[wanted], &mut Spec::default()).await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("IOMMU group"), "{error}");
}

#[tokio::test]
async fn a_device_that_the_guests_kernel_drives_is_left_to_it() {
    let machine = Machine::new();
    let directory = function(&machine, "0000:00:05.0", Some("mlx5_core"), "3");
    let wanted = requested("vfio-pci-gk", "x", "", "/dev/vfio/17", &["0000:41:00.0=05", "0000:41:00.1="]);
    let mut spec = Spec::default();
    let addresses = machine.devices(NOW).give(&[wanted], &mut spec).await.unwrap();
    assert_eq!(spec, Spec::default());
    assert_eq!(fs::read_to_string(machine.dir(&directory).join("driver_override")).unwrap(), "");
    let mut exec = Process::default();
    exec.set_env(Some(vec!["PCIDEVICE_NIC=0000:41:00.0".into()]));
    addresses.translate(&mut exec).unwrap();
    assert_eq!(exec.env().as_deref(), Some(&["PCIDEVICE_NIC=0000:00:05.0".into()][..]));
}

/// The kernel's word that something has changed: of a device that every machine has.
pub fn stir() -> bool {
    let stirred = fs::write("/sys/class/mem/null/uevent", "change");
    stirred.inspect_err(|error| println!("skipped: no event can be made: {error}")).is_ok()
}
