//! Processors and memory that the host plugs in. The kernel finds them; here they are put to use.
//!
//! Cgroups of version 2 need no word of it: the kernel gives a new processor to every cpuset that names it, or none.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nacre_protocol::agent::OnlineCPUMemRequest;
use tokio::task::spawn_blocking;

use crate::device::uevent;

/// Where sysfs has the machine's devices.
pub const DEVICES: &str = "/sys/devices/system";

/// The most memory blocks of one request: 8 TiB of the usual size.
const MAX_BLOCKS: usize = 64 << 10;

/// What was plugged in is not in use.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// The processors did not come.
    #[error("put {wanted} processors to use: {found} were plugged in within {patience:?}")]
    TooFew {
        /// As many were announced.
        wanted: u32,
        /// As many came.
        found: u32,
        /// How long they were waited for.
        patience: Duration,
    },
    /// What is plugged in can't be heard of, or nobody is left to look.
    #[error("wait for the kernel's word of what is plugged in")]
    Wait(#[from] io::Error),
    /// The request names too many memory blocks.
    #[error("{0} memory blocks: at most {MAX_BLOCKS} are expected")]
    TooMany(usize),
    /// The kernel finds memory by itself, or not at all.
    #[error("{0:?}: this guest's kernel is not told of memory")]
    NoProbe(PathBuf),
    /// sysfs could not be read or written.
    #[error("{act} {path:?}")]
    System {
        /// What was tried.
        act: String,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Put to use what `request` says was plugged in. Processors are waited for, up to `patience`, also where `wait` is not set: hosts that
/// leave it out rely on them all the same. Below `devices` is what sysfs has at [`DEVICES`].
pub async fn online(devices: PathBuf, request: &OnlineCPUMemRequest, patience: Duration) -> Result<(), HotplugError> {
    online_cpus(&devices, request.nb_cpus, patience).await?;
    if request.cpu_only {
        return Ok(());
    }
    spawn_blocking(move || online_memory(&devices)).await.map_err(io::Error::from)?
}

/// Put `cpus` more processors to use.
async fn online_cpus(devices: &Path, cpus: u32, patience: Duration) -> Result<(), HotplugError> {
    let directory = devices.join("cpu");
    let mut found = 0;
    let look = move || {
        found += match switch_on(&directory, "cpu", cpus - found) {
            Ok(more) => more,
            Err(error) => return Ok(Err(error)), // not worth a second look
        };
        if found == cpus { Ok(Ok(())) } else { Err(found) }
    };
    let looked = uevent::wait(patience, look).await?;
    looked.unwrap_or_else(|found| Err(HotplugError::TooFew { wanted: cpus, found, patience }))
}

/// Put all memory to use that is there.
fn online_memory(devices: &Path) -> Result<(), HotplugError> {
    switch_on(&devices.join("memory"), "memory", u32::MAX).map(drop)
}

/// Tell the kernel of the memory blocks that begin at `addresses`.
pub fn probe_memory(devices: &Path, addresses: &[u64]) -> Result<(), HotplugError> {
    if addresses.len() > MAX_BLOCKS {
        return Err(HotplugError::TooMany(addresses.len()));
    }
    let probe = devices.join("memory/probe");
    if !probe.exists() {
        return Err(HotplugError::NoProbe(probe));
    }
    addresses.iter().try_for_each(|address| write(&probe, &format!("0x{address:X}")))
}

/// Switch on at most `limit` of the devices `<kind><number>` that are off; tells how many there were.
fn switch_on(directory: &Path, kind: &str, limit: u32) -> Result<u32, HotplugError> {
    let failed = |source| HotplugError::System { act: "read".into(), path: directory.into(), source };
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0), // a kernel without hotplug
        other => other.map_err(failed)?,
    };
    let mut done = 0;
    for entry in entries {
        if done == limit {
            break;
        }
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(kind)).and_then(|n| n.parse::<u32>().ok());
        let switch = entry.path().join("online");
        // What can't be switched has no such file.
        if number.is_some() && fs::read_to_string(&switch).is_ok_and(|text| text.trim() == "0") {
            write(&switch, "1")?;
            done += 1;
        }
    }
    Ok(done)
}

