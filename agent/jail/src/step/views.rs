//! Views of the kernel that would lie below a root which is moved into place instead of pivoted into.
//!
//! A process that may mount may take another one's proc or sysfs, with nothing masked, if there is one in its mount namespace that is wholly visible
//! (user_namespaces(7), "Interaction of user namespaces and other types of namespaces"). So those that are not the container's own have to go.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use super::detached::new_mount;

/// The most mounts that a namespace may have for this.
const MOST_MOUNTS: usize = 4096;

/// The longest line of mountinfo that is read: two paths and some options.
const LONGEST_LINE: usize = 12_288;

/// Takes off every mount of proc and sysfs that is not below the mount `root`; where they may not be taken off, they are covered.
pub(super) fn take_off_others(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let own = rustix::fs::statx(root, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id as u32;
    let mounts = rustix::fs::open(c"/proc/self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut parents = Parents { pairs: [(0, 0); MOST_MOUNTS], count: 0 };
    each_line(&mounts, |line| parents.add(line))?;
    // The file goes on to tell of this namespace, also when /proc is gone.
    rustix::fs::seek(&mounts, SeekFrom::Start(0))?;
    each_line(&mounts, |line| {
        let Some(mount) = Line::parse(line) else { return Ok(()) };
        if !mount.is_view || parents.is_below(mount.id, own) {
            return Ok(());
        }
        let length = unescape(line, mount.point);
        let end = line.get_mut(mount.point.0 + length).ok_or(Errno::INVAL)?;
        *end = 0;
        let point = line.get(mount.point.0..=mount.point.0 + length).ok_or(Errno::INVAL)?;
        let point = CStr::from_bytes_with_nul(point).map_err(|_| Errno::INVAL)?;
        match rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Gone with another one; or what a user namespace has been handed as a whole.
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::INVAL | Errno::PERM) => cover(point),
            result => result,
        }
    })
}

fn cover(point: &CStr) -> Result<(), Errno> {
    let nothing = new_mount(c"tmpfs", &[], None)?;
    match rustix::mount::move_mount(nothing.as_fd(), c"", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Which mount is on which.
struct Parents {
    pairs: [(u32, u32); MOST_MOUNTS],
    count: usize,
}

impl Parents {
    fn add(&mut self, line: &mut [u8]) -> Result<(), Errno> {
        let Some(mount) = Line::parse(line) else { return Ok(()) };
        *self.pairs.get_mut(self.count).ok_or(Errno::TOOBIG)? = (mount.id, mount.parent);
        self.count += 1;
        Ok(())
    }

    fn is_below(&self, mut mount: u32, top: u32) -> bool {
        for _ in 0..self.count {
            if mount == top {
                return true;
            }
            let mut known = self.pairs.iter().take(self.count);
            match known.find(|(id, _)| *id == mount) {
                Some((_, parent)) if *parent != mount => mount = *parent,
                _ => return false,
            }
        }
        false
    }
}

/// A line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
struct Line {
    id: u32,
    parent: u32,
    /// Where the mount point begins and ends.
    point: (usize, usize),
    /// Whether it is a proc or sysfs.
    is_view: bool,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Line> {
        let mut fields = line.split(|byte| *byte == b' ');
        let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
        let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
        let (_device, _root) = (fields.next()?, fields.next()?);
        let point = fields.next()?;
        let start = point.as_ptr() as usize - line.as_ptr() as usize;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let is_view = matches!(kind, b"proc" | b"sysfs");
        Some(Line { id, parent, point: (start, start + point.len()), is_view })
    }
}

/// Turns `\040` and its like in a part of `line` into what they stand for; returns how long it is then.
fn unescape(line: &mut [u8], (start, end): (usize, usize)) -> usize {
    let (mut from, mut to) = (start, start);
    while from < end {
        let mut byte = line.get(from).copied().unwrap_or(0);
        from += 1;
        if byte == b'\\'
            && let Some([a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7']) = line.get(from..from + 3)
        {
            byte = (a - b'0') << 6 | (b - b'0') << 3 | (c - b'0');
            from += 3;
        }
        if let Some(place) = line.get_mut(to) {
            *place = byte;
        }
        to += 1;
    }
    to - start
}

/// Calls `act` with each line of a file, without allocation.
fn each_line(file: &OwnedFd, mut act: impl FnMut(&mut [u8]) -> Result<(), Errno>) -> Result<(), Errno> {
    let mut buffer = [0; LONGEST_LINE];
    let mut filled = 0;
    loop {
        let length = rustix::io::read(file, buffer.get_mut(filled..).unwrap_or_default())?;
        filled += length;
        let mut begun = 0;
        while let Some(end) = buffer.get(begun..filled).and_then(|rest| rest.iter().position(|byte| *byte == b'\n')) {
            act(buffer.get_mut(begun..begun + end).unwrap_or_default())?;
            begun += end + 1;
        }
        buffer.copy_within(begun..filled, 0);
        filled -= begun;
        match length {
            0 => return Ok(()),
            _ if filled == buffer.len() => return Err(Errno::TOOBIG),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let text = b"36 35 98:0 /mnt1 /mnt\\040with\\134 rw,noatime master:1 shared:2 - proc proc rw".to_vec();
        let mut line = text.clone();
        let Line { id, parent, point, is_view } = Line::parse(&text).unwrap();
        assert_eq!((id, parent, is_view), (36, 35, true));
        let length = unescape(&mut line, point);
        assert_eq!(&line[point.0..point.0 + length], b"/mnt with\\");
        for odd in [&b""[..], b"1", b"1 2 3 4", b"1 2 3:4 / /x rw -", b"x 2 3:4 / /x rw - proc"] {
            assert!(Line::parse(odd).is_none(), "{odd:?}");
        }
    }

    #[test]
    fn what_is_below_a_mount_is_known_whatever_the_order() {
        let mut parents = Parents { pairs: [(0, 0); MOST_MOUNTS], count: 0 };
        for line in [
            "5 4 0:1 / /a/b rw - proc proc rw",
            "4 3 0:1 / /a rw - tmpfs x rw",
            "3 1 0:1 / / rw - ext4 x rw",
            "1 1 0:1 / / rw - rootfs x rw",
        ] {
            parents.add(&mut line.as_bytes().to_vec()).unwrap();
        }
        assert!(parents.is_below(5, 4) && parents.is_below(5, 3) && parents.is_below(4, 4));
        assert!(!parents.is_below(3, 4) && !parents.is_below(9, 4) && !parents.is_below(1, 4));
    }

    #[test]
    fn lines_come_whole() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut text = vec![b'x'; 5000];
        text.extend(b"\nshort\n\nlast\n");
        rustix::io::write(&write, &text).unwrap();
        drop(write);
        let mut lengths = Vec::new();
        each_line(&read, |line| {
            lengths.push(line.len());
            Ok(())
        })
        .unwrap();
        assert_eq!(lengths, [5000, 5, 0, 4]);
    }
}
