//! Storages as a whole.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, LazyLock};

use nacre_protocol::agent::FSGroup;
use nacre_protocol::types::FSGroupChangePolicy;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_change};

use super::*;

/// Where tests make their directories.
static ROOT: LazyLock<PathBuf> = LazyLock::new(std::env::temp_dir);

fn storage(driver: &str, mount_point: &str) -> Storage {
    Storage { driver: driver.into(), mount_point: mount_point.into(), ..Storage::new() }
}

fn context<'a>(mounts: &'a Arc<Mounts>, pulls: &'a Arc<Pulls>, devices: &'a Devices) -> Context<'a> {
    Context { owner: "c", root: &ROOT, scratch: Path::new("/nonexistent"), mounts, pulls, devices }
}

async fn try_prepare(storages: &[Storage]) -> Result<Prepared, Error> {
    let (mounts, pulls, devices) = (Mounts::new(), Pulls::for_tests(), Devices::new(Duration::ZERO));
    prepare(storages, &context(&mounts, &pulls, &devices)).await
}

#[tokio::test]
async fn an_unknown_driver_is_named() {
    let error = try_prepare(&[storage("blk-ccw", "/a")]).await.unwrap_err();
    assert!(error.is_unimplemented());
    assert!(error.to_string().contains("\"blk-ccw\""), "{error}");
}

#[tokio::test]
async fn mount_points_that_are_none_are_refused() {
    let root = ROOT.to_str().unwrap();
    for bad in ["", "relative", "/", "/a/../b", "/a\0b", "/usr", root, &format!("{root}x/a")] {
        assert!(try_prepare(&[storage("local", bad)]).await.unwrap_err().is_invalid(), "{bad:?}");
    }
    assert!(try_prepare(&vec![storage("local", "/a"); MAX_STORAGES + 1]).await.unwrap_err().is_invalid());
}

#[tokio::test]
async fn a_local_directory_goes_with_its_last_user() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("a/b");
    let mut wanted = storage("local", point.to_str().unwrap());
    wanted.options = vec!["mode=0750".into()];
    let (mounts, pulls, devices) = (Mounts::new(), Pulls::for_tests(), Devices::new(Duration::ZERO));
    let first = prepare(std::slice::from_ref(&wanted), &context(&mounts, &pulls, &devices)).await.unwrap();
    let second = prepare(&[wanted], &context(&mounts, &pulls, &devices)).await.unwrap();
    assert_eq!(fs::metadata(&point).unwrap().mode() & 0o7777, 0o750);
    first.release().unwrap();
    assert!(point.exists());
    drop(second);
    assert!(!point.exists());
}

#[tokio::test]
async fn a_directory_that_was_there_before_stays() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    drop(try_prepare(&[storage("local", dir.path().to_str().unwrap())]).await.unwrap());
    assert!(dir.path().join("file").exists());
}

#[tokio::test]
async fn a_link_in_a_mount_point_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc", dir.path().join("link")).unwrap();
    let point = dir.path().join("link/x");
    assert!(try_prepare(&[storage("local", point.to_str().unwrap())]).await.is_err());
}

#[tokio::test]
async fn what_was_prepared_before_an_error_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("a");
    assert!(try_prepare(&[storage("local", point.to_str().unwrap()), storage("blk-ccw", "/b")]).await.is_err());
    assert!(!point.exists());
}

/// A place for storages on a tmpfs, in a mount namespace of the test's own.
pub(super) struct World {
    pub(super) dir: PathBuf,
    pub(super) scratch: PathBuf,
    mounts: Arc<Mounts>,
    pulls: Arc<Pulls>,
    devices: Devices,
}

