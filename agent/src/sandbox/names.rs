//! The pod's host name and its name servers.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::storage;

/// The kernel's limit.
const MAX_HOSTNAME: usize = 64;

/// More than any resolver reads.
const MAX_LINES: usize = 64;
const MAX_LINE: usize = 1024;

/// Where the file is kept that containers and the puller see as theirs: where nothing is mounted for the host, for the agent writes it,
/// and beside the images' place, over which their disk may be mounted at any moment.
const KEPT: &str = "/run/nacre-resolv.conf";
const SEEN: &str = "/etc/resolv.conf";

/// Where Kata's hosts have their containers find it.
const SHOWN: &str = "/run/kata-containers/sandbox/resolv.conf";

/// Whether the kernel takes `name`; none is fine too.
pub fn check_hostname(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if name.len() <= MAX_HOSTNAME && name.chars().all(plain) {
        return Ok(());
    }
    Err(format!("hostname: {:?} is no host name", name.chars().take(MAX_HOSTNAME).collect::<String>()))
}

/// The text of resolv.conf(5) with these lines; `None` without any.
pub fn resolv_conf(lines: &[String]) -> Result<Option<String>, String> {
    if lines.len() > MAX_LINES || lines.iter().any(|line| line.len() > MAX_LINE || line.contains(['\n', '\0'])) {
        return Err(format!("dns: at most {MAX_LINES} lines of {MAX_LINE} characters are taken"));
    }
    if lines.is_empty() {
        return Ok(None);
    }
    let mut text = String::new();
    for line in lines {
        // A bare address is a name server's.
        let keyword = if line.parse::<std::net::IpAddr>().is_ok() { "nameserver " } else { "" };
        let _ = writeln!(text, "{keyword}{line}"); // writing to a String can't fail
    }
    Ok(Some(text))
}

/// Make `text` the guest's resolv.conf. The image's own file may be read-only or a link, so another is mounted over it, once.
pub fn set_resolv_conf(text: &str) -> io::Result<()> {
    let kept = Path::new(KEPT);
    fs::write(kept, text)?;
    // What an earlier call has mounted shows the new text already.
    if !is_same(kept, SHOWN)? {
        storage::show(kept, Path::new(SHOWN)).map_err(|error| io::Error::other(crate::chain(&error)))?;
    }
    if is_same(kept, SEEN)? {
        return Ok(());
    }
    if !fs::exists(SEEN)? {
        fs::write(SEEN, "")?;
    }
    mount_bind(kept, SEEN)?;
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount(SEEN, flags, "")?)
}

/// Whether the file `kept` is what is at `other`.
fn is_same(kept: &Path, other: &str) -> io::Result<bool> {
    let kept = fs::metadata(kept)?;
    Ok(fs::metadata(other).is_ok_and(|other| (other.dev(), other.ino()) == (kept.dev(), kept.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::RUN;

    #[test]
    fn the_agent_writes_where_no_storage_can_be() {
        assert!(!Path::new(KEPT).starts_with(RUN) && Path::new(SHOWN).starts_with(RUN));
        assert!(!Path::new(KEPT).starts_with("/run/nacre"));
    }

    #[test]
    fn name_servers_may_be_bare_addresses_or_whole_lines() {
        let lines = ["10.0.2.3".to_string(), "nameserver fd00::1".into(), "search a.example".into()];
        let text = resolv_conf(&lines).unwrap().unwrap();
        assert_eq!(text, "nameserver 10.0.2.3\nnameserver fd00::1\nsearch a.example\n");
        assert_eq!(resolv_conf(&[]).unwrap(), None);
        assert!(resolv_conf(&["a\nb".into()]).is_err());
        assert!(resolv_conf(&vec!["a".into(); MAX_LINES + 1]).is_err());
    }

    #[test]
    fn host_names_are_those_that_the_kernel_takes() {
        for good in ["", "pod-1.example", &"x".repeat(64)] {
            assert!(check_hostname(good).is_ok());
        }
        for bad in ["a b", "a/b", "ä", "a\n", &"x".repeat(65)] {
            assert!(check_hostname(bad).is_err());
        }
    }
}
