//! What is refused before anything is laid out.

use oci_spec::runtime::{Linux, Spec};

use crate::error::Error;

/// The most namespaces, mounts, devices, hooks and paths that one specification may name, each.
const MAX_ITEMS: usize = 4096;

/// Whether `id` can be a container's: it is a directory's name and a cgroup's too.
///
/// # Errors
/// [`Error::Spec`] for what is empty, longer than 255 bytes, or holds anything but letters, digits, `_`, `.`, `-` and `+`.
pub fn id(id: &str) -> Result<(), Error> {
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-+".contains(&b));
    if first && rest && id.len() <= 255 {
        Ok(())
    } else {
        Err(Error::spec("id", format!("{id:?}: expected 1 to 255 letters, digits, _, ., - or +, the first no sign")))
    }
}

/// What this engine can't honour, by name: never silence.
pub(super) fn supported(linux: &Linux) -> Result<(), Error> {
    let unsupported = [
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
    ];
    match unsupported.into_iter().find(|(_, used)| *used) {
        Some((property, _)) => Err(Error::Unsupported { property: property.into() }),
        None => Ok(()),
    }
}

/// Every list is bounded.
pub(super) fn bounds(spec: &Spec, linux: &Linux) -> Result<(), Error> {
    let hooks = spec.hooks().as_ref().map_or(0, |hooks| {
        [
            hooks.prestart(),
            hooks.create_runtime(),
            hooks.create_container(),
            hooks.start_container(),
            hooks.poststart(),
            hooks.poststop(),
        ]
        .into_iter()
        .flatten()
        .map(Vec::len)
        .sum()
    });
    let resources = linux.resources().as_ref();
    let counts = [
        ("hooks", hooks),
        ("mounts", spec.mounts().as_ref().map_or(0, Vec::len)),
        ("linux.namespaces", linux.namespaces().as_ref().map_or(0, Vec::len)),
        ("linux.devices", linux.devices().as_ref().map_or(0, Vec::len)),
        ("linux.resources.devices", resources.and_then(|r| r.devices().as_ref()).map_or(0, Vec::len)),
        ("linux.maskedPaths", linux.masked_paths().as_ref().map_or(0, Vec::len)),
        ("linux.readonlyPaths", linux.readonly_paths().as_ref().map_or(0, Vec::len)),
        ("linux.sysctl", linux.sysctl().as_ref().map_or(0, std::collections::HashMap::len)),
    ];
    match counts.into_iter().find(|(_, count)| *count > MAX_ITEMS) {
        Some((property, count)) => Err(Error::spec(property, format!("{count} entries are more than {MAX_ITEMS}"))),
        None => Ok(()),
    }
}
