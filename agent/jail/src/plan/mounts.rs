//! `mounts`, `linux.devices`, and the paths inside a container.

use std::ffi::CString;
use std::path::Path;

use nacre_sys::mount::MountAttr;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount as Asked};
use rustix::fs::FileType;

use super::c_string;
use crate::error::Error;
use crate::step::{Inside, Mount, Node, Source, Step};

/// The longest path that the kernel takes (PATH_MAX, limits.h).
const MAX_PATH: usize = 4095;

/// The longest option that fsconfig(2) takes.
const MAX_OPTION: usize = 255;

/// A path inside the container.
pub(crate) fn inside(property: &str, path: &Path) -> Result<Inside, Error> {
    let text = path.to_string_lossy();
    if !path.is_absolute() || text.len() > MAX_PATH {
        return Err(Error::spec(property, format!("{text:?} must be absolute and at most {MAX_PATH} bytes long")));
    }
    if path.components().any(|component| component == std::path::Component::ParentDir) {
        return Err(Error::spec(property, format!("{text:?} must not hold ..")));
    }
    Inside::new(path).ok_or_else(|| Error::spec(property, "holds a NUL"))
}

/// Every mount, in the specification's order.
pub(crate) fn lay_out(mounts: &[Asked], bundle: &Path) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    for (i, mount) in mounts.iter().enumerate() {
        let property = format!("mounts[{i}]");
        let options = parse(&property, mount.options().as_deref().unwrap_or_default())?;
        let kind = mount.typ().as_deref().unwrap_or("none");
        // Old specifications have destinations without the leading slash.
        let target = inside(&format!("{property}.destination"), &Path::new("/").join(mount.destination()))?;
        if options.bind || kind == "bind" {
            steps.push(bind(&property, mount, &options, target, bundle)?);
        } else if kind == "cgroup" && !cgroup_v2() {
            steps.extend(cgroup_v1(&property, mount.destination(), &options)?);
        } else {
            let kind = if kind == "cgroup" { "cgroup2" } else { kind };
            steps.push(new(&property, kind, mount.source().as_deref(), options, target)?);
        }
    }
    Ok(steps)
}

fn bind(property: &str, mount: &Asked, options: &Options, target: Inside, bundle: &Path) -> Result<Step, Error> {
    let source = mount.source().as_deref().ok_or_else(|| Error::spec(property, "a bind mount needs a source"))?;
    if let Some((key, _)) = options.rest.first() {
        return Err(Error::spec(property, format!("{:?} is no option of a bind mount", key.to_string_lossy())));
    }
    let path = c_string(&format!("{property}.source"), &bundle.join(source).to_string_lossy())?;
    Ok(Step::Mount(Box::new(Mount {
        target,
        source: Source::Bind { path, recursive: options.recursive },
        attr: options.attr,
        recursive_attr: options.recursive_attr,
        refuse_symlinks: false,
    })))
}

fn new(property: &str, kind: &str, source: Option<&Path>, options: Options, target: Inside) -> Result<Step, Error> {
    let mut all = Vec::new();
    if let Some(source) = source.filter(|source| !source.as_os_str().is_empty()) {
        all.push((c"source".into(), Some(c_string(&format!("{property}.source"), &source.to_string_lossy())?)));
    }
    all.extend(options.rest);
    Ok(Step::Mount(Box::new(Mount {
        target,
        source: Source::New { kind: c_string(&format!("{property}.type"), kind)?, options: all },
        attr: options.attr,
        recursive_attr: options.recursive_attr,
        refuse_symlinks: matches!(kind, "proc" | "sysfs"),
    })))
}

fn cgroup_v2() -> bool {
    cgroups_rs::fs::hierarchies::is_cgroup2_unified_mode()
}

/// On cgroup v1 the container sees a directory for each of the hierarchies that it lives in.
fn cgroup_v1(property: &str, destination: &Path, options: &Options) -> Result<Vec<Step>, Error> {
    let text =
        std::fs::read_to_string("/proc/self/cgroup").map_err(|error| Error::system("read /proc/self/cgroup", error))?;
    let base = Options {
        attr: MountAttr { set: options.attr.set & !libc::MOUNT_ATTR_RDONLY, ..options.attr },
        ..Options::default()
    };
    let mut steps = vec![new(property, "tmpfs", None, base, inside(property, destination)?)?];
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers)) = (fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            continue; // the unified hierarchy of a hybrid set-up
        }
        let flag = |name: &str| match name.split_once('=') {
            Some((key, value)) => Ok((c_string(property, key)?, Some(c_string(property, value)?))),
            None => Ok((c_string(property, name)?, None)),
        };
        let rest = controllers.split(',').map(flag).collect::<Result<_, Error>>()?;
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let hierarchy = Options { attr: options.attr, rest, ..Options::default() };
        steps.push(new(property, "cgroup", None, hierarchy, inside(property, &destination.join(name))?)?);
    }
    Ok(steps)
}

/// A mount's options, sorted by what takes them.
#[derive(Debug, Default)]
struct Options {
    bind: bool,
    recursive: bool,
    attr: MountAttr,
    recursive_attr: MountAttr,
    rest: Vec<(CString, Option<CString>)>,
}

const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// Flag options: name, bits to set, bits to clear (mount(8), mount_setattr(2)).
const FLAGS: &[(&str, u64, u64)] = &[
    ("ro", libc::MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, libc::MOUNT_ATTR_RDONLY),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, libc::MOUNT_ATTR_NOSUID),
    ("nodev", libc::MOUNT_ATTR_NODEV, 0),
    ("dev", 0, libc::MOUNT_ATTR_NODEV),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, libc::MOUNT_ATTR_NOEXEC),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, libc::MOUNT_ATTR_NODIRATIME),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ("relatime", libc::MOUNT_ATTR_RELATIME, ATIME),
    ("norelatime", 0, ATIME),
    ("noatime", libc::MOUNT_ATTR_NOATIME, ATIME),
    ("atime", 0, ATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME, ATIME),
    ("nostrictatime", 0, ATIME),
];

