//! The recipes that ship, as guests: each boots, and is what it says it is.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;
use std::time::Duration;

use nacre_protocol::agent::{CreateSandboxRequest, GuestDetailsRequest, SetPolicyRequest};
use nacre_protocol::health::CheckRequest;
use nacre_protocol::nacre::SetLogLevelRequest;
use nacre_shim::layout::Layout;
use nacre_shim::vmm;
use nacre_tests::agent::{Client, Guest, Machine, limit};
use nacre_tests::dist;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// The guest's port for shells.
const CONSOLE: u32 = 1026;

/// How long a guest may take to say something.
const SOON: Duration = Duration::from_secs(20);

/// The directory with the images, where they are built.
fn share() -> Option<PathBuf> {
    dist::dist().filter(|_| dist::have(&["qemu-system-x86_64"])).map(|dist| dist.join("share/nacre"))
}

async fn boot(kernel: &str, image: &str, words: &[&str]) -> Option<(Guest, Client)> {
    let share = share()?;
    let layout = Layout::of(share.join(kernel), share.join(image)).unwrap();
    let kind = if image.ends_with(".disk") { vmm::Machine::Q35 } else { vmm::Machine::Microvm };
    let guest = Guest::boot_layout(layout, Machine { kind, words, ..Machine::default() }).await.unwrap();
    let client = guest.connect().await.unwrap();
    Some((guest, client))
}

fn is_denied<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> bool {
    matches!(answer, Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::PERMISSION_DENIED)
}

#[tokio::test]
async fn vm_a_confidential_guest_refuses_what_its_host_asks_for() {
    let words = [
        "agent.log=trace",
        "KATA_AGENT_LOG_LEVEL=trace",
        "agent.debug_console",
        "agent.debug_console_vport=1026",
        "agent.log_vport=1025",
    ];
    let Some((guest, client)) = boot("vmlinux", "confidential.disk", &words).await else { return };
    client.health.check(limit(), &CheckRequest::new()).await.unwrap();
    assert!(is_denied(client.agent.create_sandbox(limit(), &CreateSandboxRequest::new()).await));
    assert!(is_denied(client.agent.set_policy(limit(), &SetPolicyRequest::new()).await));
    assert!(is_denied(client.agent.get_guest_details(limit(), &GuestDetailsRequest::new()).await));
    assert!(is_denied(client.own.set_log_level(limit(), &SetLogLevelRequest::new()).await));
    assert!(guest.pass(CONSOLE).await.is_err(), "somebody listens on the port for shells");
}

#[tokio::test]
async fn vm_a_debug_guest_has_a_shell_and_strace() {
    let Some((guest, _)) = boot("vmlinux", "debug.initrd", &[]).await else { return };
    let (mut shell, _) = guest.pass(CONSOLE).await.unwrap();
    shell.write_all(b"strace -V | head -1; ls -d /usr/bin/strace; echo d''one; exit\n").await.unwrap();
    let text = read_until(&mut shell, "done").await;
    assert!(text.contains("strace -- version") && text.contains("/usr/bin/strace\r\n"), "{text}");
}

#[tokio::test]
async fn vm_a_guest_for_kata_boots_as_an_initrd_and_as_an_image() {
    for image in ["kata.initrd", "kata.disk"] {
        // What Kata's runtimes say besides.
        let words = ["cgroup_no_v1=all", "systemd.unified_cgroup_hierarchy=1", "agent.log_vport=1025"];
        let Some((_guest, client)) = boot("vmlinux", image, &words).await else { return };
        client.agent.create_sandbox(limit(), &CreateSandboxRequest::new()).await.unwrap();
        let details = client.agent.get_guest_details(limit(), &GuestDetailsRequest::new()).await.unwrap();
        assert!(details.agent_details.init_daemon, "{image}: the agent is not process 1");
    }
}

/// Reads until `text` has come; everything, if it does not.
async fn read_until(stream: &mut tokio::net::UnixStream, text: &str) -> String {
    let (mut read, mut data) = (String::new(), [0; 4096]);
    while !read.contains(text) {
        match timeout(SOON, stream.read(&mut data)).await {
            Ok(Ok(length @ 1..)) => read.push_str(&String::from_utf8_lossy(&data[..length])),
            end => panic!("{text:?} did not come ({end:?}): {read}"),
        }
    }
    read
}
