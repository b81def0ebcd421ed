//! What a host that copies files sees.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

struct Guest {
    root: tempfile::TempDir,
    copier: CopyFile,
}

fn guest() -> Guest {
    let root = tempfile::tempdir().unwrap();
    let copier = CopyFile::open(root.path()).unwrap();
    Guest { root, copier }
}

impl Guest {
    fn send(&self, path: &str, change: impl FnOnce(&mut CopyFileRequest)) -> Result<(), Error> {
        let mut request = CopyFileRequest::new();
        request.path = format!("{ROOT}/{path}");
        request.file_mode = 0o100644;
        request.dir_mode = 0o755;
        (request.uid, request.gid) = (-1, -1);
        change(&mut request);
        self.copier.copy(&request)
    }

    fn file(&self, path: &str, content: &[u8]) {
        self.send(path, |r| (r.data, r.file_size) = (content.to_vec(), content.len() as i64)).unwrap();
    }

    fn chunk(&self, path: &str, size: i64, offset: i64, data: &[u8]) -> Result<(), Error> {
        self.send(path, |r| (r.data, r.file_size, r.offset) = (data.to_vec(), size, offset))
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let guest = guest();
    guest.chunk("a/ca.crt", 6, 0, b"abc").unwrap();
    guest.chunk("a/ca.key", 4, 0, b"12").unwrap();
    assert!(!guest.at("a/ca.crt").exists());
    guest.chunk("a/ca.crt", 6, 3, b"def").unwrap();
    guest.chunk("a/ca.key", 4, 2, b"34").unwrap();
    assert_eq!(fs::read(guest.at("a/ca.crt")).unwrap(), b"abcdef");
    assert_eq!(fs::read(guest.at("a/ca.key")).unwrap(), b"1234");
    assert_eq!(fs::read_dir(guest.at("a")).unwrap().count(), 2, "nothing temporary is left");
}

#[test]
fn the_old_file_stays_until_the_new_one_is_whole() {
    let guest = guest();
    guest.file("f", b"old");
    guest.chunk("f", 4, 0, b"ne").unwrap();
    assert_eq!(fs::read(guest.at("f")).unwrap(), b"old");
    guest.chunk("f", 4, 0, b"new!").unwrap();
    assert_eq!(fs::read(guest.at("f")).unwrap(), b"new!");
}

#[test]
fn an_empty_file_is_whole_at_once() {
    let guest = guest();
    guest.file("empty", b"");
    assert_eq!(fs::metadata(guest.at("empty")).unwrap().len(), 0);
}

#[test]
fn modes_are_as_asked_whatever_the_umask_is() {
    let guest = guest();
    guest.send("d/e/f", |r| (r.file_mode, r.dir_mode) = (0o106777, 0o40777)).unwrap();
    assert_eq!(fs::metadata(guest.at("d/e/f")).unwrap().mode() & 0o7777, 0o6777);
    assert_eq!(fs::metadata(guest.at("d")).unwrap().mode() & 0o7777, 0o777);
    guest.send("dir", |r| r.file_mode = 0o41777).unwrap();
    assert_eq!(fs::metadata(guest.at("dir")).unwrap().mode() & 0o7777, 0o1777);
}

#[test]
fn the_file_and_its_directory_belong_to_the_owner_asked_for() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs CAP_CHOWN");
        return;
    }
    let guest = guest();
    guest.send("a/b/f", |r| (r.uid, r.gid) = (1000, 1001)).unwrap();
    let owner = |path| fs::symlink_metadata(guest.at(path)).map(|m| (m.uid(), m.gid())).unwrap();
    assert_eq!(owner("a/b/f"), (1000, 1001));
    assert_eq!(owner("a/b"), (1000, 1001));
    assert_eq!(owner("a"), (0, 0));
}