impl World {
    /// Run `test`, or say why not.
    pub(super) fn enter(test: impl AsyncFnOnce(&World) + Send) {
        let dir = tempfile::tempdir().unwrap();
        let run = || {
            // Only this thread moves, with those that it starts, and it ends with the test.
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
                return println!("skipped: unshare(CLONE_NEWNS): {error}");
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            rustix::mount::mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), c"").unwrap();
            let (dir, scratch) = (dir.path().to_path_buf(), dir.path().join("scratch"));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let devices = Devices::new(Duration::from_secs(1));
                let world = World { dir, scratch, mounts: Mounts::new(), pulls: Pulls::for_tests(), devices };
                test(&world).await;
                let left: Vec<_> =
                    mountinfo::all().unwrap().into_iter().filter(|m| m.at.starts_with(&world.dir)).collect();
                assert_eq!(left.len(), 1, "{left:?}");
            });
        };
        std::thread::scope(|scope| scope.spawn(run).join().unwrap());
    }

    pub(super) async fn prepare(&self, storages: &[Storage]) -> Result<Prepared, Error> {
        let World { dir, scratch, mounts, pulls, devices } = self;
        let context = Context { owner: "c", root: dir, scratch, mounts, pulls, devices };
        prepare(storages, &context).await
    }

    pub(super) fn storage(&self, driver: &str, at: &str) -> Storage {
        storage(driver, self.dir.join(at).to_str().unwrap())
    }

    /// Directories, each with a file of its own name that says it.
    pub(super) fn directory(&self, name: &str) -> String {
        fs::create_dir(self.dir.join(name)).unwrap();
        fs::write(self.dir.join(name).join(name), name).unwrap();
        self.dir.join(name).to_str().unwrap().into()
    }

    pub(super) fn left(&self) -> Vec<String> {
        let names = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

#[test]
fn an_overlay_is_written_where_the_guest_keeps_it_and_leaves_nothing() {
    World::enter(async |world| {
        let (a, b) = (world.directory("a"), world.directory("b"));
        let mut wanted = world.storage("overlayfs", "root");
        wanted.options = vec![format!("lowerdir={a}:{b}"), "io.katacontainers.fs-opt.overlay-rw".into()];
        let made = world.dir.join("made").to_str().unwrap().to_string();
        wanted.driver_options = vec![format!("io.katacontainers.volume.overlayfs.create_directory={made}")];
        let prepared = world.prepare(&[wanted]).await.unwrap();
        let root = world.dir.join("root");
        assert_eq!(fs::read_to_string(root.join("a")).unwrap() + &fs::read_to_string(root.join("b")).unwrap(), "ab");
        fs::write(root.join("new"), "new").unwrap();
        assert!(Path::new(&made).exists() && !Path::new(&a).join("new").exists());
        prepared.release().unwrap();
        assert_eq!(world.left(), ["a", "b", "scratch"]);
        assert!(fs::read_dir(world.scratch.join(".storages")).unwrap().next().is_none());
    });
}

#[test]
fn a_file_is_bound_read_only_and_a_link_is_not_followed() {
    World::enter(async |world| {
        let source = world.directory("a") + "/a";
        let mut wanted = world.storage("bind", "here/file");
        wanted.source = source.clone();
        wanted.options = vec!["bind".into(), "ro".into()];
        let prepared = world.prepare(std::slice::from_ref(&wanted)).await.unwrap();
        let at = world.dir.join("here/file");
        assert_eq!(fs::read_to_string(&at).unwrap(), "a");
        assert_eq!(fs::write(&at, "").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        prepared.release().unwrap();
        assert!(!at.exists() && fs::read_to_string(&source).unwrap() == "a");
        symlink(&source, world.dir.join("link")).unwrap();
        wanted.source = world.dir.join("link").to_str().unwrap().into();
        wanted.driver = "virtio-fs".into();
        wanted.fstype = "bind".into();
        assert!(world.prepare(&[wanted]).await.is_err());
        assert!(!at.exists());
    });
}

#[test]
fn what_several_name_is_mounted_once_and_nobody_gets_what_another_has_mounted() {
    World::enter(async |world| {
        let mut wanted = world.storage("ephemeral", "shm");
        wanted.source = "shm".into();
        wanted.options = vec!["size=1M".into()];
        let one = world.prepare(std::slice::from_ref(&wanted)).await.unwrap();
        fs::write(world.dir.join("shm/x"), "").unwrap();
        let two = world.prepare(std::slice::from_ref(&wanted)).await.unwrap();
        one.release().unwrap();
        assert!(world.dir.join("shm/x").exists());
        let mut other = wanted.clone();
        other.source = "other".into();
        assert!(world.prepare(&[other]).await.unwrap_err().is_invalid());
        two.release().unwrap();
        assert_eq!(world.left(), [""; 0]);
        wanted.shared = true;
        let kept = world.prepare(std::slice::from_ref(&wanted)).await.unwrap();
        kept.establish();
        kept.release().unwrap();
        assert_eq!(world.left(), ["shm"]);
        world.mounts.end().unwrap();
        assert_eq!(world.left(), [""; 0]);
    });
}

#[test]
fn a_failure_half_way_leaves_nothing() {
    World::enter(async |world| {
        let a = world.directory("a");
        let mut overlay = world.storage("overlayfs", "root");
        overlay.options = vec![format!("lowerdir={a}:{a}missing"), "io.katacontainers.fs-opt.overlay-rw".into()];
        let mut share = world.storage("virtio-fs", "share");
        (share.source, share.fstype) = ("noSuchTag".into(), "virtiofs".into());
        let mut bad_group = world.storage("ephemeral", "group");
        bad_group.options = vec!["ro".into()];
        bad_group.fs_group = Some(FSGroup { group_id: 7, ..FSGroup::new() }).into();
        for (bad, expected) in [(overlay, "open directory"), (share, "noSuchTag"), (bad_group, "give to its group")] {
            let error = world.prepare(&[world.storage("ephemeral", "tmp"), bad]).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(world.left().into_iter().filter(|name| name != "scratch").collect::<Vec<_>>(), ["a"]);
        }
        assert!(fs::read_dir(world.scratch.join(".storages")).unwrap().next().is_none());
    });
}

#[test]
fn a_volumes_files_are_its_groups_and_nothing_else_is() {
    World::enter(async |world| {
        let volume = PathBuf::from(world.directory("volume"));
        let outside = PathBuf::from(world.directory("outside"));
        fs::create_dir_all(volume.join("deep/er")).unwrap();
        fs::create_dir(volume.join("other")).unwrap();
        fs::set_permissions(volume.join("volume"), fs::Permissions::from_mode(0o4751)).unwrap();
        symlink(outside.join("outside"), volume.join("link")).unwrap();
        symlink(&outside, volume.join("deep/link")).unwrap();
        rustix::mount::mount("tmpfs", volume.join("other"), "tmpfs", MountFlags::empty(), c"").unwrap();
        let mut group = FSGroup { group_id: 4711, ..FSGroup::new() };
        ownership::apply(&volume, &group, false).unwrap();
        let is = |path: &Path| fs::symlink_metadata(path).map(|file| (file.gid(), file.mode() & 0o7777)).unwrap();
        assert_eq!(is(&volume), (4711, 0o2775));
        assert_eq!(is(&volume.join("deep/er")), (4711, 0o2775));
        assert_eq!(is(&volume.join("volume")), (4711, 0o771));
        assert_eq!(is(&volume.join("link")).0, 4711);
        for untouched in [outside.clone(), outside.join("outside"), volume.join("other")] {
            assert_eq!(is(&untouched).0, 0, "{untouched:?}");
        }
        // The root says that it has been done: nobody looks further, unless always asked to.
        fs::write(volume.join("new"), "").unwrap();
        std::os::unix::fs::chown(volume.join("new"), None, Some(1)).unwrap();
        group.group_change_policy = FSGroupChangePolicy::OnRootMismatch.into();
        ownership::apply(&volume, &group, false).unwrap();
        assert_eq!(is(&volume.join("new")).0, 1);
        group.group_change_policy = FSGroupChangePolicy::Always.into();
        ownership::apply(&volume, &group, true).unwrap();
        assert_eq!(is(&volume.join("new")), (4711, 0o644));
        rustix::mount::unmount(volume.join("other"), rustix::mount::UnmountFlags::empty()).unwrap();
    });
}

#[test]
fn huge_pages_are_reserved_for_as_long_as_they_are_mounted() {
    let pages = || fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    let Ok(before) = pages() else { return println!("skipped: the kernel has no huge pages of 2 MiB") };
    World::enter(async |world| {
        let mut wanted = world.storage("ephemeral", "huge");
        wanted.fstype = "hugetlbfs".into();
        wanted.options = vec!["pagesize=2M".into(), "size=4194304".into(), "mode=700".into()];
        let prepared = match world.prepare(std::slice::from_ref(&wanted)).await {
            Err(error) if error.to_string().contains("reserve") => {
                return println!("skipped: {}", crate::chain(&error));
            }
            prepared => prepared.unwrap(),
        };
        let number = |text: &str| text.trim().parse::<u64>().unwrap();
        assert_eq!(number(&pages().unwrap()), number(&before) + 2);
        let mounted = mountinfo::all().unwrap().into_iter().rfind(|mounted| mounted.at == world.dir.join("huge"));
        assert_eq!(mounted.unwrap().kind, "hugetlbfs");
        prepared.release().unwrap();
        assert_eq!(pages().unwrap(), before);
        wanted.options = vec!["pagesize=2M".into(), "size=1048576G".into()];
        assert!(world.prepare(&[wanted]).await.is_err());
        assert_eq!(pages().unwrap(), before);
    });
}

#[test]
fn who_comes_second_waits_for_the_first_and_makes_it_when_that_fails() {
    let (mounts, made, barrier) = (Mounts::new(), AtomicUsize::new(0), Barrier::new(8));
    let wanted = storage("local", "/a");
    let one = || {
        barrier.wait();
        let make = || match made.fetch_add(1, SeqCst) {
            0 => Err(Error::Task),
            _ => Ok(Steps::default()),
        };
        mounts.acquire(&wanted, Demand::of(std::slice::from_ref(&wanted)), Path::new("/a"), make)
    };
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        let users: Vec<_> = users.into_iter().map(|user| user.join().unwrap()).collect();
        assert_eq!(users.iter().filter(|user| user.is_ok()).count(), 7);
    });
    // One failed, one made it, and the last of them was its end.
    assert_eq!(made.load(SeqCst), 2);
    assert!(mounts.with(Path::new("/a"), "local", || ()).is_none());
}

