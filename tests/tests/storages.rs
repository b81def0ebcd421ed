//! Storages on disks in a real guest, whose kernel has the device mapper.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nacre_protocol::agent::{CreateContainerRequest, CreateSandboxRequest, FSGroup, Storage};
use nacre_protocol::convert;
use nacre_shim::vmm::{self, Disk};
use nacre_tests::agent::{Client, Guest, Machine, limit};
use nacre_tests::{dist, suite};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// Where the partition of a disk begins, in sectors.
const FIRST: u64 = 2048;

/// What must not stand on the host's disk.
const SECRET: &str = "this is nobody's but the container's";

/// A guest with one disk, which is `/dev/vda`.
async fn boot(dist: &Path, disk: &Path, read_only: bool) -> (Guest, Client) {
    let disks = vec![Disk { path: disk.into(), serial: "disk".into(), read_only }];
    let guest = Guest::boot_as(dist, Machine { disks, ..Machine::default() }).await.unwrap();
    let client = guest.connect().await.unwrap();
    (guest, client)
}

fn storage(fstype: &str, mount_point: &str, options: &[String]) -> Storage {
    Storage {
        driver: "mmioblk".into(),
        source: "/dev/vda".into(),
        fstype: fstype.into(),
        mount_point: mount_point.into(),
        options: options.to_vec(),
        ..Storage::new()
    }
}

/// Where Debian has the daemon that shares directories by virtio-fs: QEMU's own, which later releases no longer have.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// A daemon that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Shares `dir` with the guest under `tag`.
async fn share(guest: &mut Guest, dir: &Path, tag: &str) -> Daemon {
    let socket = dir.with_extension("sock");
    let mut command = Command::new(VIRTIOFSD);
    command.arg(format!("--socket-path={}", socket.display())).arg("-o").arg(format!("source={}", dir.display()));
    let daemon = Daemon(command.stderr(Stdio::null()).spawn().unwrap());
    let mut qmp = guest.vm().qmp().await.unwrap();
    let chardev = json!({ "id": "share", "backend": { "type": "socket", "data": {
        "addr": { "type": "unix", "data": { "path": socket } }, "server": false, "reconnect": 1,
    } } });
    qmp.execute("chardev-add", chardev).await.unwrap();
    let begun = Instant::now();
    let device = json!({ "driver": "vhost-user-fs-pci", "id": "fs", "chardev": "share", "tag": tag, "bus": "port0" });
    // It is refused until the daemon listens.
    while let Err(error) = qmp.execute("device_add", device.clone()).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "{error:#}");
    }
    daemon
}

#[tokio::test]
async fn vm_a_share_is_mounted_and_what_changes_in_it_is_seen() {
    let Some(dist) = dist::dist().filter(|_| dist::have(&["qemu-system-x86_64", "busybox"]) && dist::root()) else {
        return;
    };
    if !Path::new(VIRTIOFSD).exists() {
        return dist::skip(&format!("{VIRTIOFSD} is not there"));
    }
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir_all(shared.join("c/rootfs/bin")).unwrap();
    fs::copy("/bin/busybox", shared.join("c/rootfs/bin/busybox")).unwrap();
    fs::create_dir(shared.join("config")).unwrap();
    fs::write(shared.join("config/key"), "before").unwrap();
    let mut guest = Guest::boot_as(&dist, Machine { kind: vmm::Machine::Q35, ..Machine::default() }).await.unwrap();
    let client = guest.connect().await.unwrap();
    let _daemon = share(&mut guest, &shared, "kataShared").await;
    let base = "/run/kata-containers/shared/containers";
    let request = CreateSandboxRequest {
        sandbox_id: "pod".into(),
        storages: vec![Storage {
            driver: "virtio-fs".into(),
            source: "kataShared".into(),
            fstype: "virtiofs".into(),
            mount_point: base.into(),
            ..Storage::new()
        }],
        ..CreateSandboxRequest::new()
    };
    let begun = Instant::now();
    // The guest's kernel has to find the device first.
    while let Err(error) = client.agent.create_sandbox(limit(), &request).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
    }
    let watched = Storage {
        driver: "watchable-bind".into(),
        source: format!("{base}/config"),
        fstype: "bind".into(),
        mount_point: "/run/kata-containers/config".into(),
        options: vec!["bind".into(), "ro".into()],
        ..Storage::new()
    };
    let script = "busybox cat /config/key; > /looked; until busybox grep -q after /config/key; do busybox usleep 100000; done; busybox cat /config/key";
    let mut spec = suite::spec_json("c", &format!("{base}/c/rootfs"), &["busybox", "sh", "-c", script], false);
    let bind =
        json!({ "destination": "/config", "type": "bind", "source": watched.mount_point, "options": ["bind", "ro"] });
    spec["mounts"].as_array_mut().unwrap().push(bind);
    let change = async {
        while !shared.join("c/rootfs/looked").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await; // until the container has looked
        }
        fs::write(shared.join("config/key"), "after").unwrap();
    };
    let (ended, ()) = tokio::join!(run(&client, "c", spec, vec![watched]), change);
    let (code, said) = ended.unwrap();
    assert!(code == 0 && said.ends_with("after"), "{code} {said}");
}