#[test]
fn types_replace_one_another() {
    let guest = guest();
    guest.file("x/deep/er", b"1");
    guest.file("x", b"file");
    assert_eq!(fs::read(guest.at("x")).unwrap(), b"file");
    guest.send("x", |r| r.file_mode = 0o40700).unwrap();
    assert!(guest.at("x").is_dir());
    guest.file("x/kept", b"");
    guest.send("x", |r| r.file_mode = 0o40755).unwrap();
    assert!(guest.at("x/kept").exists(), "an existing directory is kept");
    guest.send("x", |r| (r.file_mode, r.data) = (0o120777, b"/etc/passwd".to_vec())).unwrap();
    assert_eq!(fs::read_link(guest.at("x")).unwrap(), Path::new("/etc/passwd"));
    guest.file("x", b"again");
    assert_eq!(fs::read(guest.at("x")).unwrap(), b"again");
}

#[test]
fn links_inside_the_root_are_followed_and_those_out_of_it_are_not() {
    let guest = guest();
    let outside = tempfile::tempdir().unwrap();
    guest.send("..2024", |r| r.file_mode = 0o40755).unwrap();
    guest.send("..data", |r| (r.file_mode, r.data) = (0o120777, b"..2024".to_vec())).unwrap();
    guest.file("..data/key", b"value");
    assert_eq!(fs::read(guest.at("..2024/key")).unwrap(), b"value");

    symlink(outside.path(), guest.at("evil")).unwrap();
    symlink("../../../../../../../../../tmp", guest.at("worse")).unwrap();
    for path in ["evil/f", "worse/f", "evil/new/f"] {
        assert!(!guest.send(path, |_| {}).unwrap_err().is_invalid(), "{path}");
    }
    symlink(outside.path().join("f"), guest.at("f")).unwrap();
    guest.file("f", b"mine");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn removing_a_directory_follows_no_link() {
    let guest = guest();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "").unwrap();
    guest.send("d", |r| r.file_mode = 0o40755).unwrap();
    symlink(outside.path(), guest.at("d/link")).unwrap();
    guest.file("d", b"");
    assert!(outside.path().join("precious").exists());
}

#[test]
fn a_fifo_planted_as_the_partial_copy_blocks_nobody() {
    let guest = guest();
    guest.chunk("f", 2, 0, b"a").unwrap();
    let partial = fs::read_dir(guest.root.path()).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&partial).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &partial, Mode::RWXU).unwrap();
    guest.chunk("f", 2, 1, b"b").unwrap_err();
    guest.file("f", b"ab");
    assert_eq!(fs::metadata(guest.at("f")).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn bad_requests_are_refused() {
    let guest = guest();
    let invalid = |what: &str, change: fn(&mut CopyFileRequest)| {
        let error = guest.send("f", change).expect_err(what);
        assert!(error.is_invalid(), "{what}: {error}");
    };
    invalid("elsewhere", |r| r.path = "/etc/passwd".into());
    invalid("root itself", |r| r.path = ROOT.into());
    invalid("dots", |r| r.path = format!("{ROOT}/a/../../../b"));
    invalid("prefix only", |r| r.path = format!("{ROOT}x/f"));
    invalid("long", |r| r.path = format!("{ROOT}/{}", "a/".repeat(3000)));
    invalid("deep", |r| r.path = format!("{ROOT}/{}f", "a/".repeat(200)));
    invalid("negative size", |r| r.file_size = -1);
    invalid("negative offset", |r| r.offset = -1);
    invalid("beyond the size", |r| (r.file_size, r.data) = (1, vec![0; 2]));
    invalid("far beyond the size", |r| (r.offset, r.data) = (i64::MAX, vec![0; 2]));
    invalid("socket", |r| r.file_mode = 0o140644);
    invalid("block device", |r| r.file_mode = 0o60644);
    invalid("no target", |r| r.file_mode = 0o120777);
    invalid("owner", |r| r.uid = -2);
    assert_eq!(fs::read_dir(guest.root.path()).unwrap().count(), 0);
}
