//! `kata-agent-ctl` and the tests that use it: each command comes by connections of its own, one for each service, and the pod lives on in between.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use nacre_protocol::agent::{
    CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest, ExecProcessRequest, GuestDetailsRequest,
    ListInterfacesRequest, ListRoutesRequest, OnlineCPUMemRequest, ReadStreamRequest, RemoveContainerRequest,
    SetGuestDateTimeRequest, SetPolicyRequest, SignalProcessRequest, StartContainerRequest, StatsContainerRequest,
    WaitProcessRequest,
};
use nacre_protocol::health::CheckRequest;
use nacre_tests::wire;
use protobuf::Message as _;
use ttrpc::Code;

use super::*;

/// As the tool sends it: it says of itself how it was started.
fn limit() -> Context {
    let metadata = HashMap::from([("agent-ctl-cfg".into(), vec!["auto-values".into()])]);
    Context { metadata, timeout_nano: 60_000_000_000 }
}

/// The 39 commands by their wire names, and what the message that has nothing in it is answered with; `None` is an answer. Containers that are not
/// there are the caller's mistake and never NOT_FOUND, for hosts take that for a process that has ended.
///
/// Two have a message all the same ([`payload`]).
const COMMANDS: &[(&str, &[Option<Code>])] = {
    const DONE: Option<Code> = None;
    const WRONG: Option<Code> = Some(Code::INVALID_ARGUMENT);
    const NEW: Option<Code> = Some(Code::UNIMPLEMENTED);
    &[
        ("AddARPNeighbors", &[WRONG]),
        ("AddSwap", &[NEW, WRONG]),
        ("Check", &[DONE]),
        ("Version", &[DONE]),
        ("CloseStdin", &[WRONG]),
        ("CopyFile", &[WRONG]),
        ("CreateContainer", &[WRONG]),
        ("CreateSandbox", &[DONE]),
        ("ExecProcess", &[WRONG]),
        ("GetGuestDetails", &[DONE]),
        ("GetIPTables", &[DONE, NEW, Some(Code::INTERNAL)]), // the image's own tools
        ("GetMetrics", &[DONE]),
        ("GetOOMEvent", &[Some(Code::DEADLINE_EXCEEDED)]), // nothing happens
        ("GetVolumeStats", &[WRONG]),
        ("ListInterfaces", &[DONE]),
        ("ListRoutes", &[DONE]),
        ("MemHotplugByProbe", &[DONE, Some(Code::FAILED_PRECONDITION)]), // the kernel may have no probe
        ("OnlineCPUMem", &[DONE]),
        ("PauseContainer", &[WRONG]),
        ("ReadStderr", &[WRONG]),
        ("ReadStdout", &[WRONG]),
        ("ReseedRandomDev", &[WRONG]),
        ("RemoveContainer", &[WRONG]),
        ("ResumeContainer", &[WRONG]),
        ("SetGuestDateTime", &[WRONG]),
        ("SetIPTables", &[DONE, NEW, Some(Code::INTERNAL)]),
        ("SignalProcess", &[WRONG]),
        ("StartContainer", &[WRONG]),
        ("StatsContainer", &[WRONG]),
        ("TtyWinResize", &[WRONG]),
        ("UpdateContainer", &[WRONG]),
        ("UpdateInterface", &[WRONG]),
        ("UpdateRoutes", &[WRONG]),
        ("WaitProcess", &[WRONG]),
        ("WriteStdin", &[WRONG]),
        ("SetPolicy", &[WRONG]),
        ("MemAgentMemcgSet", &[NEW]),
        ("MemAgentCompactSet", &[NEW]),
        ("DestroySandbox", &[DONE]),
    ]
};

/// What would change the machine that this test runs on is asked for less: a time of no clock, and processors without memory.
fn payload(method: &str) -> Vec<u8> {
    let request = match method {
        "SetGuestDateTime" => request!(SetGuestDateTimeRequest { Usec: -1 }).write_to_bytes(),
        "OnlineCPUMem" => request!(OnlineCPUMemRequest { cpu_only: true }).write_to_bytes(),
        _ => Ok(Vec::new()),
    };
    request.unwrap()
}

/// Two connections and one command, as one run of the tool.
async fn command(agent: &Process) -> (Client, Client) {
    tokio::try_join!(agent.connect(), agent.connect()).unwrap()
}

