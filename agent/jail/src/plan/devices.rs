//! `linux.devices`, and what every container has in `/dev`.

use std::ffi::CStr;
use std::path::Path;

use nacre_sys::mount::MountAttr;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount as Asked};
use rustix::fs::FileType;

use super::c_string;
use super::mounts::inside;
use crate::error::Error;
use crate::step::{Mount, Node, Source, Step};

/// The devices that every container has (config-linux.md, "Default Devices"): name and minor number; major 1, but for tty.
const DEFAULT_DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links that programs expect (config-linux.md, "Default Devices" and runtime-linux.md, "Dev symbolic links").
const DEV_LINKS: &[(&str, &CStr)] = &[
    ("/dev/fd", c"/proc/self/fd"),
    ("/dev/stdin", c"/proc/self/fd/0"),
    ("/dev/stdout", c"/proc/self/fd/1"),
    ("/dev/stderr", c"/proc/self/fd/2"),
    ("/dev/ptmx", c"pts/ptmx"),
];

/// Device nodes and links, unless the specification brings its own `/dev` by a bind mount. Nodes can't be made in a user namespace: there
/// the runtime's are bound.
pub(super) fn lay_out(mounts: &[Asked], asked: &[LinuxDevice], bound: bool) -> Result<Vec<Step>, Error> {
    let brings_its_own = |mount: &Asked| {
        let bind = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        mount.destination().as_path() == Path::new("/dev") && (bind || mount.typ().as_deref() == Some("bind"))
    };
    let property = |i: usize| format!("linux.devices[{i}]");
    let nodes = asked.iter().enumerate().map(|(i, device)| Ok((property(i), node(&property(i), device)?)));
    let mut nodes = nodes.collect::<Result<Vec<_>, Error>>()?;
    let mut links = Vec::new();
    if !mounts.iter().any(brings_its_own) {
        for (path, major, minor) in DEFAULT_DEVICES {
            if asked.iter().any(|device| device.path().as_path() == Path::new(path)) {
                continue;
            }
            let node = Node {
                path: inside("linux.devices", Path::new(path))?,
                kind: FileType::CharacterDevice,
                mode: 0o666,
                device: rustix::fs::makedev(*major, *minor),
                uid: 0,
                gid: 0,
            };
            nodes.push((String::from("linux.devices"), node));
        }
        for (path, target) in DEV_LINKS {
            let path = inside("linux.devices", Path::new(path))?;
            links.push(Step::Symlink { path, target: (*target).into() });
        }
    }
    let step = |(property, node): (String, Node)| {
        if bound { bind(&property, node) } else { Ok(Step::MakeNode(Box::new(node))) }
    };
    let steps = nodes.into_iter().map(step).chain(links.into_iter().map(Ok));
    steps.collect()
}

fn bind(property: &str, node: Node) -> Result<Step, Error> {
    let path = c_string(property, &node.path.to_string())?;
    let recursive_attr = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    Ok(Step::Mount(Box::new(Mount {
        target: node.path,
        source: Source::Bind { path, recursive: false, ids: None, inside: None },
        options: String::new(),
        attr: MountAttr::default(),
        recursive_attr,
        refuse_symlinks: false,
        tree: None,
    })))
}

fn node(property: &str, device: &LinuxDevice) -> Result<Node, Error> {
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(Error::spec(property, "\"a\" is no type of a device")),
    };
    let number = |what: &str, number: i64| {
        u32::try_from(number).map_err(|_| Error::spec(property, format!("{what} number {number} is out of range")))
    };
    let (major, minor) = (number("major", device.major())?, number("minor", device.minor())?);
    let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    [uid, gid].into_iter().try_for_each(|id| super::process::check_id(property, id))?;
    Ok(Node {
        path: inside(&format!("{property}.path"), device.path())?,
        kind,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        device: rustix::fs::makedev(major, minor),
        uid,
        gid,
    })
}
