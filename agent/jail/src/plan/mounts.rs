//! `mounts`, and the paths inside a container.

use std::ffi::CString;
use std::path::Path;

use nacre_sys::mount::MountAttr;
use oci_spec::runtime::Mount as Asked;

use super::c_string;
use super::namespaces::maps;
use crate::cgroup;
use crate::error::Error;
use crate::step::{IdMap, IdSource, Inside, Mount, Source, Step};

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

/// What mounts are laid out with.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) bundle: &'a Path,
    /// The root file system.
    pub(super) root: &'a Path,
    /// The container's cgroup, below the hierarchy's root.
    pub(super) cgroup: &'a Path,
    /// The mappings of its user namespace.
    pub(super) ids: Option<&'a IdSource>,
    /// How a bind mount relates to what it shows, unless it says so itself.
    pub(super) propagation: u64,
    /// The option that gives new file systems their SELinux context.
    pub(super) label: Option<CString>,
}

/// Whether it shows the container its cgroup.
pub(super) fn is_cgroup(mount: &Asked) -> bool {
    matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
}

/// What becomes of the mounts.
#[derive(Debug, Default)]
pub(super) struct Laid {
    /// Each of them, in the specification's order.
    pub(super) steps: Vec<Step>,
    /// What is done when all the rest is there.
    pub(super) last: Vec<Step>,
    /// What has been left out.
    pub(super) warnings: Vec<String>,
}

/// Every mount.
pub(super) fn lay_out(mounts: &[Asked], context: &Context<'_>) -> Result<Laid, Error> {
    let Laid { mut steps, mut last, mut warnings } = Laid::default();
    for (i, mount) in mounts.iter().enumerate() {
        let property = format!("mounts[{i}]");
        let mut options = parse(&property, mount.options().as_deref().unwrap_or_default())?;
        let kind = mount.typ().as_deref().unwrap_or("none");
        // Old specifications have destinations without the leading slash.
        let destination = Path::new("/").join(mount.destination());
        // And some name them from outside.
        let destination = match destination.strip_prefix(context.root) {
            Ok(below) => Path::new("/").join(below),
            Err(_) => destination,
        };
        let target = inside(&format!("{property}.destination"), &destination)?;
        if target.is_root() {
            return Err(Error::spec(format!("{property}.destination"), "is the root itself"));
        }
        if is_cgroup(mount) {
            steps.extend(cgroups(&property, &destination, &options, context)?);
        } else if options.bind || kind == "bind" {
            // As mount(2) has it, to which they would be data that it does not look at.
            let other = options.rest.iter().map(|(key, _)| key.to_string_lossy());
            let left_out = options.of_file_system.iter().map(|option| (*option).into()).chain(other);
            warnings.extend(left_out.map(|option| {
                format!("{property}: {option} is left out: it is the file system's, not a bind mount's")
            }));
            steps.push(bind(&property, mount, options, target, context)?);
        } else {
            if options.ids || mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
                return Err(Error::spec(property, "only a bind mount can map ids"));
            }
            for option in std::mem::take(&mut options.of_file_system) {
                match option {
                    "noiversion" => {} // what all are
                    "iversion" => warnings.push(format!("{property}: iversion is left out: no system call sets it")),
                    _ => options.rest.push((c_string(&property, option)?, None)),
                }
            }
            if kind == "tmpfs" && options.attr.set & libc::MOUNT_ATTR_RDONLY != 0 {
                // Devices and other mounts' places have to be made in it first.
                options.attr.set &= !libc::MOUNT_ATTR_RDONLY;
                last.push(Step::ReadOnly(target.clone()));
            }
            steps.push(new(&property, kind, mount.source().as_deref(), options, target, context)?);
        }
    }
    Ok(Laid { steps, last, warnings })
}

