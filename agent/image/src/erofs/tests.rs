use super::*;
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::process::Command;

const UUID: [u8; 16] = [7; 16];

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: layers are made by root");
    }
    root
}

/// The image of what is below `root`.
fn image(root: &Path) -> (tempfile::NamedTempFile, u64) {
    let image = tempfile::NamedTempFile::new().unwrap();
    let blocks = write(root, image.as_file(), UUID).unwrap();
    assert_eq!(image.as_file().metadata().unwrap().len(), blocks * BLOCK as u64);
    (image, blocks)
}

fn bytes(root: &Path) -> Vec<u8> {
    fs::read(image(root).0.path()).unwrap()
}

/// The image, mounted by this kernel at no place in the tree.
fn mounted(image: &File) -> Option<OwnedFd> {
    let mount = || -> std::io::Result<_> {
        let device = nacre_sys::loop_device::attach_read_only(image)?;
        let erofs = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_flag(&erofs, "ro")?;
        fsconfig_set_string(&erofs, "source", &device.path)?;
        fsconfig_create(&erofs)?;
        Ok(rustix::mount::fsmount(&erofs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    };
    match mount() {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NODEV | Errno::NOENT | Errno::PERM)) => {
            println!("skipped: mount an EROFS image from a loop device: {error}");
            None
        }
        other => Some(other.unwrap()),
    }
}

/// All that can be seen of a file.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    mtime: (i64, i64),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    content: String,
    /// The first of its names.
    same: Option<PathBuf>,
}

fn look(root: &Path, path: &Path, first: &mut BTreeMap<u64, PathBuf>) -> Seen {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full).unwrap();
    let kind = FileType::from_raw_mode(meta.mode());
    let content = match kind {
        FileType::RegularFile => digest(&full),
        FileType::Symlink => format!("{:?}", fs::read_link(&full).unwrap()),
        _ => String::new(),
    };
    let whiteout = kind == FileType::CharacterDevice && meta.rdev() == 0;
    let several = meta.nlink() > 1 && kind != FileType::Directory;
    let same = several.then(|| first.entry(meta.ino()).or_insert(path.to_path_buf()).clone());
    Seen {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        links: meta.nlink(),
        device: meta.rdev(),
        mtime: if whiteout { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) },
        xattrs: xattrs(&full),
        content,
        same,
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut buffer = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let names = buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    all.sort();
    all
}

/// The size and the digest of a file of any length.
fn digest(path: &Path) -> String {
    let file = File::open(path).unwrap();
    let (size, mut hash) = (file.metadata().unwrap().len(), Sha256::new());
    if size < 64 << 20 {
        hash.update(fs::read(path).unwrap());
    }
    // Of a very large one, its ends and its middle.
    for at in [0, size / 2, size.saturating_sub(99)] {
        let mut piece = [0; 99];
        let n = file.read_at(&mut piece, at).unwrap();
        hash.update(&piece[..n]);
    }
    format!("{size} {}", hex::encode(hash.finalize()))
}

/// All that is below `root`, by path.
fn listing(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut all, mut first, mut left) = (BTreeMap::new(), BTreeMap::new(), vec![PathBuf::from(".")]);
    while let Some(path) = left.pop() {
        if path != Path::new(".") {
            all.insert(path.clone(), PathBuf::new());
        }
        if fs::symlink_metadata(root.join(&path)).unwrap().is_dir() {
            left.extend(fs::read_dir(root.join(&path)).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
    }
    all.into_keys().map(|path| (path.clone(), look(root, &path, &mut first))).collect()
}

fn fsck(image: &Path) {
    match Command::new("fsck.erofs").arg("-d0").arg(image).output() {
        Ok(output) => assert!(output.status.success() && output.stderr.is_empty(), "{output:?}"),
        Err(error) => println!("skipped: fsck.erofs: {error} (erofs-utils)"),
    }
}

/// What `root` holds is what its image holds, in the eyes of this kernel and of EROFS' own tools.
fn check(root: &Path) {
    let (image, _) = image(root);
    fsck(image.path());
    let Some(mount) = mounted(image.as_file()) else { return };
    let found = listing(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd())));
    let expected = listing(root);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (path, expected) in &expected {
        assert_eq!(&found[path], expected, "{}", path.display());
    }
}

