//! A file of the Container Device Interface, and what it has a container's specification changed to.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{self, LinuxDevice, LinuxDeviceType, Spec};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::super::tree::number_of;
use super::super::{Error, edit};
use super::ALL;

/// The versions of the specification whose fields are those below.
const VERSIONS: &[&str] = &["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"];

/// A file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    cdi_version: String,
    pub kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    devices: Vec<Device>,
    #[serde(default)]
    pub container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    #[serde(default)]
    container_edits: Edits,
}

/// What a container is to have.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    additional_gids: Vec<u32>,
    hooks: Vec<IgnoredAny>,
    intel_rdt: Option<IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: Option<LinuxDeviceType>,
    #[serde(default)]
    major: i64,
    #[serde(default)]
    minor: i64,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    options: Vec<String>,
}

impl Document {
    /// What `file` says. What this agent does not do is refused, instead of a container being given half of a device.
    pub fn parse(file: &Path, value: Value) -> Result<Document, Error> {
        let refused = |reason: String| Error::Cdi { file: file.into(), reason };
        let document: Document = serde_json::from_value(value).map_err(|error| refused(error.to_string()))?;
        if !VERSIONS.contains(&document.cdi_version.as_str()) {
            return Err(refused(format!("cdiVersion {:?} is none of {VERSIONS:?}", document.cdi_version)));
        }
        for edits in document.devices.iter().map(|device| &device.container_edits).chain([&document.container_edits]) {
            if !edits.hooks.is_empty() {
                return Err(refused("hooks would run as the guest's root".into()));
            }
            if edits.intel_rdt.is_some() {
                return Err(refused("intelRdt is not there in a guest".into()));
            }
        }
        Ok(document)
    }

    /// The edits of the device that is called `name`; of all of them when it is `all` and no device is called that.
    pub fn devices(&self, name: &str) -> Vec<Edits> {
        let named = |device: &&Device| device.name == name;
        let all = name == ALL && !self.devices.iter().any(|device| device.name == ALL);
        self.devices.iter().filter(|device| all || named(device)).map(|device| device.container_edits.clone()).collect()
    }
}

impl Edits {
    /// Fill in what is to be taken from the guest's own devices.
    pub fn complete(&mut self) -> Result<(), Error> {
        self.device_nodes.iter_mut().try_for_each(Node::complete)
    }

    /// Change `spec`. What it has of the same name or place goes.
    pub fn apply(&self, spec: &mut Spec) -> Result<(), Error> {
        for node in &self.device_nodes {
            edit::add(spec, node.device(), node.permissions.as_deref().unwrap_or(edit::ALL));
        }
        for mount in &self.mounts {
            let mounts = spec.mounts_mut().get_or_insert_default();
            mounts.retain(|other| other.destination() != &mount.container_path);
            mounts.push(mount.mount());
        }
        if self.env.is_empty() && self.additional_gids.is_empty() {
            return Ok(());
        }
        let process = spec.process_mut().as_mut().ok_or(Error::invalid("OCI", "process", "is missing"))?;
        let env = process.env_mut().get_or_insert_default();
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_string();
        env.retain(|old| !self.env.iter().any(|new| name(new) == name(old)));
        env.extend(self.env.iter().cloned());
        let gids = process.user_mut().additional_gids_mut().get_or_insert_default();
        gids.extend(self.additional_gids.iter().filter(|gid| **gid != 0)); // 0 is left out by the CDI's own tools, too
        Ok(())
    }
}

impl Node {
    fn complete(&mut self) -> Result<(), Error> {
        let has_number = self.major != 0 || self.minor != 0 || self.kind == Some(LinuxDeviceType::P);
        if self.kind.is_some() && has_number {
            return Ok(());
        }
        let path = self.host_path.as_ref().unwrap_or(&self.path);
        let metadata = fs::metadata(path).map_err(|source| Error::system("find device", path, source))?;
        let kind = match metadata.file_type() {
            kind if kind.is_block_device() => LinuxDeviceType::B,
            kind if kind.is_char_device() => LinuxDeviceType::C,
            _ => return Err(Error::invalid("CDI device node", &path.to_string_lossy(), "is no device")),
        };
        let (major, minor) = number_of(metadata.rdev());
        (self.kind, self.major, self.minor) = (Some(kind), major.into(), minor.into());
        self.file_mode = self.file_mode.or(Some(metadata.mode() & 0o777));
        Ok(())
    }

    fn device(&self) -> LinuxDevice {
        let mut device = LinuxDevice::default();
        device.set_path(self.path.clone()).set_typ(self.kind.unwrap_or_default());
        device.set_major(self.major).set_minor(self.minor);
        device.set_file_mode(self.file_mode).set_uid(self.uid).set_gid(self.gid);
        device
    }
}

impl Mount {
    fn mount(&self) -> runtime::Mount {
        let mut mount = runtime::Mount::default();
        mount.set_destination(self.container_path.clone()).set_source(Some(self.host_path.clone()));
        mount.set_typ(self.kind.clone()).set_options(Some(self.options.clone()));
        mount
    }
}
