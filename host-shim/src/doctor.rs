//! `nacre doctor`: what this host can do, and what it lacks.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::accelerator;
use crate::cli::Accelerator;
use crate::layout::Layout;
use crate::vmm::{FIRMWARE, QEMU};

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there.
    Good,
    /// It is not, and something else is done in its place, or is not asked for by all.
    Absent,
    /// Without it no pod runs.
    Missing,
}

/// A thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub says: String,
    /// What to do, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<&'static str>,
}

/// Looks at everything.
pub fn examine() -> Vec<Finding> {
    vec![
        accelerator(),
        program("QEMU", QEMU, State::Missing, "apt-get install qemu-system-x86"),
        guest(),
        device("taps", "/dev/net/tun", "modprobe tun; only pods with a network of their own need it"),
        program("containerd", "containerd", State::Absent, "apt-get install containerd; nacre run does without"),
        program("shim", "containerd-shim-nacre-v2", State::Absent, "make install; containerd looks for it in its PATH"),
        file("firmware", FIRMWARE, "apt-get install ovmf; only images for firmware (.efi) need it"),
        parameter("AMD SEV-SNP", "/sys/module/kvm_amd/parameters/sev_snp"),
        parameter("Intel TDX", "/sys/module/kvm_intel/parameters/tdx"),
    ]
}

/// Whether pods can run.
pub fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.state != State::Missing)
}

/// As people read it.
pub fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { name, state, says, fix } in findings {
        let mark = match state {
            State::Good => "ok",
            State::Absent => "-",
            State::Missing => "MISSING",
        };
        let _ = writeln!(text, "{mark:<8} {name:<12} {says}"); // writing to a String can't fail
        if let Some(fix) = fix {
            let _ = writeln!(text, "{:21} {fix}", "");
        }
    }
    text
}

fn found(name: &'static str, result: Result<String, String>, otherwise: State, fix: &'static str) -> Finding {
    match result {
        Ok(says) => Finding { name, state: State::Good, says, fix: None },
        Err(says) => Finding { name, state: otherwise, says, fix: Some(fix) },
    }
}

fn accelerator() -> Finding {
    match accelerator::choose(Accelerator::Auto) {
        Ok(choice) => {
            let state = if choice.accelerator == accelerator::Accelerator::Kvm { State::Good } else { State::Absent };
            Finding { name: "processor", state, says: choice.to_string(), fix: None }
        }
        Err(error) => Finding { name: "processor", state: State::Missing, says: format!("{error:#}"), fix: None },
    }
}

fn program(name: &'static str, program: &str, otherwise: State, fix: &'static str) -> Finding {
    let argument = if program.contains("shim") { "-v" } else { "--version" };
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let said = output.map_err(|error| format!("{program}: {error}")).map(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(80).collect()
    });
    found(name, said, otherwise, fix)
}

fn guest() -> Finding {
    let layout = Layout::find(None, None).map_err(|error| format!("{error:#}"));
    let says = layout.map(|layout| format!("{}, {}", layout.kernel.display(), layout.image.display()));
    found("guest", says, State::Missing, "make image install")
}

fn device(name: &'static str, path: &str, fix: &'static str) -> Finding {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    found(name, opened.map(|_| path.into()).map_err(|error| format!("{path}: {error}")), State::Absent, fix)
}

fn file(name: &'static str, path: &str, fix: &'static str) -> Finding {
    let there = if Path::new(path).is_file() { Ok(path.into()) } else { Err(format!("{path} is not there")) };
    found(name, there, State::Absent, fix)
}

/// A switch of KVM's.
fn parameter(name: &'static str, path: &str) -> Finding {
    let on = fs::read_to_string(path).is_ok_and(|text| ["Y", "1"].contains(&text.trim()));
    let (state, says) = if on { (State::Good, "KVM offers it") } else { (State::Absent, "KVM does not offer it") };
    Finding { name, state, says: says.into(), fix: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let there = program("cat", "cat", State::Missing, "x");
        assert_eq!((there.state, there.fix), (State::Good, None));
        let missing = program("none", "nacre-no-such-program", State::Missing, "get one");
        assert!(is_well(std::slice::from_ref(&there)) && !is_well(&[there, missing.clone()]));
        let text = render(&[missing]);
        assert!(text.starts_with("MISSING  none") && text.contains("get one"), "{text}");
        let absent = file("file", "/nowhere", "make it");
        assert!(is_well(&[absent]), "not all need all");
    }
}
