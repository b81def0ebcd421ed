use super::*;
use crate::archive::What;
use crate::archive::tests::{append as add, block, record};
use proptest::prelude::*;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;

/// GNU tar's options for each form.
const FORMS: [&[&str]; 4] = [
    &["--format=gnu"],
    &["--format=pax", "--sparse-version=0.0"],
    &["--format=pax", "--sparse-version=0.1"],
    &["--format=pax", "--sparse-version=1.0"],
];

/// What GNU tar makes of a directory; `None` where there is none.
fn tarred(dir: &Path, name: &str, form: &[&str]) -> Option<Vec<u8>> {
    let tar = Command::new("tar").args(form).arg("--sparse").arg("-C").arg(dir).args(["-cf", "-", name]).output();
    let Some(output) = tar.ok().filter(|output| output.status.success()) else {
        println!("skipped: there is no GNU tar");
        return None;
    };
    Some(output.stdout)
}

fn write_pieces(path: &Path, size: u64, pieces: &[(u64, usize)]) {
    let mut file = std::fs::File::create(path).unwrap();
    for (at, length) in pieces {
        file.seek(SeekFrom::Start(*at)).unwrap();
        file.write_all(&vec![b'x'; *length]).unwrap();
    }
    file.set_len(size).unwrap();
}

/// The whole file that the current entry stands for.
fn whole(archive: &mut Archive<&[u8]>, what: &What) -> Vec<u8> {
    let What::Sparse(map) = what else { panic!("{what:?} is not sparse") };
    let mut file = vec![0; map.size() as usize];
    for piece in map.pieces() {
        archive.read_exact(&mut file[piece.offset as usize..][..piece.length as usize]).unwrap();
    }
    assert_eq!(archive.read(&mut [0]).unwrap(), 0);
    file
}

#[test]
fn what_gnu_tar_writes_is_read_in_each_form() {
    let long = "n".repeat(150);
    let many: Vec<(u64, usize)> = (0..200).map(|piece| (piece * 16384, 4096)).collect();
    for name in ["short", &long] {
        for (size, pieces) in [
            (4 << 20, vec![(0, 1000), (1 << 20, 5000), ((4 << 20) - 10, 10)]),
            (4 << 20, vec![(1 << 20, 4096)]),
            (1 << 20, vec![]),
            (200 * 16384, many.clone()),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join(name);
            write_pieces(&file, size, &pieces);
            for form in FORMS {
                let Some(bytes) = tarred(dir.path(), name, form) else { return };
                assert!((bytes.len() as u64) < size, "{form:?} has no holes");
                let mut archive = Archive::new(&bytes[..]);
                let entry = archive.next().unwrap().unwrap();
                assert_eq!(String::from_utf8(entry.path).unwrap(), name, "{form:?}");
                assert!(whole(&mut archive, &entry.what) == std::fs::read(&file).unwrap(), "{form:?} {size}");
                assert_eq!(archive.next().unwrap(), None, "{form:?}");
            }
        }
    }
}

#[test]
fn an_entry_after_a_sparse_one_is_found_though_nobody_reads_the_data() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    for name in ["d/a", "d/b"] {
        write_pieces(&dir.path().join(name), 1 << 20, &[(8192, 100)]);
    }
    for form in FORMS {
        let Some(bytes) = tarred(dir.path(), "d", form) else { return };
        let mut archive = Archive::new(&bytes[..]);
        let mut names: Vec<Vec<u8>> = std::iter::from_fn(|| archive.next().unwrap()).map(|entry| entry.path).collect();
        names.sort();
        assert_eq!(names, [&b"d/"[..], b"d/a", b"d/b"], "{form:?}");
    }
}

/// The first entry of an archive with these PAX records and this data.
fn pax(records: &[(&str, &str)], kind: EntryType, data: &[u8]) -> Result<Option<crate::archive::Entry>> {
    let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value.as_bytes())).collect();
    let mut bytes = Vec::new();
    add(&mut bytes, &block(EntryType::XHeader, "x", text.len() as u64), &text);
    add(&mut bytes, &block(kind, "x", data.len() as u64), data);
    Archive::new(&bytes[..]).next()
}

