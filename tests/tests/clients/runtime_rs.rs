//! runtime-rs: the first process goes by no name, every call but those that wait has a time limit, removals have one of their own, and
//! an empty write is the end of the input.

use std::time::Duration;

use nacre_protocol::agent::{
    AddARPNeighborsRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest, ExecProcessRequest,
    GetOOMEventRequest, GuestDetailsRequest, ReadStreamRequest, RemoveContainerRequest, SetPolicyRequest,
    SignalProcessRequest, StartContainerRequest, TtyWinResizeRequest, UpdateInterfaceRequest, UpdateRoutesRequest,
    WaitProcessRequest, WriteStreamRequest,
};
use nacre_protocol::health::CheckRequest;
use nacre_protocol::oci::{Hooks, Process};
use ttrpc::Code;

use super::*;

fn limit() -> Context {
    seconds(30)
}

/// Check, and the version with each tenth.
async fn monitor(client: &Client) {
    let mut every = tokio::time::interval(Duration::from_millis(20));
    for number in 0_u32.. {
        every.tick().await;
        client.health.check(seconds(90), &CheckRequest::new()).await.unwrap();
        if number % 10 == 0 {
            client.health.version(seconds(90), &CheckRequest::new()).await.unwrap();
        }
    }
}

async fn start_pod(client: &Client) {
    let policy = "package agent_policy\ndefault AllowRequestsFailingPolicy := true\n";
    client.agent.set_policy(limit(), &request!(SetPolicyRequest { policy: policy.into() })).await.unwrap();
    let request = request!(UpdateInterfaceRequest { interface: Some(interface()).into() });
    client.agent.update_interface(limit(), &request).await.unwrap();
    let request = request!(AddARPNeighborsRequest { neighbors: Some(neighbours()).into() });
    client.agent.add_arp_neighbors(limit(), &request).await.unwrap();
    let request = request!(UpdateRoutesRequest { routes: Some(routes()).into() });
    client.agent.update_routes(limit(), &request).await.unwrap();
    let request = request!(CreateSandboxRequest {
        hostname: "db-0".into(),
        storages: vec![shm()],
        sandbox_pidns: true,
        sandbox_id: id(10),
    });
    client.agent.create_sandbox(limit(), &request).await.unwrap();
    let request = request!(GuestDetailsRequest { mem_block_size: true, mem_hotplug_probe: true });
    client.agent.get_guest_details(limit(), &request).await.unwrap();
}

/// All containers of this pod see each other's processes.
async fn start_container(client: &Client, id: &str, kind: &str, args: &[&str]) {
    let root = suite::root_file_system(client, id).await.unwrap();
    let mut spec = spec(id, &root, args, &[]);
    let annotations = [("container_type", kind), ("bundle_path", "/run/containerd/io.containerd.runtime.v2.task/x")];
    spec.Annotations.extend(annotations.map(|(key, value)| (format!("io.katacontainers.pkg.oci.{key}"), value.into())));
    spec.Hooks = Some(Hooks::new()).into(); // the host's own are taken out
    let request =
        request!(CreateContainerRequest { container_id: id.into(), OCI: Some(spec).into(), sandbox_pidns: true });
    client.agent.create_container(limit(), &request).await.unwrap();
    client.agent.start_container(limit(), &request!(StartContainerRequest { container_id: id.into() })).await.unwrap();
}

async fn read(client: &Client, id: &str, exec: &str) -> String {
    let request = request!(ReadStreamRequest { container_id: id.into(), exec_id: exec.into(), len: 8 << 10 });
    let mut all = Vec::new();
    loop {
        let data = client.agent.read_stdout(seconds(0), &request).await.unwrap().data;
        if data.is_empty() {
            return String::from_utf8(all).unwrap();
        }
        all.extend(data);
    }
}

async fn wait(client: &Client, id: &str, exec: &str) -> i32 {
    let request = request!(WaitProcessRequest { container_id: id.into(), exec_id: exec.into() });
    client.agent.wait_process(seconds(0), &request).await.unwrap().status
}

async fn write(client: &Client, id: &str, data: &[u8]) {
    let request = request!(WriteStreamRequest { container_id: id.into(), data: data.into() });
    client.agent.write_stdin(seconds(0), &request).await.unwrap();
}

/// Killed, and removed within ten seconds.
async fn delete(client: &Client, id: &str) {
    let request = request!(SignalProcessRequest { container_id: id.into(), signal: 9u32 });
    client.agent.signal_process(limit(), &request).await.unwrap();
    let request = request!(RemoveContainerRequest { container_id: id.into(), timeout: 10u32 });
    client.agent.remove_container(limit(), &request).await.unwrap();
}

/// `exec -t`.
async fn shell(client: &Client, id: &str) {
    let args = ["busybox", "sh", "-c", "read line; busybox stty size"].map(String::from).to_vec();
    let process = request!(Process { Args: args, Env: vec!["PATH=/bin".into()], Cwd: "/".into(), Terminal: true });
    let (container_id, exec_id) = (|| id.to_string(), || "shell".to_string());
    let exec = request!(ExecProcessRequest {
        container_id: container_id(),
        exec_id: exec_id(),
        process: Some(process).into(),
    });
    client.agent.exec_process(limit(), &exec).await.unwrap();
    let resize =
        request!(TtyWinResizeRequest { container_id: container_id(), exec_id: exec_id(), row: 25, column: 90 });
    client.agent.tty_win_resize(limit(), &resize).await.unwrap();
    let go = request!(WriteStreamRequest { container_id: container_id(), exec_id: exec_id(), data: b"\n".to_vec() });
    client.agent.write_stdin(seconds(0), &go).await.unwrap();
    assert!(read(client, id, "shell").await.contains("25 90"));
    assert_eq!(wait(client, id, "shell").await, 0);
}

async fn run_pod(client: &Client) {
    let (pause, cat) = (id(11), id(12));
    start_container(client, &pause, "pod_sandbox", &["busybox", "sleep", "1000"]).await;
    let script = "busybox cat; busybox cat /proc/1/cmdline | busybox tr '\\0' ' '";
    start_container(client, &cat, "pod_container", &["busybox", "sh", "-c", script]).await;
    shell(client, &cat).await;
    write(client, &cat, b"in and out\n").await;
    write(client, &cat, b"").await;
    let (output, status) = tokio::join!(read(client, &cat, ""), wait(client, &cat, ""));
    // The first container's first process is the whole pod's.
    assert_eq!((output.as_str(), status), ("in and out\nbusybox sleep 1000 ", 0));
    // What is gone is no error but NOT_FOUND, and only that.
    let gone = request!(SignalProcessRequest { container_id: cat.clone(), exec_id: "gone".into(), signal: 9u32 });
    let (code, text) = suite::refusal(client.agent.signal_process(limit(), &gone).await).unwrap();
    assert!(code == Code::NOT_FOUND && text.contains("process not found"), "{code:?} {text}");
    delete(client, &cat).await;
    delete(client, &pause).await;
    client.agent.destroy_sandbox(limit(), &DestroySandboxRequest::new()).await.unwrap();
}

#[tokio::test]
async fn runtime_rs_pod_lives_from_its_first_call_to_its_last() {
    let Some(agent) = agent() else { return };
    let client = agent.connect().await.unwrap();
    let watched = client.clone();
    start_pod(&client).await;
    let oom = async { suite::refusal(watched.agent.get_oom_event(seconds(0), &GetOOMEventRequest::new()).await) };
    let (told, ()) = beside(monitor(&watched), async { tokio::join!(oom, run_pod(&client)) }).await;
    assert!(told.unwrap().1.contains("destroyed"));
}
