//! Where a device is, as hosts write it.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// More bridges than any machine has one behind the other.
const MAX_LEVELS: usize = 16;

/// From here on the first of three or more levels is the number of a root bus, as NUMA nodes have one each, and not a slot on bus 0.
const FIRST_EXTRA_ROOT: u8 = 0x20;

/// The longest name of a device's node.
const MAX_NAME: usize = 64;

/// What the guest makes itself, from memory or from a disk that the host may not read: no host has it to give.
const OWN: &[&str] = &["dm-", "zram"];

/// Where a block device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Locator {
    /// On PCI.
    Pci(PciPath),
    /// In `/dev`, by its name there.
    Node(String),
    /// On the only SCSI host that has such a disk.
    Scsi {
        /// SCSI id.
        target: u8,
        /// Logical unit.
        lun: u16,
    },
}

impl Locator {
    /// A PCI path: `02/01`, `02/01.1`, `20/00/02`.
    pub fn pci(text: &str) -> Result<Locator, Error> {
        text.parse().map(Locator::Pci)
    }

    /// A node directly in `/dev`: `/dev/vda`.
    pub fn node(text: &str) -> Result<Locator, Error> {
        let wrong = |reason| Error::invalid("device", text, reason);
        let name = text.strip_prefix("/dev/").ok_or(wrong("is not below /dev"))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.chars().all(plain) {
            return Err(wrong("is not the name of a device"));
        }
        if OWN.iter().any(|own| name.starts_with(own)) {
            return Err(wrong("is the guest's own"));
        }
        Ok(Locator::Node(name.into()))
    }

    /// A SCSI address: `ID:LUN`.
    pub fn scsi(text: &str) -> Result<Locator, Error> {
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit()); // parse() takes a sign
        let parsed = text.split_once(':').filter(|(target, lun)| digits(target) && digits(lun));
        let parsed = parsed.and_then(|(target, lun)| Some((target.parse().ok()?, lun.parse().ok()?)));
        let (target, lun) = parsed.ok_or(Error::invalid("SCSI address", text, "is not ID:LUN"))?;
        Ok(Locator::Scsi { target, lun })
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Locator::Pci(path) => path.fmt(f),
            Locator::Node(name) => write!(f, "device /dev/{name}"),
            Locator::Scsi { target, lun } => write!(f, "SCSI disk {target}:{lun}"),
        }
    }
}

/// The way from a PCI root bus to a device: the slot of each bridge, and the device's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciPath {
    /// The number of the root bus.
    pub root: u8,
    /// At least one.
    pub slots: Vec<Slot>,
}

/// A place on a PCI bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

impl PciPath {
    /// The path from root bus 0 by function 0 of each of these slots.
    pub fn of_slots(slots: &[u32]) -> Result<PciPath, Error> {
        let text: Vec<_> = slots.iter().take(MAX_LEVELS + 1).map(|slot| format!("{slot:02x}")).collect();
        let text = text.join("/");
        Ok(PciPath { root: 0, slots: parse_slots(&text, text.split('/'))? })
    }
}

impl FromStr for PciPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<PciPath, Error> {
        if let Some((first, rest)) = text.split_once('/').filter(|(_, rest)| rest.contains('/')) {
            match hex(first, 2) {
                Some(root) if root >= FIRST_EXTRA_ROOT => {
                    return Ok(PciPath { root, slots: parse_slots(text, rest.split('/'))? });
                }
                _ => {}
            }
        }
        Ok(PciPath { root: 0, slots: parse_slots(text, text.split('/'))? })
    }
}

fn parse_slots<'a>(text: &str, parts: impl Iterator<Item = &'a str>) -> Result<Vec<Slot>, Error> {
    let slots = parts.take(MAX_LEVELS + 1).map(Slot::parse).collect::<Option<Vec<_>>>();
    let slots = slots.ok_or(Error::invalid("PCI path", text, "is not SLOT[.FUNCTION], once for each level"))?;
    match slots.len() {
        ..=MAX_LEVELS => Ok(slots),
        _ => Err(Error::invalid("PCI path", text, "has more than 16 levels")),
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCI device {:02x}:", self.root)?;
        for (i, slot) in self.slots.iter().enumerate() {
            let slash = if i > 0 { "/" } else { "" };
            write!(f, "{slash}{slot}")?;
        }
        Ok(())
    }
}

impl Slot {
    fn parse(text: &str) -> Option<Slot> {
        let (device, function) = text.split_once('.').unwrap_or((text, "0"));
        let slot = Slot { device: hex(device, 2)?, function: hex(function, 1)? };
        (slot.device < 32 && slot.function < 8).then_some(slot)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.device, self.function)
    }
}

/// At most `digits` of them and nothing else, which `from_str_radix` alone does not see to.
fn hex(text: &str, digits: usize) -> Option<u8> {
    let valid = text.len() <= digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u8::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_paths_are_read_level_by_level() {
        for (text, expected) in [
            ("02", "PCI device 00:02.0"),
            ("02/01", "PCI device 00:02.0/01.0"),
            ("2/1f.7", "PCI device 00:02.0/1f.7"),
            ("20/00/02", "PCI device 20:00.0/02.0"),
            ("1f/00/02", "PCI device 00:1f.0/00.0/02.0"),
        ] {
            assert_eq!(text.parse::<PciPath>().unwrap().to_string(), expected);
        }
        assert_eq!(PciPath::of_slots(&[2, 0x1f]).unwrap(), "02/1f".parse().unwrap());
    }

    #[test]
    fn what_is_no_pci_path_is_refused() {
        let deep = ["01"; MAX_LEVELS + 1].join("/");
        for text in ["", "/", "02/", "/02", "20", "20/01", "02.8", "02.", "+2", "002", "0x2", "02/..", "g", &deep] {
            let error = text.parse::<PciPath>().unwrap_err();
            assert!(error.is_invalid() && error.to_string().starts_with("PCI path "), "{text}: {error}");
        }
        for slots in [&[][..], &[32], &[1, u32::MAX], &[1; 100]] {
            assert!(PciPath::of_slots(slots).is_err(), "{slots:?}");
        }
    }

    #[test]
    fn nodes_are_plain_names_in_dev() {
        assert_eq!(Locator::node("/dev/pmem0").unwrap(), Locator::Node("pmem0".into()));
        let long = format!("/dev/{}", "x".repeat(MAX_NAME + 1));
        for text in [
            "",
            "vda",
            "/dev",
            "/dev/",
            "/dev/..",
            "/dev/a/b",
            "/dev/../sda",
            "/dev/vd\n",
            "/dev/dm-0",
            "/dev/zram1",
            &long,
        ] {
            assert!(Locator::node(text).is_err(), "{text}");
        }
    }

    #[test]
    fn scsi_addresses_are_two_numbers() {
        assert_eq!(Locator::scsi("1:16383").unwrap(), Locator::Scsi { target: 1, lun: 16383 });
        for text in ["", "1", "1:", ":1", "256:0", "0:65536", "+1:0", "1:-1", "0:0:1:2", "a:b"] {
            assert!(Locator::scsi(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parsers_fail(text in ".{0,80}") {
            let _ = (Locator::pci(&text), Locator::node(&text), Locator::scsi(&text));
        }
    }
}
