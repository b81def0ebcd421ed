//! What of the host's a container is to see: small files and volumes are copied into the guest, and empty directories are the guest's own.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use nacre_protocol::agent::Storage;
use oci_spec::runtime::Mount;
use rustix::fs::statfs;

use super::error::{Error, Result};

/// How many mounts a container may have.
const MAX_MOUNTS: usize = 1024;

/// Where the guest keeps what it has of containers.
pub const RUN: &str = "/run/kata-containers";

/// The memory that containers of a pod share (shm_overview(7)).
pub const SHM: &str = "/run/kata-containers/sandbox/shm";

/// The kernel's number for tmpfs (statfs(2)).
const TMPFS: i64 = 0x0102_1994;

/// Kubernetes' volumes whose files it writes itself, and writes anew when they change: their directory's name (kubelet, `volumepathhandler`).
const WRITTEN: [&str; 4] =
    ["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"];

/// Kubernetes' empty directories.
const EMPTY: &str = "kubernetes.io~empty-dir";

/// A file or directory to be copied into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Where it is here.
    pub from: PathBuf,
    /// Where it is to be there.
    pub to: String,
    /// Whether it is to be copied again when it changes.
    pub live: bool,
}

/// A container's mounts, as the guest can make them.
#[derive(Debug, Default)]
pub struct Brought {
    /// Its mounts, with the guest's sources.
    pub mounts: Vec<Mount>,
    /// What is mounted in the guest before.
    pub storages: Vec<Storage>,
    /// What is copied before.
    pub copies: Vec<Copy>,
}

/// What becomes of a mount.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// The guest makes it as it is told.
    Same,
    /// The pod's shared memory.
    Shm,
    /// A copy.
    Copy { live: bool },
    /// A file system in the guest's memory, of this size in bytes.
    Memory(u64),
    /// A directory of the guest's.
    Directory,
}

/// Sorts the mounts of the container `id`.
///
/// # Errors
/// One that no guest can have.
pub fn bring(id: &str, mounts: &[Mount], confidential: bool) -> Result<Brought> {
    if mounts.len() > MAX_MOUNTS {
        return Err(Error::Invalid(format!("mounts: there are more than {MAX_MOUNTS}")));
    }
    let mut brought = Brought::default();
    for (number, mount) in mounts.iter().enumerate() {
        let mut mount = mount.clone();
        let host = mount.source().clone().unwrap_or_default();
        match way(&mount, &host, confidential)? {
            Way::Same => {}
            Way::Shm => bind(&mut mount, SHM.into()),
            Way::Copy { live } => {
                let name = mount.destination().file_name().unwrap_or_default().to_string_lossy().into_owned();
                let to = format!("{RUN}/shared/containers/{id}-{number}-{name}");
                brought.copies.push(Copy { from: host, to: to.clone(), live });
                bind(&mut mount, to);
            }
            Way::Memory(size) => {
                let at = format!("{RUN}/sandbox/ephemeral/{}", volume(&host));
                brought.storages.push(Storage {
                    driver: "ephemeral".into(),
                    source: "tmpfs".into(),
                    fstype: "tmpfs".into(),
                    options: vec![format!("size={size}"), "mode=1777".into()],
                    mount_point: at.clone(),
                    ..Storage::new()
                });
                bind(&mut mount, at);
            }
            Way::Directory => {
                let at = format!("{RUN}/sandbox/local/{}", volume(&host));
                brought.storages.push(Storage {
                    driver: "local".into(),
                    source: "local".into(),
                    fstype: "local".into(),
                    options: vec!["mode=0777".into()],
                    mount_point: at.clone(),
                    ..Storage::new()
                });
                bind(&mut mount, at);
            }
        }
        brought.mounts.push(mount);
    }
    Ok(brought)
}

/// The volume's name, by which containers of the pod share it.
fn volume(host: &Path) -> String {
    host.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn bind(mount: &mut Mount, source: String) {
    mount.set_source(Some(source.into()));
    mount.set_typ(Some("bind".into()));
    // A size or a mode was the file system's; a bind has none.
    let mut options = mount.options().clone().unwrap_or_default();
    options.retain(|option| {
        !option.contains('=')
            && !["rprivate", "private", "rslave", "slave", "rshared", "shared"].contains(&option.as_str())
    });
    if !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".into());
    }
    mount.set_options(Some(options));
}

