//! PCI devices that the host passes through: driven by the guest's kernel, or given to a container whole (VFIO).

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use tokio::task::spawn_blocking;

use super::address::{self, Addresses};
use super::edit::Given;
use super::locator::PciPath;
use super::tree::{Tree, entries, name_of, number, number_of, write};
use super::{Devices, Error};

const DRIVER: &str = "vfio-pci";

/// The most functions of one device; that is as many as a slot has.
const MAX_FUNCTIONS: usize = 8;

/// The most nodes of RDMA devices.
const MAX_RDMA: usize = 256;

/// A function of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its address on the host.
    host: String,
    /// Where it is here; `None` where the guest has no need to know.
    path: Option<PciPath>,
}

/// The functions that `options` name, each as `ADDRESS=PATH`.
pub fn functions(options: &[String]) -> Result<Vec<Function>, Error> {
    let function = |option: &String| {
        let wrong = Error::invalid("VFIO option", option, "is not DDDD:BB:DD.F=PCI-PATH");
        let (host, path) = option.split_once('=').ok_or(wrong)?;
        let host = address::parse(host).ok_or(Error::invalid("PCI address", host, "is not DDDD:BB:DD.F"))?;
        Ok(Function { host, path: (!path.is_empty()).then(|| path.parse()).transpose()? })
    };
    match options.len() {
        1..=MAX_FUNCTIONS => options.iter().map(function).collect(),
        count => Err(Error::invalid("VFIO options:", &count.to_string(), "of them, 1 to 8 are expected")),
    }
}

impl Devices {
    /// Wait for `functions`, and learn their addresses. Tells where sysfs has them.
    pub(super) async fn functions(&self, functions: &[Function], into: &mut Addresses) -> Result<Vec<PathBuf>, Error> {
        let mut directories = Vec::new();
        for Function { host, path } in functions {
            let Some(path) = path.clone() else { continue };
            let tree = self.tree.clone();
            let directory = self.wait(path.clone(), move || tree.pci(&path)).await?;
            into.insert(host.clone(), name_of(&directory));
            directories.push(directory);
        }
        Ok(directories)
    }

    /// Have `functions` driven by no driver of the guest's. What the container gets is the node of their IOMMU group, in place of `asked`.
    pub(super) async fn vfio(
        &self,
        functions: &[Function],
        asked: PathBuf,
        into: &mut Addresses,
    ) -> Result<Given, Error> {
        let directories = self.functions(functions, into).await?;
        let (tree, text) = (self.tree.clone(), asked.to_string_lossy().into_owned());
        let bound = spawn_blocking(move || {
            directories.iter().try_for_each(|directory| tree.bind_vfio(directory))?;
            let mut groups: Vec<_> = directories.iter().map(|directory| group(directory)).collect::<Result<_, _>>()?;
            groups.dedup();
            <[String; 1]>::try_from(groups).map_err(|_| Error::invalid("device", &text, "is not one IOMMU group"))
        });
        let [group] = bound.await.map_err(std::io::Error::from)??;
        let tree = self.tree.clone();
        let path = Path::new("/dev/vfio").join(&group);
        let (major, minor) = self.wait(format!("IOMMU group {group}"), move || tree.vfio(&group)).await?;
        Ok(Given { asked, path, kind: LinuxDeviceType::C, major, minor })
    }
}

impl Tree {
    /// Have the device that is `directory` in sysfs driven by VFIO and nothing else.
    fn bind_vfio(&self, directory: &Path) -> Result<(), Error> {
        let address = name_of(directory);
        write(&directory.join("driver_override"), DRIVER)?;
        match fs::read_link(directory.join("driver")) {
            Ok(driver) if driver.ends_with(DRIVER) => return Ok(()),
            Ok(_) => write(&directory.join("driver/unbind"), &address)?,
            Err(_) => {} // nobody drives it
        }
        write(&self.sysfs.join("bus/pci/drivers_probe"), &address)
    }

    /// The number of an IOMMU group's node.
    fn vfio(&self, group: &str) -> Result<(u32, u32), String> {
        let directory = self.sysfs.join("class/vfio").join(group);
        number(&directory, &self.dev.join("vfio").join(group), FileTypeExt::is_char_device)
    }

    /// The devices with which programs reach RDMA hardware.
    pub(super) fn infiniband(&self) -> Result<Vec<LinuxDevice>, Error> {
        let mut devices = Vec::new();
        for node in entries(&self.dev.join("infiniband")).unwrap_or_default() {
            let Ok(metadata) = fs::symlink_metadata(&node) else { continue };
            if !metadata.file_type().is_char_device() {
                continue;
            }
            let (major, minor) = number_of(metadata.rdev());
            let mut device = LinuxDevice::default();
            device.set_path(Path::new("/dev/infiniband").join(name_of(&node))).set_typ(LinuxDeviceType::C);
            device.set_major(major.into()).set_minor(minor.into()).set_file_mode(Some(metadata.mode() & 0o777));
            devices.push(device);
        }
        match devices.len() {
            ..=MAX_RDMA => Ok(devices),
            count => Err(Error::invalid("/dev/infiniband:", &count.to_string(), "devices, at most 256 are expected")),
        }
    }
}

/// The IOMMU group of the device that is `directory` in sysfs.
fn group(directory: &Path) -> Result<String, Error> {
    let link = directory.join("iommu_group");
    let group = fs::read_link(&link).map_err(|source| Error::system("find IOMMU group", &link, source))?;
    Ok(name_of(&group))
}
