use super::*;

pub(super) fn block(kind: EntryType, path: &str, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_mode(0o4755);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(size);
    header.set_cksum();
    header
}

pub(super) fn append(archive: &mut Vec<u8>, header: &Header, data: &[u8]) {
    archive.extend(header.as_bytes());
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

pub(super) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

#[test]
fn extensions_apply_to_the_next_entry_only() {
    let pax = [
        record("path", "a/\u{e9}".as_bytes()),
        record("mtime", b"-1.25"),
        record("uid", b"3000000"),
        record("SCHILY.xattr.security.capability", b"\x01\n\x00=\n"),
    ]
    .concat();
    let mut archive = Vec::new();
    append(&mut archive, &block(EntryType::XHeader, "x", pax.len() as u64), &pax);
    append(&mut archive, &block(EntryType::Regular, "short", 3), b"abc");
    append(&mut archive, &block(EntryType::GNULongName, "x", 4), b"long");
    append(&mut archive, &block(EntryType::Directory, "short/", 0), b"");
    append(&mut archive, &block(EntryType::Regular, "old/", 0), b"");

    let mut archive = Archive::new(archive.as_slice());
    let first = archive.next().unwrap().unwrap();
    assert_eq!(first.path, "a/\u{e9}".as_bytes());
    assert_eq!((first.meta.uid, first.meta.gid, first.meta.mode), (3_000_000, 2, 0o4755));
    assert_eq!(first.meta.mtime, Mtime(-2, 750_000_000));
    assert_eq!(first.meta.xattrs, [(b"security.capability".to_vec(), b"\x01\n\x00=\n".to_vec())]);
    let mut data = String::new();
    archive.read_to_string(&mut data).unwrap();
    assert_eq!(data, "abc");
    let second = archive.next().unwrap().unwrap();
    assert_eq!((second.path.as_slice(), &second.what), (b"long".as_slice(), &What::Directory));
    assert_eq!((second.meta.uid, second.meta.mtime), (1, Mtime(3, 0)));
    assert_eq!(archive.next().unwrap().unwrap().what, What::Directory);
    assert_eq!(archive.next().unwrap(), None);
}

#[test]
fn numbers_that_are_left_blank_are_0() {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[0] = b'a';
    let fields = header.as_old_mut();
    (fields.mode, fields.uid, fields.size) = ([0; 8], [b' '; 8], [b' '; 12]);
    (fields.gid, fields.mtime) = ([0; 8], [0; 12]);
    header.set_cksum();
    let entry = Archive::new(header.as_bytes().as_slice()).next().unwrap().unwrap();
    assert_eq!(entry.meta, Meta::default());
}

#[test]
fn devices_have_their_numbers_in_each_dialect() {
    for mut header in [Header::new_ustar(), Header::new_gnu()] {
        header.set_path("null").unwrap();
        header.set_entry_type(EntryType::Char);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        let entry = Archive::new(header.as_bytes().as_slice()).next().unwrap().unwrap();
        assert_eq!(entry.what, What::Char(1, 3));
    }
}

#[test]
fn data_that_nobody_reads_is_skipped() {
    let mut bytes = Vec::new();
    append(&mut bytes, &block(EntryType::Regular, "a", 700), &[1; 700]);
    append(&mut bytes, &block(EntryType::Regular, "b", 0), b"");
    let mut archive = Archive::new(bytes.as_slice());
    archive.next().unwrap();
    assert_eq!(archive.next().unwrap().unwrap().path, b"b");
}

#[test]
fn a_broken_archive_is_refused() {
    let whole = block(EntryType::Regular, "a", 700);
    let mut cut = Vec::new();
    append(&mut cut, &whole, &[1; 100]);
    let mut sum = whole.as_bytes().to_vec();
    sum[0] = b'b';
    let mut huge_extension = Vec::new();
    append(&mut huge_extension, &block(EntryType::GNULongName, "x", MAX_EXTENSION + 1), b"");
    let mut many_extensions = Vec::new();
    let pax = record("SCHILY.xattr.user.a", &[b'x'; 1 << 19]);
    for _ in 0..2 {
        append(&mut many_extensions, &block(EntryType::XHeader, "x", pax.len() as u64), &pax);
    }
    append(&mut many_extensions, &block(EntryType::Regular, "x", 0), b"");
    let mut nobody = Vec::new();
    let pax = record("uid", b"4294967295");
    append(&mut nobody, &block(EntryType::XHeader, "x", pax.len() as u64), &pax);
    append(&mut nobody, &block(EntryType::Regular, "x", 0), b"");
    for (name, bytes) in [
        ("cut data", cut),
        ("cut header", whole.as_bytes()[..300].to_vec()),
        ("wrong checksum", sum),
        ("huge extension", huge_extension),
        ("many extensions", many_extensions),
        ("impossible user", nobody),
    ] {
        let mut archive = Archive::new(bytes.as_slice());
        let walked = std::iter::from_fn(|| archive.next().transpose()).collect::<Result<Vec<_>>>();
        assert!(walked.is_err(), "{name}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_end_in_an_answer(bytes: Vec<u8>, kind: u8, pax: Vec<u8>) {
        let mut archive = Vec::new();
        append(&mut archive, &block(EntryType::XHeader, "x", pax.len() as u64), &pax);
        append(&mut archive, &block(EntryType::new(kind), "x", bytes.len() as u64), &bytes);
        archive.extend(bytes);
        let mut archive = Archive::new(archive.as_slice());
        while let Ok(Some(_)) = archive.next() {}
    }
}