/// How the container ends, and what it says.
async fn run(client: &Client, id: &str, spec: Value, storages: Vec<Storage>) -> ttrpc::Result<(i32, String)> {
    let request = CreateContainerRequest {
        container_id: id.into(),
        OCI: Some(convert::spec_from_oci(&serde_json::from_value(spec).unwrap()).unwrap()).into(),
        storages,
        ..Default::default()
    };
    client.agent.create_container(limit(), &request).await?;
    suite::start(client, id).await.unwrap();
    let code = suite::wait(client, id, "").await.unwrap();
    let said = String::from_utf8(suite::read_out(client, id, "").await.unwrap()).unwrap();
    suite::remove(client, id).await.unwrap();
    Ok((code, said))
}

#[tokio::test]
async fn vm_a_volume_is_encrypted_and_belongs_to_its_group() {
    let Some(dist) = dist::dist().filter(|_| dist::have(&["qemu-system-x86_64", "busybox"])) else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    File::create(&disk).unwrap().set_len(64 * MIB).unwrap();
    let (_guest, client) = boot(&dist, &disk, false).await;
    let at = "/run/kata-containers/sandbox/storage/volume";
    let mut volume = storage("ext4", at, &[]);
    volume.driver_options = vec!["encryption_key=ephemeral".into(), "create_filesystem".into()];
    volume.fs_group = Some(FSGroup { group_id: 4711, ..FSGroup::new() }).into();
    let root = suite::root_file_system(&client, "writes").await.unwrap();
    let script = format!(
        "busybox yes \"{SECRET}\" | busybox head -c 4000000 > /data/file && busybox sync && \
         busybox tail -c 1000 /data/file | busybox grep -q nobody && busybox stat -c '%g %a' /data"
    );
    let mut spec = suite::spec_json("writes", &root, &["busybox", "sh", "-c", &script], false);
    let bind = json!({ "destination": "/data", "type": "bind", "source": at, "options": ["bind"] });
    spec["mounts"].as_array_mut().unwrap().push(bind);
    // It is made anew for each container: nothing of the one before is there.
    for id in ["writes", "again"] {
        let said = run(&client, id, spec.clone(), vec![volume.clone()]).await.unwrap();
        assert_eq!(said, (0, "4711 2775\n".into()));
    }
    let seen = fs::read(&disk).unwrap();
    assert!(seen.iter().filter(|byte| **byte != 0).count() > 3_000_000, "nothing was written");
    assert!(!seen.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes()), "the host reads it");
}

