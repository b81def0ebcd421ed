//! Manifests' signatures, as cosign checks them.

use std::fs;
use std::path::Path;
use std::process::Command;

use nacre_image::sign;
use nacre_tests::{dist, newer};

#[test]
fn cosign_takes_the_bundle_of_a_manifest() {
    let Some(cosign) = newer::program("cosign") else { return };
    if !dist::have(&["openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |program: &Path, args: &[&str]| {
        Command::new(program).args(args).current_dir(&dir).env("HOME", dir.path()).output().unwrap()
    };
    let openssl = Path::new("openssl");
    assert!(
        run(openssl, &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "key"])
            .status
            .success()
    );
    assert!(run(openssl, &["pkey", "-in", "key", "-pubout", "-out", "key.pub"]).status.success());
    let manifest = dir.path().join("a.manifest.json");
    fs::write(&manifest, "{}").unwrap();
    sign::sign(&manifest, &dir.path().join("key")).unwrap();
    let verify = [
        "verify-blob",
        "--key",
        "key.pub",
        "--bundle",
        "a.manifest.json.sigstore.json",
        "--private-infrastructure",
        "a.manifest.json",
    ];
    let verified = run(&cosign, &verify);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    fs::write(&manifest, "{ }").unwrap();
    assert!(!run(&cosign, &verify).status.success(), "a change is noticed");
}
