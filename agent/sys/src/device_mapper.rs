//! Device mapper: a block device made of another by a target of the kernel, as linux/dm-ioctl.h has it.

// UNSAFETY: neither nix nor rustix has a safe form of these ioctls.
#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

/// `_IOWR(DM_IOCTL, nr, struct dm_ioctl)`.
const fn request(nr: u64) -> libc::Ioctl {
    ((3 << 30) | ((size_of::<Header>() as u64) << 16) | (0xfd << 8) | nr) as libc::Ioctl
}

const DEV_CREATE: libc::Ioctl = request(3);
const DEV_REMOVE: libc::Ioctl = request(4);
const DEV_SUSPEND: libc::Ioctl = request(6);
const TABLE_LOAD: libc::Ioctl = request(9);

const READ_ONLY: u32 = 1 << 0;
/// It is removed when nobody has it open any more.
const DEFERRED_REMOVE: u32 = 1 << 17;
/// The kernel wipes its copy of the call.
const SECURE_DATA: u32 = 1 << 15;

/// The longest name: `DM_NAME_LEN` less the byte that ends it.
const MAX_NAME: usize = 127;

/// The longest parameters. The kernel takes more, but nothing of ours needs it.
const MAX_PARAMETERS: usize = 4096;

/// `struct dm_ioctl`.
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// `struct dm_target_spec`.
#[repr(C)]
struct Spec {
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target_type: [u8; 16],
}

/// One call with one target; the kernel reads it as a whole.
#[repr(C)]
struct Call {
    header: Header,
    spec: Spec,
    parameters: [u8; MAX_PARAMETERS],
}

/// What a device is made of.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its length in sectors of 512 bytes.
    pub sectors: u64,
    /// The target's name: `crypt`, `integrity`, `verity`.
    pub kind: &'a str,
    /// The target's parameters. They may hold a key.
    pub parameters: &'a str,
    /// Whether it can't be written.
    pub read_only: bool,
}

/// A mapped device. Dropping it removes it, once nobody has it open or mounted.
#[derive(Debug)]
pub struct Mapped {
    control: File,
    name: String,
    /// Its node.
    pub path: PathBuf,
}

/// Makes the device `name`.
///
/// # Errors
/// Those of opening `/dev/mapper/control`, and of the kernel's target: `ENXIO` or `EINVAL` for parameters that it does not take (its log has the
/// reason), `EBUSY` for a name that is taken.
pub fn create(name: &str, target: &Target<'_>) -> io::Result<Mapped> {
    if name.is_empty() || name.len() > MAX_NAME || target.kind.len() > 15 || target.parameters.len() >= MAX_PARAMETERS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let control = OpenOptions::new().read(true).write(true).open("/dev/mapper/control")?;
    let flags = if target.read_only { READ_ONLY } else { 0 };
    let dev = Call::new(name, flags).make(&control, DEV_CREATE)?;
    // From here on a failure removes it.
    let mapped = Mapped { control, name: name.into(), path: format!("/dev/dm-{}", minor(dev)).into() };
    let mut load = Call::new(name, flags | SECURE_DATA);
    load.put(target);
    load.make(&mapped.control, TABLE_LOAD)?;
    // Without the flag "suspended" it is a resumption, which puts the table to use.
    Call::new(name, flags).make(&mapped.control, DEV_SUSPEND)?;
    Ok(mapped)
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // Whoever has it open keeps it until then.
        let _ = Call::new(&self.name, DEFERRED_REMOVE).make(&self.control, DEV_REMOVE);
    }
}

impl Call {
    fn new(name: &str, flags: u32) -> Box<Call> {
        // SAFETY: all of it is plain numbers, for which zero is "nothing".
        let mut call: Box<Call> = Box::new(unsafe { std::mem::zeroed() });
        call.header.version = [4, 0, 0];
        call.header.data_size = size_of::<Call>() as u32;
        call.header.data_start = size_of::<Header>() as u32;
        call.header.flags = flags;
        call.header.name[..name.len()].copy_from_slice(name.as_bytes());
        call
    }

    fn put(&mut self, target: &Target<'_>) {
        self.header.target_count = 1;
        self.spec.length = target.sectors;
        self.spec.next = (size_of::<Spec>() + MAX_PARAMETERS) as u32;
        self.spec.target_type[..target.kind.len()].copy_from_slice(target.kind.as_bytes());
        self.parameters[..target.parameters.len()].copy_from_slice(target.parameters.as_bytes());
    }

    /// Returns the device's number.
    fn make(&mut self, control: &File, request: libc::Ioctl) -> io::Result<u64> {
        // SAFETY: `self` is `data_size` bytes long, which bounds what the kernel reads and writes, and outlives the call.
        if unsafe { libc::ioctl(control.as_raw_fd(), request, std::ptr::from_mut(self)) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.header.dev)
    }
}

impl Drop for Call {
    /// The parameters may hold a key.
    fn drop(&mut self) {
        for byte in &mut self.parameters {
            // SAFETY: it is a byte of ours.
            unsafe { std::ptr::write_volatile(byte, 0) };
        }
    }
}

/// Of a number as the kernel's `huge_encode_dev` writes it.
fn minor(dev: u64) -> u64 {
    (dev & 0xff) | ((dev >> 12) & !0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_size_of_the_kernels() {
        assert_eq!((size_of::<Header>(), size_of::<Spec>()), (312, 40));
        assert_eq!(DEV_CREATE, 0xc138_fd03);
    }

    #[test]
    fn minors_are_read_beyond_eight_bits() {
        assert_eq!(minor(0x0010_fd05), 0x105);
    }

    #[test]
    fn what_the_kernel_cannot_be_told_is_refused() {
        let target = Target { sectors: 8, kind: "zero", parameters: "", read_only: true };
        let long = "x".repeat(MAX_PARAMETERS);
        assert!(create("", &target).is_err());
        assert!(create("a", &Target { parameters: &long, ..target }).is_err());
    }
}
