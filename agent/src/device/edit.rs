//! Changes to the devices of a specification. Nothing here touches a device.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use super::Error;

/// What a device of the specification is in this guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// Its path in the specification.
    pub asked: PathBuf,
    /// Its path in the container.
    pub path: PathBuf,
    /// Block or character.
    pub kind: LinuxDeviceType,
    /// Its number's first part.
    pub major: u32,
    /// Its number's second part.
    pub minor: u32,
}

/// To make, read and write a device.
pub const ALL: &str = "rwm";

/// A device's number, which counts for its kind alone.
type Number = (LinuxDeviceType, i64, i64);

/// Have `spec` name what is `given`, in its devices and in the rules that name the same by the host's numbers. An error leaves `spec` as it was.
pub fn rewrite(spec: &mut Spec, given: &[Given]) -> Result<(), Error> {
    if given.is_empty() {
        return Ok(());
    }
    let linux = spec.linux_mut().as_mut().ok_or(Error::invalid("OCI", "linux", "is missing"))?;
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut moves: Vec<(Number, Number)> = Vec::new();
    let mut places: Vec<_> = given.iter().map(|given| (given, false)).collect();
    for device in &mut devices {
        let path = device.path().clone();
        let place = places.iter_mut().find(|(given, _)| given.asked == path);
        let Some((given, is_used)) = place else { continue };
        *is_used = true;
        let wrong = |reason| Err(Error::invalid("device", &path.to_string_lossy(), reason));
        if device.typ() != given.kind {
            return wrong("is of another kind in the OCI spec");
        }
        let old = (device.typ(), device.major(), device.minor());
        let new = (given.kind, i64::from(given.major), i64::from(given.minor));
        if moves.iter().any(|(from, to)| *from == old && *to != new) {
            return wrong("has the number of another device in the OCI spec");
        }
        moves.push((old, new));
        device.set_path(given.path.clone()).set_major(new.1).set_minor(new.2);
    }
    if let Some((given, _)) = places.iter().find(|(_, is_used)| !is_used) {
        let path = given.asked.to_string_lossy();
        return Err(Error::invalid("device", &path, "is not there, or requested twice: Missing devices in OCI spec"));
    }
    linux.set_devices(Some(devices));
    let resources = linux.resources_mut().as_mut();
    for rule in resources.and_then(|resources| resources.devices_mut().as_mut()).into_iter().flatten() {
        let (Some(kind), Some(major), Some(minor)) = (rule.typ(), rule.major(), rule.minor()) else { continue };
        if let Some((_, (_, major, minor))) = moves.iter().find(|(from, _)| *from == (kind, major, minor)) {
            rule.set_major(Some(*major)).set_minor(Some(*minor));
        }
    }
    Ok(())
}