/// Gives a file a look of its own.
fn dress(path: &Path, mode: u32, owner: u32, mtime: (i64, i64), xattrs: &[(&str, Vec<u8>)]) {
    let (uid, gid) = (Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner.wrapping_add(1))));
    rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    if !fs::symlink_metadata(path).unwrap().is_symlink() {
        rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty()).unwrap();
    }
    for (name, value) in xattrs {
        rustix::fs::lsetxattr(path, *name, value, XattrFlags::empty()).unwrap();
    }
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn node(path: &Path, kind: FileType, device: (u32, u32)) {
    let device = rustix::fs::makedev(device.0, device.1);
    rustix::fs::mknodat(CWD, path, kind, Mode::empty(), device).unwrap();
}

#[test]
fn every_kind_of_file_is_as_it_was() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, size) in [("empty", 0), ("one", 1), ("room", 4032), ("no-room", 4033), ("block", 4096), ("more", 70_001)]
    {
        fs::write(at(name), vec![b'x'; size]).unwrap();
    }
    dress(
        &at("one"),
        0o6755,
        70_000,
        (-1, 999_999_999),
        &[("user.a", vec![1]), ("user.", vec![]), ("user.b", vec![2; 200])][..1],
    );
    fs::hard_link(at("one"), at("zzz")).unwrap();
    let capability = hex::decode("0100000200040000000000000000000000000000").unwrap();
    dress(&at("more"), 0o755, u32::MAX - 2, (1 << 33, 1), &[("security.capability", capability)]);
    let access = hex::decode(
        "0200000001000600ffffffff02000400e80300000400040 0ffffffff10000600ffffffff20000400ffffffff".replace(' ', ""),
    );
    let (plain, empty) = (at("dir"), at("dir/empty"));
    fs::create_dir_all(&empty).unwrap();
    dress(
        &plain,
        0o1777,
        5,
        (1, 2),
        &[("trusted.overlay.opaque", b"y".to_vec()), ("system.posix_acl_default", access.unwrap())],
    );
    node(&at("whiteout"), FileType::CharacterDevice, (0, 0));
    node(&at("null"), FileType::CharacterDevice, (1, 3));
    node(&at("disk"), FileType::BlockDevice, (259, 300_000));
    node(&at("fifo"), FileType::Fifo, (0, 0));
    node(&at("socket"), FileType::Socket, (0, 0));
    for (name, target) in [("short", "a".to_string()), ("long", "b/".repeat(2000))] {
        std::os::unix::fs::symlink(target, at(name)).unwrap();
        dress(&at(name), 0, 9, (3, 4), &[("trusted.overlay.a", vec![7; 50])]);
    }
    // Names that sort before and between the directory's own.
    for name in ["!", "-", "...", ".a", "\u{fc}", &"n".repeat(255)] {
        fs::write(at(name), name).unwrap();
    }
    assert!(listing(dir.path()).values().filter(|seen| !seen.xattrs.is_empty()).count() >= 5);
    check(dir.path());
}

#[test]
fn an_empty_layer_is_an_image_too() {
    let dir = tempfile::tempdir().unwrap();
    check(dir.path());
}

#[test]
fn a_directory_of_many_names_is_searched_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..3000 {
        fs::write(dir.path().join(format!("{number}{}", "-".repeat(number % 90))), number.to_string()).unwrap();
    }
    check(dir.path());
}

#[test]
fn many_attributes_and_large_ones_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    // ext4 takes less than a block of them.
    for (name, size) in [("a", 0), ("b", 600), ("c", 9000)] {
        let path = dir.path().join(name);
        fs::write(&path, vec![b'x'; size]).unwrap();
        for number in 0..12 {
            let value = vec![number; 200];
            if let Err(error) = rustix::fs::lsetxattr(&path, format!("user.{number}"), &value, XattrFlags::empty()) {
                return println!("skipped: this file system takes no attributes: {error}");
            }
        }
    }
    check(dir.path());
}

#[test]
fn holes_take_no_room_and_large_files_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    for (name, size, pieces) in [
        ("hole", 1 << 20, &[][..]),
        ("start", (1 << 20) + 5, &[0][..]),
        ("tail", (1 << 20) + 5, &[(1 << 20) + 1][..]),
        ("chunks", (3 << 16) + 4096 + 7, &[1 << 16, (3 << 16) + 5000][..]),
        ("large", (5 << 30) + 12_345, &[5, (4 << 30) + 17, (5 << 30) + 12_000][..]),
    ] {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_len(size).unwrap();
        for at in pieces {
            file.write_all_at(b"data", *at).unwrap();
        }
    }
    let (_, blocks) = image(dir.path());
    assert!(blocks < 1000, "{blocks} blocks");
    check(dir.path());
}

