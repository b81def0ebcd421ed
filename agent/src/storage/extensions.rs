//! Extensions of the guest: file systems that come on disks of their own, and are mounted by their names beside the root.
//!
//! What each must hold is on the kernel's command line, which is measured: `kata.extension.NAME.verity_params=…`. A disk without its word, a
//! word without its disk, and a disk that is not what its word says end the guest: it would be another than the one that was measured.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use super::disks::{self, Disk};
use super::verity::Verity;

/// Where they are mounted.
const PLACE: &str = "/run/nacre/extensions";

/// What a disk's serial number begins with, and the longest name that it has room for.
const SERIAL: &str = "extension-";
const MAX_NAME: usize = 10;

/// Why the guest can't be what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is no help.
    #[error("kernel command line: extension {name}: {reason}")]
    Word {
        /// The extension's name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Nothing says what it must hold.
    #[error("the disk {SERIAL}{0} is there, but the kernel command line does not say what it must hold")]
    Unknown(String),
    /// Not there, or there twice.
    #[error("{found} disks have the serial number {SERIAL}{name}, not one")]
    Disks {
        /// The extension's name.
        name: String,
        /// How many there are.
        found: usize,
    },
    /// It did not work.
    #[error("extension {name}: {act}")]
    System {
        /// The extension's name.
        name: String,
        /// What did not work.
        act: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Mounts all of them: `words` are those of the command line, each an extension's name and parameters. Blocks. Says how many there are.
pub fn mount_all(words: &[(String, String)]) -> Result<usize, Error> {
    let wanted = parse(words)?;
    let all = disks::all().map_err(|source| Error::System { name: "any".into(), act: "list the disks", source })?;
    let names = all.iter().filter_map(|disk| disk.serial.strip_prefix(SERIAL));
    for name in names {
        if !wanted.contains_key(name) {
            return Err(Error::Unknown(name.chars().take(MAX_NAME).collect()));
        }
    }
    for (name, verity) in &wanted {
        let disks: Vec<&Disk> = all.iter().filter(|disk| disk.serial.strip_prefix(SERIAL) == Some(name)).collect();
        match disks[..] {
            [disk] => mount_one(name, verity, &disk.path())?,
            _ => return Err(Error::Disks { name: name.clone(), found: disks.len() }),
        }
    }
    Ok(wanted.len())
}

fn mount_one(name: &str, verity: &Verity, disk: &Path) -> Result<(), Error> {
    let failed = |act| move |source: io::Error| Error::System { name: name.into(), act, source };
    let place = Path::new(PLACE).join(name);
    let made = DirBuilder::new().recursive(true).mode(0o755).create(&place);
    made.map_err(failed("make the directory to mount on"))?;
    // It stays for as long as it is mounted, which is for as long as the guest is there.
    let device = verity.map(&format!("{SERIAL}{name}"), disk).map_err(failed("verify the disk"))?;
    mount(&device.path, &place, "erofs", MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID, None)
        .map_err(|error| failed("mount the disk (type erofs)")(error.into()))
}

fn parse(words: &[(String, String)]) -> Result<BTreeMap<String, Verity>, Error> {
    let mut all = BTreeMap::new();
    for (name, parameters) in words {
        let wrong = |reason: String| Error::Word { name: name.chars().take(MAX_NAME).collect(), reason };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
            return Err(wrong(format!("a name has at most {MAX_NAME} small letters, digits and -")));
        }
        let verity = Verity::of_parameters(parameters).map_err(wrong)?;
        if all.insert(name.clone(), verity).is_some() {
            return Err(wrong("it is there twice".into()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> String {
        let digest = "0a".repeat(32);
        format!("root_hash={digest},salt=00ff,data_blocks=10,data_block_size=4096,hash_block_size=4096")
    }

    #[test]
    fn an_extension_is_described_by_one_word() {
        let all = parse(&[("tools".into(), parameters()), ("a".into(), parameters())]).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "tools"]);
        assert_eq!((all["a"].data_blocks, all["a"].hash_start), (10, 10));
    }

    #[test]
    fn what_is_half_described_is_no_extension() {
        let without =
            |part: &str| parameters().split(',').filter(|word| !word.starts_with(part)).collect::<Vec<_>>().join(",");
        for (name, parameters, reason) in [
            ("", parameters(), "a name has"),
            ("a/b", parameters(), "a name has"),
            ("elevenchars", parameters(), "a name has"),
            ("a", String::new(), "\"\" is none of its parameters"),
            ("a", without("root_hash"), "root_hash is missing"),
            ("a", without("data_blocks"), "data_blocks is missing"),
            ("a", without("hash_block_size"), "hash_block_size is missing"),
            ("a", without("salt"), "salt is missing"),
            ("a", parameters().replace("=10", "=0"), "data_blocks"),
            ("a", parameters().replace("=10", "=18446744073709551615"), "data_blocks"),
            ("a", parameters().replace("0a0a", "0a0x"), "roothash: is no digest"),
            ("a", parameters().replace("00ff", "0 f"), "salt: is no salt"),
            ("a", parameters().replace("size=4096", "size=512"), "blocks of 4096 bytes"),
            ("a", format!("{},salt=00", parameters()), "salt is there twice"),
            ("a", format!("{},x=1", parameters()), "\"x=1\" is none"),
        ] {
            let error = parse(&[(name.into(), parameters)]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let twice = [("a".to_string(), parameters()), ("a".into(), parameters())];
        assert!(parse(&twice).unwrap_err().to_string().contains("twice"));
    }
}
