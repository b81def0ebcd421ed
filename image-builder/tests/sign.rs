//! Signatures of manifests, as others check them.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn openssl(args: &[&str], dir: &Path) -> Output {
    Command::new("openssl").args(args).current_dir(dir).output().unwrap()
}

fn nacre_image(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nacre-image")).args(args).current_dir(dir).output().unwrap()
}

/// A key pair `NAME` and `NAME.pub`.
fn keys(name: &str, curve: &str, dir: &Path) {
    let curve = format!("ec_paramgen_curve:{curve}");
    assert!(openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", &curve, "-out", name], dir).status.success());
    assert!(openssl(&["pkey", "-in", name, "-pubout", "-out", &format!("{name}.pub")], dir).status.success());
}

#[test]
fn a_manifest_is_signed_and_a_change_of_it_is_noticed() {
    if Command::new("openssl").arg("version").output().is_err() {
        return println!("skipped: openssl is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    keys("key", "P-256", dir);
    keys("other", "P-256", dir);
    keys("large", "P-384", dir);
    let manifest = r#"{"source_version": "1", "source_sha256": "", "config_sha256": "", "toolchain": [], "kaslr": false, "outputs": []}"#;
    fs::write(dir.join("vmlinux.manifest.json"), manifest).unwrap();
    let signed = nacre_image(&["sign", "--key", "key", "vmlinux.manifest.json"], dir);
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    // What we have signed openssl finds to be signed.
    assert!(openssl(&["base64", "-d", "-in", "vmlinux.manifest.json.sig", "-out", "der"], dir).status.success());
    let by_openssl = ["dgst", "-sha256", "-verify", "key.pub", "-signature", "der", "vmlinux.manifest.json"];
    assert!(openssl(&by_openssl, dir).status.success());
    let verify = |key: &str| nacre_image(&["verify", "--key", key, "."], dir);
    assert!(verify("key.pub").status.success());
    let refused = |key: &str, why: &str| {
        let output = verify(key);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{said}");
    };
    refused("other.pub", "has signed");
    refused("large.pub", "no public key on P-256");
    refused("key", "no public key on P-256");
    fs::write(dir.join("vmlinux.manifest.json"), manifest.replace("\"1\"", "\"2\"")).unwrap();
    refused("key.pub", "has signed");
    fs::remove_file(dir.join("vmlinux.manifest.json.sig")).unwrap();
    refused("key.pub", "vmlinux.manifest.json.sig");
    let no_key = nacre_image(&["sign", "--key", "key.pub", "vmlinux.manifest.json"], dir);
    assert!(String::from_utf8_lossy(&no_key.stderr).contains("no private key on P-256"));
}