fn listed_map(size: &str, map: &str, stored: usize) -> Result<Option<crate::archive::Entry>> {
    pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)], EntryType::Regular, &vec![1; stored])
}

/// The old form: its map, how large the file says it is, and what is stored.
fn old(map: &[(u64, u64)], size: u64, stored: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("x").unwrap();
    header.set_mode(0o644);
    header.set_size(stored);
    let (first, rest) = map.split_at(map.len().min(4));
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    gnu.set_is_extended(!rest.is_empty());
    let set = |fields: &mut [GnuSparseHeader], pieces: &[(u64, u64)]| {
        for (field, (offset, length)) in fields.iter_mut().zip(pieces) {
            field.set_offset(*offset);
            field.set_length(*length);
        }
    };
    set(&mut gnu.sparse, first);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    for (at, chunk) in rest.chunks(21).enumerate() {
        let mut more = GnuExtSparseHeader::new();
        set(&mut more.sparse, chunk);
        more.set_is_extended((at + 1) * 21 < rest.len());
        bytes.extend(more.as_bytes());
    }
    bytes.resize(bytes.len() + stored as usize, 1);
    bytes
}

fn old_map(map: &[(u64, u64)], size: u64, stored: u64) -> Result<Option<crate::archive::Entry>> {
    Archive::new(&old(map, size, stored)[..]).next()
}

fn leading_map(size: &str, data: &[u8]) -> Result<Option<crate::archive::Entry>> {
    let version = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", size)];
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    pax(&version, EntryType::Regular, &data)
}

#[test]
fn a_map_that_makes_no_sense_is_refused() {
    let tib = (MAX_SIZE + 1).to_string();
    let many: Vec<(u64, u64)> = (0..=MAX_PIECES as u64).map(|at| (at, 0)).collect();
    let many_listed = vec!["0,0"; MAX_PIECES + 1].join(",");
    let empty_block = {
        let mut bytes = old(&[(0, 0); 30], 0, 0);
        let second = GnuExtSparseHeader::new();
        bytes[512..1024].copy_from_slice(second.as_bytes());
        bytes[512 + 504] = 1;
        bytes
    };
    assert!(listed_map("10", "0,2,4,2", 4).is_ok() && old_map(&[(0, 2), (4, 2)], 10, 4).is_ok());
    assert!(leading_map("10", b"1\n9\n0\n").is_ok());
    for (what, result) in [
        ("overlap", listed_map("10", "0,3,2,3", 6)),
        ("overlap, old", old_map(&[(0, 3), (2, 3)], 10, 6)),
        ("out of order", listed_map("10", "4,2,0,2", 4)),
        ("beyond the end", listed_map("10", "8,3", 3)),
        ("beyond the end, old", old_map(&[(8, 3)], 10, 3)),
        ("beyond the end, empty", listed_map("10", "11,0", 0)),
        ("less stored", listed_map("10", "0,4", 3)),
        ("more stored", listed_map("10", "0,4", 5)),
        ("sum that overflows", old_map(&[(1, u64::MAX)], u64::MAX, 0)),
        ("number that overflows", listed_map("10", "18446744073709551616,0", 0)),
        ("size that overflows", listed_map("18446744073709551616", "0,0", 0)),
        ("size that is claimed", listed_map(&tib, "0,0", 0)),
        ("size that is claimed, old", old_map(&[], MAX_SIZE + 1, 0)),
        ("size that is missing", pax(&[("GNU.sparse.map", "0,0")], EntryType::Regular, b"")),
        ("half a piece", listed_map("10", "0,0,1", 0)),
        ("no number", listed_map("10", "0,-1", 0)),
        ("too many", listed_map("10", &many_listed, 0)),
        ("too many, old", old_map(&many, MAX_SIZE, 0)),
        ("too many, leading", leading_map("10", [&b"65537\n"[..], &b"0\n0\n".repeat(65537)].concat().as_slice())),
        ("count that lies", leading_map("10", b"2\n0\n0\n")),
        ("count without end", leading_map("10", &[b'1'; 600])),
        ("count that overflows", leading_map("10", b"99999999999999999999\n")),
        ("no map", leading_map("10", b"")),
        ("an empty block", Archive::new(&empty_block[..]).next()),
        ("a cut map", Archive::new(&old(&[(0, 0); 30], 0, 0)[..700]).next()),
        ("no file", pax(&[("GNU.sparse.size", "0")], EntryType::Symlink, b"")),
        ("two maps", pax(&[("GNU.sparse.size", "0")], EntryType::GNUSparse, b"")),
        ("not GNU's", pax(&[], EntryType::GNUSparse, b"")),
        ("a name only", pax(&[("GNU.sparse.name", "a")], EntryType::Regular, b"")),
        ("form to come", pax(&[("GNU.sparse.major", "2"), ("GNU.sparse.size", "0")], EntryType::Regular, b"")),
        ("record to come", pax(&[("GNU.sparse.colour", "red")], EntryType::Regular, b"")),
        ("length alone", pax(&[("GNU.sparse.size", "0"), ("GNU.sparse.numbytes", "0")], EntryType::Regular, b"")),
        ("offset alone", pax(&[("GNU.sparse.size", "0"), ("GNU.sparse.offset", "0")], EntryType::Regular, b"")),
        ("wrong count", pax(&[("GNU.sparse.size", "0"), ("GNU.sparse.numblocks", "1")], EntryType::Regular, b"")),
    ] {
        assert_eq!(result.expect_err(what).kind, crate::Kind::BadImage, "{what}");
    }
}

