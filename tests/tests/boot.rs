//! What guests boot from: every image that ships, and images made here, whole and tampered with.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use nacre_image::outputs::disk::Disk;
use nacre_image::outputs::{Job, Outputs, Packed, gpt, pack};
use nacre_image::tree::{Node, Tree};
use nacre_protocol::health::CheckRequest;
use nacre_shim::layout::Layout;
use nacre_shim::vmm;
use nacre_tests::agent::{Client, Guest, Machine, limit};
use nacre_tests::{dist, suite};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Firmware that starts programs.
const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";

/// A block of dm-verity.
const BLOCK: usize = 4096;

/// What fills an image with blocks that nobody reads at boot.
const PADDING: &str = "/usr/share/padding";

fn guests() -> Option<PathBuf> {
    dist::dist().filter(|_| dist::have(&["qemu-system-x86_64", "busybox"])).map(|dist| dist.join("share/nacre"))
}

/// Boots an image; its agent answers, be it that its policy allows nothing.
async fn boot(kernel: PathBuf, image: PathBuf, machine: Machine<'_>) -> anyhow::Result<(Guest, Client)> {
    let guest = Guest::boot_layout(Layout::of(kernel, image)?, machine).await?;
    let client = guest.connect().await?;
    Ok((guest, client))
}

async fn answers(client: &Client) -> bool {
    match client.health.check(limit(), &CheckRequest::new()).await {
        Ok(_) => true,
        Err(ttrpc::Error::RpcStatus(status)) => status.code() == ttrpc::Code::PERMISSION_DENIED,
        Err(_) => false,
    }
}

/// Runs a program in a container that sees the guest's root and its devices. What it said, and how it ended.
async fn run(client: &Client, script: &str) -> anyhow::Result<(String, i32)> {
    let root = suite::root_file_system(client, "c").await?;
    let mut spec = suite::spec_json("c", &root, &["busybox", "sh", "-c", script], false);
    let bind =
        |path: &str, at: &str| json!({ "destination": at, "type": "bind", "source": path, "options": ["rbind", "ro"] });
    if let Some(Value::Array(mounts)) = spec.pointer_mut("/mounts") {
        mounts.extend([bind("/", "/guest"), bind("/dev/dm-0", "/dev/dm-0")]);
    }
    spec["linux"]["resources"] = json!({ "devices": [{ "allow": true, "access": "r" }] });
    let spec = nacre_protocol::convert::spec_from_oci(&serde_json::from_value(spec)?)?;
    suite::create_of(client, "c", spec).await?;
    suite::start(client, "c").await?;
    let said = suite::read_out(client, "c", "c").await?;
    let code = suite::wait(client, "c", "c").await?;
    suite::remove(client, "c").await?;
    Ok((String::from_utf8(said)?, code))
}

#[tokio::test]
async fn vm_every_image_that_ships_boots() {
    let Some(guests) = guests() else { return };
    for name in ["minimal", "confidential", "debug", "kata"] {
        let images: Vec<PathBuf> = ["initrd", "disk"]
            .map(|form| guests.join(format!("{name}.{form}")))
            .into_iter()
            .filter(|p| p.exists())
            .collect();
        if images.is_empty() {
            dist::skip(&format!("{name} is not built: make images"));
        }
        for image in images {
            let (_guest, client) = boot(guests.join("vmlinux"), image, Machine::default()).await.unwrap();
            assert!(answers(&client).await, "{name}");
        }
    }
}

