//! dm-verity: each block of a disk is read only if the root hash stands for it (Documentation/admin-guide/device-mapper/verity.rst).

use std::io;
use std::path::Path;

use nacre_sys::device_mapper::{self, Mapped, Target};

use super::disks::SECTOR;

/// The options of a host that say what a disk must hold.
const OPTIONS: &str = "X-kata.dmverity";

/// The blocks that the kernel takes.
const BLOCKS: std::ops::RangeInclusive<u64> = 512..=4096;

/// What stands before the digests unless it is said not to; all that it says has been said to us.
const SUPERBLOCK: u64 = 1;

/// The longest salt, in hexadecimal.
const MAX_SALT: usize = 512;

/// The most blocks of an extension: 256 GiB.
const MAX_BLOCKS: u64 = 1 << 26;

/// What a disk must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verity {
    /// 1; or 0, with which the salt comes last.
    pub hash_type: u8,
    /// Bytes of a block of data.
    pub data_block: u64,
    /// Bytes of a block of digests.
    pub hash_block: u64,
    /// How many blocks of data there are.
    pub data_blocks: u64,
    /// The first block of digests.
    pub hash_start: u64,
    /// The hash's name.
    pub algorithm: String,
    /// The root hash, in hexadecimal.
    pub root: String,
    /// The salt, in hexadecimal.
    pub salt: Option<String>,
}

impl Verity {
    /// The device `name`, which shows what of `disk` is as it must be.
    pub fn map(&self, name: &str, disk: &Path) -> io::Result<Mapped> {
        let sectors = self.data_blocks * (self.data_block / SECTOR);
        device_mapper::create(name, &Target { sectors, kind: "verity", parameters: &self.table(disk), read_only: true })
    }

    /// The target's parameters: the same disk for data and for their digests.
    fn table(&self, disk: &Path) -> String {
        let Verity { hash_type, data_block, hash_block, data_blocks, hash_start, algorithm, root, salt } = self;
        let (disk, salt) = (disk.display(), salt.as_deref().unwrap_or("-"));
        format!(
            "{hash_type} {disk} {disk} {data_block} {hash_block} {data_blocks} {hash_start} {algorithm} {root} {salt}"
        )
    }

    /// Whether the options of a storage say anything of it.
    pub fn is_asked_for(options: &[String]) -> bool {
        options.iter().any(|option| option.starts_with(OPTIONS))
    }

