//! Who `user[:group]` is, by the image's `/etc/passwd` and `/etc/group`.
//!
//! These files are as hostile as the rest of the image: they are opened inside the root, must be regular files, and are
//! read to a limit. A line that makes no sense is none. Digits are always a number: whoever checks an image's user
//! before it runs takes them for one, so a line that gives the name `1000` to root must not count.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::{Error, shown};

/// The most bytes of `/etc/passwd` or `/etc/group` that are read.
const MAX_FILE: u64 = 4 << 20;

/// The most groups that a user is in.
const MAX_GROUPS: usize = 1024;

/// The longest path of a home directory (PATH_MAX).
const MAX_HOME: usize = 4095;

/// A user, as a process runs for one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The groups that list the user as a member.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Who is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    user: Id<'a>,
    group: Option<Id<'a>>,
}

#[derive(Debug, Clone, Copy)]
enum Id<'a> {
    Number(u32),
    Name(&'a str),
}

/// A line of `/etc/passwd`.
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Wanted<'a> {
    /// `user`, `user:group` or nothing, which is root; names or numbers.
    pub(crate) fn parse(text: &'a str) -> Result<Wanted<'a>, Error> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let user = if user.is_empty() { Id::Number(0) } else { Id::parse(user)? };
        let group = if group.is_empty() { None } else { Some(Id::parse(group)?) };
        Ok(Wanted { user, group })
    }

    /// The user with this number, whose groups are the image's to say.
    pub(super) fn number(uid: u32) -> Wanted<'static> {
        Wanted { user: Id::Number(uid), group: None }
    }

    /// Looks the user up in the files of the image in `rootfs`.
    pub(super) fn look_up(&self, rootfs: BorrowedFd<'_>) -> Result<Account, Error> {
        self.find(&read(rootfs, "etc/passwd"), &read(rootfs, "etc/group"))
    }

    /// Looks the user up in the texts of `/etc/passwd` and `/etc/group`. A number need not be there.
    pub(crate) fn find(&self, passwd: &str, group: &str) -> Result<Account, Error> {
        let line = users(passwd).find(|line| match self.user {
            Id::Number(uid) => line.uid == uid,
            Id::Name(name) => line.name == name,
        });
        let uid = match (self.user, &line) {
            (Id::Number(uid), _) => uid,
            (Id::Name(_), Some(line)) => line.uid,
            (Id::Name(name), None) => return Err(Error::NoUser(shown(name))),
        };
        let gid = match self.group {
            Some(Id::Number(gid)) => gid,
            Some(Id::Name(name)) => {
                let line = groups(group).find(|line| line.name == name);
                line.ok_or_else(|| Error::NoGroup(shown(name)))?.gid
            }
            None => line.as_ref().map_or(0, |line| line.gid),
        };
        // A group that was named is the only one (image specification, "config.md", User).
        let member = line.as_ref().filter(|_| self.group.is_none()).map(|line| line.name);
        let others = member.map(|name| groups_of(group, name)).unwrap_or_default();
        let home = line.as_ref().map_or("", |line| line.home);
        let legal = home.starts_with('/') && home.len() <= MAX_HOME && !home.contains('\0');
        Ok(Account { uid, gid, groups: others, home: if legal { home } else { "/" }.into() })
    }
}

impl<'a> Id<'a> {
    fn parse(text: &'a str) -> Result<Id<'a>, Error> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Id::Name(text));
        }
        number(text).map(Id::Number).ok_or_else(|| Error::Number(shown(text)))
    }
}

/// A user's or a group's number. The highest means "leave it" to the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number != u32::MAX)
}

fn users(file: &str) -> impl Iterator<Item = User<'_>> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
        Some(User { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

fn groups(file: &str) -> impl Iterator<Item = Group<'_>> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = number(fields.nth(1)?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// The groups that list the user as a member.
fn groups_of(file: &str, user: &str) -> Vec<u32> {
    let lists = |group: &Group<'_>| group.members.split(',').any(|member| member == user);
    groups(file).filter(lists).map(|group| group.gid).take(MAX_GROUPS).collect()
}

/// A text file of the image; one that is absent, no file, or too large reads as empty, and names in it are not found.
fn read(rootfs: BorrowedFd<'_>, path: &str) -> String {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |flags| rustix::fs::openat2(rootfs, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    // Opening a device may do something, and opening a FIFO may wait: looking at it does neither.
    let regular = open(OFlags::PATH).and_then(rustix::fs::fstat);
    if !regular.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile) {
        return String::new();
    }
    let Ok(fd) = open(OFlags::RDONLY | OFlags::NONBLOCK) else { return String::new() };
    let mut bytes = Vec::new();
    if File::from(fd).take(MAX_FILE + 1).read_to_end(&mut bytes).is_err() || bytes.len() as u64 > MAX_FILE {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
