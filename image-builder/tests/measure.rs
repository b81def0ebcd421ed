//! Measurements beside those of independent implementations.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_image::outputs::pe;
use nacre_image::outputs::uki::STUB;

const SYSTEMD_MEASURE: &str = "/usr/lib/systemd/systemd-measure";

/// Debian's OVMF, code and variables: it has the metadata and the reset block, but no area for hashes.
const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";

fn ours(arguments: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_nacre-image")).arg("measure").args(arguments).output().unwrap();
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// PyPI's sev-snp-measure, or why it is not there.
fn sev_snp_measure() -> Result<PathBuf, String> {
    common::from_pypi("sev-snp-measure-0.0.13", &["sev-snp-measure==0.0.13"]).map(|dir| dir.join("bin/sev-snp-measure"))
}

/// Debian's OVMF with a section for kernel hashes in its metadata: one of those for memory gets that use.
fn firmware_with_hashes() -> Option<Vec<u8>> {
    let mut bytes = fs::read(FIRMWARE).ok()?;
    let start = bytes.windows(4).position(|window| window == b"ASEV")?;
    let count = u32::from_le_bytes(*bytes.get(start + 12..)?.first_chunk()?) as usize;
    let last = start + 16 + 12 * (count - 1);
    let area: Vec<u8> = [0x81_0000_u32, 0x1000, 0x10].map(u32::to_le_bytes).concat();
    bytes[last..last + 12].copy_from_slice(&area);
    let guid = hex::decode("5e3a25723b3a044b927b1da6efa8d454").unwrap();
    let guid = bytes.windows(16).position(|window| window[4..] == guid[4..])?;
    bytes[guid - 10..guid - 2].copy_from_slice(&[0x81_0c00_u32, 0x400].map(u32::to_le_bytes).concat());
    Some(bytes)
}

#[test]
fn launch_digests_are_those_of_sev_snp_measure() {
    let Some(bytes) = firmware_with_hashes() else { return println!("skipped: {FIRMWARE} is not there (ovmf)") };
    let theirs = match sev_snp_measure() {
        Ok(program) => program,
        Err(why) => return println!("skipped: {why}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let [firmware, kernel, initrd] = ["firmware", "kernel", "initrd"].map(|name| dir.path().join(name));
    fs::write(&firmware, bytes).unwrap();
    fs::write(&kernel, "a kernel").unwrap();
    fs::write(&initrd, "an initrd").unwrap();
    let boots: [&[&str]; 3] =
        [&["--kernel", path(&kernel)], &["--kernel", path(&kernel), "--initrd", path(&initrd)], &[]];
    let mut compared = 0;
    for (number, boot) in boots.into_iter().enumerate() {
        let line = ["console=hvc0", "quiet panic=-1 a=\"b c\"", ""][number];
        let with_line = |name| if boot.is_empty() { Vec::new() } else { vec![name, line] };
        let mut arguments = vec!["snp", "--firmware", path(&firmware), "--vcpus", "1,2,4,8"];
        arguments.extend(["--cpu", "EPYC-v4,EPYC-Milan-v2,EPYC-Genoa", "--guest-features", "0x1,0x21"]);
        arguments.extend(boot.iter().copied().chain(with_line("--command-line")));
        for row in ours(&arguments).lines() {
            let [cpu, vcpus, features, digest] = row.split_whitespace().collect::<Vec<_>>()[..] else {
                panic!("{row}")
            };
            // One type is asked for in each number, and each type in one: the other takes a second for each.
            if cpu != "EPYC-Milan-v2" && vcpus != "2" {
                continue;
            }
            let mut command = Command::new(&theirs);
            command.args(["--mode", "snp", "--vcpus", vcpus, "--vcpu-type", cpu, "--guest-features", features]);
            command.arg("--ovmf").arg(&firmware).args(boot).args(with_line("--append"));
            let out = command.output().unwrap();
            assert!(out.status.success(), "{row}: {}", String::from_utf8_lossy(&out.stderr));
            assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), digest, "{row} {boot:?}");
            compared += 1;
        }
    }
    println!("{compared} launch digests are the same");
}

#[test]
fn pcr_11_is_that_of_systemd_measure() {
    let Ok(stub) = fs::read(STUB) else { return println!("skipped: {STUB} is not there (systemd-boot-efi)") };
    if !Path::new(SYSTEMD_MEASURE).exists() {
        return println!("skipped: {SYSTEMD_MEASURE} is not there (systemd)");
    }
    let dir = tempfile::tempdir().unwrap();
    let uki = dir.path().join("x.efi");
    // The stub itself stands for a kernel: firmware could start it.
    let parts: [(&str, &[u8]); 4] =
        [(".osrel", b"ID=nacre\n"), (".cmdline", b"console=hvc0"), (".initrd", b"an initrd"), (".linux", &stub)];
    fs::write(&uki, pe::append(&stub, &[&parts[..], &[(".uname", b"6.12")]].concat()).unwrap()).unwrap();
    let mut command = Command::new(SYSTEMD_MEASURE);
    command.args(["calculate", "--phase=:", "--bank=sha256", "--bank=sha384"]);
    for (name, bytes) in parts {
        let file = dir.path().join(name);
        fs::write(&file, bytes).unwrap();
        command.arg(format!("--{}={}", &name[1..], file.display()));
    }
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let theirs = String::from_utf8(out.stdout).unwrap();
    let ours = ours(&["pcr", path(&uki)]);
    for bank in ["sha256", "sha384"] {
        let value = ours.lines().find_map(|line| line.strip_prefix(&format!("{bank}:11 "))).unwrap();
        assert!(theirs.lines().any(|line| line == format!("11:{bank}={value}")), "{ours}{theirs}");
    }
}

/// No independent implementation could be had as a package: the second derivation is ours, too, by other means.
#[test]
fn mrtd_is_what_a_second_derivation_gives() {
    if !Path::new(FIRMWARE).exists() {
        return println!("skipped: {FIRMWARE} is not there (ovmf)");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mrtd.py");
    let Ok(out) = Command::new("python3").args([script, FIRMWARE]).output() else {
        return println!("skipped: python3 is not there");
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let theirs = String::from_utf8(out.stdout).unwrap();
    assert!(ours(&["tdx", "--firmware", FIRMWARE]).starts_with(&format!("mrtd {theirs}")), "{theirs}");
}
