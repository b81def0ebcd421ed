//! Bills of materials, as others read them.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use nacre_image::manifest::{Kernel, Output};
use nacre_image::packages::Package;
use nacre_image::sbom::{Crates, Made, documents};

/// Says whether a CycloneDX document is one, by its JSON schema.
const CYCLONEDX: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read())
sys.exit(repr(error) if error else 0)
";

#[test]
fn the_documents_are_valid_to_others() {
    let others = match common::from_pypi("sbom", &["spdx-tools==0.8.3", "cyclonedx-python-lib[json-validation]==8.5.0"])
    {
        Ok(dir) => dir.join("bin"),
        Err(why) => return println!("skipped: {why}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    fs::write(dir.path().join("nacre-agent.crates"), "nacre-agent v0.1.0\nnacre-protocol v0.1.0\nserde v1.0.0+a\n")
        .unwrap();
    let crates = Crates::read(dir.path(), &lock).unwrap();
    let package = Package {
        name: "libc6".into(),
        version: "2.36-9+deb12u13".into(),
        architecture: "amd64".into(),
        source: "glibc 2.36-9+deb12u13".into(),
        file: String::new(),
        size: 0,
        sha256: "a".repeat(64),
    };
    let kernel = Kernel {
        source_version: "6.12.117-1~deb12u1".into(),
        source_sha256: "b".repeat(64),
        config_sha256: "c".repeat(64),
        toolchain: Vec::new(),
        kaslr: false,
        outputs: Vec::new(),
    };
    let output = Output { name: "minimal.initrd".into(), bytes: 1, sha256: "d".repeat(64) };
    let made = Made {
        name: "minimal",
        outputs: &[output],
        packages: &[package],
        programs: &[Path::new("nacre-agent")],
        crates: &crates,
        kernel: Some(&kernel),
    };
    let [(spdx_name, spdx), (cdx_name, cdx)] = documents(&made).unwrap();
    let [spdx_path, cdx_path] = [spdx_name, cdx_name].map(|name| dir.path().join(format!("minimal.{name}")));
    fs::write(&spdx_path, spdx.to_string()).unwrap();
    fs::write(&cdx_path, cdx.to_string()).unwrap();
    let said = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    };
    said(Command::new(others.join("pyspdxtools")).arg("--infile").arg(&spdx_path));
    said(Command::new(others.join("python3")).args(["-c", CYCLONEDX]).arg(&cdx_path));
}
