//! Swap space on devices that the host gives.
//!
//! The host reads whatever is swapped out to a device of its own, so a policy that is to keep a pod's memory from it lets no such request
//! pass. The device is made ready by the host too: one without a swap signature is refused by the kernel.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::storage::directory;

/// No swap space was added.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// The path makes no sense.
    #[error("swap on {path:?}: {reason}")]
    Path {
        /// As requested, cut.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel refused.
    #[error("{act} {path:?}")]
    System {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl SwapError {
    /// Whether the request itself is at fault.
    pub fn is_invalid(&self) -> bool {
        matches!(self, SwapError::Path { .. })
    }
}

/// Swap on the block device `path`.
pub fn add_swap(path: &str) -> Result<(), SwapError> {
    let wrong = |reason| SwapError::Path { path: path.chars().take(64).collect(), reason };
    let failed = |act| move |source| SwapError::System { act, path: path.into(), source };
    let named = directory::parse(path).map_err(wrong)?;
    let device = named.canonicalize().map_err(failed("find device"))?; // names of disks are links
    let kind = fs::metadata(&device).map_err(failed("find device"))?.file_type();
    if !device.starts_with(Path::new("/dev")) || !kind.is_block_device() {
        return Err(wrong("is no block device in /dev"));
    }
    let device = CString::new(device.as_os_str().as_bytes()).map_err(|_| wrong("is no path"))?;
    nacre_sys::swap::swapon(&device).map_err(failed("swapon"))?;
    tracing::warn!(path, "memory is swapped out to a device of the host's");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn run(program: &str, args: &[&str]) -> Option<String> {
        let output = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().into())
    }

    /// A loop device, which is given back whatever becomes of the test.
    struct Disk {
        device: String,
        _file: tempfile::NamedTempFile,
    }

    impl Disk {
        fn new() -> Option<Disk> {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), vec![0; 1 << 20]).unwrap();
            let device = run("losetup", &["-f", "--show", file.path().to_str().unwrap()])?;
            Some(Disk { device, _file: file })
        }

        fn is_used(&self) -> bool {
            fs::read_to_string("/proc/swaps")
                .unwrap()
                .lines()
                .any(|line| line.starts_with(&format!("{} ", self.device)))
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            run("swapoff", &[&self.device]);
            run("losetup", &["-d", &self.device]);
        }
    }

    #[test]
    fn only_block_devices_are_swapped_on() {
        for path in ["", "dev/vda", "/dev/../dev/vda", "/dev/null", "/etc/passwd", &"/x".repeat(3000)] {
            let error = add_swap(path).unwrap_err();
            assert!(error.is_invalid(), "{error}");
        }
        assert!(!add_swap("/dev/no-such-disk").unwrap_err().is_invalid());
    }

    #[test]
    fn a_device_is_swapped_on_once_it_has_a_signature() {
        let Some(disk) = Disk::new() else { return println!("skipped: no loop device") };
        let error = add_swap(&disk.device).unwrap_err();
        assert!(matches!(error, SwapError::System { act: "swapon", .. }), "{error}");
        if run("mkswap", &[&disk.device]).is_none() {
            return println!("skipped: mkswap is not installed");
        }
        match add_swap(&disk.device) {
            Err(error) => println!("skipped: {error}"),
            Ok(()) => assert!(disk.is_used()),
        }
    }
}
