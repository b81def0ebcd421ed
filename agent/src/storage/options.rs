//! Mount options as hosts write them.

use std::ffi::CString;

use nacre_sys::mount::MountAttr;
use rustix::mount::{MountAttrFlags, MountFlags};

/// The most options of one storage.
const MAX_OPTIONS: usize = 64;

/// Options that are flags of mount(2).
const FLAGS: &[(&str, MountFlags)] = &[
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("sync", MountFlags::SYNCHRONOUS),
];

/// Those that a mount has for itself.
const ATTRIBUTES: &[(MountFlags, MountAttrFlags)] = &[
    (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
    (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
    (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
    (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
    (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
];
const ATIME: u64 = MountAttrFlags::MOUNT_ATTR__ATIME.bits() as u64;

/// Options that ask for what is so anyway, or that say what the driver knows.
const DEFAULTS: &[&str] = &[
    "", "rw", "suid", "dev", "exec", "defaults", "async", "rprivate", "private", "rslave", "slave", "rshared",
    "shared", "bind", "rbind", "remount", "nofail", "_netdev",
];

/// What mount(2) takes of options: a page, and the byte that ends the string.
pub const MAX_DATA: usize = 4095;

/// Options of the agent's, which no file system is to see.
const OURS: &[&str] = &["X-kata.", "io.katacontainers."];

/// Whether an option is for the agent.
pub fn is_ours(option: &str) -> bool {
    OURS.iter().any(|prefix| option.starts_with(prefix))
}

/// Which options are left to the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Some of tmpfs's; mode and group are set without it.
    Tmpfs,
    /// Any that the kernel knows and that name no file.
    Any,
}

/// Options that tmpfs understands.
const TMPFS: &[&str] = &["size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge"];

/// Options, by what becomes of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// For mount(2).
    pub flags: MountFlags,
    /// For the file system.
    pub data: String,
    /// The mode of the mount's root.
    pub mode: Option<u32>,
    /// The group that may write.
    pub group: Option<u32>,
}

impl Default for Options {
    fn default() -> Options {
        Options { flags: MountFlags::empty(), data: String::new(), mode: None, group: None }
    }
}

impl Options {
    /// Judge `options`.
    pub fn parse(options: &[String], understood: Data) -> Result<Options, String> {
        if options.len() > MAX_OPTIONS {
            return Err(format!("{} options; at most {MAX_OPTIONS} are taken", options.len()));
        }
        let mut parsed = Options::default();
        let theirs = options.iter().filter(|option| !is_ours(option));
        for option in theirs.flat_map(|option| option.split(',')) {
            parsed
                .add(option, understood)
                .map_err(|reason| format!("option {:?} {reason}", option.chars().take(64).collect::<String>()))?;
        }
        if parsed.data.len() > MAX_DATA {
            return Err(format!("{} bytes of options; at most {MAX_DATA} are taken", parsed.data.len()));
        }
        Ok(parsed)
    }

    /// For mount(2).
    pub fn data(&self) -> CString {
        CString::new(self.data.as_str()).unwrap_or_default() // it holds no NUL
    }

    /// For mount_setattr(2).
    pub fn attributes(&self) -> MountAttr {
        let wanted = ATTRIBUTES.iter().filter(|(flag, _)| self.flags.contains(*flag));
        let set = wanted.fold(0, |set, (_, attribute)| set | u64::from(attribute.bits()));
        // What is said of access times replaces what was.
        let clear = if set & ATIME == 0 { 0 } else { ATIME };
        MountAttr { set, clear, propagation: 0 }
    }

    fn add(&mut self, option: &str, understood: Data) -> Result<(), &'static str> {
        if let Some((_, flag)) = FLAGS.iter().find(|(name, _)| *name == option) {
            self.flags |= *flag;
            return Ok(());
        }
        if DEFAULTS.contains(&option) {
            return Ok(());
        }
        if understood == Data::Any {
            if !option.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-=.:%".contains(&byte)) {
                return Err("is not known");
            }
            self.leave(option);
            return Ok(());
        }
        let (key, value) = option.split_once('=').ok_or("is not known")?;
        match key {
            "fsgid" => {
                self.group = Some(value.parse().ok().filter(|group| *group != u32::MAX).ok_or("names no group number")?)
            }
            "mode" => self.mode = Some(mode(value)?),
            _ if TMPFS.contains(&key) && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '%') => {
                self.leave(option);
            }
            _ => return Err("is not known"),
        }
        Ok(())
    }

    fn leave(&mut self, option: &str) {
        if !self.data.is_empty() {
            self.data.push(',');
        }
        self.data.push_str(option);
    }
}

fn mode(text: &str) -> Result<u32, &'static str> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("is no octal mode"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Options, String> {
        Options::parse(&options.iter().map(|o| (*o).to_string()).collect::<Vec<_>>(), Data::Tmpfs)
    }

    #[test]
    fn options_are_sorted_by_who_understands_them() {
        let options = parse(&["noexec", "nosuid,nodev", "rw", "mode=1777", "size=64M", "fsgid=1000", "uid=5"]).unwrap();
        assert_eq!(options.flags, MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV);
        assert_eq!(options.data, "size=64M,uid=5");
        assert_eq!((options.mode, options.group), (Some(0o1777), Some(1000)));
    }

    /// As Kata's hosts ask for another size, and for ConfigMaps.
    #[test]
    fn what_says_how_to_mount_is_no_option_of_the_file_system() {
        let options = parse(&["remount", "size=64M", "fsgid=1000", "rslave", "rbind"]).unwrap();
        assert_eq!((options.data.as_str(), options.group), ("size=64M", Some(1000)));
    }

    #[test]
    fn options_that_are_not_understood_are_refused_by_name() {
        for bad in ["frob", "lowerdir=/etc", "mode=9", "mode=77777", "fsgid=x", "fsgid=4294967295", "size=a/b"] {
            assert!(parse(&[bad]).unwrap_err().contains("option"), "{bad}");
        }
        assert!(parse(&["ro"; MAX_OPTIONS + 1]).is_err());
    }

    #[test]
    fn a_file_system_gets_what_it_may_know_and_no_file_by_name() {
        let any = |option: &str| Options::parse(&[option.to_string()], Data::Any);
        let options = any("ro,data=ordered,discard,commit=5").unwrap();
        assert_eq!((options.flags, options.data.as_str()), (MountFlags::RDONLY, "data=ordered,discard,commit=5"));
        assert_eq!(any("X-kata.multi-layer=true").unwrap().data, "");
        for bad in ["journal_path=/dev/vda", "lowerdir+=proc", "a b", "a\0b", &format!("a={}", "x".repeat(MAX_DATA))] {
            assert!(any(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn attributes_of_access_times_replace_others() {
        let attributes = parse(&["ro", "noatime"]).unwrap().attributes();
        assert_eq!((attributes.set, attributes.clear), (0x11, 0x70));
        assert!(parse(&["rw", "relatime", "sync"]).unwrap().attributes().is_empty());
    }
}
