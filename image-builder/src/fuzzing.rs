//! What people, archives and images say, read as the builder reads it: for the fuzz targets in `image-builder/fuzz`, and for the property tests below,
//! which run the same.

use std::path::Path;

use anyhow::Result;
use nacre_manifest::{Root, Verity};

use crate::lock::Lock;
use crate::outputs::contents::{self, Kind};
use crate::outputs::disk::{ROOT, ROOT_VERITY};
use crate::outputs::verity::Superblock;
use crate::outputs::{gpt, pe};
use crate::packages::{Deb, Entry};
use crate::recipe::Recipe;
use crate::verify;

/// A recipe, beside which there is nothing.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// A fault without a place.
pub fn recipe(text: &str) -> Result<()> {
    let read = Recipe::parse(Path::new("/nonexistent/fuzz.toml"), text.into());
    if let Err(error) = &read {
        assert!(format!("{error:#}").contains("fuzz"), "{error:#}");
    }
    read.map(drop)
}

/// A lock.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// One that is another when it is written and read again.
pub fn lock(text: &str) -> Result<()> {
    let file = Path::new("fuzz.lock");
    let lock = Lock::parse(file, text)?;
    let again = Lock::parse(file, &toml::to_string(&lock)?);
    assert_eq!(again.ok(), Some(lock));
    Ok(())
}

/// A package. How many files it has.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// A path that leads out of the package; a file beyond its end.
pub fn deb(bytes: &[u8]) -> Result<usize> {
    let deb = Deb::read(bytes)?;
    for (path, entry) in &deb.entries {
        assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path}");
        if let Entry::File(_, range) = entry {
            assert_eq!(deb.bytes(range).len(), range.len(), "{path}");
        }
    }
    Ok(deb.entries.len())
}

/// A disk, judged by what it says of itself. How much is wrong with it.
pub fn disk(bytes: &[u8]) -> usize {
    let Ok(table) = gpt::read(bytes) else { return 1 };
    let [data, hashes] = [ROOT, ROOT_VERITY].map(|kind| table.partitions.iter().find(|p| p.kind == kind));
    let Some((data, hashes)) = data.zip(hashes) else { return 1 };
    let Some(found) = hashes.of(bytes).and_then(|bytes| Superblock::parse(bytes).ok()) else { return 1 };
    let root_hash = hex::encode([data.guid.0, hashes.guid.0].concat());
    let salt = hex::encode(&found.salt);
    let root = Root {
        filesystem: "erofs".into(),
        verity: Verity { data_blocks: found.data_blocks, hash_start: 1, root_hash, salt },
        data_partition: data.guid.to_string(),
        hash_partition: hashes.guid.to_string(),
    };
    verify::disk(bytes, &root).len()
}

