//! What only a machine with PCI and room to grow can show, and what takes a real vsock.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use nacre_protocol::agent::{CreateContainerRequest, GetMetricsRequest, OnlineCPUMemRequest};
use nacre_shim::vmm::{self, Qmp};
use nacre_tests::agent::{Client, Guest, Machine, limit};
use nacre_tests::{dist, suite};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

/// The guest's port for streams.
const PASSFD: u32 = 1027;

/// How much a container says.
const SAID: usize = 8 << 20;

/// How long a kernel may take to find what was plugged in.
const FOUND_WITHIN: Duration = Duration::from_secs(20);

async fn boot(machine: Machine<'_>) -> Option<(Guest, Client)> {
    let dist = dist::dist()?;
    if !dist::have(&["qemu-system-x86_64", "busybox"]) {
        return None;
    }
    let guest = Guest::boot_as(&dist, machine).await.unwrap();
    let client = guest.connect().await.unwrap();
    Some((guest, client))
}

/// One of the guest's figures.
async fn figure(client: &Client, name: &str) -> f64 {
    let metrics = client.agent.get_metrics(limit(), &GetMetricsRequest::new()).await.unwrap().metrics;
    let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn plug_memory(qmp: &mut Qmp) {
    let memory = json!({ "qom-type": "memory-backend-memfd", "id": "more", "size": 256 << 20, "share": true });
    qmp.execute("object-add", memory).await.unwrap();
    qmp.execute("device_add", json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more" })).await.unwrap();
}

#[tokio::test]
async fn vm_processors_and_memory_that_are_plugged_in_are_put_to_use() {
    // Under emulation Linux leaves no room for processors that are yet to come: here one is there, and not in use.
    let machine = Machine { kind: vmm::Machine::Q35, cpus: 2, words: &["maxcpus=1"], ..Machine::default() };
    let Some((mut guest, client)) = boot(machine).await else { return };
    let mut qmp = guest.vm().qmp().await.unwrap();
    let total = "kata_guest_meminfo{item=\"mem_total\"}";
    let before = figure(&client, total).await;
    plug_memory(&mut qmp).await;
    let request = OnlineCPUMemRequest { wait: true, nb_cpus: 1, ..OnlineCPUMemRequest::new() };
    client.agent.online_cpu_mem(limit(), &request).await.unwrap();
    figure(&client, "kata_guest_cpu_time{cpu=\"1\"").await;
    let begun = Instant::now();
    while figure(&client, total).await <= before {
        assert!(begun.elapsed() < FOUND_WITHIN, "the memory did not come");
    }
}

#[tokio::test]
async fn vm_streams_are_passed_through_vsock() {
    let words = [&*format!("agent.passfd_listener_port={PASSFD}")];
    let Some((guest, client)) = boot(Machine { words: &words, ..Machine::default() }).await else { return };
    let (mut stream, port) = guest.pass(PASSFD).await.unwrap();
    let root = suite::root_file_system(&client, "c").await.unwrap();
    let command = format!("busybox dd if=/dev/zero bs=1M count={} 2>/dev/null", SAID >> 20);
    let request = CreateContainerRequest {
        container_id: "c".into(),
        OCI: Some(suite::spec("c", &root, &["busybox", "sh", "-c", &command], false).unwrap()).into(),
        stdout_port: port,
        ..Default::default()
    };
    client.agent.create_container(limit(), &request).await.unwrap();
    suite::start(&client, "c").await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert!(said.len() == SAID && said.iter().all(|byte| *byte == 0), "{} bytes", said.len());
    assert_eq!(suite::wait(&client, "c", "c").await.unwrap(), 0);
    suite::remove(&client, "c").await.unwrap();
}
