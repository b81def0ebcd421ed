//! Volumes: how full they are, and growing them when their disk has grown.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nacre_protocol::csi::{VolumeCondition, VolumeStatsResponse, VolumeUsage, volume_usage::Unit};
use rustix::fs::{FileType, fstat, fstatfs, fstatvfs};
use rustix::io::Errno;

use super::beneath::{self, PathError};

/// EXT4_SUPER_MAGIC of statfs(2); ext2 and ext3 have it too.
const EXT4: i64 = 0xEF53;

/// XFS_SUPER_MAGIC.
const XFS: i64 = 0x5846_5342;

/// A volume was not read or not grown.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The volume is not to be found.
    #[error("volume: {0}")]
    Path(#[source] PathError),
    /// The request makes no sense for this volume.
    #[error("volume {path:?}: {reason}")]
    Invalid {
        /// As requested.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// The file system is none that grows while it is mounted.
    #[error("volume {path:?}: its file system is of type {kind:#x} of statfs(2); only ext4 and XFS can be resized")]
    FileSystem {
        /// As requested.
        path: String,
        /// Its type.
        kind: i64,
    },
    /// The kernel refused.
    #[error("{act} volume {path:?}")]
    System {
        /// What was tried.
        act: String,
        /// On what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// How full the volume at `path`, below `root`, is.
pub fn volume_stats(root: &Path, path: &str) -> Result<VolumeStatsResponse, VolumeError> {
    let volume = beneath::find(root, path).map_err(VolumeError::Path)?;
    let stats = fstatvfs(&volume).map_err(failed("statfs", path))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stats.f_frsize);
    let mut response = VolumeStatsResponse::new();
    response.usage = vec![
        usage(Unit::BYTES, bytes(stats.f_blocks), bytes(stats.f_bfree)),
        usage(Unit::INODES, stats.f_files, stats.f_ffree),
    ];
    response.volume_condition = Some(VolumeCondition { message: "OK".into(), ..VolumeCondition::new() }).into();
    Ok(response)
}

fn usage(unit: Unit, total: u64, available: u64) -> VolumeUsage {
    let used = total.saturating_sub(available);
    VolumeUsage { available, total, used, unit: unit.into(), ..VolumeUsage::new() }
}

/// Have the file system of the volume at `path`, below `root`, take `size` bytes of its disk.
pub fn resize_volume(root: &Path, path: &str, size: u64) -> Result<(), VolumeError> {
    let volume = beneath::find(root, path).map_err(VolumeError::Path)?;
    let invalid = |reason| Err(VolumeError::Invalid { path: path.into(), reason });
    if !is_directory(&volume).map_err(failed("stat", path))? {
        return invalid("is no directory");
    }
    let stats = fstatfs(&volume).map_err(failed("statfs", path))?;
    let (kind, block) = (stats.f_type, u64::try_from(stats.f_bsize).unwrap_or(u64::MAX));
    let resize: fn(File, u64) -> io::Result<()> = match kind {
        EXT4 => nacre_sys::ext4::resize,
        XFS => nacre_sys::xfs::resize,
        _ => return Err(VolumeError::FileSystem { path: path.into(), kind }),
    };
    let blocks = size / block.max(1);
    if blocks < stats.f_blocks {
        return invalid("its file system is larger already, and none shrinks while it is mounted");
    }
    let resized = beneath::read(&volume).and_then(|volume| resize(volume, blocks));
    resized.map_err(|source| VolumeError::System { act: format!("resize to {size} bytes"), path: path.into(), source })
}

fn is_directory(volume: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(volume)?.st_mode).is_dir())
}