#[test]
fn what_nobody_serves_any_more_is_unmounted_and_the_rest_stays() {
    World::enter(async |world| {
        let root: &'static Path = Box::leak(world.dir.clone().into_boxed_path());
        let prepared = world.prepare(&[world.storage("ephemeral", "live")]).await.unwrap();
        assert_eq!(stale::sweep(&world.mounts, root).await.unwrap(), 0);
        fs::create_dir(world.dir.join("dead")).unwrap();
        let Ok(server) = fs::File::options().read(true).write(true).open("/dev/fuse") else {
            return println!("skipped: no FUSE");
        };
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", std::os::fd::AsRawFd::as_raw_fd(&server));
        let data = std::ffi::CString::new(data).unwrap();
        if let Err(error) =
            rustix::mount::mount("x", world.dir.join("dead"), "fuse", MountFlags::empty(), data.as_c_str())
        {
            return println!("skipped: mount FUSE: {error}");
        }
        drop(server);
        assert_eq!(stale::sweep(&world.mounts, root).await.unwrap(), 1);
        assert!(fs::read_dir(world.dir.join("dead")).is_ok());
        prepared.release().unwrap();
    });
}

#[test]
fn a_share_that_changes_is_followed_until_it_is_released() {
    World::enter(async |world| {
        tokio::time::pause(); // the clock goes on as soon as everybody waits for it
        let source = PathBuf::from(world.directory("source"));
        let (at, scratch) = (world.dir.join("seen"), world.dir.join("copy"));
        let show = || watchable::show_copy(&source, &at, &scratch, &Options::default());
        let steps = show().unwrap();
        fs::write(source.join("new"), "new").unwrap();
        assert!(!at.join("new").exists());
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert_eq!(fs::read_to_string(at.join("new")).unwrap(), "new");
        steps.release().unwrap();
        assert_eq!(world.left(), ["source"]);
        // What is too much to be copied is seen as it is.
        fs::File::create(source.join("big")).unwrap().set_len(1 << 30).unwrap();
        let steps = show().unwrap();
        assert_eq!(fs::metadata(at.join("big")).unwrap().len(), 1 << 30);
        steps.release().unwrap();
        assert_eq!(world.left(), ["source"]);
    });
}

