//! Whole builds by the program, from a recipe without packages.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it skips")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const RECIPE: &str =
    "name = \"x\"\ndescription = \"a test's\"\n[[files]]\npath = \"/usr/share/big\"\nsource = \"big\"\n";

/// A static program, to be the agent.
const STATIC: &str = "/bin/busybox";

/// A directory with a recipe, and a file that takes a while to pack.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Option<Place> {
        if !Path::new(STATIC).exists() || Command::new("mksquashfs").arg("-version").output().is_err() {
            println!("skipped: {STATIC} (busybox-static) or mksquashfs (squashfs-tools) is missing");
            return None;
        }
        let place = Place(tempfile::tempdir().unwrap());
        fs::write(place.at("x.toml"), RECIPE).unwrap();
        let mut state = 1u32;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & 0x3f
        });
        fs::write(place.at("big"), noise.take(2 << 20).collect::<Vec<_>>()).unwrap();
        Some(place)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn build(&self, out: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacre-image"));
        command.arg("--cache").arg(self.at("cache")).arg("build").arg(self.at("x.toml"));
        command.args(["--agent", STATIC]).arg("--out").arg(self.at(out)).stdin(Stdio::null());
        command
    }

    /// What lies there under its final name.
    fn built(&self, out: &str) -> Vec<(String, Vec<u8>)> {
        let Ok(entries) = fs::read_dir(self.at(out)) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<_> = names.filter(|name| name.starts_with("x.")).collect();
        files.sort();
        files.into_iter().map(|name| (name.clone(), fs::read(self.at(out).join(name)).unwrap())).collect()
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_same_inputs_give_the_same_bytes_whoever_builds_and_also_at_the_same_time() {
    let (Some(here), Some(there)) = (Place::new(), Place::new()) else { return };
    let run = |mut command: Command| assert!(command.output().unwrap().status.success());
    run(here.build("out"));
    let expected = here.built("out");
    assert_eq!(expected.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["x.initrd", "x.manifest.json"]);

    fs::set_permissions(there.at("big"), fs::Permissions::from_mode(0o600)).unwrap();
    let others = [("a", "UTC", "1"), ("a", "Asia/Tokyo", "1700000000")].map(|(out, zone, epoch)| {
        let mut command = there.build(out);
        command
            .env("TZ", zone)
            .env("SOURCE_DATE_EPOCH", epoch)
            .env("LANG", "C.UTF-8")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for other in others {
        let output = other.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", words(&output));
    }
    assert!(there.built("a") == expected);
}

#[test]
fn a_build_that_is_interrupted_leaves_nothing_half_done() {
    let Some(place) = Place::new() else { return };
    let begun = Instant::now();
    assert!(place.build("whole").output().unwrap().status.success());
    let (took, expected) = (begun.elapsed(), place.built("whole"));
    for step in 0..8 {
        let out = format!("out-{step}");
        let mut child = place.build(&out).stderr(Stdio::null()).spawn().unwrap();
        // The moment is the thing under test; whichever it is, what is there must be whole.
        std::thread::sleep((took / 8 * step).max(Duration::from_millis(1)));
        let _ = kill_process(Pid::from_child(&child), Signal::INT); // it may have ended
        let whole = child.wait().unwrap().success();
        let built = place.built(&out);
        assert!(built.iter().all(|file| expected.contains(file)), "after {step} of 8 steps");
        assert!(!whole || built == expected);
    }
    assert!(place.build("out-1").output().unwrap().status.success(), "what was left is in the way");
    assert!(place.built("out-1") == expected);
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing_half_done() {
    let Some(place) = Place::new() else { return };
    // No file may grow beyond a mebibyte: to the program that is a disk without room.
    let build = place.build("out");
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$@\"", "sh"])
        .arg(build.get_program())
        .args(build.get_args());
    let output = limited.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(place.built("out").is_empty());
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let Some(place) = Place::new() else { return };
    let error = |mut command: Command| words(&command.output().unwrap());
    let mut locked = place.build("out");
    locked.arg("--locked");
    let said = error(locked);
    assert!(said.contains("a locked build takes a lock") && said.contains("packages.lock"), "{said}");

    fs::write(place.at("packages.lock"), "version = 1\n").unwrap();
    fs::write(place.at("x.toml"), format!("packages = [\"strace\"]\n{RECIPE}")).unwrap();
    let mut locked = place.build("out");
    locked.arg("--locked");
    let said = error(locked);
    assert!(said.contains("x.toml:1:13: the lock has no package strace"), "{said}");

    fs::write(place.at("x.toml"), RECIPE.replace("source", "sauce")).unwrap();
    let said = error(place.build("out"));
    assert!(said.contains("x.toml:5:1: unknown field `sauce`") && said.contains("did you mean `source`?"), "{said}");
    assert!(place.built("out").is_empty());
}
