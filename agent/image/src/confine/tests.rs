//! What a confined process tries. It is this program again, for such a process may not come back.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, fchown};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, FileType, Mode, XattrFlags};
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketType, socket};

use super::*;

/// How an attempt ended.
#[derive(Debug, PartialEq)]
enum End {
    Done,
    Refused,
    Killed,
}

/// Has a process that is confined as `whose` try `act` below `dir`, which has a `store` and a `file` beside it.
fn attempt(whose: &str, act: &str, dir: &Path) -> End {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "confine::tests::confined", "--ignored", "--nocapture"]);
    command.env("CONFINED_AS", whose).env("CONFINED_ACT", act).current_dir(dir);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    match (status.code(), status.signal()) {
        (Some(DONE), _) => End::Done,
        (Some(REFUSED), _) => End::Refused,
        (_, Some(libc::SIGSYS)) => End::Killed,
        _ => panic!("{whose} tries to {act}: {status}"),
    }
}

const DONE: i32 = 40;
const REFUSED: i32 = 41;

#[test]
#[ignore = "the other tests run it in a process of its own"]
fn confined() {
    let var = |name: &str| std::env::var(name).unwrap();
    let confinement = match var("CONFINED_AS").as_str() {
        "worker" | "late thread" => Confinement::of_worker(&["store".into()], None),
        "server" => Confinement::of_server(None),
        "skopeo" => Confinement::of_skopeo(Some(65534), None),
        "skopeo with an archive" => Confinement::of_skopeo(None, Some(Path::new("store"))),
        _ => Confinement::of_server(Some(65534)),
    };
    let confinement = confinement.unwrap();
    let tries = || std::process::exit(if try_to(&var("CONFINED_ACT")).is_ok() { DONE } else { REFUSED });
    if var("CONFINED_AS") == "late thread" {
        begin_late(&confinement, tries);
    } else {
        confinement.process().unwrap();
        tries();
    }
}

/// In a thread that was made before the first one is confined, and begins after it.
fn begin_late(confinement: &Confinement, act: impl Fn() + Send) {
    std::thread::scope(|scope| {
        let (begin, begins) = std::sync::mpsc::channel();
        scope.spawn(move || {
            begins.recv().unwrap();
            confinement.thread().unwrap();
            act();
        });
        confinement.process().unwrap();
        begin.send(()).unwrap();
    });
}

fn try_to(act: &str) -> io::Result<()> {
    let open = |family| socket(family, SocketType::DGRAM, None).map(drop).map_err(io::Error::from);
    match act {
        "begin a thread" => std::thread::spawn(|| {}).join().map_err(|_| io::ErrorKind::Other.into()),
        "write into the store" => fs::write("store/new", ""),
        "write beside it" => fs::OpenOptions::new().write(true).open("file").map(drop),
        "rename out of it" => fs::rename("store/old", "gone"),
        "read beside it" => fs::read("file").map(drop),
        "read what is somebody's" => fs::read("private").map(drop),
        "have no more rights than unpacking takes" => {
            let permitted = rustix::thread::capabilities(None)?.permitted;
            if UNPACKING.contains(permitted) { Ok(()) } else { Err(io::Error::other(format!("{permitted:?}"))) }
        }
        "make an attribute of overlayfs" => {
            let store = fs::File::open("store")?;
            Ok(rustix::fs::fsetxattr(store, "trusted.overlay.opaque", b"y", XattrFlags::empty())?)
        }
        "make what is others'" => what_is_others(),
        "run a program" => Err(Command::new("/bin/true").exec()),
        "become a program" => Err(Command::new("/bin/sh").args(["-c", &format!("exit {DONE}")]).exec()),
        "make a process" => Command::new("/bin/true").status().map(drop),
        "mount" => Ok(mount("none", "store", "tmpfs", MountFlags::empty(), None)?),
        "trace" => Ok(nix::sys::ptrace::traceme()?),
        "see all packets" => open(AddressFamily::PACKET),
        "talk to a registry" => open(AddressFamily::INET),
        "become another user" => Ok(rustix::thread::set_thread_uid(Uid::from_raw(1))?),
        other => panic!("{other}?"),
    }
}

