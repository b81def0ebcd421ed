//! The devices that a container is to have: which of the guest's they are, and what its specification says of them then.
//!
//! The specification was written on the host and has the host's device numbers.

use std::path::{Path, PathBuf};

use nacre_protocol::agent::Device;
use oci_spec::runtime::{LinuxDeviceType, Spec};
use tokio::task::spawn_blocking;

use super::address::Addresses;
use super::edit::{self, Given};
use super::locator::Locator;
use super::{Devices, Error, vfio};

/// The types of devices there are.
pub const HANDLERS: &[&str] = &[BLK, MMIOBLK, SCSI, NVDIMM, VFIO_GUEST_KERNEL, VFIO];

const BLK: &str = "blk";
const MMIOBLK: &str = "mmioblk";
const SCSI: &str = "scsi";
const NVDIMM: &str = "nvdimm";
const VFIO_GUEST_KERNEL: &str = "vfio-pci-gk";
const VFIO: &str = "vfio-pci";

/// The most devices of one container.
const MAX_DEVICES: usize = 128;

/// The longest path of a device.
const MAX_PATH: usize = 255;

/// A device as requested, checked.
#[derive(Debug, PartialEq)]
enum Wanted {
    Block { locator: Locator, path: PathBuf },
    Vfio { functions: Vec<vfio::Function>, path: PathBuf },
    GuestKernel { functions: Vec<vfio::Function> },
}

impl Devices {
    /// Find `requested` and have `spec` name what they are here. Tells what the host's PCI addresses are here. All are judged before the first
    /// is waited for, and `spec` is changed when all are found.
    pub async fn give(&self, requested: &[Device], spec: &mut Spec) -> Result<Addresses, Error> {
        if requested.len() > MAX_DEVICES {
            let count = requested.len().to_string();
            return Err(Error::invalid("devices:", &count, "of them, at most 128 are expected"));
        }
        let wanted: Vec<_> = requested.iter().map(Wanted::parse).collect::<Result<_, _>>()?;
        let has_vfio = wanted.iter().any(|wanted| !matches!(wanted, Wanted::Block { .. }));
        let (mut given, mut addresses) = (Vec::new(), Addresses::default());
        for wanted in wanted {
            match wanted {
                Wanted::Block { locator, path } => {
                    let block = self.block(&locator).await?;
                    let (kind, major, minor) = (LinuxDeviceType::B, block.major, block.minor);
                    given.push(Given { asked: path.clone(), path, kind, major, minor });
                }
                Wanted::Vfio { functions, path } => given.push(self.vfio(&functions, path, &mut addresses).await?),
                Wanted::GuestKernel { functions } => {
                    self.functions(&functions, &mut addresses).await?;
                }
            }
        }
        edit::rewrite(spec, &given)?;
        if has_vfio {
            let tree = self.tree.clone();
            let rdma = spawn_blocking(move || tree.infiniband()).await.map_err(std::io::Error::from)??;
            rdma.into_iter().for_each(|device| edit::add(spec, device, edit::ALL));
        }
        if let Some(process) = spec.process_mut() {
            addresses.translate(process)?;
        }
        Ok(addresses)
    }
}

impl Wanted {
    fn parse(device: &Device) -> Result<Wanted, Error> {
        let wrong = |reason| Error::invalid("device", &device.container_path, reason);
        let path = Path::new(&device.container_path);
        if !path.is_absolute() || device.container_path.len() > MAX_PATH {
            return Err(wrong("has no container_path, or none that is absolute and short"));
        }
        if device.id.is_empty() && device.vm_path.is_empty() {
            return Err(wrong("has neither id nor vm_path"));
        }
        let block = |locator| Ok(Wanted::Block { locator, path: path.into() });
        match device.type_.as_str() {
            "" => Err(wrong("has no type")),
            BLK => block(Locator::pci(&device.id)?),
            MMIOBLK | NVDIMM => block(Locator::node(&device.vm_path)?),
            SCSI => block(Locator::scsi(&device.id)?),
            VFIO => Ok(Wanted::Vfio { functions: vfio::functions(&device.options)?, path: path.into() }),
            VFIO_GUEST_KERNEL => Ok(Wanted::GuestKernel { functions: vfio::functions(&device.options)? }),
            other => Err(Error::Unsupported(other.chars().take(64).collect())),
        }
    }
}
