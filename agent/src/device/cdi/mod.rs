//! Devices by the Container Device Interface: a container names them, and files in the guest say what having one means.
//!
//! A container names a device in an annotation `cdi.k8s.io/…: vendor/class=name,…`, or in the variable `VISIBLE_CDI_DEVICES` where the guest's
//! settings allow that. The files are written by the vendor's tools, maybe after the container has been asked for: so they are waited for.

mod document;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use serde_json::Value;

use super::events::Events;
use super::tree::entries;
use super::{Devices, Error};
use document::{Document, Edits};

const ANNOTATION: &str = "cdi.k8s.io/";
const VARIABLE: &str = "VISIBLE_CDI_DEVICES";

/// What marks the container that only holds the pod's namespaces; it has the pod's annotations.
const POD: &[(&str, &str)] =
    &[("io.katacontainers.pkg.oci.container_type", "pod_sandbox"), ("io.kubernetes.cri.container-type", "sandbox")];

/// The name that stands for all devices of a kind, where none has it for its own.
const ALL: &str = "all";

/// The most devices of one container.
const MAX_DEVICES: usize = 128;

/// The longest kind or name.
const MAX_NAME: usize = 128;

/// The most files of one directory that are read, and how much of one.
const MAX_FILES: usize = 64;
const MAX_FILE: u64 = 1 << 20;

/// How devices are found.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the files are; an earlier directory's count before a later one's. The first is made where it is missing.
    pub directories: Vec<PathBuf>,
    /// How long they are waited for.
    pub patience: Duration,
    /// Whether `VISIBLE_CDI_DEVICES` counts.
    pub by_variable: bool,
}

impl Settings {
    /// The usual directories.
    pub fn new(patience: Duration, by_variable: bool) -> Settings {
        Settings { directories: vec!["/var/run/cdi".into(), "/etc/cdi".into()], patience, by_variable }
    }
}

/// A device that a container names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    kind: String,
    device: String,
}

/// Why there are no edits.
enum Problem {
    /// They may still come.
    NotYet(String),
    /// They will not.
    Never(Error),
}

impl Devices {
    /// Have `spec` say what it takes to have the CDI devices that it names. Waits until their files are there.
    pub async fn inject(&self, spec: &mut Spec) -> Result<(), Error> {
        let names = requested(spec, self.cdi.by_variable)?;
        let Some(first) = names.first() else { return Ok(()) };
        let device = format!("CDI device {}={}", first.kind, first.device);
        let directories = self.cdi.directories.clone();
        if let Some(directory) = directories.first() {
            // One that is not there can't be watched.
            fs::create_dir_all(directory).map_err(|source| Error::system("make directory", directory, source))?;
        }
        let events = Events::of_directories(&directories)?;
        let look = move || match find(&directories, &names) {
            Ok(edits) => Ok(Ok(edits)),
            Err(Problem::Never(error)) => Ok(Err(error)),
            Err(Problem::NotYet(missing)) => Err(missing),
        };
        let patience = self.cdi.patience;
        let found = events.wait(patience, look).await?;
        let edits = found.map_err(|missing| Error::Missing { device, patience, missing })??;
        edits.iter().try_for_each(|edits| edits.apply(spec))
    }
}

/// Whether these are the annotations of the container that only holds the pod's namespaces.
pub fn is_pod(annotations: &HashMap<String, String>) -> bool {
    POD.iter().any(|(key, value)| annotations.get(*key).is_some_and(|found| found == value))
}

