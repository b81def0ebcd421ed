//! Layers that come ready-made: an EROFS image under a dm-verity tree, which the host attaches as a disk and nobody unpacks.
//!
//! The host's word counts for nothing: a disk is used when its root hash is one that a trusted source names for the layer. There are two such
//! sources: the manifest, which policy has judged, by an annotation of the layer; and the guest's image, by a list that is measured with it.

use std::fmt;
use std::str::FromStr;

use nacre_protocol::disk::layer_serial;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::reference::{self, Sha256};

/// The most blocks of data: 256 GiB, which is also the most that an image unpacks to.
pub(crate) const MAX_BLOCKS: u64 = 64 << 20;

/// What a ready-made layer must be: the root hash of its tree, and how many blocks of 4 KiB the tree stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Verity {
    /// The root hash.
    pub root: [u8; 32],
    /// The blocks of data. The tree begins behind them.
    pub blocks: u64,
}

impl Verity {
    /// The root hash in hexadecimal.
    pub fn root_hash(&self) -> String {
        hex::encode(self.root)
    }

    /// The serial number of the disk that says that it is this.
    pub fn serial(&self) -> String {
        layer_serial(&self.root_hash())
    }

    /// The bytes of the data and of the tree.
    pub fn bytes(&self) -> u64 {
        (self.blocks + crate::verity::tree_blocks(self.blocks)) * crate::verity::BLOCK as u64
    }
}

impl fmt::Display for Verity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{};blocks={}", self.root_hash(), self.blocks)
    }
}

impl FromStr for Verity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Verity> {
        let wrong = || Error::bad_image("a ready-made layer is not described by sha256:ROOT;blocks=N");
        let (root, blocks) = text.split_once(";blocks=").ok_or_else(wrong)?;
        let root = reference::sha256(root).map_err(|_| wrong())?;
        let plain = !blocks.starts_with(['0', '+']);
        let blocks = blocks.parse().ok().filter(|blocks| plain && *blocks <= MAX_BLOCKS).ok_or_else(wrong)?;
        Ok(Verity { root, blocks })
    }
}

impl TryFrom<String> for Verity {
    type Error = Error;

    fn try_from(text: String) -> Result<Verity> {
        text.parse()
    }
}

impl From<Verity> for String {
    fn from(verity: Verity) -> String {
        verity.to_string()
    }
}

/// A line of a list of ready-made layers: the layer's DiffID, and what its ready-made form must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Known {
    /// The digest of the layer's archive.
    pub diff_id: [u8; 32],
    /// What is to be on the disk.
    pub verity: Verity,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{} {}", hex::encode(self.diff_id), self.verity)
    }
}

impl FromStr for Known {
    type Err = Error;

    fn from_str(line: &str) -> Result<Known> {
        let wrong = |_| Error::bad_image("a line of ready-made layers is not DIFFID sha256:ROOT;blocks=N");
        let (diff_id, verity) = line.split_once(' ').unwrap_or_default();
        Ok(Known { diff_id: reference::sha256(diff_id).map_err(wrong)?, verity: verity.parse().map_err(wrong)? })
    }
}

impl TryFrom<String> for Known {
    type Error = Error;

    fn try_from(line: String) -> Result<Known> {
        line.parse()
    }
}

impl From<Known> for String {
    fn from(known: Known) -> String {
        known.to_string()
    }
}

/// Reads a list of ready-made layers. Empty lines and those that begin with `#` say nothing.
///
/// # Errors
/// A line that makes no sense, by its number.
pub fn parse(text: &str) -> Result<Vec<Known>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, line)| line.parse().map_err(|error: Error| error.context(format!("line {}", number + 1))))
        .collect()
}

/// What the ready-made form of a layer must be, by the first source that names it. An annotation that is not understood may be from later days.
pub(crate) fn of(diff_id: &Sha256, known: &[Known], annotation: Option<&str>) -> Option<Verity> {
    let known = known.iter().find(|known| known.diff_id == *diff_id).map(|known| known.verity);
    known.or_else(|| annotation?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        let root = "0a".repeat(32);
        let good = format!("sha256:{root};blocks=17");
        assert_eq!(good.parse::<Verity>().unwrap(), Verity { root: [10; 32], blocks: 17 });
        assert_eq!(good.parse::<Verity>().unwrap().serial(), "0a".repeat(10));
        for bad in [
            String::new(),
            root.clone(),
            format!("sha256:{root}"),
            format!("sha256:{root};blocks="),
            format!("sha256:{root};blocks=0"),
            format!("sha256:{root};blocks=017"),
            format!("sha256:{root};blocks=+17"),
            format!("sha256:{root};blocks=17 "),
            format!("sha256:{root};blocks=67108865"),
            format!("sha256:{};blocks=17", root.to_uppercase()),
            format!("sha512:{root};blocks=17"),
        ] {
            assert!(bad.parse::<Verity>().is_err(), "{bad:?}");
            assert!(parse(&format!("sha256:{root} {bad}")).is_err(), "{bad:?}");
        }
        let list = parse(&format!("# of an image\n\nsha256:{root} {good}\n")).unwrap();
        assert_eq!(list[0].to_string(), format!("sha256:{root} {good}"));
        assert!(parse(&format!("\nsha256:{root}  {good}")).unwrap_err().message.starts_with("line 2"));
    }

    #[test]
    fn the_guests_own_list_comes_before_a_manifest() {
        let verity = |byte| Verity { root: [byte; 32], blocks: 2 };
        let known = [Known { diff_id: [1; 32], verity: verity(7) }];
        let annotation = verity(8).to_string();
        assert_eq!(of(&[1; 32], &known, Some(&annotation)), Some(verity(7)));
        assert_eq!(of(&[2; 32], &known, Some(&annotation)), Some(verity(8)));
        assert_eq!(of(&[2; 32], &known, None), None);
        assert_eq!(of(&[2; 32], &known, Some("nonsense")), None);
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(text in "(sha256:)?[0-9a-f]{62,66};?(blocks=)?[0-9]{0,9}", any in ".*") {
            for text in [text, any] {
                if let Ok(verity) = text.parse::<Verity>() {
                    prop_assert_eq!(verity.to_string(), text.clone());
                }
                if let Ok(known) = text.parse::<Known>() {
                    prop_assert_eq!(known.to_string(), text);
                }
            }
        }

        #[test]
        fn what_was_written_is_read(root: [u8; 32], diff_id: [u8; 32], blocks in 1..=MAX_BLOCKS) {
            let known = Known { diff_id, verity: Verity { root, blocks } };
            prop_assert_eq!(parse(&format!("{known}\n")).unwrap(), [known]);
        }
    }
}
