//! The contract with Kata's hosts, line by line.
//!
//! | line | is held by |
//! |---|---|
//! | 1 addresses, many connections, silence until it is spoken to | `contract_01_…`; vsock by each test of a guest (`vm_…`) |
//! | 2 all methods of both services, UNIMPLEMENTED for the rest | `contract_02_…`; `clients::agent_ctl` has the answers |
//! | 3 time limits, and what is never dropped half-way | `contract_03_…` |
//! | 4 frames of 4 MiB, reads of less | `contract_04_…` |
//! | 5 two names of the first process | `contract_05_…` |
//! | 6 streams and their ends | `contract_06_…`, `suite::output_before_the_end_is_read_after_it`, `suite::input_reaches_the_program_and_ends` |
//! | 7 NOT_FOUND and the phrases that hosts look for | `contract_07_…`, `clients::go_shim` (links) |
//! | 8 the network before the sandbox, an answer before the end | `contract_08_…`, `clients::go_shim` and `clients::runtime_rs` (network) |
//! | 9 no wait for want of memory outlives the pod | `contract_09_…` |
//! | 10 the guest's details | `contract_10_…` |
//! | 11 copied files | `contract_11_…`, `clients::agent_ctl` (where to), the agent's own `copy_file` (links, pieces) |
//! | 12 devices and mounts of the specification | `contract_12_…` |
//! | 13 the log's keys | `contract_13_…` |
//! | 14 words that the agent does not know | `contract_14_…`, the agent's own `config` |
//!
//! The frames that the contract gives as bytes are in `protocol/tests/golden_frames.rs`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use nacre_protocol::address::Address;
use nacre_protocol::agent::{
    CloseStdinRequest, CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    GetOOMEventRequest, GuestDetailsRequest, ReadStreamRequest, RemoveContainerRequest, SignalProcessRequest,
    TtyWinResizeRequest, WaitProcessRequest, WriteStreamRequest,
};
use nacre_protocol::health::CheckRequest;
use nacre_protocol::{agent, convert, health};
use nacre_tests::agent::{Client, Process, Start, limit};
use nacre_tests::{dist, request, suite, wire};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use ttrpc::Code;
use ttrpc::context::with_timeout;

const SHARED: &str = "/run/kata-containers/shared/containers";

/// An agent of its own for one test; nothing where that can't be.
fn start(start: &Start<'_>) -> Option<Process> {
    let can = dist::root() && dist::have(&["unshare", "ip", "busybox"]);
    can.then(|| Process::start_as(&dist::program("nacre-agent"), start).unwrap())
}

async fn agent() -> Option<(Process, Client)> {
    let agent = start(&Start::default())?;
    let client = agent.connect().await.unwrap();
    Some((agent, client))
}

/// A container of the program `args` that runs.
async fn container(client: &Client, id: &str, args: &[&str], terminal: bool) {
    let root = suite::root_file_system(client, id).await.unwrap();
    suite::create_in(client, &root, id, args, terminal).await.unwrap();
    suite::start(client, id).await.unwrap();
}

/// A path as the agent has it.
fn inside(agent: &Process, path: &str) -> PathBuf {
    format!("/proc/{}/root{path}", agent.pid().unwrap()).into()
}

fn read(id: &str, exec: &str, len: u32) -> ReadStreamRequest {
    request!(ReadStreamRequest { container_id: id.into(), exec_id: exec.into(), len: len })
}

/// The frames of the question and the answer that every host begins with.
const CHECK: &str = "000000140000000101000a0b677270632e4865616c74681205436865636b";
const SERVING: &str = "000000060000000102000a0012020801";

#[tokio::test]
async fn contract_01_many_connections_are_served_and_none_is_spoken_to_first() {
    let Some((agent, _client)) = agent().await else { return };
    let mut wires = Vec::new();
    for _ in 0..64 {
        wires.push(agent.dial().await.unwrap());
    }
    for wire in wires.iter_mut().rev() {
        wire.send(&hex::decode(CHECK).unwrap()).await.unwrap();
        // What comes first is the answer.
        assert_eq!(hex::encode(wire.receive().await.unwrap().unwrap()), SERVING);
    }
}