/// The specification of the tool's template: a PID and a network namespace of its own are asked for, too.
fn template(id: &str, root: &str, args: &[&str]) -> oci::Spec {
    let mut spec = suite::spec_json(id, root, args, false);
    spec["linux"]["namespaces"] = json!(["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind })));
    convert::spec_from_oci(&serde_json::from_value(spec).unwrap()).unwrap()
}

async fn create(client: &Client, id: &str, args: &[&str]) {
    let root = suite::root_file_system(client, id).await.unwrap();
    let spec = template(id, &root, args);
    let request =
        request!(CreateContainerRequest { container_id: id.into(), exec_id: id.into(), OCI: Some(spec).into() });
    client.agent.create_container(limit(), &request).await.unwrap();
}

#[tokio::test]
async fn each_command_is_answered_and_none_hangs_up() {
    let Some(agent) = agent() else { return };
    assert_eq!(COMMANDS.len(), 39);
    for (method, expected) in COMMANDS {
        let service = if ["Check", "Version"].contains(method) { "grpc.Health" } else { "grpc.AgentService" };
        let patience = if *method == "GetOOMEvent" { 200_000_000 } else { 60_000_000_000 };
        let call = ttrpc::proto::Request { timeout_nano: patience, ..wire::call(service, method, payload(method)) };
        let response = agent.dial().await.unwrap().call(1, &call).await.unwrap();
        let code = wire::code(&response).filter(|code| *code != Code::OK);
        assert!(expected.contains(&code), "{method}: {response}");
        assert_eq!(code.is_none(), response.status.message.is_empty(), "{method}: an error says why: {response}");
    }
}

#[tokio::test]
async fn the_pod_lives_on_between_commands() {
    let Some(agent) = agent() else { return };
    let id = id(20);
    let (client, _) = command(&agent).await;
    client.agent.create_sandbox(limit(), &request!(CreateSandboxRequest { sandbox_id: id.clone() })).await.unwrap();
    let (client, _) = command(&agent).await;
    create(&client, &id, &["busybox", "sleep", "1000"]).await;
    let (client, _) = command(&agent).await;
    client.agent.start_container(limit(), &request!(StartContainerRequest { container_id: id.clone() })).await.unwrap();
    let (client, _) = command(&agent).await;
    let remove = request!(RemoveContainerRequest { container_id: id.clone() });
    client.agent.remove_container(limit(), &remove).await.unwrap();
    let (client, _) = command(&agent).await;
    assert!(client.agent.remove_container(limit(), &remove).await.is_err());
}

/// What the tool makes of a file: pieces of a mebibyte, and one request for a link or a directory.
async fn copy_as(client: &Client, mode: u32, path: &str, size: usize, data: &[u8]) -> ttrpc::Result<()> {
    let pieces = data.chunks(1 << 20).enumerate().map(|(number, piece)| (number << 20, piece));
    for (offset, piece) in pieces.chain(data.is_empty().then_some((0, data))) {
        let request = request!(CopyFileRequest {
            path: path.into(),
            file_size: size as i64,
            file_mode: mode,
            dir_mode: 0o020_000_000_750,
            offset: offset as i64,
            data: piece.to_vec(),
        });
        client.agent.copy_file(limit(), &request).await?;
    }
    Ok(())
}

#[tokio::test]
async fn files_links_and_directories_are_copied_and_only_below_the_shared_directory() {
    let Some(agent) = agent() else { return };
    let large: Vec<u8> = (0..2 << 20).map(|i: u32| (i % 251) as u8).collect();
    let (file, link, directory) = (0o100_640, 0o120_777, 0o040_750);
    for (mode, name, size, data) in [
        (file, "foo", 5, &b"hello"[..]),
        (file, "large", large.len(), &large),
        (file, "empty", 0, b""),
        (link, "link", 0, b"foo"),
        (directory, "dir", 0, b""),
    ] {
        let (client, _) = command(&agent).await;
        copy_as(&client, mode, &format!("{SHARED}/{name}"), size, data).await.unwrap();
    }
    let run = PathBuf::from(format!("/proc/{}/root{SHARED}", agent.pid().unwrap()));
    assert_eq!(fs::read(run.join("foo")).unwrap(), b"hello");
    assert!(fs::read(run.join("large")).unwrap() == large);
    assert_eq!(fs::metadata(run.join("empty")).unwrap().len(), 0);
    assert_eq!(fs::read_link(run.join("link")).unwrap(), Path::new("foo"));
    assert!(fs::metadata(run.join("dir")).unwrap().is_dir());
    for path in ["/tmp/foo", "/run/kata-containers/shared/foo"] {
        let (client, _) = command(&agent).await;
        let (code, text) = suite::refusal(copy_as(&client, file, path, 5, b"hello").await).unwrap();
        assert!(code == Code::INVALID_ARGUMENT && text.contains(path), "{code:?} {text}");
    }
}

#[tokio::test]
async fn a_policy_that_is_set_blocks_what_it_says() {
    let Some(agent) = agent() else { return };
    let path = format!("{SHARED}/foo");
    let set = async |policy: &str| {
        let (client, _) = command(&agent).await;
        let request = request!(SetPolicyRequest { policy: policy.into() });
        client.agent.set_policy(limit(), &request).await.unwrap();
    };
    set("package agent_policy\ndefault AllowRequestsFailingPolicy := true\n").await;
    let (client, _) = command(&agent).await;
    copy_as(&client, 0o100_644, &path, 1, b"x").await.unwrap();
    set("package agent_policy\ndefault SetPolicyRequest := true\ndefault CopyFileRequest := false\n").await;
    let (client, health) = command(&agent).await;
    let (code, text) = suite::refusal(copy_as(&client, 0o100_644, &path, 1, b"x").await).unwrap();
    assert_eq!(code, Code::PERMISSION_DENIED);
    assert!(text.contains("CopyFileRequest is blocked by policy"), "{text}");
    health.health.check(limit(), &CheckRequest::new()).await.unwrap();
}

#[tokio::test]
async fn the_fuller_sequence_works_with_a_connection_for_each_command() {
    let Some(agent) = agent() else { return };
    let id = id(21);
    let (container_id, exec_id) = (|| id.clone(), || "exec".to_string());
    let (_, client) = command(&agent).await;
    client.health.check(limit(), &CheckRequest::new()).await.unwrap();
    let (_, client) = command(&agent).await;
    assert_eq!(client.health.version(limit(), &CheckRequest::new()).await.unwrap().grpc_version, "0.0.1");
    let (client, _) = command(&agent).await;
    let details = client.agent.get_guest_details(limit(), &GuestDetailsRequest::new()).await.unwrap();
    assert!(!details.agent_details.version.is_empty() && !details.agent_details.init_daemon);
    let (client, _) = command(&agent).await;
    client.agent.create_sandbox(limit(), &request!(CreateSandboxRequest { sandbox_id: id.clone() })).await.unwrap();
    let (client, _) = command(&agent).await;
    let interfaces = client.agent.list_interfaces(limit(), &ListInterfacesRequest::new()).await.unwrap();
    assert!(interfaces.Interfaces.iter().any(|interface| interface.name == "lo"), "{interfaces}");
    let (client, _) = command(&agent).await;
    client.agent.list_routes(limit(), &ListRoutesRequest::new()).await.unwrap();
    let (client, _) = command(&agent).await;
    create(
        &client,
        &id,
        &["busybox", "sh", "-c", "busybox ls /sys /proc/net/dev >/dev/null; echo out; busybox sleep 1000"],
    )
    .await;
    let (client, _) = command(&agent).await;
    client
        .agent
        .start_container(limit(), &request!(StartContainerRequest { container_id: container_id() }))
        .await
        .unwrap();
    let (client, _) = command(&agent).await;
    let read = request!(ReadStreamRequest { container_id: container_id(), exec_id: container_id(), len: 4096u32 });
    assert_eq!(client.agent.read_stdout(limit(), &read).await.unwrap().data, b"out\n");
    let (client, _) = command(&agent).await;
    let stats = request!(StatsContainerRequest { container_id: container_id() });
    assert!(client.agent.stats_container(limit(), &stats).await.unwrap().cgroup_stats.memory_stats.usage.usage > 0);
    let (client, _) = command(&agent).await;
    let process = template(&id, "/", &["busybox", "sleep", "1000"]).Process;
    let exec = request!(ExecProcessRequest { container_id: container_id(), exec_id: exec_id(), process: process });
    client.agent.exec_process(limit(), &exec).await.unwrap();
    let (client, _) = command(&agent).await;
    let kill = request!(SignalProcessRequest { container_id: container_id(), exec_id: exec_id(), signal: 9u32 });
    client.agent.signal_process(limit(), &kill).await.unwrap();
    let (client, _) = command(&agent).await;
    let wait = request!(WaitProcessRequest { container_id: container_id(), exec_id: exec_id() });
    assert_eq!(client.agent.wait_process(limit(), &wait).await.unwrap().status, 137);
    let (client, _) = command(&agent).await;
    let remove = request!(RemoveContainerRequest { container_id: container_id() });
    client.agent.remove_container(limit(), &remove).await.unwrap();
    let (client, _) = command(&agent).await;
    client.agent.destroy_sandbox(limit(), &DestroySandboxRequest::new()).await.unwrap();
}