/// Have the container have one more device, in place of one at the same path. It may do everything with what it has until there is a rule.
pub fn add(spec: &mut Spec, device: LinuxDevice, access: &str) {
    let linux = spec.linux_mut().get_or_insert_default();
    let rules = linux.resources_mut().get_or_insert_default().devices_mut().get_or_insert_default();
    let (mut forbidden, mut allowed) = (LinuxDeviceCgroup::from(&device), LinuxDeviceCgroup::from(&device));
    forbidden.set_allow(false);
    allowed.set_access(Some(access.into()));
    if access != ALL {
        rules.push(forbidden);
    }
    if !rules.is_empty() {
        rules.push(allowed);
    }
    let devices = linux.devices_mut().get_or_insert_default();
    devices.retain(|other| other.path() != device.path());
    devices.push(device);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use LinuxDeviceType::{B, C};

    fn device(path: &str, kind: LinuxDeviceType, major: i64, minor: i64) -> LinuxDevice {
        let mut device = LinuxDevice::default();
        device.set_path(path.into()).set_typ(kind).set_major(major).set_minor(minor);
        device
    }

    /// A specification whose rules name its devices, after one that forbids all.
    fn spec(devices: &[LinuxDevice]) -> Spec {
        let mut spec = Spec::default();
        let linux = spec.linux_mut().as_mut().unwrap();
        let rules = devices.iter().map(LinuxDeviceCgroup::from);
        let rules = std::iter::once(LinuxDeviceCgroup::default()).chain(rules).collect();
        linux.resources_mut().get_or_insert_default().set_devices(Some(rules));
        linux.set_devices(Some(devices.to_vec()));
        spec
    }

    fn given(path: &str, major: u32, minor: u32) -> Given {
        Given { asked: path.into(), path: path.into(), kind: B, major, minor }
    }

    fn devices(spec: &Spec) -> Vec<(&Path, i64, i64)> {
        let devices = spec.linux().as_ref().unwrap().devices().as_ref().unwrap();
        devices.iter().map(|device| (device.path().as_path(), device.major(), device.minor())).collect()
    }

    fn rules(spec: &Spec) -> Vec<(i64, i64)> {
        let rules = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().as_ref().unwrap();
        rules.iter().filter_map(|rule| Some((rule.major()?, rule.minor()?))).collect()
    }

    #[test]
    fn devices_and_their_rules_get_the_guests_numbers() {
        // Each has the number that the other gets: none is changed twice.
        let mut spec = spec(&[device("/dev/a", B, 8, 1), device("/dev/b", B, 8, 2), device("/dev/c", C, 8, 1)]);
        rewrite(&mut spec, &[given("/dev/b", 8, 1), given("/dev/a", 8, 2)]).unwrap();
        let expected = [("/dev/a", 8, 2), ("/dev/b", 8, 1), ("/dev/c", 8, 1)].map(|(p, a, i)| (Path::new(p), a, i));
        assert_eq!(devices(&spec), expected);
        assert_eq!(rules(&spec), [(8, 2), (8, 1), (8, 1)]);
    }

    #[test]
    fn a_device_may_have_another_path_here() {
        let mut spec = spec(&[device("/dev/vfio/17", C, 240, 0)]);
        let (asked, path) = ("/dev/vfio/17".into(), "/dev/vfio/1".into());
        rewrite(&mut spec, &[Given { asked, path, kind: C, major: 511, minor: 3 }]).unwrap();
        assert_eq!(devices(&spec), [(Path::new("/dev/vfio/1"), 511, 3)]);
        assert_eq!(rules(&spec), [(511, 3)]);
    }

    #[test]
    fn what_does_not_fit_the_specification_is_refused_and_changes_nothing() {
        let original = spec(&[device("/dev/a", B, 8, 1), device("/dev/c", C, 8, 1), device("/dev/d", B, 8, 1)]);
        let mut spec = original.clone();
        for (given, reason) in [
            (vec![given("/dev/x", 1, 1)], "Missing devices in OCI spec"),
            (vec![given("/dev/a", 1, 1), given("/dev/a", 1, 1)], "requested twice"),
            (vec![given("/dev/c", 1, 1)], "another kind"),
            (vec![given("/dev/a", 1, 1), given("/dev/d", 1, 2)], "the number of another device"),
        ] {
            let error = rewrite(&mut spec, &given).unwrap_err();
            assert!(error.is_invalid() && error.to_string().contains(reason), "{error}");
            assert_eq!(spec, original);
        }
        rewrite(&mut spec, &[given("/dev/a", 1, 1), given("/dev/d", 1, 1)]).unwrap();
    }

    #[test]
    fn a_device_that_is_added_replaces_another_and_is_allowed() {
        let mut with_rules = spec(&[device("/dev/a", C, 8, 1)]);
        add(&mut with_rules, device("/dev/a", C, 9, 1), ALL);
        assert_eq!(devices(&with_rules), [(Path::new("/dev/a"), 9, 1)]);
        assert_eq!(rules(&with_rules), [(8, 1), (9, 1)]);
        let mut without = Spec::default();
        without.linux_mut().as_mut().unwrap().set_resources(None);
        add(&mut without, device("/dev/b", C, 1, 1), ALL);
        assert_eq!(rules(&without), []);
        add(&mut without, device("/dev/c", C, 1, 2), "r");
        assert_eq!(rules(&without), [(1, 2), (1, 2)]); // nothing, but for reading
    }
}