fn failed(act: &'static str, path: &str) -> impl FnOnce(Errno) -> VolumeError {
    move |source| VolumeError::System { act: act.into(), path: path.into(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    use super::*;

    fn sh(script: &str, directory: &Path) -> bool {
        let status = Command::new("sh").args(["-ec", script]).current_dir(directory).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    /// A mounted file system, which is unmounted whatever becomes of the test.
    struct Mounted(tempfile::TempDir);

    impl Mounted {
        /// What `mkfs` makes on the file `disk` of `mib` MiB.
        fn made(mib: u64, mkfs: &str) -> Option<Mounted> {
            let mounted = Mounted(tempfile::tempdir().unwrap());
            let script = format!("truncate -s {mib}M disk; {mkfs}; mkdir volume; mount -o loop disk volume");
            sh(&script, mounted.0.path()).then_some(mounted)
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            sh("umount volume", self.0.path());
        }
    }

    fn total(root: &Path, path: &str) -> u64 {
        volume_stats(root, path).unwrap().usage[0].total
    }

    #[test]
    fn bytes_and_inodes_add_up() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("volume")).unwrap();
        let stats = volume_stats(root.path(), root.path().join("volume").to_str().unwrap()).unwrap();
        let units: Vec<_> = stats.usage.iter().map(|usage| usage.unit.unwrap()).collect();
        assert_eq!(units, [Unit::BYTES, Unit::INODES]);
        assert!(stats.usage.iter().all(|usage| usage.used + usage.available == usage.total));
        assert!(stats.usage[0].total > 0 && stats.volume_condition.message == "OK");
    }

    #[test]
    fn what_is_not_below_the_root_is_no_volume() {
        let root = tempfile::tempdir().unwrap();
        symlink("/etc", root.path().join("link")).unwrap();
        symlink("../..", root.path().join("up")).unwrap();
        let below = |name: &str| format!("{}/{name}", root.path().display());
        for path in ["", "volume", "/etc", &below("../etc"), &"/x".repeat(3000)] {
            let error = volume_stats(root.path(), path).unwrap_err();
            assert!(matches!(&error, VolumeError::Path(path) if path.is_invalid()), "{error}");
        }
        for name in ["link", "up", "missing"] {
            let error = volume_stats(root.path(), &below(name)).unwrap_err();
            assert!(matches!(&error, VolumeError::Path(PathError::Open { .. })), "{error}");
        }
    }

    /// From `small` MiB to `large`, which is what the disk has.
    fn grows_with_its_disk_and_never_beyond(small: u64, large: u64, mkfs: &str) {
        let Some(mounted) = Mounted::made(large, mkfs) else {
            return println!("skipped: {mkfs:?} makes nothing that can be mounted");
        };
        let (root, path) = (mounted.0.path(), mounted.0.path().join("volume"));
        let path = path.to_str().unwrap();
        let before = total(root, path);
        let error = resize_volume(root, path, (small / 2) << 20).unwrap_err();
        assert!(matches!(error, VolumeError::Invalid { .. }), "{error}");
        match resize_volume(root, path, large << 20) {
            Err(VolumeError::System { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                return println!("skipped: growing takes CAP_SYS_RESOURCE");
            }
            grown => grown.unwrap(),
        }
        let after = total(root, path);
        assert!(before < small << 20 && after > (large / 4 * 3) << 20, "{before} {after}");
        let error = resize_volume(root, path, (2 * large) << 20).unwrap_err();
        assert!(matches!(error, VolumeError::System { .. }), "{error}");
        assert_eq!(total(root, path), after);
    }

    #[test]
    fn an_ext4_grows() {
        grows_with_its_disk_and_never_beyond(8, 32, "mkfs.ext4 -q disk 8M");
    }

    #[test]
    fn an_xfs_grows() {
        grows_with_its_disk_and_never_beyond(320, 1024, "mkfs.xfs -q -d size=320m disk");
    }

    #[test]
    fn other_file_systems_and_files_are_refused() {
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let error = resize_volume(root.path(), root.path().to_str().unwrap(), 1 << 30).unwrap_err();
        assert!(error.to_string().contains("0x1021994"), "{error}"); // tmpfs
        let file = tempfile::NamedTempFile::new_in(root.path()).unwrap();
        let error = resize_volume(root.path(), file.path().to_str().unwrap(), 1 << 30).unwrap_err();
        assert!(matches!(error, VolumeError::Invalid { .. }), "{error}");
    }
}