/// Propagations: name, value, whether what is mounted below takes it too.
const PROPAGATIONS: &[(&str, u64, bool)] = &[
    ("private", libc::MS_PRIVATE, false),
    ("rprivate", libc::MS_PRIVATE, true),
    ("slave", libc::MS_SLAVE, false),
    ("rslave", libc::MS_SLAVE, true),
    ("shared", libc::MS_SHARED, false),
    ("rshared", libc::MS_SHARED, true),
    ("unbindable", libc::MS_UNBINDABLE, false),
    ("runbindable", libc::MS_UNBINDABLE, true),
];

fn parse(property: &str, options: &[String]) -> Result<Options, Error> {
    let mut parsed = Options::default();
    for option in options {
        match option.as_str() {
            "" | "defaults" => {}
            "bind" => parsed.bind = true,
            "rbind" => (parsed.bind, parsed.recursive) = (true, true),
            "tmpcopyup" | "idmap" | "ridmap" => {
                return Err(Error::Unsupported { property: format!("{property}.options {option:?}") });
            }
            _ => parse_one(property, option, &mut parsed)?,
        }
    }
    Ok(parsed)
}

fn parse_one(property: &str, option: &str, parsed: &mut Options) -> Result<(), Error> {
    let flag = |name: &str| FLAGS.iter().find(|(flag, ..)| *flag == name);
    if let Some((_, propagation, below)) = PROPAGATIONS.iter().find(|(name, ..)| *name == option) {
        let attr = if *below { &mut parsed.recursive_attr } else { &mut parsed.attr };
        attr.propagation = *propagation;
    } else if let Some((_, set, clear)) = flag(option) {
        apply(&mut parsed.attr, *set, *clear);
    } else if let Some((_, set, clear)) = option.strip_prefix('r').and_then(flag) {
        apply(&mut parsed.recursive_attr, *set, *clear);
    } else {
        if option.len() > MAX_OPTION {
            return Err(Error::spec(property, format!("an option of {} bytes is too long", option.len())));
        }
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(c_string(property, value)?)),
            None => (option, None),
        };
        parsed.rest.push((c_string(property, key)?, value));
    }
    Ok(())
}

/// The later option wins; the kinds of atime are one field.
fn apply(attr: &mut MountAttr, set: u64, clear: u64) {
    attr.set = attr.set & !clear | set;
    attr.clear = attr.clear & !(set & !ATIME) | clear;
}

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
const DEV_LINKS: &[(&str, &std::ffi::CStr)] = &[
    ("/dev/fd", c"/proc/self/fd"),
    ("/dev/stdin", c"/proc/self/fd/0"),
    ("/dev/stdout", c"/proc/self/fd/1"),
    ("/dev/stderr", c"/proc/self/fd/2"),
    ("/dev/ptmx", c"pts/ptmx"),
];

/// Device nodes and links, unless the specification brings its own `/dev` by a bind mount.
pub(crate) fn devices(mounts: &[Asked], devices: &[LinuxDevice]) -> Result<Vec<Step>, Error> {
    let brings_its_own = |mount: &Asked| {
        let bind = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        mount.destination().as_path() == Path::new("/dev") && (bind || mount.typ().as_deref() == Some("bind"))
    };
    let mut steps = Vec::new();
    for (i, device) in devices.iter().enumerate() {
        steps.push(node(&format!("linux.devices[{i}]"), device)?);
    }
    if mounts.iter().any(brings_its_own) {
        return Ok(steps);
    }
    let dev = "linux.devices";
    for (path, major, minor) in DEFAULT_DEVICES {
        steps.push(Step::MakeNode(Box::new(Node {
            path: inside(dev, Path::new(path))?,
            kind: FileType::CharacterDevice,
            mode: 0o666,
            device: rustix::fs::makedev(*major, *minor),
            uid: 0,
            gid: 0,
        })));
    }
    for (path, target) in DEV_LINKS {
        steps.push(Step::Symlink { path: inside(dev, Path::new(path))?, target: (*target).into() });
    }
    Ok(steps)
}

fn node(property: &str, device: &LinuxDevice) -> Result<Step, Error> {
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
    Ok(Step::MakeNode(Box::new(Node {
        path: inside(&format!("{property}.path"), device.path())?,
        kind,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        device: rustix::fs::makedev(major, minor),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })))
}

/// How the new mount namespace relates to the guest's while it is set up: nothing of it must come back.
pub(crate) fn outer_propagation(asked: Option<&str>) -> Result<u64, Error> {
    Ok(match asked.unwrap_or("") {
        "" | "slave" | "rslave" | "shared" | "rshared" => libc::MS_SLAVE,
        "private" | "rprivate" | "unbindable" | "runbindable" => libc::MS_PRIVATE,
        other => return Err(Error::spec("linux.rootfsPropagation", format!("{other:?} is none"))),
    })
}

/// What the container's own mounts hand on below it.
pub(crate) fn inner_propagation(asked: Option<&str>) -> Result<Option<Step>, Error> {
    Ok(match asked.unwrap_or("") {
        "shared" | "rshared" => Some(Step::PropagateRoot(libc::MS_SHARED)),
        "unbindable" | "runbindable" => Some(Step::PropagateRoot(libc::MS_UNBINDABLE)),
        _ => None,
    })
}
