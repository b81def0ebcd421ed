//! What an image is made of, for whoever looks for known flaws in it: Debian's packages, the crates that are linked into our programs, and the
//! kernel's source; in SPDX 2.3 and in CycloneDX 1.5.
//!
//! Both are functions of what went in: there is no clock in them, and their names are made of the image's digests.

mod crates;
mod cyclonedx;
mod spdx;

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::manifest::{Kernel, Output};
use crate::packages::Package;

pub use crates::Crates;

/// What an image was made of.
#[derive(Debug, Clone, Copy)]
pub struct Made<'a> {
    /// The image's name.
    pub name: &'a str,
    /// What was built.
    pub outputs: &'a [Output],
    /// Debian's packages.
    pub packages: &'a [Package],
    /// Programs of ours, by their files.
    pub programs: &'a [&'a Path],
    /// The crates of ours and what they were linked from.
    pub crates: &'a Crates,
    /// The kernel that is to boot it.
    pub kernel: Option<&'a Kernel>,
}

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Component {
    /// A program runs by itself, a library does not.
    is_program: bool,
    name: String,
    version: String,
    /// Where it is known by that (package-url).
    purl: String,
    /// SHA-256 of what was fetched, in hex.
    sha256: Option<String>,
    /// What it was made of, where that has another name.
    source: Option<String>,
    /// What it holds of the other components, by their package-urls.
    holds: Vec<String>,
}

/// The two documents, by the ends of their names.
///
/// # Errors
/// A program whose crates are not known.
pub fn documents(made: &Made<'_>) -> Result<[(&'static str, Value); 2]> {
    let components = components(made)?;
    let identity = identity(made.outputs);
    Ok([
        ("spdx.json", spdx::document(made.name, &identity, &components)),
        ("cdx.json", cyclonedx::document(made.name, &identity, &components)),
    ])
}

/// 128 bits that stand for the image.
fn identity(outputs: &[Output]) -> String {
    let mut hash = Sha256::new();
    for output in outputs {
        hash.update(format!("{} {}\n", output.sha256, output.name));
    }
    hex::encode(&hash.finalize()[..16])
}

fn components(made: &Made<'_>) -> Result<Vec<Component>> {
    let mut all: Vec<_> = made.packages.iter().map(debian).collect();
    all.extend(made.kernel.map(kernel));
    for program in made.programs {
        let (program, linked) = made.crates.of(program)?;
        all.push(program);
        all.extend(linked);
    }
    // What is a program of ours and linked into another is one component, and the program.
    all.sort_by(|a, b| a.purl.cmp(&b.purl).then(b.is_program.cmp(&a.is_program)));
    all.dedup_by(|a, b| a.purl == b.purl);
    Ok(all)
}

fn debian(package: &Package) -> Component {
    let version = &package.version;
    Component {
        is_program: true,
        name: package.name.clone(),
        version: version.clone(),
        purl: format!("pkg:deb/debian/{}@{}?arch={}", package.name, escape(version), package.architecture),
        sha256: Some(package.sha256.clone()),
        source: Some(package.source.clone()),
        holds: Vec::new(),
    }
}

/// The kernel is built here; what it is known by is its source package.
fn kernel(kernel: &Kernel) -> Component {
    let version = &kernel.source_version;
    let series: Vec<_> = version.split(['.', '-']).take(2).collect();
    Component {
        is_program: true,
        name: "linux".into(),
        version: version.clone(),
        purl: format!("pkg:deb/debian/linux-source-{}@{}?arch=all", series.join("."), escape(version)),
        sha256: Some(kernel.source_sha256.clone()),
        source: Some(format!("linux {version}")),
        holds: Vec::new(),
    }
}

/// Percent-encoding, as package-urls want it of a version.
fn escape(version: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_~".contains(c);
    version.chars().map(|c| if plain(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_escaped() {
        assert_eq!(escape("1:1.35.0-4+deb12u1~x"), "1%3A1.35.0-4%2Bdeb12u1~x");
    }

    #[test]
    fn a_program_that_is_linked_into_another_is_one_component() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("Cargo.lock"), "package = []\n").unwrap();
        std::fs::write(dir.path().join("agent.crates"), "agent v0.1.0\npull v0.1.0\n").unwrap();
        std::fs::write(dir.path().join("pull.crates"), "pull v0.1.0\nother v0.1.0\n").unwrap();
        let crates = Crates::read(dir.path(), &dir.path().join("Cargo.lock")).unwrap();
        let programs = [Path::new("agent"), Path::new("pull")];
        let made = Made { name: "a", outputs: &[], packages: &[], programs: &programs, crates: &crates, kernel: None };
        let components = components(&made).unwrap();
        let seen: Vec<_> = components.iter().map(|one| (one.name.as_str(), one.is_program, one.holds.len())).collect();
        assert_eq!(seen, [("agent", true, 1), ("other", false, 0), ("pull", true, 1)]);
    }

    #[test]
    fn what_goes_in_is_in_both_documents() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("Cargo.lock"),
            "[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\nchecksum = \"ab\"\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("agent.crates"), "agent v0.1.0\nserde v1.0.1\n").unwrap();
        let crates = Crates::read(dir.path(), &dir.path().join("Cargo.lock")).unwrap();
        let package = Package {
            name: "busybox".into(),
            version: "1:1.0+b1".into(),
            architecture: "amd64".into(),
            source: "busybox 1:1.0".into(),
            file: String::new(),
            size: 0,
            sha256: "cd".into(),
        };
        let output = Output { name: "a.initrd".into(), bytes: 1, sha256: "ef".into() };
        let made = Made {
            name: "a",
            outputs: std::slice::from_ref(&output),
            packages: std::slice::from_ref(&package),
            programs: &[Path::new("/x/agent")],
            crates: &crates,
            kernel: None,
        };
        let documents = documents(&made).unwrap();
        for (name, document) in &documents {
            let text = document.to_string();
            for purl in
                ["pkg:deb/debian/busybox@1%3A1.0%2Bb1?arch=amd64", "pkg:cargo/serde@1.0.1", "pkg:generic/agent@0.1.0"]
            {
                assert!(text.contains(purl), "{name}: {purl}\n{text}");
            }
        }
        let other = Output { sha256: "00".into(), ..output.clone() };
        let again = super::documents(&Made { outputs: &[other], ..made }).unwrap();
        assert_ne!(documents[0].1["documentNamespace"], again[0].1["documentNamespace"]);
        assert!(super::documents(&Made { programs: &[Path::new("/x/other")], ..made }).is_err());
    }
}
