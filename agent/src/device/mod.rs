//! Devices that the host gives: from where it says they are to what the kernel calls them.
//!
//! A device may have been there before the agent, or still be on its way. So whoever looks for one subscribes to the kernel's events
//! ([`uevent`]), looks in sysfs, and looks again at each event until time is up: what is there costs no wait, what comes is seen when it
//! comes, and nothing runs while nobody waits.

mod address;
pub mod cdi;
mod container;
mod edit;
mod events;
mod locator;
mod tree;
pub mod uevent;
mod vfio;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use address::Addresses;
pub use container::HANDLERS;
pub use locator::{Locator, PciPath, Slot};
pub use tree::{Block, Tree};

/// A device was not found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's text names no device.
    #[error("{kind} {text:?} {reason}")]
    Invalid {
        /// What it should be.
        kind: &'static str,
        /// What it is, cut.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The device did not come.
    #[error("{device} is not there after {patience:?}: {missing}")]
    Missing {
        /// Which.
        device: String,
        /// How long it was waited for.
        patience: Duration,
        /// What was found in its place at last.
        missing: String,
    },
    /// There is no such type.
    #[error("device type {0:?} is not supported by this agent; it has {HANDLERS:?}")]
    Unsupported(String),
    /// A file says of a CDI device what is not offered.
    #[error("CDI file {file:?}: {reason}")]
    Cdi {
        /// Which.
        file: PathBuf,
        /// What it says.
        reason: String,
    },
    /// A device could not be changed.
    #[error("{act} {path:?}")]
    System {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel's events can't be heard.
    #[error("listen for the kernel's device events")]
    Listen(#[from] io::Error),
}

impl Error {
    /// Whether the request itself is at fault.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Error::Invalid { .. })
    }

    /// Whether the agent does not offer what is asked for.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Error::Unsupported(_) | Error::Cdi { .. })
    }

    /// Whether time ran out.
    pub fn is_deadline(&self) -> bool {
        matches!(self, Error::Missing { .. })
    }

    fn system(act: &'static str, path: &Path, source: io::Error) -> Error {
        Error::System { act, path: path.into(), source }
    }

    fn invalid(kind: &'static str, text: &str, reason: &'static str) -> Error {
        Error::Invalid { kind, text: text.chars().take(64).collect(), reason }
    }
}

/// The guest's devices.
#[derive(Debug)]
pub struct Devices {
    tree: Tree,
    patience: Duration,
    cdi: cdi::Settings,
}

impl Devices {
    /// This machine's devices, each waited for up to `patience`.
    pub fn new(patience: Duration) -> Devices {
        Devices::below("/sys", "/dev", patience)
    }

    /// Devices of the trees at `sysfs` and `dev`.
    pub fn below(sysfs: impl Into<PathBuf>, dev: impl Into<PathBuf>, patience: Duration) -> Devices {
        let tree = Tree { sysfs: sysfs.into(), dev: dev.into() };
        Devices { tree, patience, cdi: cdi::Settings::new(Duration::ZERO, false) }
    }

    /// The same, with CDI devices found like this.
    pub fn with_cdi(self, cdi: cdi::Settings) -> Devices {
        Devices { cdi, ..self }
    }

    /// How long a device is waited for.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The block device at `locator`. Waits until it is there.
    pub async fn block(&self, locator: &Locator) -> Result<Block, Error> {
        let (tree, wanted) = (self.tree.clone(), locator.clone());
        let mut scanned = false;
        let look = move || {
            let found = tree.block(&wanted);
            match &wanted {
                // A disk that is there is not looked for on its bus, and one that is not is looked for once: its driver tells the rest.
                Locator::Scsi { target, lun } if found.is_err() && !scanned => {
                    scanned = true;
                    tree.scan_scsi(*target, *lun);
                    tree.block(&wanted)
                }
                _ => found,
            }
        };
        self.wait(locator, look).await
    }

    /// The name of the network interface of the card at `path`. Waits until it is there.
    pub async fn interface(&self, path: &PciPath) -> Result<String, Error> {
        let (tree, wanted) = (self.tree.clone(), path.clone());
        self.wait(path, move || tree.interface(&wanted)).await
    }

    /// What `look` finds once it finds something; what it says while it does not is why not.
    async fn wait<T: Send + 'static>(
        &self,
        device: impl ToString,
        look: impl FnMut() -> Result<T, String> + Send + 'static,
    ) -> Result<T, Error> {
        let found = uevent::wait(self.patience, look).await?;
        found.map_err(|missing| Error::Missing { device: device.to_string(), patience: self.patience, missing })
    }
}

#[cfg(test)]
pub(crate) mod tests;
