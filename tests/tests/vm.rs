//! The agent as the first process of a real guest: the same behaviours, and those that only a guest has.

use std::time::Duration;

use nacre_protocol::agent::{CreateContainerRequest, DestroySandboxRequest, SetGuestDateTimeRequest, Storage};
use nacre_tests::agent::{Guest, limit};
use nacre_tests::dist;
use nacre_tests::suite::CASES;

#[tokio::test]
async fn vm_a_guest_does_all_that_an_agent_does() {
    let Some(dist) = dist::dist() else { return };
    if !dist::have(&["qemu-system-x86_64", "busybox"]) {
        return;
    }
    let guest = Guest::boot(&dist).await.unwrap();
    let client = guest.connect().await.unwrap();
    for (name, case) in CASES {
        println!("{name}");
        case(&client).await.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
}

#[tokio::test]
async fn vm_a_guest_keeps_its_rules_of_images_whatever_the_host_asks() {
    let Some(dist) = dist::dist() else { return };
    let guest = Guest::boot_with(&dist, &["nacre.require_image_digest"]).await.unwrap();
    let client = guest.connect().await.unwrap();
    let storage = Storage {
        driver: "image_guest_pull".into(),
        source: "registry.example/app:1".into(),
        fstype: "overlay".into(),
        mount_point: "/run/kata-containers/c/rootfs".into(),
        ..Storage::new()
    };
    let spec = nacre_tests::suite::spec("c", "/run/kata-containers/c/rootfs", &["true"], false).unwrap();
    let request = CreateContainerRequest {
        container_id: "c".into(),
        exec_id: "c".into(),
        storages: vec![storage],
        OCI: Some(spec).into(),
        ..Default::default()
    };
    let error = client.agent.create_container(limit(), &request).await.unwrap_err().to_string();
    assert!(error.contains("by digest") && error.contains("PERMISSION_DENIED"), "{error}");
}

#[tokio::test]
async fn vm_a_guests_clock_is_set() {
    let Some(dist) = dist::dist() else { return };
    let guest = Guest::boot(&dist).await.unwrap();
    let client = guest.connect().await.unwrap();
    let request = SetGuestDateTimeRequest { Sec: 1_900_000_000, Usec: 5, ..Default::default() };
    client.agent.set_guest_date_time(limit(), &request).await.unwrap();
    let bad = SetGuestDateTimeRequest { Sec: i64::MAX, Usec: -1, ..Default::default() };
    assert!(client.agent.set_guest_date_time(limit(), &bad).await.is_err());
}

#[tokio::test]
async fn vm_a_guest_whose_pod_is_destroyed_powers_off() {
    let Some(dist) = dist::dist() else { return };
    let mut guest = Guest::boot(&dist).await.unwrap();
    let client = guest.connect().await.unwrap();
    client.agent.destroy_sandbox(limit(), &DestroySandboxRequest::new()).await.unwrap();
    let how = tokio::time::timeout(Duration::from_secs(20), guest.vm().ended()).await.unwrap();
    assert!(how.contains("exit status: 0") && how.contains("powering off"), "{how}");
}