fn bind(
    property: &str,
    mount: &Asked,
    mut options: Options,
    target: Inside,
    context: &Context<'_>,
) -> Result<Step, Error> {
    let source = mount.source().as_deref().ok_or_else(|| Error::spec(property, "a bind mount needs a source"))?;
    if options.copy {
        return Err(Error::spec(property, "tmpcopyup is no option of a bind mount"));
    }
    if options.attr.propagation == 0 && options.recursive_attr.propagation == 0 {
        options.recursive_attr.propagation = context.propagation;
    }
    let path = context.bundle.join(source);
    let ids = ids(property, mount, &options, context)?;
    let lexical = path.components().all(|component| component != std::path::Component::ParentDir);
    let within = path.strip_prefix(context.root).ok().filter(|_| lexical && ids.is_none());
    let within = within.map(|path| Path::new("/").join(path));
    let inside = within.map(|path| inside(&format!("{property}.source"), &path)).transpose()?;
    let path = c_string(&format!("{property}.source"), &path.to_string_lossy())?;
    Ok(Step::Mount(Box::new(Mount {
        target,
        source: Source::Bind { path, recursive: options.recursive, ids, inside },
        options: options.text,
        attr: options.attr,
        recursive_attr: options.recursive_attr,
        refuse_symlinks: false,
        tree: None,
    })))
}

/// The mappings of an id-mapped mount: its own, or the container's.
fn ids(property: &str, mount: &Asked, options: &Options, context: &Context<'_>) -> Result<Option<IdMap>, Error> {
    let (uids, gids) = (mount.uid_mappings(), mount.gid_mappings());
    let from = match (uids, gids) {
        (None, None) if !options.ids => return Ok(None),
        (None, None) => context.ids.cloned().ok_or_else(|| {
            Error::spec(property, "idmap needs uidMappings and gidMappings, its own or those of a user namespace")
        })?,
        _ => {
            let [uids, gids] = [uids, gids].map(|ids| ids.as_deref().unwrap_or_default());
            IdSource::Maps(maps(property, uids, gids)?)
        }
    };
    Ok(Some(IdMap { from, recursive: options.recursive_ids }))
}

fn new(
    property: &str,
    kind: &str,
    source: Option<&Path>,
    options: Options,
    target: Inside,
    context: &Context<'_>,
) -> Result<Step, Error> {
    if options.copy && kind != "tmpfs" {
        return Err(Error::spec(property, format!("tmpcopyup is an option of tmpfs, not of {kind}")));
    }
    let mut all = Vec::new();
    if let Some(source) = source.filter(|source| !source.as_os_str().is_empty()) {
        all.push((c"source".into(), Some(c_string(&format!("{property}.source"), &source.to_string_lossy())?)));
    }
    all.extend(options.rest);
    if let Some(label) = context.label.as_ref().filter(|_| matches!(kind, "tmpfs" | "devpts" | "ramfs")) {
        all.push((c"context".into(), Some(label.clone())));
    }
    let has_mode = all.iter().any(|(key, _)| key.as_c_str() == c"mode");
    let takes_mode = kind == "tmpfs" && !has_mode && !options.copy;
    let kind_name = c_string(&format!("{property}.type"), kind)?;
    Ok(Step::Mount(Box::new(Mount {
        target,
        source: Source::New { kind: kind_name, options: all, copy: options.copy, takes_mode },
        options: options.text,
        attr: options.attr,
        recursive_attr: options.recursive_attr,
        refuse_symlinks: matches!(kind, "proc" | "sysfs"),
        tree: None,
    })))
}

/// The container sees its own cgroup and what is below it, with or without a cgroup namespace: on cgroup v2 one directory, on v1 one
/// for each hierarchy, with a link for each controller that shares one.
fn cgroups(property: &str, destination: &Path, options: &Options, context: &Context<'_>) -> Result<Vec<Step>, Error> {
    let bind = |directory: &Path, target: &Path| -> Result<Step, Error> {
        Ok(Step::Mount(Box::new(Mount {
            target: inside(property, target)?,
            source: Source::Bind {
                path: c_string(property, &directory.to_string_lossy())?,
                recursive: false,
                ids: None,
                inside: None,
            },
            options: options.text.clone(),
            attr: options.attr,
            recursive_attr: MountAttr { propagation: libc::MS_PRIVATE, ..options.recursive_attr },
            refuse_symlinks: true,
            tree: None,
        })))
    };
    let views = cgroup::views(context.cgroup)?;
    if let [view] = views.as_slice()
        && view.unified
    {
        return Ok(vec![bind(&view.directory, destination)?]);
    }
    let shelf = Options {
        attr: MountAttr { set: options.attr.set & !libc::MOUNT_ATTR_RDONLY, ..options.attr },
        rest: vec![(c"mode".into(), Some(c"755".into()))],
        ..Options::default()
    };
    let mut steps = vec![new(property, "tmpfs", None, shelf, inside(property, destination)?, context)?];
    for view in &views {
        let name = view.names.join(",");
        steps.push(bind(&view.directory, &destination.join(&name))?);
        if view.names.len() > 1 {
            for controller in &view.names {
                let path = inside(property, &destination.join(controller))?;
                steps.push(Step::Symlink { path, target: c_string(property, &name)? });
            }
        }
    }
    if options.attr.set & libc::MOUNT_ATTR_RDONLY != 0 {
        steps.push(Step::ReadOnly(inside(property, destination)?));
    }
    Ok(steps)
}

