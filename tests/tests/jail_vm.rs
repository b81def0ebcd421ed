//! The engine's own tests, run once more as root of a real guest: there cgroups are version 2, device rules are eBPF programs, and the root
//! is the kernel's first one, from which pivot_root(2) can't pivot as it is.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nacre_image::outputs::cpio;
use nacre_image::tree::{Node, Tree};
use nacre_tests::dist;

/// The target for which a static binary is made.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// How long QEMU may take for all of it, in seconds.
const PATIENCE: &str = "300";

/// The guest's first process: a few file systems, then one test program after the other.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs -o mode=1777 none /tmp
mount -t tmpfs none /run
hostname host
cd /tmp
for test in /tests/*; do
    timeout 120 $test --test-threads=1
    echo \"== ${test##*/}: exit code $?\"
done
poweroff -f
";

#[test]
fn vm_the_engine_keeps_its_promises_on_cgroup_v2_and_an_initramfs() {
    let Some(dist) = dist::dist() else { return };
    if !dist::have(&["qemu-system-x86_64", "busybox"]) {
        return;
    }
    let programs = build();
    let names: Vec<String> = programs.iter().map(|program| name(program)).collect();
    assert!(names.len() >= 7, "{names:?}");
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd");
    std::fs::write(&initrd, archive(&programs)).unwrap();
    let output = boot(&dist.join("share/nacre/vmlinux"), &initrd);
    let console = String::from_utf8_lossy(&output.stdout);
    for name in names {
        assert!(console.contains(&format!("== {name}: exit code 0")), "{name} failed:\n{console}");
    }
    for line in console.lines().filter(|line| line.contains("skipped: ")) {
        println!("in the guest: {line}");
    }
}

/// Builds the engine's tests as static programs, in a directory of their own.
fn build() -> Vec<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["test", "--locked", "--no-run", "--package", "nacre-jail", "--lib", "--tests", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace)
        .env("CARGO_TARGET_DIR", workspace.join("target/guest-tests"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_DEV_STRIP", "true")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "the engine's tests can't be built");
    let text = String::from_utf8(output.stdout).unwrap();
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = |message: serde_json::Value| {
        // The command line's tests look for its program, which is not in the guest.
        let is_test = message["profile"]["test"] == true && message["target"]["name"] != "cli";
        let is_bin = message["target"]["kind"] == serde_json::json!(["bin"]);
        message["executable"].as_str().filter(|_| is_test && !is_bin).map(PathBuf::from)
    };
    messages.filter_map(executable).collect()
}

/// `containers-0123456789abcdef` is `containers`.
fn name(program: &Path) -> String {
    let name = program.file_name().unwrap().to_str().unwrap();
    name.rsplit_once('-').unwrap().0.to_string()
}

fn archive(programs: &[PathBuf]) -> Vec<u8> {
    let mut tree = Tree::default();
    for directory in ["bin", "dev", "proc", "run", "sys", "tests", "tmp"] {
        tree.add(&format!("/{directory}"), Node::Directory(0o755)).unwrap();
    }
    let read = |path: &Path| std::fs::read(path).unwrap();
    tree.add("/init", Node::File(0o755, INIT.into())).unwrap();
    tree.add("/bin/busybox", Node::File(0o755, read(Path::new("/bin/busybox")))).unwrap();
    for program in programs {
        tree.add(&format!("/tests/{}", name(program)), Node::File(0o755, read(program))).unwrap();
    }
    cpio::archive(&tree).unwrap()
}

fn boot(kernel: &Path, initrd: &Path) -> Output {
    let khz = nacre_sys::tsc::frequency_khz(Duration::from_millis(50)).unwrap_or(1_000_000);
    let line = format!("console=ttyS0 quiet panic=-1 reboot=t pci=off no_timer_check tsc_early_khz={khz}");
    Command::new("timeout")
        .args([PATIENCE, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-machine", "microvm,acpi=on,rtc=on,pit=off,pic=off", "-accel", "tcg", "-cpu", "max", "-smp", "2"])
        .args(["-m", "1536M", "-append", &line, "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}