fn way(mount: &Mount, host: &Path, confidential: bool) -> Result<Way> {
    let options = mount.options().as_deref().unwrap_or_default();
    let is_bind =
        mount.typ().as_deref() == Some("bind") || options.iter().any(|option| option == "bind" || option == "rbind");
    if !is_bind {
        return Ok(Way::Same);
    }
    if mount.destination() == Path::new("/dev/shm") {
        return Ok(Way::Shm);
    }
    let at = mount.destination().display();
    let kind = fs::metadata(host)
        .map_err(|error| Error::Failed(format!("mount {at}: look at {}: {error}", host.display())))?;
    let kind = kind.file_type();
    let has = |name: &str| host.components().any(|part| part.as_os_str() == name);
    if kind.is_file() {
        return Ok(Way::Copy { live: false });
    }
    if !kind.is_dir() {
        let what = if kind.is_socket() { "a socket" } else { "a device" };
        return Err(Error::Unimplemented(format!(
            "mount {at}: {} is {what} of the host's: no guest can reach it",
            host.display()
        )));
    }
    if WRITTEN.iter().any(|name| has(name)) {
        return Ok(Way::Copy { live: true });
    }
    if has(EMPTY) {
        let stat = statfs(host).map_err(|error| Error::Failed(format!("mount {at}: {}: {error}", host.display())))?;
        let size = stat.f_blocks.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0));
        return Ok(if stat.f_type == TMPFS { Way::Memory(size) } else { Way::Directory });
    }
    if confidential {
        return Err(Error::Unimplemented(format!(
            "mount {at}: {} is a directory of the host's, which a confidential pod does not share",
            host.display()
        )));
    }
    if options.iter().any(|option| option == "ro") {
        return Ok(Way::Copy { live: false });
    }
    Err(Error::Unimplemented(format!(
        "mount {at}: {} is a writable directory of the host's, and only copies reach the guest: mount it read-only, or use an emptyDir",
        host.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mount(destination: &str, source: &Path, options: &[&str]) -> Mount {
        let mount = json!({ "destination": destination, "type": "bind", "source": source, "options": options });
        serde_json::from_value(mount).unwrap()
    }

    #[test]
    fn files_are_copied_and_bound_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        fs::write(&hosts, "").unwrap();
        let brought = bring("c", &[mount("/etc/hosts", &hosts, &["rbind", "rprivate", "rw"])], true).unwrap();
        let to = "/run/kata-containers/shared/containers/c-0-hosts";
        assert_eq!(brought.copies, [Copy { from: hosts, to: to.into(), live: false }]);
        assert_eq!(brought.mounts[0].source().as_deref(), Some(Path::new(to)));
        assert_eq!(brought.mounts[0].options().as_deref().unwrap(), ["rbind", "rw"]);
    }

    #[test]
    fn volumes_are_told_apart_by_where_kubernetes_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let volume = |kind: &str, name: &str| {
            let path = dir.path().join("volumes").join(kind).join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let mounts = [
            mount("/c", &volume("kubernetes.io~configmap", "conf"), &["rbind", "ro"]),
            mount("/e", &volume("kubernetes.io~empty-dir", "work"), &["rbind", "rw"]),
            mount("/e/again", &volume("kubernetes.io~empty-dir", "work"), &["rbind", "ro"]),
        ];
        let brought = bring("c", &mounts, true).unwrap();
        assert!(brought.copies[0].live);
        let points: Vec<_> = brought.storages.iter().map(|storage| storage.mount_point.as_str()).collect();
        assert_eq!(points[0], points[1], "one volume, two mounts");
    }

    #[test]
    fn the_hosts_own_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let writable = mount("/h", dir.path(), &["rbind", "rw"]);
        for confidential in [true, false] {
            assert!(matches!(bring("c", std::slice::from_ref(&writable), confidential), Err(Error::Unimplemented(_))));
        }
        let read_only = mount("/h", dir.path(), &["rbind", "ro"]);
        assert!(bring("c", std::slice::from_ref(&read_only), true).is_err());
        assert!(bring("c", &[read_only], false).is_ok());
        assert!(matches!(
            bring("c", &[mount("/d", Path::new("/dev/null"), &["bind"])], false),
            Err(Error::Unimplemented(_))
        ));
        assert!(matches!(bring("c", &[mount("/d", Path::new("/nowhere"), &["bind"])], false), Err(Error::Failed(_))));
    }

    #[test]
    fn shared_memory_is_the_pods() {
        let shm = mount("/dev/shm", Path::new("/run/x/shm"), &["rbind", "ro"]);
        let brought = bring("c", &[shm], true).unwrap();
        assert_eq!(brought.mounts[0].source().as_deref(), Some(Path::new(SHM)));
    }
}