fn write(path: &Path, text: &str) -> Result<(), HotplugError> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| HotplugError::System { act: format!("write {text} to"), path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::stir;

    const NOW: Duration = Duration::ZERO;

    /// Directories as sysfs has them: each device's name, and its switch if it has one.
    fn devices(of: &[(&str, Option<&str>)]) -> tempfile::TempDir {
        let devices = tempfile::tempdir().unwrap();
        for (name, switch) in of {
            add(devices.path(), name, *switch);
        }
        devices
    }

    fn add(devices: &Path, name: &str, switch: Option<&str>) {
        // Whoever looks sees a device with its switch, or none.
        let (new, place) = (devices.join("new"), devices.join(name));
        fs::create_dir_all(&new).unwrap();
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        if let Some(switch) = switch {
            fs::write(new.join("online"), switch).unwrap();
        }
        fs::rename(new, place).unwrap();
    }

    fn is_on(devices: &tempfile::TempDir, name: &str) -> bool {
        fs::read_to_string(devices.path().join(name).join("online")).unwrap().starts_with('1')
    }

    #[tokio::test]
    async fn as_many_processors_are_put_to_use_as_were_plugged_in() {
        let devices = devices(&[
            ("cpu/cpu0", None),
            ("cpu/cpu1", Some("1\n")),
            ("cpu/cpu2", Some("0\n")),
            ("cpu/cpu3", Some("0\n")),
        ]);
        online_cpus(devices.path(), 1, NOW).await.unwrap();
        assert!(is_on(&devices, "cpu/cpu2") != is_on(&devices, "cpu/cpu3"));
        let error = online_cpus(devices.path(), 2, NOW).await.unwrap_err();
        assert!(matches!(error, HotplugError::TooFew { wanted: 2, found: 1, .. }), "{error}");
        assert!(is_on(&devices, "cpu/cpu2") && is_on(&devices, "cpu/cpu3"));
        online_cpus(devices.path(), 0, NOW).await.unwrap();
    }

    #[tokio::test]
    async fn processors_are_waited_for() {
        let devices = devices(&[("cpu/cpu0", None)]);
        let path = devices.path().to_path_buf();
        let waiting = tokio::spawn(async move { online_cpus(&path, 2, Duration::from_secs(60)).await });
        for new in ["cpu/cpu1", "cpu/cpu2"] {
            add(devices.path(), new, Some("0\n"));
            if !stir() {
                return;
            }
        }
        waiting.await.unwrap().unwrap();
        assert!(is_on(&devices, "cpu/cpu1") && is_on(&devices, "cpu/cpu2"));
    }

    #[tokio::test]
    async fn only_devices_are_switched() {
        let devices = devices(&[
            ("memory/memory32", Some("0\n")),
            ("memory/power", Some("0\n")),
            ("memory/memoryx", Some("0\n")),
        ]);
        let request = OnlineCPUMemRequest { cpu_only: true, ..OnlineCPUMemRequest::new() };
        online(devices.path().into(), &request, NOW).await.unwrap();
        assert!(!is_on(&devices, "memory/memory32"));
        online(devices.path().into(), &OnlineCPUMemRequest::new(), NOW).await.unwrap();
        assert!(is_on(&devices, "memory/memory32"));
        assert!(!is_on(&devices, "memory/power") && !is_on(&devices, "memory/memoryx"));
        online("/nonexistent".into(), &OnlineCPUMemRequest::new(), NOW).await.unwrap();
    }

    #[test]
    fn the_kernel_is_told_of_memory_in_hexadecimal() {
        let devices = devices(&[("memory/memory0", None)]);
        let error = probe_memory(devices.path(), &[0]).unwrap_err();
        assert!(matches!(error, HotplugError::NoProbe(_)), "{error}");
        let probe = devices.path().join("memory/probe");
        fs::write(&probe, "").unwrap();
        probe_memory(devices.path(), &[0x1_a000_0000]).unwrap();
        assert_eq!(fs::read_to_string(&probe).unwrap(), "0x1A0000000");
        let error = probe_memory(devices.path(), &vec![0; MAX_BLOCKS + 1]).unwrap_err();
        assert!(matches!(error, HotplugError::TooMany(_)), "{error}");
    }
}