/// A mount's options, sorted by what takes them.
#[derive(Debug, Default)]
struct Options {
    /// All of them, as they were asked for.
    text: String,
    bind: bool,
    recursive: bool,
    ids: bool,
    recursive_ids: bool,
    copy: bool,
    attr: MountAttr,
    recursive_attr: MountAttr,
    /// Flags of the file system itself.
    of_file_system: Vec<&'static str>,
    rest: Vec<(CString, Option<CString>)>,
}

/// Flags of file systems: for all mounts of one alike (mount(8), "Filesystem-independent mount options").
const OF_FILE_SYSTEM: &[&str] =
    &["async", "dirsync", "iversion", "lazytime", "mand", "noiversion", "nolazytime", "nomand", "sync"];

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

/// Their names.
pub(super) fn known_options() -> Vec<String> {
    let recursive = FLAGS.iter().map(|(name, ..)| format!("r{name}"));
    let plain = FLAGS.iter().map(|(name, ..)| (*name).to_string());
    let propagations = PROPAGATIONS.iter().map(|(name, ..)| (*name).to_string());
    let others = ["bind", "rbind", "idmap", "ridmap", "tmpcopyup", "defaults", "remount"];
    let others = others.iter().chain(OF_FILE_SYSTEM).map(|name| (*name).to_string());
    let mut all: Vec<String> = recursive.chain(plain).chain(propagations).chain(others).collect();
    all.sort_unstable();
    all
}

fn parse(property: &str, options: &[String]) -> Result<Options, Error> {
    let mut parsed = Options { text: options.join(","), ..Options::default() };
    for option in options {
        match option.as_str() {
            // What mount(8) itself takes, and what says nothing that these system calls could be told.
            "" | "defaults" | "silent" | "loud" | "remount" => {}
            "bind" => parsed.bind = true,
            "rbind" => (parsed.bind, parsed.recursive) = (true, true),
            "tmpcopyup" => parsed.copy = true,
            "idmap" => parsed.ids = true,
            "ridmap" => (parsed.ids, parsed.recursive_ids) = (true, true),
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
    } else if let Some(option) = OF_FILE_SYSTEM.iter().find(|known| **known == option) {
        parsed.of_file_system.push(option);
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

/// How the new mount namespace relates to the runtime's while it is set up, and a bind mount to its source unless it says so itself.
/// A root that is to share hands on what its bind mounts share.
pub(super) fn outer_propagation(asked: Option<&str>) -> Result<u64, Error> {
    Ok(match asked.unwrap_or("") {
        "" | "slave" | "rslave" | "shared" | "rshared" => libc::MS_SLAVE,
        "private" | "rprivate" | "unbindable" | "runbindable" => libc::MS_PRIVATE,
        other => return Err(Error::spec("linux.rootfsPropagation", format!("{other:?} is none"))),
    })
}

/// What the container's own root hands on below it.
pub(super) fn inner_propagation(asked: Option<&str>) -> Result<Option<Step>, Error> {
    let (propagation, recursive) = match asked.unwrap_or("") {
        "shared" => (libc::MS_SHARED, false),
        "rshared" => (libc::MS_SHARED, true),
        "unbindable" => (libc::MS_UNBINDABLE, false),
        "runbindable" => (libc::MS_UNBINDABLE, true),
        _ => return Ok(None),
    };
    Ok(Some(Step::PropagateRoot { propagation, recursive }))
}
