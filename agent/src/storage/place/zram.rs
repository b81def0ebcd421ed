//! A block device in the guest's memory that takes only what is written to it, compressed (the kernel's admin-guide/blockdev/zram.rst).

use std::fs;
use std::path::{Path, PathBuf};

use super::DeviceError;

const CONTROL: &str = "/sys/class/zram-control";

/// A device. Dropping it removes it, unless it is in use.
#[derive(Debug)]
pub struct Zram(u32);

impl Zram {
    /// One of `bytes`, which takes at most `limit` bytes of memory.
    pub fn make(bytes: u64, limit: Option<u64>) -> Result<Zram, DeviceError> {
        let hot_add = Path::new(CONTROL).join("hot_add");
        // To read it is to have one made.
        let text = fs::read_to_string(&hot_add);
        let text = text.map_err(|error| DeviceError::system("make compressed memory by", hot_add.display(), error))?;
        let number = text.trim().parse().map_err(|_| {
            DeviceError::system("make compressed memory by", hot_add.display(), std::io::ErrorKind::InvalidData)
        })?;
        let zram = Zram(number);
        if let Some(limit) = limit {
            zram.set("mem_limit", limit)?;
        }
        zram.set("disksize", bytes.next_multiple_of(4096))?;
        Ok(zram)
    }

    /// Its node.
    pub fn path(&self) -> PathBuf {
        format!("/dev/zram{}", self.0).into()
    }

    fn set(&self, name: &str, value: u64) -> Result<(), DeviceError> {
        let path = format!("/sys/block/zram{}/{name}", self.0);
        fs::write(&path, value.to_string()).map_err(|error| DeviceError::system("write", path, error))
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(CONTROL).join("hot_remove"), self.0.to_string()); // whoever has it open keeps it
    }
}
