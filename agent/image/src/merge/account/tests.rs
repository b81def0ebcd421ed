//! Users and groups of an image, and images that mean harm by them.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/srv/web:/bin/false\n";
const GROUP: &str = "root:x:0:\nstaff:x:50:web,other\nweb:x:34:\nlog:x:4:other,web\nnobody:x:9:webs\n";

fn find(text: &str, passwd: &str, group: &str) -> Result<Account, Error> {
    Wanted::parse(text).and_then(|wanted| wanted.find(passwd, group))
}

/// The account's numbers.
fn ids(text: &str, passwd: &str, group: &str) -> (u32, u32, Vec<u32>) {
    let Account { uid, gid, groups, .. } = find(text, passwd, group).unwrap();
    (uid, gid, groups)
}

#[test]
fn each_form_of_a_user_is_understood() {
    for (form, text, uid, gid, groups, home) in [
        ("nothing", "", 0, 0, vec![], "/root"),
        ("name", "web", 33, 34, vec![50, 4], "/srv/web"),
        ("uid", "33", 33, 34, vec![50, 4], "/srv/web"),
        ("uid, of nobody", "1234", 1234, 0, vec![], "/"),
        ("name:group", "web:staff", 33, 50, vec![], "/srv/web"),
        ("uid:gid", "33:7", 33, 7, vec![], "/srv/web"),
        ("uid:gid, of nobody", "1234:5678", 1234, 5678, vec![], "/"),
        ("uid:group", "1234:staff", 1234, 50, vec![], "/"),
        ("name:gid", "web:7", 33, 7, vec![], "/srv/web"),
        ("name: and nothing", "web:", 33, 34, vec![50, 4], "/srv/web"),
        ("nothing:group", ":staff", 0, 50, vec![], "/root"),
    ] {
        let expected = Account { uid, gid, groups, home: home.into() };
        assert_eq!(find(text, PASSWD, GROUP).unwrap(), expected, "{form}");
    }
    for (text, said) in [
        ("none", "no user \"none\""),
        ("web:none", "no group \"none\""),
        ("+33", "no user \"+33\""),
        ("web:staff:x", "no group \"staff:x\""),
        ("4294967295", "\"4294967295\" is no user or group ID"),
        ("99999999999999999999", "is no user or group ID"),
        ("web:4294967295", "is no user or group ID"),
    ] {
        let error = find(text, PASSWD, GROUP).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn a_number_is_never_a_name() {
    let passwd = "1000:x:0:0::/root:\nother:x:1000:7::/home/other:\n";
    assert_eq!(ids("1000", passwd, "5:x:0:\n"), (1000, 7, vec![]));
    assert_eq!(ids("1000:5", passwd, "5:x:0:\n"), (1000, 5, vec![]));
}

#[test]
fn a_line_that_makes_no_sense_is_none() {
    let lines = ["", ":", "web", "web:x", "web:x:33", "web:x:-1:34", "web:x:33:", "web:x:33:x", "web:x:4294967295:0"];
    let more = ["web:x:33:4294967295", "web:x:99999999999:0", ":x:33:0::/:", "web:x:+33:0", "web:x: 33:0", "\u{fffd}"];
    for line in lines.iter().chain(&more) {
        let passwd = format!("{line}\n{PASSWD}");
        assert_eq!(ids("web", &passwd, GROUP), (33, 34, vec![50, 4]), "{line:?}");
        assert_eq!(ids("33", &passwd, GROUP), (33, 34, vec![50, 4]), "{line:?}");
    }
    for line in ["staff", "staff:x", "staff:x:", "staff:x:-1:", "staff:x:4294967295:web", ":x:8:web"] {
        let group = format!("{line}\n{GROUP}");
        assert_eq!(ids("web:staff", PASSWD, &group), (33, 50, vec![]), "{line:?}");
        assert_eq!(ids("web", PASSWD, &group), (33, 34, vec![50, 4]), "{line:?}");
    }
}

#[test]
fn long_lines_and_many_groups_have_an_end() {
    let (colons, commas) = (":".repeat(1 << 20), ",".repeat(1 << 20));
    let group = format!("{colons}\nall:x:5:{commas},web\n{GROUP}");
    assert_eq!(ids("web", &format!("{colons}\n{PASSWD}"), &group), (33, 34, vec![5, 50, 4]));
    let many: String = (100..100_000).map(|gid| format!("g{gid}:x:{gid}:web\n")).collect();
    assert_eq!(ids("web", PASSWD, &many).2.len(), MAX_GROUPS);
    for home in ["relative", "", "/a\0b", &format!("/{}", "h".repeat(MAX_HOME))] {
        assert_eq!(find("web", &format!("web:x:1:1::{home}:"), "").unwrap().home, "/");
    }
    assert!(find(&"u".repeat(1 << 20), PASSWD, GROUP).unwrap_err().to_string().len() < 400);
}

/// An image's root with a directory `etc`, and the path of its passwd.
fn rootfs() -> (tempfile::TempDir, File, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("image/etc")).unwrap();
    let (root, passwd) = (File::open(dir.path().join("image")).unwrap(), dir.path().join("image/etc/passwd"));
    (dir, root, passwd)
}

#[test]
fn links_lead_nowhere_but_into_the_image() {
    let (dir, root, passwd) = rootfs();
    fs::write(dir.path().join("outside"), PASSWD).unwrap();
    fs::write(dir.path().join("image/inside"), "web:x:1:2::/:\n").unwrap();
    for (target, found) in [
        ("../../outside", false),
        (dir.path().join("outside").to_str().unwrap(), false),
        ("/proc/self/environ", false),
        ("passwd", false),
        ("/inside", true),
        ("../../../inside", true),
    ] {
        symlink(target, &passwd).unwrap();
        let account = Wanted::parse("web").unwrap().look_up(root.as_fd());
        assert_eq!(account.map(|account| account.uid).ok(), found.then_some(1), "{target}");
        fs::remove_file(&passwd).unwrap();
    }
    // The directory on the way may be a link as well.
    fs::rename(dir.path().join("image/etc"), dir.path().join("etc")).unwrap();
    fs::write(dir.path().join("etc/passwd"), PASSWD).unwrap();
    symlink("../etc", dir.path().join("image/etc")).unwrap();
    assert_eq!(read(root.as_fd(), "etc/passwd"), "");
}

#[test]
fn what_is_no_file_or_a_huge_one_holds_nobody() {
    let (_dir, root, passwd) = rootfs();
    let read = || read(root.as_fd(), "etc/passwd");
    assert_eq!(read(), "");
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    assert_eq!(read(), "");
    fs::remove_file(&passwd).unwrap();
    fs::create_dir(&passwd).unwrap();
    assert_eq!(read(), "");
    fs::remove_dir(&passwd).unwrap();
    // All holes: it takes nothing to make it.
    let file = File::create(&passwd).unwrap();
    file.set_len(MAX_FILE + 1).unwrap();
    assert_eq!(read(), "");
    file.set_len(1 << 40).unwrap();
    assert_eq!(read(), "");
    assert_eq!(Wanted::parse("5").unwrap().look_up(root.as_fd()).unwrap().uid, 5);
    file.set_len(MAX_FILE).unwrap();
    assert_eq!(read().len() as u64, MAX_FILE);
    fs::write(&passwd, [PASSWD.as_bytes(), b"\xff\xfe:x:1:1\n"].concat()).unwrap();
    assert_eq!(Wanted::parse("web").unwrap().look_up(root.as_fd()).unwrap().uid, 33);
}
