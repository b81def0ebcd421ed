//! `HOME`, for a process whose specification does not say: programs expect it, and only the container's `/etc/passwd` knows.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The longest home that is taken.
pub(crate) const LONGEST: usize = 255;

/// The most of `/etc/passwd` that is read.
const MOST_READ: usize = 1 << 20;

/// A user's home.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Home {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Home {
    /// The root directory: the home of those who have none.
    pub(crate) fn nowhere() -> Home {
        let mut home = Home { bytes: [0; LONGEST], length: 0 };
        home.set(b"/");
        home
    }

    fn set(&mut self, path: &[u8]) {
        if let Some(place) = self.bytes.get_mut(..path.len()) {
            place.copy_from_slice(path);
            self.length = path.len();
        }
    }

    pub(crate) fn path(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Looks up the home of `uid` in `/etc/passwd`; the file is the image's, so whatever is odd about it means only that there is no home.
pub(super) fn find(uid: u32) -> Home {
    let mut home = Home::nowhere();
    if let Ok(Some(file)) = open() {
        let _ = search(&file, uid, &mut home); // as far as it can be read
    }
    home
}

fn open() -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(CWD, c"/etc/passwd", flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    Ok((kind == FileType::RegularFile).then_some(file))
}

/// Line by line; one that does not fit into the buffer is passed over.
fn search(file: &OwnedFd, uid: u32, home: &mut Home) -> Result<(), Errno> {
    let mut buffer = [0; 4096];
    let (mut filled, mut total, mut skipping) = (0, 0, false);
    while total < MOST_READ {
        let length = rustix::io::read(file, buffer.get_mut(filled..).unwrap_or_default())?;
        (filled, total) = (filled + length, total + length);
        let mut begun = 0;
        while let Some(end) = buffer.get(begun..filled).and_then(|rest| rest.iter().position(|byte| *byte == b'\n')) {
            let line = buffer.get(begun..begun + end).unwrap_or_default();
            if let Some(path) = Some(line).filter(|_| !skipping).and_then(|line| home_of(line, uid)) {
                home.set(path);
                return Ok(());
            }
            skipping = false;
            begun += end + 1;
        }
        if length == 0 {
            let last = buffer.get(begun..filled).unwrap_or_default();
            if let Some(path) = Some(last).filter(|_| !skipping).and_then(|line| home_of(line, uid)) {
                home.set(path);
            }
            return Ok(());
        }
        buffer.copy_within(begun..filled, 0);
        filled -= begun;
        if filled == buffer.len() {
            (filled, skipping) = (0, true);
        }
    }
    Ok(())
}

/// The sixth field of a line of which `uid` is the third (passwd(5)).
fn home_of(line: &[u8], uid: u32) -> Option<&[u8]> {
    let mut fields = line.split(|byte| *byte == b':');
    let number: u32 = std::str::from_utf8(fields.nth(2)?).ok()?.parse().ok()?;
    fields.nth(2).filter(|home| number == uid && home.first() == Some(&b'/') && home.len() <= LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u8], uid: u32) -> String {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, text).unwrap();
        drop(write);
        let mut home = Home::nowhere();
        search(&read, uid, &mut home).unwrap();
        String::from_utf8(home.path().to_vec()).unwrap()
    }

    #[test]
    fn a_home_is_that_of_the_first_line_with_the_number() {
        let text = b"# a comment\nroot:x:0:0:root:/root:/bin/sh\n\nbad:line\nuser:x:1000:1000::/home/user:\nagain:x:1000:1::/no:\nlast:x:7:7::/last";
        assert_eq!((found(text, 0).as_str(), found(text, 1000).as_str()), ("/root", "/home/user"));
        assert_eq!((found(text, 7).as_str(), found(text, 8).as_str()), ("/last", "/"));
    }

    #[test]
    fn what_is_odd_is_no_home() {
        let long = [b"x:x:5:5::/".to_vec(), vec![b'a'; 5000], b":\nnext:x:6:6::/six:\n".to_vec()].concat();
        assert_eq!((found(&long, 5).as_str(), found(&long, 6).as_str()), ("/", "/six"));
        for line in [&b"x:x:1:1::relative:"[..], b"x:x:-1:1::/a:", b"x:x:1", b":::::", b"\xff:\xff:1:\xff"] {
            assert_eq!(found(line, 1), "/", "{line:?}");
        }
        let wide = [b"x:x:1:1::/".to_vec(), vec![b'a'; LONGEST], b":".to_vec()].concat();
        assert_eq!(found(&wide, 1), "/");
    }
}