/// A disk with one partition: EROFS with busybox under dm-verity. Returns the options that describe it.
fn layer(dir: &TempDir, disk: &Path) -> Vec<String> {
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    fs::write(tree.join("said"), "from a layer\n").unwrap();
    let made = Command::new("mkfs.erofs").arg(&image).arg(&tree).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let data = fs::metadata(&image).unwrap().len();
    let made =
        Command::new("veritysetup").args(["format", &format!("--hash-offset={data}")]).args([&image, &image]).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{made:?}");
    let text = String::from_utf8(made.stdout).unwrap();
    let word = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap().split_whitespace().last().unwrap();
    partition(disk, &fs::read(&image).unwrap());
    let verity = |key: &str, value: &str| format!("X-kata.dmverity.{key}={value}");
    vec![
        "ro".into(),
        "X-kata.overlay-lower".into(),
        "X-kata.multi-layer=true".into(),
        "X-kata.gpt-partitioned=true".into(),
        "X-kata.partition-number=1".into(),
        "X-kata.dmverity-enabled=true".into(),
        verity("roothash", word("Root hash:")),
        verity("salt", word("Salt:")),
        verity("hashoffset", &data.to_string()),
    ]
}

/// A disk whose only partition is `content`.
fn partition(disk: &Path, content: &[u8]) {
    let file = File::create(disk).unwrap();
    let sectors = (content.len() as u64).div_ceil(SECTOR);
    file.set_len((FIRST + sectors) * SECTOR + MIB).unwrap();
    let write = |bytes: &[u8], at: u64| file.write_all_at(bytes, at).unwrap();
    write(b"EFI PART", SECTOR);
    write(&2u64.to_le_bytes(), SECTOR + 72);
    write(&[128u32.to_le_bytes(), 128u32.to_le_bytes()].concat(), SECTOR + 80);
    write(&[1; 16], 2 * SECTOR);
    write(&[FIRST.to_le_bytes(), (FIRST + sectors - 1).to_le_bytes()].concat(), 2 * SECTOR + 32);
    write(content, FIRST * SECTOR);
}

#[tokio::test]
async fn vm_a_layer_in_a_partition_is_run_as_its_root_hash_has_it() {
    let tools = ["qemu-system-x86_64", "busybox", "mkfs.erofs", "veritysetup"];
    let Some(dist) = dist::dist().filter(|_| dist::have(&tools)) else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let options = layer(&dir, &disk);
    let (_guest, client) = boot(&dist, &disk, true).await;
    let root = "/run/kata-containers/layers/rootfs";
    let spec = |id: &str, script: &str| suite::spec_json(id, root, &["busybox", "sh", "-c", script], false);
    let script = "busybox cat /said && busybox mkdir /new";
    // The second one finds nothing of what the first one wrote.
    for id in ["one", "two"] {
        let said = run(&client, id, spec(id, script), vec![storage("erofs", root, &options)]).await.unwrap();
        assert_eq!(said, (0, "from a layer\n".into()));
    }
    let is_root_hash = |option: &String| option.starts_with("X-kata.dmverity.roothash=");
    let wrong: Vec<String> = options
        .iter()
        .map(|option| {
            if is_root_hash(option) {
                "X-kata.dmverity.roothash=".to_string() + &"11".repeat(32)
            } else {
                option.clone()
            }
        })
        .collect();
    let refused = run(&client, "three", spec("three", script), vec![storage("erofs", root, &wrong)]).await;
    assert!(refused.is_err(), "{refused:?}");
    // What is not the guest's is noticed when it is read, also behind its back.
    let tampered = File::options().read(true).write(true).open(&disk).unwrap();
    let bytes = fs::read(&disk).unwrap();
    let at = bytes.windows(13).position(|bytes| bytes == b"from a layer\n").unwrap() as u64;
    tampered.write_all_at(b"FROM", at).unwrap();
    let read = run(&client, "four", spec("four", script), vec![storage("erofs", root, &options)]).await;
    assert!(read.as_ref().map_or(true, |(code, said)| *code != 0 && said.is_empty()), "{read:?}");
}