#[test]
fn the_same_layer_is_the_same_image_whatever_holds_it() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let fill = |dir: &Path, names: &[&str]| {
        for name in names {
            fs::write(dir.join(name), [&b"x"[..], &vec![0; 200_000], b"x"].concat()).unwrap();
            dress(&dir.join(name), 0o644, 0, (1, 1), &[]);
        }
        fs::hard_link(dir.join("a"), dir.join("d")).unwrap();
        dress(dir, 0o755, 0, (5, 0), &[]);
    };
    fill(one.path(), &["a", "b", "c"]);
    fill(other.path(), &["c", "b", "a"]);
    // Its holes are there and not only zeros.
    let file = File::options().write(true).open(other.path().join("b")).unwrap();
    file.set_len(1).unwrap();
    file.set_len(200_001).unwrap();
    file.write_all_at(b"x", 200_001).unwrap();
    dress(&other.path().join("b"), 0o644, 0, (1, 1), &[]);
    assert!(bytes(one.path()) == bytes(other.path()));
}

/// A file of a random tree.
#[derive(Debug, Clone)]
struct Random {
    dir: usize,
    name: Vec<u8>,
    kind: u8,
    size: usize,
    mode: u32,
    owner: u32,
    mtime: (i64, i64),
    xattr: Option<Vec<u8>>,
}

fn random() -> impl Strategy<Value = Random> {
    let name = proptest::collection::vec(prop_oneof![1..=46u8, 48..=255u8], 1..40);
    let mtime = (-5_000_000_000..50_000_000_000i64, 0..1_000_000_000i64);
    let xattr = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..1000));
    let size = prop_oneof![0..5000usize, 0..200_000usize];
    (0..8usize, name, 0..7u8, size, 0..0o10_000u32, 0..u32::MAX - 2, mtime, xattr)
        .prop_map(|(dir, name, kind, size, mode, owner, mtime, xattr)| Random {
            dir,
            name,
            kind,
            size,
            mode,
            owner,
            mtime,
            xattr,
        })
        .prop_filter("a name", |random| !matches!(&random.name[..], b"." | b".."))
}

fn grow(root: &Path, files: &[Random]) {
    let (mut dirs, mut made) = (vec![root.to_path_buf()], Vec::new());
    for random in files {
        let path = dirs[random.dir % dirs.len()].join(std::ffi::OsStr::from_bytes(&random.name));
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match random.kind {
            0 => {
                fs::create_dir(&path).unwrap();
                dirs.push(path.clone());
            }
            1 => std::os::unix::fs::symlink("t".repeat(random.size % 4000 + 1), &path).unwrap(),
            2 => node(&path, FileType::CharacterDevice, (random.owner % 4096, random.owner % (1 << 20))),
            3 if made.last().is_some_and(|last: &PathBuf| fs::hard_link(last, &path).is_ok()) => continue,
            _ => fs::write(&path, vec![random.kind - 3; random.size]).unwrap(),
        }
        made.push(path);
    }
    // Directories last, for what is made in them changes their time.
    for (path, random) in made.iter().rev().zip(files) {
        let xattr = random.xattr.clone().map(|value| ("trusted.overlay.x", value));
        dress(path, random.mode, random.owner, random.mtime, xattr.as_slice());
    }
}

#[test]
fn an_inode_at_the_very_end_is_whole_in_the_eyes_of_erofs_own_tools() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("z"), "").unwrap();
    // One of these has the last inode end where its block does.
    for length in (1..4000).step_by(32) {
        let link = dir.path().join("y");
        let _ = fs::remove_file(&link); // the first time there is none
        std::os::unix::fs::symlink("t".repeat(length), &link).unwrap();
        fsck(image(dir.path()).0.path());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_is_read_back_as_it_was(files in proptest::collection::vec(random(), 0..60)) {
        if is_root() {
            let dir = tempfile::tempdir().unwrap();
            grow(dir.path(), &files);
            check(dir.path());
        }
    }
}
