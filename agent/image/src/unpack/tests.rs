use super::*;
use crate::Kind;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use tar::EntryType;

/// An entry of a hand-made archive: the tar crate's builder refuses the bad ones.
fn entry(path: &str, kind: EntryType, mode: u32, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    {
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    if matches!(kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(path: &str, data: &str) -> Vec<u8> {
    entry(path, EntryType::Regular, 0o644, "", data.as_bytes())
}

fn dir(path: &str) -> Vec<u8> {
    entry(path, EntryType::Directory, 0o755, "", b"")
}

fn symlink(path: &str, to: &str) -> Vec<u8> {
    entry(path, EntryType::Symlink, 0o777, to, b"")
}

fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// An entry whose path and target may be long.
fn long(path: &str, kind: EntryType, link: &str) -> Vec<u8> {
    let records = [pax("path", path.as_bytes()), pax("linkpath", link.as_bytes())].concat();
    [entry("pax", EntryType::XHeader, 0, "", &records), entry("x", kind, 0o755, "", b"")].concat()
}

/// Unpacks into `layer` inside a directory of its own, so that an escape would be seen.
fn unpacked(entries: &[Vec<u8>]) -> (tempfile::TempDir, Result<()>) {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("layer");
    fs::create_dir(&root).unwrap();
    let mut archive = entries.concat();
    archive.extend([0; 1024]);
    let result = unpack(&archive[..], &root);
    (outer, result)
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: layers are unpacked by root");
    }
    root
}

#[test]
fn a_directorys_time_is_its_last_entrys_and_else_the_same_whenever_it_is_unpacked() {
    if !is_root() {
        return;
    }
    let mut later = dir("said");
    later[136..147].copy_from_slice(b"00000000007");
    later[148..156].fill(b' ');
    let sum: u32 = later[..512].iter().map(|byte| u32::from(*byte)).sum();
    later[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let (outer, result) = unpacked(&[file("made/on/the/way", "x"), dir("said"), file("said/a", "x"), later]);
    result.unwrap();
    let time = |path: &str| fs::metadata(outer.path().join("layer").join(path)).unwrap().mtime();
    assert_eq!([time("."), time("made"), time("made/on"), time("said")], [0, 0, 0, 7]);
}

#[test]
fn files_come_with_their_mode_time_and_links() {
    if !is_root() {
        return;
    }
    let (outer, result) = unpacked(&[
        dir("bin/"),
        entry("bin/su", EntryType::Regular, 0o4755, "", b"program"),
        entry("bin/su2", EntryType::Link, 0o755, "bin/su", b""),
        symlink("bin/sh", "su"),
        entry("null", EntryType::Char, 0o666, "", b""),
        entry("pipe", EntryType::Fifo, 0o600, "", b""),
        file("without/parents/x", "y"),
    ]);
    result.unwrap();
    let root = outer.path().join("layer");
    let su = fs::metadata(root.join("bin/su")).unwrap();
    assert_eq!((su.permissions().mode() & 0o7777, su.mtime(), su.nlink()), (0o4755, 1_000_000_000, 2));
    assert_eq!(fs::metadata(root.join("bin")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::read_link(root.join("bin/sh")).unwrap(), Path::new("su"));
    assert!(fs::metadata(root.join("null")).unwrap().file_type().is_char_device());
    assert!(fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_to_string(root.join("without/parents/x")).unwrap(), "y");
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    if !is_root() {
        return;
    }
    let (outer, result) = unpacked(&[
        file("etc/.wh.gone", ""),
        dir("opt/"),
        file("opt/.wh..wh..opq", ""),
        file("opt/new", "x"),
        file(".wh..wh.plnk", ""),
        file(".wh.replaced", ""),
        dir("replaced/"),
    ]);
    result.unwrap();
    let root = outer.path().join("layer");
    let gone = fs::symlink_metadata(root.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for opaque in ["opt", "replaced"] {
        let mut value = [0; 4];
        let length = rustix::fs::getxattr(root.join(opaque), "trusted.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..length], b"y", "{opaque}");
    }
    assert!(!root.join(".wh..wh.plnk").exists());
}

#[test]
fn nothing_leaves_the_layer() {
    if !is_root() {
        return;
    }
    for (what, entries) in [
        ("dot-dot", vec![file("../escaped", "x")]),
        ("inner dot-dot", vec![dir("a/"), file("a/../../escaped", "x")]),
        ("hard link out", vec![entry("l", EntryType::Link, 0o644, "../../../../etc/passwd", b"")]),
        ("hard link to what is not there", vec![entry("l", EntryType::Link, 0o644, "etc/passwd", b"")]),
        ("whiteout of dot-dot", vec![file(".wh...", "")]),
        ("absolute hard link out", vec![entry("l", EntryType::Link, 0o644, "/etc/passwd", b"")]),
        ("hard link through a link out", vec![symlink("e", "/etc"), entry("l", EntryType::Link, 0, "e/passwd", b"")]),
        ("hard link to itself", vec![file("a", "x"), entry("a", EntryType::Link, 0o644, "./a", b"")]),
        ("hard link to a directory", vec![dir("d"), entry("l", EntryType::Link, 0o644, "d", b"")]),
        ("whiteout of nothing", vec![file("a/.wh.", "")]),
        ("root that is a file", vec![file("./", "").into_iter().chain(file("/", "x")).collect()]),
        ("root that is a link", vec![symlink(".", "/etc")]),
        ("file as parent", vec![file("a", "x"), file("a/escaped", "x")]),
        ("links in a circle", vec![symlink("a", "b"), symlink("b", "a"), file("a/escaped", "x")]),
        ("dangling link as parent", vec![symlink("a", "/nowhere"), file("a/escaped", "x")]),
        (
            "disguised whiteout",
            vec![{
                let mut header = entry("w", EntryType::Char, 0o644, "", b"");
                header[329..345].copy_from_slice(&[&b"0000000"[..], &[0], b"0000000", &[0]].concat());
                let mut fixed = tar::Header::from_byte_slice(&header[..512]).clone();
                fixed.set_cksum();
                fixed.as_bytes().to_vec()
            }],
        ),
    ] {
        let (outer, result) = unpacked(&entries);
        assert_eq!(result.unwrap_err().kind, Kind::BadImage, "{what}");
        assert!(!outer.path().join("escaped").exists(), "{what}");
    }
}

#[test]
fn a_file_with_holes_keeps_them() {
    if !is_root() {
        return;
    }
    let records = [
        pax("GNU.sparse.name", b"disk"),
        pax("GNU.sparse.size", b"1073741824"),
        pax("GNU.sparse.map", b"0,3,1048576,3,536870912,3"),
    ];
    let (outer, result) = unpacked(&[
        entry("pax", EntryType::XHeader, 0, "", &records.concat()),
        file("GNUSparseFile.0/disk", "oneTWOtri"),
        file("after", "x"),
    ]);
    result.unwrap();
    let root = outer.path().join("layer");
    let disk = fs::File::open(root.join("disk")).unwrap();
    let meta = disk.metadata().unwrap();
    assert_eq!((meta.len(), meta.mtime()), (1 << 30, 1_000_000_000));
    assert!(meta.blocks() * 512 < 1 << 20, "its holes are filled");
    for (offset, expected) in [(0, b"one\0"), (1 << 20, b"TWO\0"), (512 << 20, b"tri\0"), ((1 << 30) - 4, &[0; 4])] {
        let mut found = [1; 4];
        std::os::unix::fs::FileExt::read_exact_at(&disk, &mut found, offset).unwrap();
        assert_eq!(&found, expected);
    }
    assert_eq!(fs::read_to_string(root.join("after")).unwrap(), "x");
    assert!(!root.join("GNUSparseFile.0").exists());
}

#[test]
fn a_link_as_parent_is_followed_inside_the_layer_only() {
    if !is_root() {
        return;
    }
    let (outer, result) =
        unpacked(&[dir("inside/"), symlink("up", "../../../inside"), file("up/x", "y"), file("/abs", "z")]);
    result.unwrap();
    let root = outer.path().join("layer");
    assert_eq!(fs::read_to_string(root.join("inside/x")).unwrap(), "y");
    assert_eq!(fs::read_to_string(root.join("abs")).unwrap(), "z");
    assert!(!outer.path().join("inside").exists());
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere_else() {
    if !is_root() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let (outer, result) = unpacked(&[
        dir("a/"),
        file("a/before", "x"),
        symlink("a", out.path().to_str().unwrap()),
        dir(&out.path().to_str().unwrap()[1..]),
        file("a/after", "x"),
        file("a/.wh.gone", ""),
        entry("a/device", EntryType::Char, 0o666, "", b""),
        entry("a/hard", EntryType::Link, 0o644, "a/after", b""),
    ]);
    result.unwrap();
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    assert!(!outer.path().join("layer/a/before").exists());
}

#[test]
fn paths_that_add_up_through_links_have_an_end() {
    if !is_root() {
        return;
    }
    let deep = ["d"; 100].join("/");
    let steps = (0..5).flat_map(|step| {
        let link = format!("l{step}");
        let way = if step == 0 { deep.clone() } else { format!("l{}/{deep}", step - 1) };
        let there = vec!["d"; 100 * (step + 1)].join("/");
        [long(&way, EntryType::Directory, ""), long(&link, EntryType::Symlink, &there)]
    });
    let (_outer, result) = unpacked(&steps.collect::<Vec<_>>());
    assert_eq!(result.unwrap_err().kind, Kind::BadImage);
}

#[test]
fn capabilities_and_attributes_of_the_images_own_are_kept_and_orders_to_our_overlay_are_not() {
    if !is_root() {
        return;
    }
    // cap_net_raw=ep, with a line break among its bytes (linux/capability.h, vfs_cap_data).
    let capability = [1, 0, 0, 2, 10, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records = [
        pax("SCHILY.xattr.security.capability", &capability),
        pax("SCHILY.xattr.user.note", b"hello"),
        pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        pax("SCHILY.xattr.user.overlay.opaque", b"y"),
        pax("mtime", b"1700000000.25"),
    ];
    let (outer, result) =
        unpacked(&[entry("pax", EntryType::XHeader, 0, "", &records.concat()), file("ping", "program")]);
    result.unwrap();
    let ping = outer.path().join("layer/ping");
    let get = |name: &str| {
        let mut value = [0; 64];
        rustix::fs::getxattr(&ping, name, &mut value).map(|length| value[..length].to_vec())
    };
    assert_eq!(get("security.capability").unwrap(), capability);
    assert_eq!(get("user.note").unwrap(), b"hello");
    assert!(get("trusted.overlay.redirect").is_err() && get("user.overlay.opaque").is_err());
    let meta = fs::metadata(&ping).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_700_000_000, 250_000_000));
}

#[test]
fn a_later_entry_replaces_an_earlier_one_and_not_what_a_link_leads_to() {
    if !is_root() {
        return;
    }
    let (outer, result) = unpacked(&[
        file("target", "kept"),
        symlink("a", "target"),
        file("a", "new"),
        dir("d/"),
        file("d/deep/er", "x"),
        file("d", "now a file"),
    ]);
    result.unwrap();
    let root = outer.path().join("layer");
    assert_eq!(fs::read_to_string(root.join("target")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "new");
    assert_eq!(fs::read_to_string(root.join("d")).unwrap(), "now a file");
}

proptest! {
    #[test]
    fn no_archive_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let root = tempfile::tempdir().unwrap();
        let _ = unpack(&bytes[..], root.path());
    }

    #[test]
    fn no_path_makes_names_that_lead_out(path in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(names) = names(&path) {
            let strange = |byte: &u8| matches!(byte, 0 | b'/');
            let plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.iter().any(strange);
            prop_assert!(names.iter().all(|name| plain(name)));
        }
    }
}