/// The devices that `spec` names.
fn requested(spec: &Spec, by_variable: bool) -> Result<Vec<Name>, Error> {
    let mut names = Vec::new();
    let annotations = spec.annotations().clone().unwrap_or_default();
    if is_pod(&annotations) {
        return Ok(names);
    }
    let mut annotations: Vec<_> = annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    annotations.sort();
    for text in annotations.iter().flat_map(|(_, value)| value.split(',')) {
        let (kind, device) = text.split_once('=').ok_or(Error::invalid("CDI device", text, "is not KIND=NAME"))?;
        names.push(Name::parse(kind, device)?);
    }
    let env = spec.process().as_ref().and_then(|process| process.env().as_ref()).filter(|_| by_variable);
    let value = env.into_iter().flatten().find_map(|variable| variable.strip_prefix(VARIABLE)?.strip_prefix('='));
    for text in value.filter(|value| !matches!(*value, "" | "none" | "void")).into_iter().flat_map(|v| v.split(':')) {
        let (kind, devices) = text.split_once('=').ok_or(Error::invalid(VARIABLE, text, "is not KIND=NAMES"))?;
        for device in devices.split(',') {
            names.push(Name::parse(kind, device)?);
        }
    }
    match names.len() {
        ..=MAX_DEVICES => Ok(names),
        count => Err(Error::invalid("CDI devices:", &count.to_string(), "of them, at most 128 are expected")),
    }
}

impl Name {
    fn parse(kind: &str, device: &str) -> Result<Name, Error> {
        let is_name = |text: &str, more: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            (1..=MAX_NAME).contains(&text.len()) && text.chars().all(plain)
        };
        let is_kind =
            kind.split_once('/').is_some_and(|(vendor, class)| is_name(vendor, "-_.") && is_name(class, "-_."));
        if !is_kind || !is_name(device, "-_.:") {
            return Err(Error::invalid("CDI device", &format!("{kind}={device}"), "is not VENDOR/CLASS=NAME"));
        }
        Ok(Name { kind: kind.into(), device: device.into() })
    }
}

/// What the files in `directories` say of the devices `names`. What a file says of all its devices is done once.
fn find(directories: &[PathBuf], names: &[Name]) -> Result<Vec<Edits>, Problem> {
    let (mut documents, mut complaints) = (Vec::new(), String::new());
    for file in directories.iter().flat_map(|directory| files(directory)) {
        match read(&file) {
            Ok(value) if names.iter().any(|name| value["kind"] == name.kind.as_str()) => {
                documents.push((Document::parse(&file, value).map_err(Problem::Never)?, false));
            }
            Ok(_) => {}
            Err(error) => complaints = format!("; {file:?} can't be read: {error}"), // it may be half-written
        }
    }
    let mut edits = Vec::new();
    for name in names {
        let mut known = false;
        let mut found = Vec::new();
        for (document, is_used) in documents.iter_mut().filter(|(document, _)| document.kind == name.kind) {
            known = true;
            let devices = document.devices(&name.device);
            if devices.is_empty() || !found.is_empty() {
                continue; // an earlier file's counts
            }
            if !*is_used {
                edits.push(document.container_edits.clone());
            }
            *is_used = true;
            found = devices;
        }
        if found.is_empty() {
            let Name { kind, device } = name;
            return Err(match known {
                true => {
                    Problem::Never(Error::invalid("CDI device", &format!("{kind}={device}"), "is none of its kind's"))
                }
                false => Problem::NotYet(format!("no file in {directories:?} is of kind {kind:?}{complaints}")),
            });
        }
        edits.append(&mut found);
    }
    for edits in &mut edits {
        edits.complete().map_err(Problem::Never)?;
    }
    Ok(edits)
}

/// The files of a directory, in the order of their names.
fn files(directory: &Path) -> Vec<PathBuf> {
    let is_document = |path: &PathBuf| path.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml");
    let mut files: Vec<_> = entries(directory).unwrap_or_default().into_iter().filter(is_document).collect();
    files.sort();
    files.truncate(MAX_FILES);
    files
}

fn read(path: &Path) -> io::Result<Value> {
    let mut text = String::new();
    if File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)? as u64 > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    match path.extension().is_some_and(|extension| extension == "json") {
        true => serde_json::from_str(&text).map_err(io::Error::other),
        false => Err(io::Error::other("YAML is not read, JSON is")), // its parser is half a megabyte
    }
}

#[cfg(test)]
mod tests;