/// An initrd, or a program for firmware. How many files or sections it has.
///
/// # Errors
/// What is damaged.
pub fn image(bytes: &[u8]) -> Result<usize> {
    match contents::kind(bytes) {
        Some(Kind::Archive(_)) => Ok(contents::tree(bytes)?.iter().count()),
        _ => Ok(pe::sections(bytes)?.len()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::outputs::compress::Compression;
    use crate::outputs::{Disk, cpio};
    use crate::tree::{Node, Tree};

    static TREE: LazyLock<Tree> = LazyLock::new(|| {
        let mut tree = Tree::default();
        tree.add("/init", Node::File(0o755, vec![7; 5000])).unwrap();
        tree.add("/bin", Node::Symlink("usr/bin".into())).unwrap();
        tree
    });

    static DISK: LazyLock<Vec<u8>> = LazyLock::new(|| Disk::default().pack(&TREE).unwrap().0);
    use crate::packages::made;

    const RECIPE: &str = "name = \"x\"\ndescription = \"\"\nextends = \"y\"\npolicy = \"deny\"\npackages = [\"aa\"]\n[usr]\nprograms = [\"/usr/a\"]\n\
                          [[files]]\npath = \"/a\"\nmode = \"0644\"\ncontent = \"\"\n[[users]]\nname = \"u\"\nuid = 1\ngid = 1\n\
                          [[helpers]]\nname = \"h\"\nprogram = \"/usr/a\"\n[outputs]\nuki = true\n[kernel]\nparameters = [\"a=b\"]\n";

    const LOCK: &str = "version = 1\n[[archives]]\nsuite = \"s\"\ndate = \"d\"\nkey = \"k\"\n[[packages]]\nname = \"aa\"\nversion = \"1\"\n\
                        architecture = \"all\"\nsource = \"aa 1\"\nfile = \"pool/a.deb\"\nsize = 7\n\
                        sha256 = \"abababababababababababababababababababababababababababababababab\"\n";

    /// The text with some of its bytes changed, and something at its end.
    fn like(text: &'static str) -> impl Strategy<Value = String> {
        let changes = proptest::collection::vec((0..text.len(), any::<u8>()), 0..4);
        (changes, "\\PC{0,20}").prop_map(move |(changes, tail)| {
            let mut bytes = text.as_bytes().to_vec();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            format!("{}{tail}", String::from_utf8_lossy(&bytes))
        })
    }

    proptest! {
        #[test]
        fn no_recipe_panics(text in like(RECIPE)) {
            let _ = recipe(&text); // an error or a recipe
        }

        #[test]
        fn no_lock_panics(text in like(LOCK)) {
            let _ = lock(&text);
        }

        #[test]
        fn no_package_panics(changes in proptest::collection::vec((0..2000usize, any::<u8>()), 1..4), cut in 0..2000usize) {
            let mut bytes = made::deb(&["./bin/sh", "./usr/bin/dash -> sh", "./usr/b = ./bin/sh"]);
            let length = bytes.len();
            changes.into_iter().for_each(|(at, byte)| bytes[at % length] = byte);
            let _ = deb(&bytes);
            let _ = deb(&bytes[..cut.min(length)]);
        }

        #[test]
        fn no_change_of_a_disks_partitions_goes_unseen(place in any::<prop::sample::Index>(), bits in 1..=u8::MAX, which in 0..2usize) {
            let mut bytes = DISK.clone();
            let partition = gpt::read(&bytes).unwrap().partitions.swap_remove(which);
            let length = partition.of(&bytes).unwrap().len();
            bytes[partition.first as usize * gpt::SECTOR + place.index(length)] ^= bits;
            // An identity of the tree stands for nothing.
            let in_identity = which == 1 && (16..32).contains(&place.index(length));
            prop_assert!(in_identity || disk(&bytes) > 0);
        }

        #[test]
        fn no_disk_panics(changes in proptest::collection::vec((0..20_000usize, any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
            let mut bytes = DISK.clone();
            changes.into_iter().for_each(|(at, byte)| bytes[at % 20_000] = byte);
            disk(&bytes);
            disk(&DISK[..cut.index(DISK.len())]);
        }

        #[test]
        fn no_initrd_panics(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), packed in any::<bool>()) {
            let archive = cpio::archive(&TREE).unwrap();
            let mut bytes = if packed { Compression::Lz4 } else { Compression::None }.apply(archive).unwrap();
            let length = bytes.len();
            changes.into_iter().for_each(|(at, byte)| bytes[at.index(length)] = byte);
            let _ = image(&bytes);
        }
    }

    #[test]
    fn what_makes_sense_is_taken() {
        recipe(&RECIPE.replace("extends = \"y\"\n", "")).unwrap();
        lock(LOCK).unwrap();
        assert_eq!(deb(&made::deb(&["./bin/sh"])).unwrap(), 1);
        assert_eq!(disk(&DISK), 0);
        assert_eq!(image(&cpio::archive(&TREE).unwrap()).unwrap(), 2);
    }
}