#[test]
fn what_changes_in_the_guest_is_bound() {
    World::enter(async |world| {
        let mut wanted = world.storage("watchable-bind", "seen");
        wanted.source = world.directory("source");
        let prepared = world.prepare(&[wanted]).await.unwrap();
        fs::write(world.dir.join("source/new"), "").unwrap();
        assert!(world.dir.join("seen/new").exists());
        prepared.release().unwrap();
        assert_eq!(world.left(), ["source"]);
    });
}

#[test]
fn undoing_follows_no_link_that_the_host_has_put_in_the_way() {
    World::enter(async |world| {
        let at = world.dir.join("share/local/x");
        let prepared = world.prepare(&[world.storage("local", "share/local/x")]).await.unwrap();
        assert!(at.exists());
        fs::create_dir_all(world.dir.join("victim/x")).unwrap();
        fs::write(world.dir.join("victim/x/file"), "").unwrap();
        fs::rename(world.dir.join("share/local"), world.dir.join("share/away")).unwrap();
        symlink(world.dir.join("victim"), world.dir.join("share/local")).unwrap();
        assert!(prepared.release().is_err());
        assert!(world.dir.join("victim/x/file").exists());
    });
}

#[test]
fn what_is_mounted_in_a_directory_is_not_removed_with_it() {
    World::enter(async |world| {
        let prepared = world.prepare(&[world.storage("ephemeral", "tree/mount")]).await.unwrap();
        fs::write(world.dir.join("tree/mount/file"), "").unwrap();
        fs::write(world.dir.join("tree/own"), "").unwrap();
        let mut steps = Steps::default();
        steps.push(Undo::Tree(world.dir.join("tree")));
        assert!(steps.release().is_err()); // the mount's own directory is in use
        assert!(world.dir.join("tree/mount/file").exists());
        prepared.release().unwrap();
    });
}

