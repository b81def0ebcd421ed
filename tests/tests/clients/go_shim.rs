//! The Go shim: the first process goes by its container's id, removals have no time limit, the guest is asked to tell of want of memory all along.

use std::time::Duration;

use nacre_protocol::agent::{
    AddARPNeighborsRequest, CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    ExecProcessRequest, GetDiagnosticDataRequest, GetOOMEventRequest, GuestDetailsRequest, ReadStreamRequest,
    RemoveContainerRequest, SetPolicyRequest, SignalProcessRequest, StartContainerRequest, StatsContainerRequest,
    UpdateContainerRequest, UpdateInterfaceRequest, UpdateRoutesRequest, WaitProcessRequest, WriteStreamRequest,
};
use nacre_protocol::health::CheckRequest;
use nacre_protocol::oci::{LinuxCPU, LinuxResources, Process};

use super::*;

/// Every call but those that wait for something.
fn limit() -> Context {
    seconds(60)
}

/// The monitor: one failure, and the shim takes its agent for dead.
async fn monitor(client: &Client) {
    let mut every = tokio::time::interval(Duration::from_millis(20));
    loop {
        every.tick().await;
        let status = client.health.check(seconds(30), &CheckRequest::new()).await.unwrap().status;
        assert_eq!(status.value(), 1);
    }
}

async fn start_pod(client: &Client) {
    client.health.check(seconds(30), &CheckRequest::new()).await.unwrap();
    let policy = "package agent_policy\ndefault AllowRequestsFailingPolicy := true\n";
    client.agent.set_policy(limit(), &request!(SetPolicyRequest { policy: policy.into() })).await.unwrap();
    // The network, before there is a sandbox.
    let request = request!(UpdateInterfaceRequest { interface: Some(interface()).into() });
    let answer = client.agent.update_interface(limit(), &request).await.unwrap();
    assert_eq!(answer, interface());
    let request = request!(UpdateRoutesRequest { routes: Some(routes()).into() });
    let listed = client.agent.update_routes(limit(), &request).await.unwrap();
    assert!(listed.Routes.iter().any(|route| route.gateway == "10.88.0.1" && route.device == "eth0"), "{listed}");
    let request = request!(AddARPNeighborsRequest { neighbors: Some(neighbours()).into() });
    client.agent.add_arp_neighbors(limit(), &request).await.unwrap();
    let request = request!(CreateSandboxRequest {
        hostname: "web-0".into(),
        dns: vec!["nameserver 10.96.0.10".into(), "search default.svc.cluster.local".into()],
        storages: vec![shm()],
        sandbox_id: id(0),
    });
    client.agent.create_sandbox(limit(), &request).await.unwrap();
    let request = request!(GuestDetailsRequest { mem_block_size: true, mem_hotplug_probe: true });
    let details = client.agent.get_guest_details(limit(), &request).await.unwrap();
    assert!(details.agent_details.supports_seccomp && !details.agent_details.storage_handlers.is_empty());
}

/// One container, up to its start.
async fn start_container(client: &Client, id: &str, args: &[&str], files: &[(&str, &str)]) {
    let root = suite::root_file_system(client, id).await.unwrap();
    let request = request!(CreateContainerRequest {
        container_id: id.into(),
        exec_id: id.into(),
        OCI: Some(spec(id, &root, args, files)).into(),
    });
    client.agent.create_container(limit(), &request).await.unwrap();
    client.agent.start_container(limit(), &request!(StartContainerRequest { container_id: id.into() })).await.unwrap();
}

/// The copy loops of both outputs and the call that waits, all at once and none with a time limit.
async fn follow(client: &Client, id: &str, exec: &str) -> (String, String, i32) {
    let request = request!(ReadStreamRequest { container_id: id.into(), exec_id: exec.into(), len: 32 << 10 });
    let stdout = async {
        let mut all = Vec::new();
        while let Ok(answer) = client.agent.read_stdout(seconds(0), &request).await {
            match answer.data.is_empty() {
                true => break,
                false => all.extend(answer.data),
            }
        }
        String::from_utf8(all).unwrap()
    };
    let stderr = async {
        let mut all = Vec::new();
        while let Ok(answer) = client.agent.read_stderr(seconds(0), &request).await {
            match answer.data.is_empty() {
                true => break,
                false => all.extend(answer.data),
            }
        }
        String::from_utf8(all).unwrap()
    };
    let wait = request!(WaitProcessRequest { container_id: id.into(), exec_id: exec.into() });
    let (stdout, stderr, ended) =
        tokio::join!(stdout, stderr, async { client.agent.wait_process(seconds(0), &wait).await });
    (stdout, stderr, ended.unwrap().status)
}

async fn signal(client: &Client, id: &str, exec: &str, signal: u32) {
    let request = request!(SignalProcessRequest { container_id: id.into(), exec_id: exec.into(), signal: signal });
    client.agent.signal_process(limit(), &request).await.unwrap();
}

/// Delete, as containerd asks for it: killed first, and gone is gone.
async fn delete(client: &Client, id: &str) {
    signal(client, id, "", 9).await;
    let request = request!(RemoveContainerRequest { container_id: id.into(), timeout: 0 });
    client.agent.remove_container(limit(), &request).await.unwrap();
    let (_, text) = suite::refusal(client.agent.remove_container(limit(), &request).await).unwrap();
    assert!(text.contains("not found"), "{text}");
}