/// What layers hold that takes capabilities, as unpacking makes it.
fn what_is_others() -> io::Result<()> {
    let dir = Path::new("store/dir");
    fs::create_dir(dir)?;
    let opened = fs::File::open(dir)?;
    fchown(&opened, Some(1), Some(1))?;
    opened.set_permissions(fs::Permissions::from_mode(0o500))?;
    let file = fs::File::create_new(dir.join("file"))?;
    fchown(&file, Some(2), Some(3))?;
    file.set_permissions(fs::Permissions::from_mode(0o6755))?;
    // linux/capability.h: version 2, CAP_NET_RAW, permitted and effective.
    let net_raw = [&[1, 0, 0, 2, 0, 0x20][..], &[0; 14]].concat();
    rustix::fs::fsetxattr(&file, "security.capability", &net_raw, XattrFlags::empty())?;
    rustix::fs::linkat(&opened, "file", &opened, "link", AtFlags::empty())?;
    rustix::fs::mknodat(&opened, "device", FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(1, 3))?;
    let mode = file.metadata()?.mode() & 0o7777;
    if mode == 0o6755 { Ok(()) } else { Err(io::Error::other(format!("the mode is {mode:o}"))) }
}

fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("store")).unwrap();
    fs::write(dir.path().join("store/old"), "").unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let private = dir.path().join("private");
    fs::write(&private, "").unwrap();
    chown(&private, Some(1), Some(1)).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn a_worker_unpacks_and_does_nothing_else_also_in_a_thread_that_begins_late() {
    for worker in ["worker", "late thread"] {
        let dir = place();
        let ends = |act| attempt(worker, act, dir.path());
        for act in [
            "begin a thread",
            "write into the store",
            "make an attribute of overlayfs",
            "make what is others'",
            "have no more rights than unpacking takes",
        ] {
            assert_eq!(ends(act), End::Done, "{worker}: {act}");
        }
        for act in ["run a program", "make a process", "mount", "trace", "see all packets", "talk to a registry"] {
            assert_eq!(ends(act), End::Killed, "{worker}: {act}");
        }
        assert_eq!(ends("become another user"), End::Killed, "{worker}");
        if has_landlock() {
            for act in ["write beside it", "read beside it", "rename out of it"] {
                assert_eq!(ends(act), End::Refused, "{worker}: {act}");
            }
        }
    }
}

#[test]
fn a_server_talks_and_reads_and_does_nothing_else() {
    let dir = place();
    for server in ["server", "nobody"] {
        let ends = |act| attempt(server, act, dir.path());
        for act in ["begin a thread", "read beside it", "talk to a registry"] {
            assert_eq!(ends(act), End::Done, "{server}: {act}");
        }
        for act in ["run a program", "make a process", "mount", "trace", "see all packets", "write beside it"] {
            assert_eq!(ends(act), End::Killed, "{server}: {act}");
        }
    }
    assert_eq!(attempt("server", "read what is somebody's", dir.path()), End::Done);
    assert_eq!(attempt("nobody", "read what is somebody's", dir.path()), End::Refused);
}

#[test]
fn skopeo_begins_in_its_own_place_and_is_confined_as_a_server() {
    let dir = place();
    for skopeo in ["skopeo", "skopeo with an archive"] {
        let ends = |act| attempt(skopeo, act, dir.path());
        for act in ["become a program", "begin a thread", "read beside it", "talk to a registry"] {
            assert_eq!(ends(act), End::Done, "{skopeo}: {act}");
        }
        for act in ["make a process", "mount", "trace", "see all packets", "become another user"] {
            assert_eq!(ends(act), End::Killed, "{skopeo}: {act}");
        }
        if has_landlock() {
            assert_eq!(ends("write beside it"), End::Refused, "{skopeo}");
        }
    }
    assert_eq!(attempt("skopeo", "write into the store", dir.path()), End::Refused);
    assert_eq!(attempt("skopeo", "read what is somebody's", dir.path()), End::Refused);
    assert_eq!(attempt("skopeo with an archive", "write into the store", dir.path()), End::Done);
}

fn has_landlock() -> bool {
    let status = Ruleset::default().handle_access(AccessFs::from_all(RULES)).and_then(Ruleset::create);
    let status = std::thread::scope(|scope| scope.spawn(|| status?.restrict_self()).join().unwrap());
    let enforced = status.unwrap().ruleset != landlock::RulesetStatus::NotEnforced;
    if !enforced {
        println!("skipped: the kernel has no Landlock");
    }
    enforced
}