#[test]
fn a_directory_of_the_pod_s_outlives_its_users_and_one_of_a_container_s_does_not() {
    World::enter(async |world| {
        for driver in ["local", "ephemeral"] {
            let wanted = [world.storage(driver, "shared/empty"), world.storage(driver, "c/own")];
            let first = world.prepare(&wanted).await.unwrap();
            first.establish();
            fs::write(world.dir.join("shared/empty/kept"), "").unwrap();
            first.release().unwrap();
            assert!(!world.dir.join("c/own").exists());
            let second = world.prepare(&wanted).await.unwrap();
            second.establish();
            assert!(world.dir.join("shared/empty/kept").exists(), "{driver}");
            second.release().unwrap();
            world.mounts.end().unwrap();
            assert!(!world.dir.join("shared/empty/kept").exists(), "{driver}");
            // A container that did not come about leaves nothing.
            drop(world.prepare(&wanted).await.unwrap());
            assert!(!world.dir.join("shared/empty").exists(), "{driver}");
        }
    });
}

#[test]
fn who_comes_second_gets_no_less_than_is_asked_for() {
    World::enter(async |world| {
        let first = world.storage("ephemeral", "a");
        let prepared = world.prepare(std::slice::from_ref(&first)).await.unwrap();
        let other = |change: &dyn Fn(&mut Storage)| {
            let mut other = first.clone();
            change(&mut other);
            other
        };
        for other in [
            other(&|other| other.driver_options = vec!["encryption_key=ephemeral".into()]),
            other(&|other| other.options = vec!["io.katacontainers.fs-opt.x".into()]),
            other(&|other| other.fstype = "hugetlbfs".into()),
        ] {
            let error = world.prepare(&[other]).await.unwrap_err();
            assert!(error.to_string().contains("is mounted there"), "{error}");
        }
        world.prepare(&[first]).await.unwrap().release().unwrap();
        prepared.release().unwrap();
    });
}

#[tokio::test]
async fn what_can_t_be_verified_is_not_mounted_when_a_root_hash_is_given() {
    for driver in ["ephemeral", "local", "bind", "virtio-fs", "overlayfs", "watchable-bind", "image_guest_pull"] {
        let at = ROOT.join("verified");
        let mut wanted = storage(driver, at.to_str().unwrap());
        wanted.options = vec!["X-kata.dmverity-enabled=true".into(), "X-kata.dmverity.roothash=00".into()];
        let error = try_prepare(&[wanted]).await.unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("can't be verified"), "{error}");
    }
    let mut disk = storage("blk", "/a");
    disk.options = vec!["X-kata.dmverity-enabled=true".into(), "X-kata.dmverity.roothash=00".into()];
    let mount = |disk: &Storage| block::make(disk, Path::new("/a"), Path::new("/dev/null"), "x").unwrap_err();
    let error = mount(&disk);
    assert!(error.is_invalid() && error.to_string().contains("hashoffset"), "{error}");
    disk.driver_options = vec!["create_filesystem".into()];
    assert!(mount(&disk).to_string().contains("can't be verified"));
}

#[test]
fn nothing_covers_an_image() {
    let mounts = Mounts::new();
    let nothing = |at: &str| {
        let wanted = storage("local", at);
        mounts.acquire(&wanted, Demand::of(std::slice::from_ref(&wanted)), Path::new(at), || Ok(Steps::default()))
    };
    let other = nothing("/x/b").unwrap();
    let claim = mounts.claim(&Storage::new(), Path::new("/x/a/rootfs")).unwrap();
    for at in ["/x/a/rootfs", "/x/a/rootfs/etc", "/x/a"] {
        assert!(nothing(at).unwrap_err().to_string().contains("an image is there"), "{at}");
    }
    assert!(mounts.claim(&Storage::new(), Path::new("/x/a/rootfs")).is_err());
    assert!(mounts.claim(&Storage::new(), Path::new("/x/b/c")).is_err());
    drop((claim, other));
    drop(nothing("/x/a/rootfs").unwrap());
}

