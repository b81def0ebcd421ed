//! Storages on disks, for which loop devices stand.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use super::tests::World;
use super::*;

const MIB: u64 = 1 << 20;

/// A loop device, which is given back whatever becomes of the test.
struct Loop {
    node: String,
    file: tempfile::NamedTempFile,
}

impl Loop {
    fn new(file: tempfile::NamedTempFile) -> Option<Loop> {
        let made = Command::new("losetup").args(["-f", "--show"]).arg(file.path()).output();
        let Some(made) = made.ok().filter(|made| made.status.success()) else {
            println!("skipped: no loop device");
            return None;
        };
        Some(Loop { node: String::from_utf8(made.stdout).unwrap().trim().into(), file })
    }

    fn empty(bytes: u64) -> Option<Loop> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        Loop::new(file)
    }

    fn ext4() -> Option<Loop> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 * MIB).unwrap();
        place::make_file_system(file.path(), 16 * MIB).unwrap();
        Loop::new(file)
    }

    /// A file of that name, which says so, and one that says so under a name that all have.
    fn erofs(name: &str) -> Option<Loop> {
        let (layer, file) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        for file in [name, "all"] {
            fs::write(layer.path().join(file), name).unwrap();
        }
        nacre_pull::erofs::write(layer.path(), file.as_file(), [7; 16]).unwrap();
        Loop::new(file)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup").args(["-d", &self.node]).status().unwrap();
    }
}

fn options(options: &[&str]) -> Vec<String> {
    options.iter().map(|option| (*option).into()).collect()
}

#[test]
fn a_disk_is_made_a_file_system_when_asked_for_and_keeps_it() {
    World::enter(async |world| {
        let Some(disk) = Loop::empty(16 * MIB) else { return };
        let mut wanted = world.storage("blk", "volume");
        wanted.source = disk.node.clone();
        wanted.options = options(&["nodev", "noatime"]);
        // There is none yet.
        let error = world.prepare(std::slice::from_ref(&wanted)).await.unwrap_err();
        assert!(error.to_string().contains("(type ext4)"), "{error}");
        wanted.driver_options = options(&["create_filesystem"]);
        let prepared = world.prepare(std::slice::from_ref(&wanted)).await.unwrap();
        fs::write(world.dir.join("volume/kept"), "kept").unwrap();
        prepared.release().unwrap();
        assert_eq!(world.left(), [""; 0]);
        wanted.driver_options.clear();
        wanted.driver = "mmioblk".into();
        wanted.fstype = "ext4".into();
        let prepared = world.prepare(std::slice::from_ref(&wanted)).await.unwrap();
        assert_eq!(fs::read_to_string(world.dir.join("volume/kept")).unwrap(), "kept");
        prepared.release().unwrap();
    });
}

#[test]
fn what_is_to_be_encrypted_and_cannot_be_is_not_mounted() {
    World::enter(async |world| {
        let Some(disk) = Loop::empty(16 * MIB) else { return };
        let mut wanted = world.storage("blk", "volume");
        wanted.source = disk.node.clone();
        wanted.driver_options = options(&["encryption_key=ephemeral"]);
        assert!(world.prepare(std::slice::from_ref(&wanted)).await.unwrap_err().is_invalid());
        wanted.driver_options.push("create_filesystem".into());
        match world.prepare(std::slice::from_ref(&wanted)).await {
            Ok(prepared) => {
                fs::write(world.dir.join("volume/secret"), "not to be seen".repeat(1000)).unwrap();
                rustix::fs::syncfs(fs::File::open(world.dir.join("volume")).unwrap()).unwrap();
                assert!(!fs::read(disk.file.path()).unwrap().windows(14).any(|bytes| bytes == b"not to be seen"));
                prepared.release().unwrap();
            }
            Err(error) => {
                println!("skipped: {}", crate::chain(&error));
                let mut first = [1; 4096];
                disk.file.as_file().read_exact_at(&mut first, 0).unwrap();
                assert_eq!(first, [0; 4096]);
            }
        }
        assert_eq!(world.left(), [""; 0]);
    });
}

#[test]
fn disks_that_make_no_sense_are_refused_before_they_are_looked_for() {
    World::enter(async |world| {
        for (driver, source, fstype) in [
            ("blk", "no path", "ext4"),
            ("scsi", "1", "ext4"),
            ("nvdimm", "pmem0", "ext4"),
            ("blk", "/dev/loop0", "ntfs"),
        ] {
            let mut wanted = world.storage(driver, "volume");
            (wanted.source, wanted.fstype) = (source.into(), fstype.into());
            assert!(world.prepare(&[wanted]).await.unwrap_err().is_invalid(), "{driver} {source}");
        }
        let mut absent = world.storage("blk", "volume");
        absent.source = "/dev/noSuchDisk".into();
        let error = world.prepare(&[world.storage("local", "before"), absent]).await.unwrap_err();
        assert!(error.is_deadline() && error.to_string().contains("noSuchDisk"), "{error}");
        assert_eq!(world.left(), [""; 0]);
    });
}