/// The container that the pod is there for.
async fn work(client: &Client) {
    let id = id(2);
    let log_of = format!("{id}-c91d-termination-log");
    let hosts = copy(client, limit(), &format!("{id}-8a1e-hosts"), "10.88.0.2\tweb-0\n").await;
    let log = copy(client, limit(), &log_of, "").await;
    let files = [(hosts.as_str(), "/etc/hosts"), (log.as_str(), "/dev/termination-log")];
    let script = "busybox cat /etc/hosts; read line; echo $line >&2; echo said > /dev/shm/word; read line; \
                  echo over > /dev/termination-log; exit 3";
    let root = suite::root_file_system(client, &id).await.unwrap();
    let mut spec = spec(&id, &root, &["busybox", "sh", "-c", script], &files);
    let destination = ("io.kubernetes.container.terminationMessagePath".into(), "/dev/termination-log".into());
    spec.Annotations.extend([destination]);
    let request =
        request!(CreateContainerRequest { container_id: id.clone(), exec_id: id.clone(), OCI: Some(spec).into() });
    client.agent.create_container(limit(), &request).await.unwrap();
    let start = request!(StartContainerRequest { container_id: id.clone() });
    client.agent.start_container(limit(), &start).await.unwrap();
    let stdin = async {
        let write =
            request!(WriteStreamRequest { container_id: id.clone(), exec_id: id.clone(), data: b"hello\n".to_vec() });
        assert_eq!(client.agent.write_stdin(seconds(0), &write).await.unwrap().len, 6);
        probe(client, &id).await;
        let close = request!(CloseStdinRequest { container_id: id.clone(), exec_id: id.clone() });
        client.agent.close_stdin(limit(), &close).await.unwrap();
    };
    let (followed, ()) = tokio::join!(follow(client, &id, &id), stdin);
    assert_eq!(followed, ("10.88.0.2\tweb-0\n".into(), "hello\n".into(), 3));
    let request = request!(GetDiagnosticDataRequest { log_type: "termination_log".into(), container_id: id.clone() });
    assert_eq!(client.agent.get_diagnostic_data(limit(), &request).await.unwrap().data, "over\n");
    delete(client, &id).await;
}

/// An exec probe, a change of limits and a look at the usage, while the container runs.
async fn probe(client: &Client, id: &str) {
    let process = request!(Process {
        Args: [
            "busybox",
            "sh",
            "-c",
            "until [ -s /dev/shm/word ]; do :; done; busybox cat /dev/shm/word; busybox hostname"
        ]
        .map(String::from)
        .to_vec(),
        Env: vec!["PATH=/bin".into()],
        Cwd: "/".into(),
    });
    let exec = request!(ExecProcessRequest {
        container_id: id.into(),
        exec_id: "probe".into(),
        process: Some(process).into(),
    });
    client.agent.exec_process(limit(), &exec).await.unwrap();
    assert_eq!(follow(client, id, "probe").await, ("said\nweb-0\n".into(), String::new(), 0));
    let cpu = request!(LinuxCPU { Shares: 512u64, Period: 100_000u64 });
    let resources = request!(LinuxResources { CPU: Some(cpu).into() });
    let update = request!(UpdateContainerRequest { container_id: id.into(), resources: Some(resources).into() });
    client.agent.update_container(limit(), &update).await.unwrap();
    let stats = request!(StatsContainerRequest { container_id: id.into() });
    let stats = client.agent.stats_container(limit(), &stats).await.unwrap();
    assert_eq!(stats.cgroup_stats.pids_stats.current, 1);
}

async fn run_pod(client: &Client) {
    start_pod(client).await;
    let pause = id(1);
    start_container(client, &pause, &["busybox", "sleep", "1000"], &[]).await;
    let oom = async { suite::refusal(client.agent.get_oom_event(seconds(0), &GetOOMEventRequest::new()).await) };
    let pod = async {
        work(client).await;
        // `kill` of the pause container, whose init would not hear of it: it is killed.
        let (ended, ()) = tokio::join!(follow(client, &pause, &pause), signal(client, &pause, &pause, 15));
        assert_eq!(ended.2, 128 + 9);
        delete(client, &pause).await;
        client.agent.destroy_sandbox(limit(), &DestroySandboxRequest::new()).await.unwrap();
    };
    let (told, ()) = tokio::join!(oom, pod);
    assert!(told.unwrap().1.contains("destroyed"));
}

#[tokio::test]
async fn the_go_shims_pod_lives_from_its_first_call_to_its_last() {
    let Some(agent) = agent() else { return };
    let client = agent.connect().await.unwrap();
    let monitored = client.clone();
    beside(monitor(&monitored), run_pod(&client)).await;
}

#[tokio::test]
async fn a_link_that_is_missing_is_one_to_try_again_for() {
    let Some(agent) = agent() else { return };
    let client = agent.connect().await.unwrap();
    let missing = Interface { hwAddr: "02:00:00:00:00:77".into(), name: "eth7".into(), ..interface() };
    let request = request!(UpdateInterfaceRequest { interface: Some(missing).into() });
    let (_, text) = suite::refusal(client.agent.update_interface(limit(), &request).await).unwrap();
    assert!(text.contains("Link not found"), "{text}");
}