#[test]
fn the_largest_map_is_read() {
    let map: Vec<(u64, u64)> = (0..MAX_PIECES as u64).map(|at| (at * 2, 1)).collect();
    let entry = old_map(&map, MAX_SIZE, MAX_PIECES as u64).unwrap().unwrap();
    let What::Sparse(map) = entry.what else { panic!() };
    assert_eq!((map.pieces().len(), map.size()), (MAX_PIECES, MAX_SIZE));
}

proptest! {
    #[test]
    fn any_map_ends_in_an_answer_that_holds(
        size in 0..100u64, stored in 0..20u64, map in proptest::collection::vec((0..110u64, 0..20u64), 0..30),
    ) {
        if let Ok(Some(entry)) = old_map(&map, size, stored) {
            let What::Sparse(map) = entry.what else { panic!() };
            let mut end = 0;
            for piece in map.pieces() {
                prop_assert!(piece.offset >= end);
                end = piece.offset + piece.length;
            }
            prop_assert!(end <= size);
        }
    }

    #[test]
    fn any_records_and_any_data_end_in_an_answer(
        records in proptest::collection::vec(("major|minor|size|realsize|name|map|offset|numbytes|numblocks", "[0-9,a]{0,6}"), 0..8),
        one in any::<bool>(), data: Vec<u8>, text in "[0-9\n]{0,600}",
    ) {
        let mut records: Vec<(String, String)> =
            records.into_iter().map(|(key, value)| (format!("GNU.sparse.{key}"), value)).collect();
        if one {
            records.extend([("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")].map(|(a, b)| (a.into(), b.into())));
        }
        let records: Vec<(&str, &str)> = records.iter().map(|(key, value)| (&**key, &**value)).collect();
        let _ = pax(&records, EntryType::Regular, &data);
        let _ = pax(&records, EntryType::Regular, text.as_bytes());
    }

    #[test]
    fn any_header_of_the_old_form_ends_in_an_answer(fields in proptest::collection::vec(any::<u8>(), 126), rest: Vec<u8>) {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNUSparse);
        header.as_mut_bytes()[386..].copy_from_slice(&fields);
        header.set_cksum();
        let bytes = [&header.as_bytes()[..], &rest, &[0x80; 2048]].concat();
        let mut archive = Archive::new(&bytes[..]);
        while let Ok(Some(_)) = archive.next() {}
    }
}
