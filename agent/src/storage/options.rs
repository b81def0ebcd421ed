//! Mount options as hosts write them.

use rustix::mount::MountFlags;

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

/// Options that ask for what is so anyway.
const DEFAULTS: &[&str] = &["", "rw", "suid", "dev", "exec", "defaults", "async", "rprivate", "private"];

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

impl Options {
    /// Judge `options`.
    pub fn parse(options: &[String]) -> Result<Options, String> {
        if options.len() > MAX_OPTIONS {
            return Err(format!("{} options; at most {MAX_OPTIONS} are taken", options.len()));
        }
        let mut parsed = Options { flags: MountFlags::empty(), data: String::new(), mode: None, group: None };
        for option in options.iter().flat_map(|option| option.split(',')) {
            parsed
                .add(option)
                .map_err(|reason| format!("option {:?} {reason}", option.chars().take(64).collect::<String>()))?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<(), &'static str> {
        if let Some((_, flag)) = FLAGS.iter().find(|(name, _)| *name == option) {
            self.flags |= *flag;
            return Ok(());
        }
        if DEFAULTS.contains(&option) {
            return Ok(());
        }
        let (key, value) = option.split_once('=').ok_or("is not known")?;
        match key {
            "fsgid" => self.group = Some(value.parse().map_err(|_| "names no group number")?),
            "mode" => self.mode = Some(mode(value)?),
            _ if TMPFS.contains(&key) && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '%') => {
                if !self.data.is_empty() {
                    self.data.push(',');
                }
                self.data.push_str(option);
            }
            _ => return Err("is not known"),
        }
        Ok(())
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
        Options::parse(&options.iter().map(|o| (*o).to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_sorted_by_who_understands_them() {
        let options = parse(&["noexec", "nosuid,nodev", "rw", "mode=1777", "size=64M", "fsgid=1000", "uid=5"]).unwrap();
        assert_eq!(options.flags, MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV);
        assert_eq!(options.data, "size=64M,uid=5");
        assert_eq!((options.mode, options.group), (Some(0o1777), Some(1000)));
    }

    #[test]
    fn options_that_are_not_understood_are_refused_by_name() {
        for bad in ["frob", "lowerdir=/etc", "mode=9", "mode=77777", "fsgid=x", "size=a/b"] {
            assert!(parse(&[bad]).unwrap_err().contains("option"), "{bad}");
        }
        assert!(parse(&["ro"; MAX_OPTIONS + 1]).is_err());
    }
}