/// An image of the agent and some noise, with its manifest, in all forms that are asked for.
fn build(guests: &Path, outputs: Outputs) -> (TempDir, Packed) {
    let agent = fs::read(guests.join("../../bin/nacre-agent")).unwrap();
    let noise: Vec<u8> = (0u32..1 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut tree = Tree::default();
    tree.add("/init", Node::File(0o755, agent)).unwrap();
    tree.add(PADDING, Node::File(0o644, noise)).unwrap();
    let bz_image = guests.join("bzImage");
    let job = Job { name: "test", tree: &tree, outputs: &outputs, parameters: &[], bz_image: Some(&bz_image) };
    let packed = pack(&job).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in &packed.files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    write_manifest(dir.path(), &packed);
    (dir, packed)
}

fn write_manifest(dir: &Path, packed: &Packed) {
    let none = json!({ "name": "none", "bytes": 0, "sha256": "" });
    let manifest = json!({
        "name": "test", "recipe_sha256": "", "packages": [], "agent": none, "helpers": [], "outputs": [], "kernel": null,
        "root": packed.root,
    });
    fs::write(dir.join("test.manifest.json"), manifest.to_string()).unwrap();
}

fn disk() -> Outputs {
    Outputs { initrd: None, disk: Some(Disk::default()), ..Outputs::default() }
}

#[tokio::test]
async fn vm_the_root_is_a_verified_disk_that_can_not_be_written() {
    let Some(guests) = guests() else { return };
    let (dir, packed) = build(&guests, disk());
    let machine = Machine::default();
    let (_guest, client) = boot(guests.join("vmlinux"), dir.path().join("test.disk"), machine).await.unwrap();
    let script = "busybox grep ' /guest ' /proc/self/mountinfo; busybox touch /guest/x || busybox dd if=/dev/dm-0 bs=1M | busybox wc -c";
    let (said, code) = run(&client, script).await.unwrap();
    let blocks = packed.root.unwrap().verity.data_blocks;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(" ro,") && said.contains(" - erofs "), "{said}");
    assert!(said.trim_end().ends_with(&(blocks * BLOCK as u64).to_string()), "{said}");
}

/// A guest whose disk was changed comes up, or does not; but nobody gets to read all of its root.
async fn reads_its_root(guests: &Path, dir: &Path) -> anyhow::Result<bool> {
    let (_guest, client) = boot(guests.join("vmlinux"), dir.join("test.disk"), Machine::default()).await?;
    Ok(run(&client, "busybox dd if=/dev/dm-0 of=/dev/null bs=1M").await?.1 == 0)
}

#[tokio::test]
async fn vm_a_flipped_byte_ends_the_guest() {
    let Some(guests) = guests() else { return };
    let (dir, _) = build(&guests, disk());
    let path = dir.path().join("test.disk");
    let whole = fs::read(&path).unwrap();
    let table = gpt::read(&whole).unwrap();
    let start = |partition: usize| table.partitions[partition].first as usize * gpt::SECTOR;
    let data = table.partitions[0].of(&whole).unwrap().len();
    for (what, at, at_boot) in [
        ("the first block", start(0) + 1030, true),
        ("a block that is not read at boot", start(0) + data - 5 * BLOCK, false),
        ("the top of the hash tree", start(1) + BLOCK + 5, true),
        ("the last block of the hash tree", start(1) + table.partitions[1].of(&whole).unwrap().len() - BLOCK, false),
    ] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        let error = reads_its_root(&guests, dir.path()).await.expect_err(what);
        let text = format!("{error:#}");
        assert!(!at_boot || text.contains("verity"), "{what}: {text}");
    }
    fs::write(&path, whole).unwrap();
    assert!(reads_its_root(&guests, dir.path()).await.unwrap());
}

#[tokio::test]
async fn vm_another_root_hash_ends_the_guest() {
    let Some(guests) = guests() else { return };
    let (dir, packed) = build(&guests, disk());
    let flip = |text: &mut String| *text = text.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
    for of in [0, 1] {
        let mut root = packed.root.clone().unwrap();
        flip(if of == 0 { &mut root.verity.root_hash } else { &mut root.verity.salt });
        write_manifest(dir.path(), &Packed { root: Some(root), ..Packed::default() });
        let error = reads_its_root(&guests, dir.path()).await.unwrap_err();
        assert!(format!("{error:#}").contains("verity"), "{error:#}");
    }
}

#[tokio::test]
async fn vm_firmware_starts_a_program_of_kernel_and_initrd_or_disk() {
    let Some(guests) = guests() else { return };
    if !Path::new(FIRMWARE).exists() || !guests.join("bzImage").exists() {
        return dist::skip("firmware (package ovmf) or bzImage (make kernel) is not there");
    }
    for outputs in [Outputs { uki: true, ..Outputs::default() }, Outputs { uki: true, ..disk() }] {
        let (dir, _) = build(&guests, outputs);
        let machine = Machine { kind: vmm::Machine::Q35, ..Machine::default() };
        let (_guest, client) = boot(guests.join("vmlinux"), dir.path().join("test.efi"), machine).await.unwrap();
        assert!(answers(&client).await);
    }
}