#[test]
fn a_file_that_was_there_before_stays() {
    World::enter(async |world| {
        for name in ["source", "empty"] {
            fs::write(world.dir.join(name), "").unwrap();
        }
        let mut wanted = world.storage("bind", "empty");
        wanted.source = world.dir.join("source").to_str().unwrap().into();
        world.prepare(&[wanted]).await.unwrap().release().unwrap();
        assert!(world.dir.join("empty").exists());
    });
}

#[test]
fn a_disk_can_be_bound_itself() {
    World::enter(async |world| {
        fs::write(world.dir.join("disk"), "blocks").unwrap();
        let mut wanted = world.storage("blk", "seen");
        (wanted.fstype, wanted.options) = ("bind".into(), vec!["bind".into()]);
        let at = world.dir.join("seen");
        let steps = block::make(&wanted, &at, &world.dir.join("disk"), "x").unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), "blocks");
        steps.release().unwrap();
        assert!(!at.exists());
    });
}

#[test]
fn config_maps_are_shown_in_a_share_that_is_read_only() {
    World::enter(async |world| {
        let share = PathBuf::from(world.directory("watchable"));
        rustix::mount::mount_bind(&share, &share).unwrap();
        rustix::mount::mount_remount(&share, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
        let map = |name: &str| {
            let mut wanted = world.storage("watchable-bind", &format!("watchable/{name}"));
            wanted.source = world.directory(&format!("source-{name}"));
            fs::write(format!("{}/key", wanted.source), name).unwrap();
            wanted
        };
        let one = world.prepare(&[map("one")]).await.unwrap();
        one.establish();
        let other = world.prepare(&[map("other")]).await.unwrap();
        other.establish();
        one.release().unwrap();
        assert_eq!(fs::read_to_string(world.dir.join("watchable/other/key")).unwrap(), "other");
        other.release().unwrap();
        world.mounts.end().unwrap();
        rustix::mount::unmount(&share, rustix::mount::UnmountFlags::empty()).unwrap();
    });
}

#[test]
fn a_tree_of_any_depth_is_removed() {
    World::enter(async |world| {
        let top = world.dir.join("deep");
        fs::create_dir(&top).unwrap();
        let mut at = rustix::fs::open(&top, OFlags::DIRECTORY | OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&at, ".moved-1", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/", &at, "link").unwrap();
            at = rustix::fs::openat(&at, ".moved-1", OFlags::DIRECTORY | OFlags::PATH, Mode::empty()).unwrap();
        }
        fs::create_dir_all(top.join("other/one")).unwrap();
        fs::write(top.join("other/one/file"), "").unwrap();
        let mut steps = Steps::default();
        steps.push(Undo::Tree(top));
        steps.release().unwrap();
        assert_eq!(world.left(), [""; 0]);
    });
}

#[test]
fn an_overlay_writes_where_the_host_s_storages_are() {
    World::enter(async |world| {
        let lower = world.directory("lower");
        let mut wanted = world.storage("overlayfs", "root");
        wanted.options = vec![format!("lowerdir={lower}")];
        wanted.driver_options = vec!["io.katacontainers.volume.overlayfs.create_directory=/run/nacre/x".into()];
        let error = world.prepare(std::slice::from_ref(&wanted)).await.unwrap_err();
        assert!(error.to_string().contains("is not below"), "{error}");
        wanted.driver_options.clear();
        wanted.options.extend(["upperdir=/var/tmp".into(), "workdir=/var/tmp".into()]);
        assert!(world.prepare(&[wanted]).await.unwrap_err().is_invalid());
    });
}

#[test]
fn a_tree_on_which_another_file_system_is_mounted_is_not_removed() {
    World::enter(async |world| {
        let prepared = world.prepare(&[world.storage("ephemeral", "tree")]).await.unwrap();
        fs::write(world.dir.join("tree/file"), "").unwrap();
        let mut steps = Steps::default();
        steps.push(Undo::Tree(world.dir.join("tree")));
        assert!(steps.release().is_err() && world.dir.join("tree/file").exists());
        prepared.release().unwrap();
    });
}

#[tokio::test]
async fn a_layer_in_memory_is_not_taken_for_a_verified_one() {
    let mut upper = storage("blk", ROOT.join("root").to_str().unwrap());
    upper.fstype = "tmpfs".into();
    upper.options = ["multi-layer=true", "overlay-upper", "dmverity.roothash=00"].map(|o| format!("X-kata.{o}")).into();
    let error = try_prepare(&[upper]).await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("can't be verified"), "{error}");
}