/// One of the layers of a group.
fn layer(world: &World, disk: &Loop, fstype: &str, more: &[&str]) -> Storage {
    let mut layer = world.storage("blk", "root");
    (layer.source, layer.fstype) = (disk.node.clone(), fstype.into());
    layer.options = [options(&["X-kata.multi-layer=true"]), options(more)].concat();
    layer
}

#[test]
fn layers_on_disks_become_one_file_system_and_come_apart_again() {
    World::enter(async |world| {
        let (Some(rw), Some(a), Some(b)) = (Loop::ext4(), Loop::erofs("a"), Loop::erofs("b")) else { return };
        let group = [
            layer(
                world,
                &rw,
                "ext4",
                &["rw", "X-kata.overlay-upper", "X-kata.mkdir.path={{ mount 0 }}/upper/made:0750"],
            ),
            world.storage("local", "other"),
            layer(world, &a, "erofs", &["ro", "X-kata.overlay-lower"]),
            layer(world, &b, "erofs", &["ro", "X-kata.overlay-lower"]),
        ];
        let root = world.dir.join("root");
        let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
        let prepared = world.prepare(&group).await.unwrap();
        assert_eq!([read("a"), read("b"), read("all")], ["a", "b", "a"]);
        assert!(root.join("made").is_dir());
        fs::write(root.join("kept"), "kept").unwrap();
        prepared.release().unwrap();
        assert_eq!(world.left(), ["scratch"]);
        // What was written is on the disk; without one it is gone with the container.
        let prepared = world.prepare(&group).await.unwrap();
        assert_eq!(read("kept"), "kept");
        prepared.release().unwrap();
        let prepared = world.prepare(&group[1..]).await.unwrap();
        assert!(!root.join("kept").exists());
        fs::write(root.join("all"), "new").unwrap();
        prepared.release().unwrap();
        assert!(fs::read_dir(world.scratch.join(".storages")).unwrap().next().is_none());
    });
}

#[test]
fn a_layer_that_is_wrong_leaves_none_of_the_others() {
    World::enter(async |world| {
        let (Some(rw), Some(a)) = (Loop::ext4(), Loop::erofs("a")) else { return };
        let upper = layer(world, &rw, "ext4", &["X-kata.overlay-upper"]);
        let lower = layer(world, &a, "erofs", &["X-kata.overlay-lower"]);
        let mut elsewhere = lower.clone();
        elsewhere.mount_point.push('x');
        let bad = |more: &[&str]| layer(world, &a, "erofs", more);
        let outside = layer(world, &rw, "ext4", &["X-kata.overlay-upper", "X-kata.mkdir.path={{ mount 0 }}/../x"]);
        for group in [
            vec![upper.clone(), lower.clone(), layer(world, &rw, "erofs", &["X-kata.overlay-lower"])],
            vec![upper.clone(), upper.clone(), lower.clone()],
            vec![upper.clone(), elsewhere],
            vec![upper.clone(), bad(&["X-kata.gpt-partitioned=true"])],
            vec![upper.clone(), bad(&["X-kata.gpt-partitioned=true", "X-kata.partition-number=1"])],
            vec![upper.clone(), lower.clone(), bad(&["X-kata.dmverity.roothash=00"])],
            vec![outside, lower],
            vec![upper],
        ] {
            assert!(world.prepare(&group).await.is_err(), "{group:?}");
            assert_eq!(world.left().into_iter().filter(|name| name != "scratch").collect::<Vec<_>>(), [""; 0]);
        }
        assert!(fs::read_dir(world.scratch.join(".storages")).unwrap().next().is_none());
    });
}

/// A tree of digests that is not the disk's is noticed, and one that is can be read.
#[test]
fn a_layer_is_read_as_its_root_hash_has_it_or_not_at_all() {
    if !Path::new("/dev/mapper/control").exists() {
        return println!("skipped: no device mapper");
    }
    World::enter(async |world| {
        let (layer_of, file) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        fs::write(layer_of.path().join("a"), "a".repeat(10_000)).unwrap();
        let blocks = nacre_pull::erofs::write(layer_of.path(), file.as_file(), [7; 16]).unwrap();
        let root: String =
            nacre_pull::verity::append(file.as_file(), blocks).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        let Some(disk) = Loop::new(file) else { return };
        let (offset, hash) =
            (format!("X-kata.dmverity.hashoffset={}", blocks * 4096), format!("X-kata.dmverity.roothash={root}"));
        let on = ["X-kata.overlay-lower", "X-kata.dmverity-enabled=true", "X-kata.dmverity.no-superblock=true"];
        let verified = |hash: &str| layer(world, &disk, "erofs", &[&on[..], &[&offset, hash]].concat());
        let prepared = world.prepare(&[verified(&hash)]).await.unwrap();
        assert_eq!(fs::read_to_string(world.dir.join("root/a")).unwrap().len(), 10_000);
        prepared.release().unwrap();
        assert!(world.prepare(&[verified(&hash.replace(&root, &"00".repeat(32)))]).await.is_err());
    });
}