    /// What the options of a storage ask for; nothing, if they say nothing of it.
    pub fn of_options(options: &[String]) -> Result<Option<Verity>, String> {
        let ours: Vec<&str> = options.iter().filter_map(|option| option.strip_prefix(OPTIONS)).collect();
        let value =
            |key: &str| ours.iter().find_map(|option| option.strip_prefix('.')?.strip_prefix(key)?.strip_prefix('='));
        match ours.iter().find_map(|option| option.strip_prefix("-enabled=")) {
            Some("true") => {}
            None if ours.is_empty() => return Ok(None),
            // Who says what a disk must hold wants it verified.
            _ => return Err(format!("{OPTIONS}-enabled=true: is missing")),
        }
        let number = |key, default: Option<u64>| match (value(key), default) {
            (Some(text), _) => text.parse().map_err(|_| format!("{OPTIONS}.{key}: is no number")),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("{OPTIONS}.{key}: is missing")),
        };
        let (data_block, hash_block) = (number("blocksize", Some(4096))?, number("hashsize", Some(4096))?);
        if [data_block, hash_block].iter().any(|size| !BLOCKS.contains(size) || !size.is_power_of_two()) {
            return Err(format!("{OPTIONS}: blocks of {data_block} and {hash_block} bytes are not supported"));
        }
        let offset = number("hashoffset", None)?;
        if offset == 0 || offset % data_block != 0 || offset % hash_block != 0 {
            return Err(format!("{OPTIONS}.hashoffset: {offset} is not behind a number of blocks"));
        }
        let before = if value("no-superblock") == Some("true") { 0 } else { SUPERBLOCK };
        let verity = Verity {
            hash_type: match number("hashtype", Some(1))? {
                0 => 0,
                1 => 1,
                other => return Err(format!("{OPTIONS}.hashtype: {other} is none")),
            },
            data_block,
            hash_block,
            data_blocks: offset / data_block,
            hash_start: offset / hash_block + before,
            algorithm: value("algorithm").unwrap_or("sha256").into(),
            root: value("roothash").unwrap_or_default().to_ascii_lowercase(),
            salt: value("salt").filter(|salt| !matches!(*salt, "" | "-")).map(str::to_ascii_lowercase),
        };
        verity.check().map_err(|reason| format!("{OPTIONS}.{reason}")).map(|()| Some(verity))
    }

    /// What the parameters of an extension ask for, as Kata's hosts write them: the tree is right behind the data, without a superblock.
    pub fn of_parameters(text: &str) -> Result<Verity, String> {
        let keys = ["root_hash", "salt", "data_blocks", "data_block_size", "hash_block_size"];
        let mut values = [None; 5];
        for word in text.split(',') {
            let place =
                word.split_once('=').and_then(|(key, value)| Some((keys.iter().position(|k| *k == key)?, value)));
            let (at, value) = place.ok_or_else(|| format!("{:?} is none of its parameters", shown(word)))?;
            if values[at].replace(value).is_some() {
                return Err(format!("{} is there twice", keys[at]));
            }
        }
        let value = |at: usize| values[at].ok_or_else(|| format!("{} is missing", keys[at]));
        if [value(3)?, value(4)?] != ["4096"; 2] {
            return Err("blocks of 4096 bytes are supported".into());
        }
        let data_blocks = value(2)?.parse().ok().filter(|blocks| (1..=MAX_BLOCKS).contains(blocks));
        let data_blocks = data_blocks.ok_or_else(|| format!("data_blocks is no number up to {MAX_BLOCKS}"))?;
        let verity = Verity {
            hash_type: 1,
            data_block: 4096,
            hash_block: 4096,
            data_blocks,
            hash_start: data_blocks,
            algorithm: "sha256".into(),
            root: value(0)?.to_ascii_lowercase(),
            salt: Some(value(1)?.to_ascii_lowercase()),
        };
        verity.check().map_err(String::from).map(|()| verity)
    }

    fn check(&self) -> Result<(), &'static str> {
        let digits = match self.algorithm.as_str() {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err("algorithm: sha256 and sha512 are supported"),
        };
        let hexadecimal =
            |text: &str| text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if self.root.len() != digits || !hexadecimal(&self.root) {
            return Err("roothash: is no digest");
        }
        match &self.salt {
            Some(salt) if salt.len() > MAX_SALT || !hexadecimal(salt) => Err("salt: is no salt"),
            _ => Ok(()),
        }
    }
}

/// As much of a word as an error repeats.
fn shown(word: &str) -> String {
    word.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Option<Verity>, String> {
        Verity::of_options(&options.iter().map(|o| (*o).to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn a_disk_is_described_by_options() {
        let root = format!("X-kata.dmverity.roothash={}", "0A".repeat(32));
        let on = "X-kata.dmverity-enabled=true";
        let table = |options: &[&str]| parse(options).unwrap().unwrap().table("/dev/vdb".as_ref());
        let zero = "0a".repeat(32);
        assert_eq!(
            table(&["ro", on, &root, "X-kata.dmverity.hashoffset=40960"]),
            format!("1 /dev/vdb /dev/vdb 4096 4096 10 11 sha256 {zero} -")
        );
        let more = ["X-kata.dmverity.blocksize=512", "X-kata.dmverity.salt=00ff", "X-kata.dmverity.no-superblock=true"];
        assert_eq!(
            table(&[&[on, &root, "X-kata.dmverity.hashoffset=8192"], &more[..]].concat()),
            format!("1 /dev/vdb /dev/vdb 512 4096 16 2 sha256 {zero} 00ff")
        );
        assert_eq!(parse(&["ro", "X-kata.multi-layer=true"]), Ok(None));
    }

    #[test]
    fn what_is_half_described_is_never_taken_unverified() {
        let root = format!("X-kata.dmverity.roothash={}", "0a".repeat(32));
        let (on, offset) = ("X-kata.dmverity-enabled=true", "X-kata.dmverity.hashoffset=4096");
        assert!(parse(&[on, &root, offset]).is_ok());
        for bad in [
            &[&*root, offset][..],
            &["X-kata.dmverity-enabled=false", &root, offset],
            &["X-kata.dmverity-enabled=yes"],
            &[on, offset],
            &[on, &root],
            &[on, &root, "X-kata.dmverity.hashoffset=0"],
            &[on, &root, "X-kata.dmverity.hashoffset=4097"],
            &[on, &root, offset, "X-kata.dmverity.blocksize=8192"],
            &[on, &root, offset, "X-kata.dmverity.algorithm=md5"],
            &[on, &root, offset, "X-kata.dmverity.algorithm=sha512"],
            &[on, &root, offset, "X-kata.dmverity.salt=0 1 ignore_corruption"],
            &[on, "X-kata.dmverity.roothash=xyz", offset],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
