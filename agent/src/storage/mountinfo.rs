//! What is mounted in the agent's mount namespace, by /proc/thread-self/mountinfo (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// A mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is.
    pub at: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// What is mounted: a device, a tag.
    pub source: PathBuf,
}

/// The agent's own; of those on one place, the uppermost comes last.
pub fn all() -> io::Result<Vec<Mounted>> {
    Ok(parse(&fs::read("/proc/thread-self/mountinfo")?).collect())
}

/// The mounts of a list.
pub fn parse(list: &[u8]) -> impl Iterator<Item = Mounted> {
    list.split(|byte| *byte == b'\n').filter_map(parse_line)
}

/// `ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS [TAG…] - TYPE SOURCE OPTIONS`.
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let at = path(fields.nth(4)?);
    fields.find(|field| field == b"-")?;
    let kind = String::from_utf8(fields.next()?.into()).ok()?;
    Some(Mounted { at, kind, source: path(fields.next()?) })
}

/// The kernel writes blanks and backslashes as `\` and three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_its_blanks_and_without_its_tags() {
        let mounted = |at: &str, kind: &str, source: &str| {
            Some(Mounted { at: at.into(), kind: kind.into(), source: source.into() })
        };
        let line =
            br"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 shared:2 - ext3 /dev/ro\011ot rw,errors=continue";
        assert_eq!(parse_line(line), mounted("/mnt 2\\x", "ext3", "/dev/ro\tot"));
        assert_eq!(
            parse_line(b"1 0 0:1 / /a\\ rw - virtiofs kataShared rw"),
            mounted("/a\\", "virtiofs", "kataShared")
        );
        for bad in ["", "1 0 0:1 / /", "1 0 0:1 / / rw shared:1", "1 0 0:1 / / rw - tmpfs"] {
            assert_eq!(parse_line(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(all().unwrap().iter().any(|mounted| mounted.at == *"/"));
    }
}
