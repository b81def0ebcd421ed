//! Growing a mounted XFS.

// UNSAFETY: the ioctls take their arguments by address.
#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOR('X', 100, struct xfs_fsop_geom_v1)` of xfs_fs.h.
const XFS_IOC_FSGEOMETRY_V1: libc::Ioctl = 0x8070_5864;

/// `_IOW('X', 110, struct xfs_growfs_data)`.
const XFS_IOC_FSGROWFSDATA: libc::Ioctl = 0x4010_586e;

/// `struct xfs_fsop_geom_v1`, as far as it is looked at.
#[repr(C)]
#[derive(Default)]
struct Geometry {
    unused: [u32; 7],
    imaxpct: u32,
    rest: [u64; 10],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct Growth {
    newblocks: u64,
    imaxpct: u32,
    padding: u32,
}

/// Has the XFS on which `directory` is use `blocks` of its blocks.
///
/// # Errors
/// Those of the ioctls; EINVAL where the device is smaller.
pub fn resize(directory: impl AsFd, blocks: u64) -> io::Result<()> {
    let fd = directory.as_fd().as_raw_fd();
    let mut geometry = Geometry::default();
    // SAFETY: the kernel writes 112 bytes at the address, which is as long as the structure and outlives the call, and the descriptor is open.
    check(unsafe { libc::ioctl(fd, XFS_IOC_FSGEOMETRY_V1, &raw mut geometry) })?;
    let growth = Growth { newblocks: blocks, imaxpct: geometry.imaxpct, padding: 0 };
    // SAFETY: the kernel reads 16 bytes at the address, as above.
    check(unsafe { libc::ioctl(fd, XFS_IOC_FSGROWFSDATA, &raw const growth) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<Geometry>(), size_of::<Growth>()), (112, 16));
    }
}