#[test]
fn contract_01_abstract_sockets_are_listened_on() {
    let address = Address::Abstract("/tmp/kata-agent.socket".into());
    let Some(agent) = start(&Start { address: Some(address.clone()), ..Start::default() }) else { return };
    // Abstract sockets belong to a network namespace. The shell before the agent is in the agent's.
    let open = || agent.pid().ok().and_then(|pid| fs::File::open(format!("/proc/{pid}/ns/net")).ok());
    let namespace = loop {
        match open() {
            Some(namespace) => break namespace,
            None => std::thread::sleep(Duration::from_millis(1)), // nothing tells
        }
    };
    let checked = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::connect(&address).await.unwrap();
            client.health.check(limit(), &CheckRequest::new()).await.unwrap().status.value()
        })
    });
    assert_eq!(checked.join().unwrap(), 1);
}

#[tokio::test]
async fn contract_02_every_method_is_there_and_no_other() {
    let Some((agent, _client)) = agent().await else { return };
    let mut wire = agent.dial().await.unwrap();
    let mut stream = 1;
    let services = agent::file_descriptor().services().chain(health::file_descriptor().services());
    let methods: Vec<_> = services
        .flat_map(|service| {
            let of = format!("grpc.{}", service.proto().name());
            service.methods().map(move |method| (of.clone(), method.proto().name().to_string())).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(methods.len(), 42 + 2);
    // Bytes that are no message: whatever takes them is there, and has done nothing.
    for (service, method) in &methods {
        let response = wire.call(stream, &wire::call(service, method, vec![0xff])).await.unwrap();
        let code = wire::code(&response);
        assert!(matches!(code, Some(Code::INVALID_ARGUMENT | Code::UNKNOWN)), "{method}: {response}");
        stream += 2;
    }
    let unknown = wire.call(stream, &wire::call("grpc.AgentService", "StartTracing", Vec::new())).await.unwrap();
    assert_eq!(wire::code(&unknown), Some(Code::UNIMPLEMENTED));
    let unknown = wire.call(stream + 2, &wire::call("grpc.Image", "PullImage", Vec::new())).await.unwrap();
    assert_eq!(wire::code(&unknown), Some(Code::INVALID_ARGUMENT));
    wire.check(stream + 4).await.unwrap();
}

/// Asks until the answer is one that `is_last`; each answer takes the agent a while, so that nobody has to sleep.
async fn until<T>(ask: impl AsyncFn() -> ttrpc::Result<T>, is_last: impl Fn(&Result<T, (Code, String)>) -> bool) {
    for _ in 0..10_000 {
        let answer = match ask().await {
            Ok(answer) => Ok(answer),
            error => Err(suite::refusal(error).unwrap()),
        };
        if is_last(&answer) {
            return;
        }
    }
    panic!("the last answer does not come");
}

#[tokio::test]
async fn contract_03_what_runs_out_of_time_is_done_as_a_whole_or_not_at_all() {
    let Some((agent, client)) = agent().await else { return };
    let mut wire = agent.dial().await.unwrap();
    let root = suite::root_file_system(&client, "timed").await.unwrap();
    let spec = suite::spec("timed", &root, &["busybox", "sleep", "1000"], false).unwrap();
    let create = request!(CreateContainerRequest { container_id: "timed".into(), OCI: Some(spec).into() });
    let remove = request!(RemoveContainerRequest { container_id: "timed".into() });
    let timed = |method: &str, message: &dyn protobuf::MessageDyn, nanoseconds| {
        let payload = message.write_to_bytes_dyn().unwrap();
        ttrpc::proto::Request { timeout_nano: nanoseconds, ..wire::call("grpc.AgentService", method, payload) }
    };
    // In its middle, wherever that is.
    for (number, nanoseconds) in [1, 100_000, 1_000_000, 3_000_000, 10_000_000].into_iter().enumerate() {
        let stream = number as u32 * 4 + 1;
        let created = wire.call(stream, &timed("CreateContainer", &create, nanoseconds)).await.unwrap();
        assert!(matches!(wire::code(&created), Some(Code::OK | Code::DEADLINE_EXCEEDED)), "{created}");
        wire.call(stream + 2, &timed("RemoveContainer", &remove, nanoseconds)).await.unwrap();
        until(
            async || client.agent.remove_container(limit(), &remove).await,
            |answer| answer.as_ref().is_err_and(|(_, text)| text.contains("not found")),
        )
        .await;
        // Its name is free when nothing is left of it.
        until(
            async || client.agent.create_container(limit(), &create).await,
            |answer| match answer {
                Ok(_) => true,
                Err((Code::ALREADY_EXISTS, _)) => false,
                Err((code, text)) => panic!("{code:?} {text}"),
            },
        )
        .await;
        client.agent.remove_container(limit(), &remove).await.unwrap();
    }
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", agent.pid().unwrap())).unwrap();
    assert!(!mounts.contains("timed"), "{mounts}");
}

#[tokio::test]
async fn contract_03_a_wait_that_runs_out_of_time_can_be_repeated() {
    let Some((_agent, client)) = agent().await else { return };
    container(&client, "waited", &["busybox", "cat"], false).await;
    let wait = request!(WaitProcessRequest { container_id: "waited".into(), exec_id: "waited".into() });
    assert!(client.agent.wait_process(with_timeout(20_000_000), &wait).await.is_err());
    let close = request!(CloseStdinRequest { container_id: "waited".into(), exec_id: "waited".into() });
    client.agent.close_stdin(limit(), &close).await.unwrap();
    assert_eq!(client.agent.wait_process(limit(), &wait).await.unwrap().status, 0);
}

#[tokio::test]
async fn contract_04_frames_have_a_limit_and_reads_a_smaller_one() {
    let Some((agent, client)) = agent().await else { return };
    let mut wire = agent.dial().await.unwrap();
    let length = wire::MAX_BODY + 1;
    wire.send(&wire::frame(length, 1, wire::REQUEST, &vec![0; length as usize])).await.unwrap();
    let (stream, response) = wire.answer().await.unwrap();
    assert_eq!((stream, wire::code(&response)), (1, Some(Code::INVALID_ARGUMENT)), "{response}");
    wire.check(3).await.unwrap();
    container(&client, "much", &["busybox", "dd", "if=/dev/zero", "bs=1M", "count=8"], false).await;
    let mut total = 0;
    loop {
        let data = client.agent.read_stdout(limit(), &read("much", "much", u32::MAX)).await.unwrap().data;
        assert!(data.len() <= 1 << 20, "{} bytes at once", data.len());
        total += data.len();
        if data.is_empty() {
            break;
        }
    }
    assert_eq!(total, 8 << 20);
}

#[tokio::test]
async fn contract_05_the_first_process_goes_by_two_names() {
    let Some((_agent, client)) = agent().await else { return };
    container(&client, "two", &["busybox", "sh", "-c", "read a; echo $a; read b; echo $b; busybox sleep 1000"], false)
        .await;
    for exec in ["", "two"] {
        let (container_id, exec_id) = (|| "two".to_string(), || exec.to_string());
        let data = format!("as {exec:?}\n").into_bytes();
        let write =
            request!(WriteStreamRequest { container_id: container_id(), exec_id: exec_id(), data: data.clone() });
        client.agent.write_stdin(limit(), &write).await.unwrap();
        assert_eq!(client.agent.read_stdout(limit(), &read("two", exec, 100)).await.unwrap().data, data);
        let resize =
            request!(TtyWinResizeRequest { container_id: container_id(), exec_id: exec_id(), row: 1, column: 1 });
        assert_eq!(suite::refusal(client.agent.tty_win_resize(limit(), &resize).await).unwrap().0, Code::UNAVAILABLE);
    }
    let kill = request!(SignalProcessRequest { container_id: "two".into(), exec_id: "two".into(), signal: 9u32 });
    client.agent.signal_process(limit(), &kill).await.unwrap();
    for exec in ["", "two", ""] {
        assert_eq!(suite::wait(&client, "two", exec).await.unwrap(), 137);
    }
}

#[tokio::test]
async fn contract_06_no_data_is_the_end_and_no_output_is_lost_by_waiting_first() {
    let Some((_agent, client)) = agent().await else { return };
    container(&client, "late", &["busybox", "sh", "-c", "busybox cat; echo last; echo error >&2"], false).await;
    let empty = request!(WriteStreamRequest { container_id: "late".into(), exec_id: "late".into() });
    client.agent.write_stdin(limit(), &empty).await.unwrap();
    for _ in 0..2 {
        assert_eq!(suite::wait(&client, "late", "late").await.unwrap(), 0);
    }
    assert_eq!(client.agent.read_stdout(limit(), &read("late", "late", 100)).await.unwrap().data, b"last\n");
    assert_eq!(client.agent.read_stderr(limit(), &read("late", "late", 100)).await.unwrap().data, b"error\n");
    for _ in 0..2 {
        assert!(client.agent.read_stdout(limit(), &read("late", "late", 100)).await.unwrap().data.is_empty());
        assert!(client.agent.read_stderr(limit(), &read("late", "late", 100)).await.unwrap().data.is_empty());
    }
}

#[tokio::test]
async fn contract_07_not_found_is_a_process_that_is_gone_and_nothing_else() {
    let Some((_agent, client)) = agent().await else { return };
    container(&client, "found", &["busybox", "sleep", "1000"], false).await;
    for (id, exec, expected, phrase) in [
        ("found", "gone", Code::NOT_FOUND, "process not found"),
        ("lost", "", Code::INVALID_ARGUMENT, "Invalid container id"),
        ("lost", "gone", Code::INVALID_ARGUMENT, "Invalid container id"),
    ] {
        let (container_id, exec_id) = (|| id.to_string(), || exec.to_string());
        let signal = request!(SignalProcessRequest { container_id: container_id(), exec_id: exec_id(), signal: 15u32 });
        let wait = request!(WaitProcessRequest { container_id: container_id(), exec_id: exec_id() });
        let close = request!(CloseStdinRequest { container_id: container_id(), exec_id: exec_id() });
        let write = request!(WriteStreamRequest { container_id: container_id(), exec_id: exec_id(), data: vec![1] });
        let resize =
            request!(TtyWinResizeRequest { container_id: container_id(), exec_id: exec_id(), row: 1, column: 1 });
        for refused in [
            suite::refusal(client.agent.signal_process(limit(), &signal).await),
            suite::refusal(client.agent.wait_process(limit(), &wait).await),
            suite::refusal(client.agent.close_stdin(limit(), &close).await),
            suite::refusal(client.agent.write_stdin(limit(), &write).await),
            suite::refusal(client.agent.tty_win_resize(limit(), &resize).await),
            suite::refusal(client.agent.read_stdout(limit(), &read(id, exec, 1)).await),
            suite::refusal(client.agent.read_stderr(limit(), &read(id, exec, 1)).await),
        ] {
            let (code, text) = refused.unwrap();
            assert!(code == expected && text.contains(phrase), "{code:?} {text}");
        }
    }
    // Who has ended takes any signal.
    let kill = request!(SignalProcessRequest { container_id: "found".into(), exec_id: "found".into(), signal: 9u32 });
    client.agent.signal_process(limit(), &kill).await.unwrap();
    suite::wait(&client, "found", "found").await.unwrap();
    client.agent.signal_process(limit(), &kill).await.unwrap();
}

#[tokio::test]
async fn contract_08_the_end_is_answered_before_it_comes() {
    let Some((agent, client)) = agent().await else { return };
    container(&client, "ended", &["busybox", "sleep", "1000"], false).await;
    let mut wire = agent.dial().await.unwrap();
    let destroy = wire::call("grpc.AgentService", "DestroySandbox", Vec::new());
    let answer = wire.call(1, &destroy).await.unwrap();
    assert_eq!(wire::code(&answer), Some(Code::OK));
    assert!(wire.receive().await.unwrap().is_none(), "the agent goes on");
}

#[tokio::test]
async fn contract_09_no_wait_for_want_of_memory_outlives_the_pod() {
    let Some((_agent, client)) = agent().await else { return };
    client.agent.create_sandbox(limit(), &CreateSandboxRequest::new()).await.unwrap();
    let event = GetOOMEventRequest::new();
    let wait = async || suite::refusal(client.agent.get_oom_event(with_timeout(0), &event).await).unwrap();
    let destroy = DestroySandboxRequest::new();
    let (first, second, destroyed) = tokio::join!(wait(), wait(), client.agent.destroy_sandbox(limit(), &destroy));
    destroyed.unwrap();
    assert_eq!((first.0, second.0), (Code::FAILED_PRECONDITION, Code::FAILED_PRECONDITION));
}

#[tokio::test]
async fn contract_10_details_are_there_whatever_is_asked() {
    let Some((_agent, client)) = agent().await else { return };
    for asked in [false, true] {
        let request = request!(GuestDetailsRequest { mem_block_size: asked, mem_hotplug_probe: asked });
        let answer = client.agent.get_guest_details(limit(), &request).await.unwrap();
        let details = answer.agent_details.as_ref().unwrap();
        assert!(!details.version.is_empty() && details.supports_seccomp && !details.init_daemon, "{details}");
        assert!(!details.storage_handlers.is_empty(), "{details}");
        assert!(asked || answer.mem_block_size_bytes == 0);
    }
}

#[tokio::test]
async fn contract_11_a_copied_file_appears_as_a_whole_with_its_owner_and_mode() {
    let Some((agent, client)) = agent().await else { return };
    let path = format!("{SHARED}/deep/er/token");
    let copy = async |mode: u32, offset: usize, size: usize, data: &[u8]| {
        let request = request!(CopyFileRequest {
            path: path.clone(),
            file_size: size as i64,
            file_mode: mode,
            dir_mode: 0o751,
            uid: 1000,
            gid: 2000,
            offset: offset as i64,
            data: data.to_vec(),
        });
        client.agent.copy_file(limit(), &request).await.unwrap();
    };
    let (file, directory) = (inside(&agent, &path), inside(&agent, &format!("{SHARED}/deep/er")));
    copy(0o100_600, 0, 3, b"old").await;
    copy(0o100_640, 0, 6, b"new").await;
    assert_eq!(fs::read(&file).unwrap(), b"old", "half of another is not seen");
    copy(0o100_640, 3, 6, b"er!").await;
    assert_eq!(fs::read(&file).unwrap(), b"newer!");
    let owned =
        |path: &PathBuf| fs::symlink_metadata(path).map(|meta| (meta.mode() & 0o7777, meta.uid(), meta.gid())).unwrap();
    assert_eq!((owned(&file), owned(&directory)), ((0o640, 1000, 2000), (0o751, 1000, 2000)));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "a piece is left");
    copy(0o120_777, 0, 0, b"../../elsewhere").await;
    assert_eq!(fs::read_link(&file).unwrap(), PathBuf::from("../../elsewhere"));
    assert_eq!(owned(&file), (0o777, 1000, 2000));
}

#[tokio::test]
async fn contract_12_devices_and_both_kinds_of_sources_reach_the_container() {
    let Some((agent, client)) = agent().await else { return };
    let root = suite::root_file_system(&client, "spec").await.unwrap();
    fs::write(inside(&agent, "/run/guest-file"), "the guest's").unwrap();
    fs::write(inside(&agent, &format!("{SHARED}/copied")), "copied").unwrap();
    let script = "busybox cat /copied /guest; busybox stat -c ' %t,%T' /dev/zeroes";
    let mut spec = suite::spec_json("spec", &root, &["busybox", "sh", "-c", script], false);
    for (source, destination) in [(format!("{SHARED}/copied"), "/copied"), ("/run/guest-file".into(), "/guest")] {
        let mount = json!({ "destination": destination, "source": source, "type": "bind", "options": ["rbind", "ro"] });
        spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    // The host's own numbers, as in its specification.
    spec["linux"]["devices"] =
        json!([{ "path": "/dev/zeroes", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666, "uid": 0, "gid": 0 }]);
    let spec = convert::spec_from_oci(&serde_json::from_value(spec).unwrap()).unwrap();
    suite::create_of(&client, "spec", spec).await.unwrap();
    suite::start(&client, "spec").await.unwrap();
    assert_eq!(suite::read_out(&client, "spec", "spec").await.unwrap(), b"copiedthe guest's 1,5\n");
    suite::remove(&client, "spec").await.unwrap();
}

#[tokio::test]
async fn contract_13_each_line_of_the_log_has_the_keys_that_hosts_read() {
    let Some((agent, client)) = agent().await else { return };
    client.health.check(limit(), &CheckRequest::new()).await.unwrap();
    suite::start(&client, "nobody").await.unwrap_err();
    let log = agent.log();
    assert!(log.lines().count() > 1, "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let keys: BTreeSet<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = ["ts", "level", "msg", "version", "subsystem", "pid", "name", "source"];
        assert!(expected.iter().all(|key| keys.contains(key)), "{line}");
    }
}

#[tokio::test]
async fn contract_14_unknown_words_are_nothing_to_fail_for_and_known_ones_count() {
    let words =
        "quiet agent.unknown=1 agent.flag agent.hotplug_timeout=never agent.mem_agent_enable agent.log=debug panic=1";
    let Some(agent) = start(&Start { command_line: Some(words), ..Start::default() }) else { return };
    let client = agent.connect().await.unwrap();
    client.health.check(limit(), &CheckRequest::new()).await.unwrap();
    client.agent.get_guest_details(limit(), &GuestDetailsRequest::new()).await.unwrap();
    let log = agent.log();
    assert!(log.contains(r#""level":"DEBUG""#), "{log}");
    assert!(log.contains("agent.unknown") && log.contains("agent.hotplug_timeout"), "{log}");
}
