//! Requests of a host that means ill, or is broken, over real connections. Whatever comes, the agent answers others, refuses with a reason, and keeps
//! nothing of it.
//!
//! What is not sent: an end of the pod, and what would change the machine that the test runs on (the clock, processors, memory, swap).

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::fs;

use nacre_protocol::agent::{
    self, CopyFileRequest, CreateContainerRequest, Device, ExecProcessRequest, PauseContainerRequest,
    ReadStreamRequest, RemoveContainerRequest, ResumeContainerRequest, SignalProcessRequest, StartContainerRequest,
    StatsContainerRequest, Storage, TtyWinResizeRequest, UpdateContainerRequest, UpdateInterfaceRequest,
    WaitProcessRequest, WriteStreamRequest,
};
use nacre_protocol::oci::{self, LinuxNamespace, Mount, POSIXRlimit};
use nacre_tests::agent::{Client, Process, limit};
use nacre_tests::chance::Chance;
use nacre_tests::holdings::Holdings;
use nacre_tests::wire::{self, Wire};
use nacre_tests::{dist, request, suite};
use protobuf::reflect::ReflectValueBox;
use protobuf::{Message, MessageDyn};
use ttrpc::Code;
use ttrpc::proto::{Request, Response};

const SERVICE: &str = "grpc.AgentService";

/// How many frames of each kind of nonsense are sent.
const FRAMES: u32 = 1500;

/// How many connections there are in all, and at once, which is fewer than a process may have descriptors.
const CONNECTIONS: usize = 10_000;
const AT_ONCE: usize = 500;

/// Methods that are not called with what was not thought of.
const NOT_CALLED: &[&str] =
    &["DestroySandbox", "SetGuestDateTime", "OnlineCPUMem", "MemHotplugByProbe", "AddSwap", "AddSwapPath"];

/// An agent of its own for one test; nothing where that can't be.
async fn agent() -> Option<(Process, Client)> {
    if !dist::root() || !dist::have(&["unshare", "ip", "busybox"]) {
        return None;
    }
    let agent = Process::start(&dist::program("nacre-agent")).unwrap();
    let client = agent.connect().await.unwrap();
    client.health.check(limit(), &Default::default()).await.unwrap();
    Some((agent, client))
}

/// The agent's memory, in KiB.
fn memory(agent: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid().unwrap())).unwrap();
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok()).unwrap()
}

/// Answers until there is one to the call `stream`.
async fn answer_to(wire: &mut Wire, stream: u32) -> Response {
    loop {
        let (answered, response) = wire.answer().await.unwrap();
        if answered == stream {
            return response;
        }
    }
}

fn call(method: &str, message: &impl Message) -> Request {
    wire::call(SERVICE, method, message.write_to_bytes().unwrap())
}

/// Calls that make sense, or nearly: what is mutated.
fn calls(root: &str) -> Vec<Request> {
    let id = || "hostile-mutant".to_string();
    let spec = suite::spec("hostile-mutant", root, &["busybox", "true"], false).unwrap();
    let path = "/run/kata-containers/shared/containers/hostile-mutant/file".to_string();
    vec![
        call("CreateContainer", &request!(CreateContainerRequest { container_id: id(), OCI: Some(spec).into() })),
        call("RemoveContainer", &request!(RemoveContainerRequest { container_id: id(), timeout: 1u32 })),
        call("ReadStdout", &request!(ReadStreamRequest { container_id: id(), exec_id: id(), len: 5u32 })),
        call("WaitProcess", &request!(WaitProcessRequest { container_id: id(), exec_id: id() })),
        call(
            "CopyFile",
            &request!(CopyFileRequest { path: path, file_size: 4, file_mode: 0o100_644, data: b"data".to_vec() }),
        ),
        call("UpdateInterface", &UpdateInterfaceRequest::new()),
        wire::call("grpc.Health", "Check", Vec::new()),
    ]
}

#[tokio::test]
async fn frames_of_nonsense_are_answered_or_ignored_and_hurt_nobody() {
    let Some((agent, client)) = agent().await else { return };
    let root = suite::root_file_system(&client, "hostile-mutant").await.unwrap();
    let calls: Vec<Vec<u8>> = calls(&root).iter().map(|call| call.write_to_bytes().unwrap()).collect();
    let before = Holdings::of(&agent, "hostile-mutant").unwrap();
    let mut chance = Chance(1);
    let mut wire = agent.dial().await.unwrap();
    for number in 0..FRAMES {
        let stream = number * 2 + 1;
        let base = &calls[chance.below(calls.len() as u64) as usize];
        let (kind, body) = match chance.below(4) {
            0 => (chance.below(256) as u8, chance.bytes(300)),
            1 => (wire::REQUEST, chance.bytes(300)),
            _ => (wire::REQUEST, chance.mutated(base)),
        };
        let any = if chance.below(8) == 0 { chance.below(1 << 32) as u32 & !1 } else { 0x8000_0001 + stream };
        wire.send(&wire::frame(body.len() as u32, any, kind, &body)).await.unwrap();
        // What came before has been read, and this connection lives.
        wire.send(&wire::request(stream, &wire::call("grpc.Health", "Check", Vec::new())).unwrap()).await.unwrap();
        assert_eq!(answer_to(&mut wire, stream).await.payload, [8, 1], "after {}", hex::encode(body));
    }
    drop(wire);
    let remove = request!(RemoveContainerRequest { container_id: "hostile-mutant".into() });
    let _ = client.agent.remove_container(limit(), &remove).await; // one of them may have made sense
    is_unhurt(&agent, "hostile-mutant", before, "nonsense").await;
}

/// The agent and its container `id` hold what they held before, or will soon, and no thread of it has panicked.
async fn is_unhurt(agent: &Process, id: &str, before: Holdings, after: &str) {
    assert_eq!(before.again(agent, id).await.unwrap(), before, "after {after}");
    assert!(!agent.log().contains("panicked"), "after {after}: {}", agent.log());
}

#[tokio::test]
async fn half_frames_and_silence_keep_nobody_from_being_served() {
    let Some((agent, client)) = agent().await else { return };
    let before = (Holdings::of(&agent, "hostile-served").unwrap(), memory(&agent));
    let body = calls("/")[0].write_to_bytes().unwrap();
    let whole = wire::frame(body.len() as u32, 1, wire::REQUEST, &body);
    let huge = [wire::MAX_BODY, wire::MAX_BODY + 1, u32::MAX].map(|length| wire::frame(length, 1, wire::REQUEST, b"x"));
    let mut silent = Vec::new();
    for part in
        (0..whole.len()).step_by(7).map(|end| &whole[..end]).chain(huge.iter().map(Vec::as_slice)).cycle().take(AT_ONCE)
    {
        let mut wire = agent.dial().await.unwrap();
        wire.send(part).await.unwrap();
        silent.push(wire);
    }
    client.health.check(limit(), &Default::default()).await.unwrap();
    suite::life_of_true(&client, "hostile-served", &suite::root_file_system(&client, "hostile-served").await.unwrap())
        .await
        .unwrap();
    let more = memory(&agent).saturating_sub(before.1);
    assert!(more < 64 << 10, "{more} KiB more for {AT_ONCE} connections that say nothing");
    drop(silent);
    is_unhurt(&agent, "hostile-served", before.0, "silence").await;
}

#[tokio::test]
async fn ten_thousand_connections_leave_nothing() {
    let Some((agent, client)) = agent().await else { return };
    let before = Holdings::of(&agent, "hostile-none").unwrap();
    for batch in 0..CONNECTIONS / AT_ONCE {
        let mut wires = Vec::new();
        for number in 0..AT_ONCE {
            let mut wire = agent.dial().await.unwrap();
            match (batch + number) % 4 {
                0 => {}
                1 => wire.send(&[0, 0, 0]).await.unwrap(),
                2 => wire
                    .send(&wire::request(1, &wire::call(SERVICE, "GetOOMEvent", Vec::new())).unwrap())
                    .await
                    .unwrap(),
                _ => wire.check(1).await.unwrap(),
            }
            wires.push(wire);
        }
        client.health.check(limit(), &Default::default()).await.unwrap();
    }
    is_unhurt(&agent, "hostile-none", before, "connections").await;
}

/// The methods that are called, and their messages without anything.
fn methods() -> Vec<(String, Box<dyn MessageDyn>)> {
    let services = agent::file_descriptor().services();
    let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
    let named = methods.map(|method| (method.proto().name().to_string(), method.input_type().new_instance()));
    named.filter(|(name, _)| !NOT_CALLED.contains(&name.as_str())).collect()
}

#[tokio::test]
async fn deadlines_of_every_size_are_kept() {
    let Some((agent, _client)) = agent().await else { return };
    let mut wire = agent.dial().await.unwrap();
    let mut stream = 1;
    for (method, message) in methods() {
        for timeout_nano in [1, i64::MAX, -1, i64::MIN] {
            if method == "GetOOMEvent" && timeout_nano != 1 {
                continue; // there is no end to it
            }
            let call = wire::call(SERVICE, &method, message.write_to_bytes_dyn().unwrap());
            wire.call(stream, &Request { timeout_nano, ..call }).await.unwrap();
            stream += 2;
        }
    }
    wire.check(stream).await.unwrap();
}

#[tokio::test]
async fn names_that_are_paths_or_too_long_are_the_callers_mistake() {
    let Some((agent, client)) = agent().await else { return };
    let root = suite::root_file_system(&client, "hostile-named").await.unwrap();
    suite::create_in(&client, &root, "hostile-named", &["busybox", "sleep", "1000"], false).await.unwrap();
    let before = Holdings::of(&agent, "hostile-named").unwrap();
    let mut wire = agent.dial().await.unwrap();
    let mut stream = 1;
    let long = "x".repeat(1 << 20);
    for name in [
        "../hostile-named",
        "/etc",
        "a/../../b",
        "hostile-named/",
        ".",
        "..",
        "a\0b",
        "\u{202e}",
        " ",
        "-hostile-named",
        &long,
    ] {
        for (method, mut message) in methods() {
            let descriptor = message.descriptor_dyn();
            for field in ["container_id", "exec_id"] {
                let Some(descriptor) = descriptor.field_by_name(field) else { continue };
                if field == "exec_id" {
                    let id = descriptor.containing_message().field_by_name("container_id").unwrap();
                    id.set_singular_field(&mut *message, ReflectValueBox::String("hostile-named".into()));
                }
                descriptor.set_singular_field(&mut *message, ReflectValueBox::String(name.into()));
                let call = wire::call(SERVICE, &method, message.write_to_bytes_dyn().unwrap());
                let response = wire.call(stream, &Request { timeout_nano: 60_000_000_000, ..call }).await.unwrap();
                let code = wire::code(&response);
                let expected = matches!(code, Some(Code::INVALID_ARGUMENT | Code::NOT_FOUND | Code::ALREADY_EXISTS));
                let refused = expected || code == Some(Code::UNIMPLEMENTED);
                assert!(refused && response.status.message.len() <= 4096, "{method} {field} {name:.20}: {code:?}");
                stream += 2;
            }
        }
    }
    drop(wire);
    is_unhurt(&agent, "hostile-named", before, "names").await;
}

/// A wrong specification, and its name.
type Wrong = (&'static str, fn(&mut oci::Spec));

/// Fields that are missing or absurd. Each is refused, or honoured to where it makes sense, but nothing of it stays.
const WRONG: &[Wrong] = &[
    ("nothing", |spec| *spec = oci::Spec::new()),
    ("no process", |spec| spec.Process.clear()),
    ("no root", |spec| spec.Root.clear()),
    ("no linux", |spec| spec.Linux.clear()),
    ("a root that is relative", |spec| spec.Root.mut_or_insert_default().Path = "run".into()),
    ("a root that is not there", |spec| spec.Root.mut_or_insert_default().Path = "/nowhere/at/all".into()),
    ("a root that is a file", |spec| spec.Root.mut_or_insert_default().Path = "/bin/busybox".into()),
    ("a root with a NUL", |spec| spec.Root.mut_or_insert_default().Path = "/run\0/x".into()),
    ("no arguments", |spec| spec.Process.mut_or_insert_default().Args.clear()),
    ("an argument with a NUL", |spec| spec.Process.mut_or_insert_default().Args.push("a\0b".into())),
    ("too many arguments", |spec| spec.Process.mut_or_insert_default().Args = vec!["busybox".into(); 300_000]),
    ("an argument of a mebibyte", |spec| spec.Process.mut_or_insert_default().Args.push("x".repeat(1 << 20))),
    ("an environment without names", |spec| {
        spec.Process.mut_or_insert_default().Env = vec!["=".into(), "x".into(), "".into()]
    }),
    ("a directory that is relative", |spec| spec.Process.mut_or_insert_default().Cwd = "tmp".into()),
    ("a directory above", |spec| spec.Process.mut_or_insert_default().Cwd = "/../../../..".into()),
    ("no user", |spec| spec.Process.mut_or_insert_default().User.mut_or_insert_default().UID = u32::MAX),
    ("groups without end", |spec| {
        spec.Process.mut_or_insert_default().User.mut_or_insert_default().AdditionalGids = (0..100_000).collect();
    }),
    ("a capability of no kernel", |spec| {
        let process = spec.Process.mut_or_insert_default();
        process.Capabilities.mut_or_insert_default().Bounding.push("CAP_EVERYTHING".into());
    }),
    ("a limit of no kernel", |spec| {
        let limit = POSIXRlimit { Type: "RLIMIT_LUCK".into(), ..Default::default() };
        spec.Process.mut_or_insert_default().Rlimits.push(limit);
    }),
    ("limits upside down", |spec| {
        let limit = POSIXRlimit { Type: "RLIMIT_NOFILE".into(), Hard: 1, Soft: u64::MAX, ..Default::default() };
        spec.Process.mut_or_insert_default().Rlimits.push(limit);
    }),
    ("a score that is none", |spec| spec.Process.mut_or_insert_default().OOMScoreAdj = i64::MAX),
    ("mounts without end", |spec| spec.Mounts = vec![Mount::new(); 100_000]),
    ("a mount out of the root", |spec| {
        let mount = Mount { destination: "/../../run/out".into(), source: "/etc".into(), ..bind() };
        spec.Mounts.push(mount);
    }),
    ("a mount of what is not there", |spec| {
        spec.Mounts.push(Mount { destination: "/x".into(), source: "/nowhere/at/all".into(), ..bind() });
    }),
    ("a mount of no kernel", |spec| {
        spec.Mounts.push(Mount { destination: "/x".into(), type_: "nofs".into(), ..Default::default() });
    }),
    ("a namespace of no kernel", |spec| spec.Linux.mut_or_insert_default().Namespaces.push(namespace("luck", ""))),
    ("a namespace twice", |spec| spec.Linux.mut_or_insert_default().Namespaces.push(namespace("ipc", ""))),
    ("a namespace that is a file", |spec| {
        spec.Linux.mut_or_insert_default().Namespaces.push(namespace("network", "/bin/busybox"));
    }),
    ("no namespaces", |spec| spec.Linux.mut_or_insert_default().Namespaces.clear()),
    ("a user namespace without maps", |spec| spec.Linux.mut_or_insert_default().Namespaces.push(namespace("user", ""))),
    ("a cgroup above", |spec| spec.Linux.mut_or_insert_default().CgroupsPath = "/../../../etc".into()),
    ("a cgroup with a NUL", |spec| spec.Linux.mut_or_insert_default().CgroupsPath = "/a\0b".into()),
    ("a cgroup without end", |spec| spec.Linux.mut_or_insert_default().CgroupsPath = "/a".repeat(5000)),
    ("limits of less than nothing", |spec| {
        let resources = spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default();
        resources.Memory.mut_or_insert_default().Limit = i64::MIN;
        resources.CPU.mut_or_insert_default().Shares = u64::MAX;
    }),
    ("a sysctl of everybody's", |spec| {
        spec.Linux.mut_or_insert_default().Sysctl.insert("kernel.core_pattern".into(), "|/bin/busybox".into());
    }),
    ("a sysctl that is a path", |spec| {
        spec.Linux.mut_or_insert_default().Sysctl.insert("net/../kernel/core_pattern".into(), "|/bin/busybox".into());
    }),
    ("a masked path above", |spec| spec.Linux.mut_or_insert_default().MaskedPaths.push("/../../etc".into())),
    ("a device of no kernel", |spec| {
        let device = oci::LinuxDevice { Path: "/dev/x".into(), Type: "z".into(), ..Default::default() };
        spec.Linux.mut_or_insert_default().Devices.push(device);
    }),
    ("a device out of the root", |spec| {
        let device = oci::LinuxDevice {
            Path: "/../../dev/x".into(),
            Type: "c".into(),
            Major: -1,
            Minor: i64::MAX,
            ..Default::default()
        };
        spec.Linux.mut_or_insert_default().Devices.push(device);
    }),
    ("a filter that does nothing known", |spec| {
        let filter = oci::LinuxSeccomp { DefaultAction: "SCMP_ACT_LUCK".into(), ..Default::default() };
        spec.Linux.mut_or_insert_default().Seccomp = Some(filter).into();
    }),
    ("a hook", |spec| {
        let hook = oci::Hook { Path: "/bin/busybox".into(), ..Default::default() };
        spec.Hooks.mut_or_insert_default().Prestart.push(hook);
    }),
    ("a host name of a kibibyte", |spec| spec.Hostname = "x".repeat(1024)),
];

fn bind() -> Mount {
    Mount { type_: "bind".into(), options: vec!["rbind".into()], ..Default::default() }
}

fn namespace(kind: &str, path: &str) -> LinuxNamespace {
    LinuxNamespace { Type: kind.into(), Path: path.into(), ..Default::default() }
}

#[tokio::test]
async fn specifications_that_lack_or_exaggerate_leave_nothing() {
    let Some((agent, client)) = agent().await else { return };
    let root = suite::root_file_system(&client, "hostile-wrong").await.unwrap();
    suite::life_of_true(&client, "hostile-wrong", &root).await.unwrap();
    let before = Holdings::of(&agent, "hostile-wrong").unwrap();
    for (name, spoil) in WRONG {
        let mut spec = suite::spec("hostile-wrong", &root, &["busybox", "true"], false).unwrap();
        spoil(&mut spec);
        match suite::create_of(&client, "hostile-wrong", spec).await {
            Ok(()) => suite::remove(&client, "hostile-wrong").await.unwrap(),
            Err(error) => {
                let text = format!("{error:#}");
                assert!(
                    text.len() < 8192 && !text.contains("panicked") && !text.contains("DEADLINE"),
                    "{name}: {text}"
                );
            }
        }
        is_unhurt(&agent, "hostile-wrong", before, name).await;
        suite::life_of_true(&client, "hostile-wrong", &root)
            .await
            .map_err(|error| panic!("after {name}: {error:#}"))
            .unwrap();
    }
}

/// A wrong request for a container, and its name.
type Absurd = (&'static str, fn(&mut CreateContainerRequest));

/// What goes with a specification and makes no sense. Each is refused.
const ABSURD: &[Absurd] = &[
    ("a driver that is not there", |request| request.storages = vec![storage("luck", "/run/hostile")]),
    ("a driver of a mebibyte", |request| request.storages = vec![storage(&"x".repeat(1 << 20), "/run/hostile")]),
    ("storages without end", |request| request.storages = vec![storage("local", "/run/hostile"); 10_000]),
    ("a storage nowhere", |request| request.storages = vec![storage("local", "")]),
    ("a storage at the root", |request| request.storages = vec![storage("ephemeral", "/")]),
    ("a storage that is relative", |request| request.storages = vec![storage("local", "run/hostile")]),
    ("a storage above", |request| request.storages = vec![storage("local", "/run/../../hostile")]),
    ("a storage with a NUL", |request| request.storages = vec![storage("local", "/run/hostile\0/x")]),
    ("a storage too deep", |request| request.storages = vec![storage("local", &"/x".repeat(5000))]),
    ("a good storage before a bad one", |request| {
        request.storages = vec![storage("local", "/run/hostile"), storage("ephemeral", "/run/../x")];
    }),
    ("a size that is none", |request| {
        let options = vec!["size=everything".into()];
        request.storages = vec![Storage { options, ..storage("ephemeral", "/run/hostile") }];
    }),
    ("a mode that is none", |request| {
        let options = vec!["mode=rwx".into()];
        request.storages = vec![Storage { options, ..storage("local", "/run/hostile") }];
    }),
    ("an image without a name", |request| request.storages = vec![storage("image_guest_pull", "")]),
    ("a device of no type", |request| request.devices = vec![device("", "/dev/x", "/dev/x")]),
    ("a device of luck", |request| request.devices = vec![device("luck", "/dev/x", "/dev/x")]),
    ("a device above", |request| request.devices = vec![device("blk", "../../..", "/dev/x")]),
    ("a device of a mebibyte", |request| request.devices = vec![device("blk", &"0/".repeat(1 << 19), "/dev/x")]),
    ("devices without end", |request| request.devices = vec![device("luck", "x", "/dev/x"); 10_000]),
    ("streams of nobody's", |request| request.stdout_port = u32::MAX),
];

fn storage(driver: &str, mount_point: &str) -> Storage {
    Storage {
        driver: driver.into(),
        source: "hostile".into(),
        fstype: "tmpfs".into(),
        mount_point: mount_point.into(),
        ..Default::default()
    }
}

fn device(kind: &str, id: &str, container_path: &str) -> Device {
    Device { id: id.into(), type_: kind.into(), container_path: container_path.into(), ..Default::default() }
}

#[tokio::test]
async fn storages_and_devices_that_make_no_sense_leave_nothing() {
    let Some((agent, client)) = agent().await else { return };
    let root = suite::root_file_system(&client, "hostile-absurd").await.unwrap();
    suite::life_of_true(&client, "hostile-absurd", &root).await.unwrap();
    let before = Holdings::of(&agent, "hostile-absurd").unwrap();
    for (name, spoil) in ABSURD {
        let spec = suite::spec("hostile-absurd", &root, &["busybox", "true"], false).unwrap();
        let mut request =
            request!(CreateContainerRequest { container_id: "hostile-absurd".into(), OCI: Some(spec).into() });
        spoil(&mut request);
        let refused = suite::refusal(client.agent.create_container(limit(), &request).await);
        let (code, text) = refused.unwrap_or_else(|_| panic!("{name} is taken"));
        assert!(!matches!(code, Code::UNKNOWN | Code::NOT_FOUND), "{name}: {code:?} {text}");
        assert!(text.len() <= 4096, "{name}: {} bytes", text.len());
        is_unhurt(&agent, "hostile-absurd", before, name).await;
    }
    suite::life_of_true(&client, "hostile-absurd", &root).await.unwrap();
}

/// What is asked of a container in each moment of its life, and what is answered: before it is created, created, running, paused, ended,
/// removed. `None` is an answer.
const ORDERS: &[(&str, [Option<Code>; 6])] = {
    const DONE: Option<Code> = None;
    const WRONG: Option<Code> = Some(Code::INVALID_ARGUMENT);
    const STATE: Option<Code> = Some(Code::FAILED_PRECONDITION);
    const TAKEN: Option<Code> = Some(Code::ALREADY_EXISTS);
    const GONE: Option<Code> = Some(Code::NOT_FOUND);
    const NO_TTY: Option<Code> = Some(Code::UNAVAILABLE);
    &[
        ("CreateContainer", [WRONG, TAKEN, TAKEN, TAKEN, TAKEN, WRONG]),
        ("StartContainer", [WRONG, DONE, STATE, STATE, STATE, WRONG]),
        ("ExecProcess", [WRONG, DONE, DONE, STATE, STATE, WRONG]),
        ("SignalProcess", [WRONG, DONE, DONE, DONE, DONE, WRONG]),
        ("SignalNobody", [WRONG, GONE, GONE, GONE, GONE, WRONG]),
        ("PauseContainer", [WRONG, DONE, DONE, STATE, STATE, WRONG]),
        ("ResumeContainer", [WRONG, STATE, STATE, DONE, STATE, WRONG]),
        ("UpdateContainer", [WRONG, DONE, DONE, DONE, DONE, WRONG]),
        ("StatsContainer", [WRONG, DONE, DONE, DONE, DONE, WRONG]),
        ("TtyWinResize", [WRONG, NO_TTY, NO_TTY, NO_TTY, NO_TTY, WRONG]),
        ("WriteStdin", [WRONG, DONE, DONE, DONE, Some(Code::INTERNAL), WRONG]),
        ("RemoveContainer", [WRONG, DONE, DONE, DONE, DONE, WRONG]),
    ]
};

/// The call of a row.
fn order(name: &str) -> Request {
    let (id, process) = (
        || "hostile-order".to_string(),
        oci::Process {
            Args: vec!["busybox".into(), "true".into()],
            Env: vec!["PATH=/bin".into()],
            Cwd: "/".into(),
            ..Default::default()
        },
    );
    match name {
        "CreateContainer" => call(name, &request!(CreateContainerRequest { container_id: id() })),
        "StartContainer" => call(name, &request!(StartContainerRequest { container_id: id() })),
        "ExecProcess" => call(
            name,
            &request!(ExecProcessRequest { container_id: id(), exec_id: "exec".into(), process: Some(process).into() }),
        ),
        "SignalProcess" => call(name, &request!(SignalProcessRequest { container_id: id(), signal: 0u32 })),
        "SignalNobody" => {
            call("SignalProcess", &request!(SignalProcessRequest { container_id: id(), exec_id: "nobody".into() }))
        }
        "PauseContainer" => call(name, &request!(PauseContainerRequest { container_id: id() })),
        "ResumeContainer" => call(name, &request!(ResumeContainerRequest { container_id: id() })),
        "UpdateContainer" => call(
            name,
            &request!(UpdateContainerRequest { container_id: id(), resources: Some(Default::default()).into() }),
        ),
        "StatsContainer" => call(name, &request!(StatsContainerRequest { container_id: id() })),
        "TtyWinResize" => call(name, &request!(TtyWinResizeRequest { container_id: id(), row: 1u32, column: 1u32 })),
        "WriteStdin" => call(name, &request!(WriteStreamRequest { container_id: id(), data: vec![10] })),
        _ => call("RemoveContainer", &request!(RemoveContainerRequest { container_id: id() })),
    }
}

/// Brings the container to the moment of its life that `column` is.
async fn bring_to(client: &Client, root: &str, column: usize) {
    if column == 0 {
        return;
    }
    suite::create_in(client, root, "hostile-order", &["busybox", "sleep", "1000"], false).await.unwrap();
    let kill = request!(SignalProcessRequest { container_id: "hostile-order".into(), signal: 9u32 });
    match column {
        2 | 3 => suite::start(client, "hostile-order").await.unwrap(),
        4 => {
            suite::start(client, "hostile-order").await.unwrap();
            client.agent.signal_process(limit(), &kill).await.unwrap();
            suite::wait(client, "hostile-order", "").await.unwrap();
        }
        5 => suite::remove(client, "hostile-order").await.unwrap(),
        _ => {}
    }
    if column == 3 {
        let pause = request!(PauseContainerRequest { container_id: "hostile-order".into() });
        client.agent.pause_container(limit(), &pause).await.unwrap();
    }
}

#[tokio::test]
async fn every_call_in_every_wrong_order_is_told_why() {
    let Some((agent, client)) = agent().await else { return };
    let root = suite::root_file_system(&client, "hostile-order").await.unwrap();
    let mut wire = agent.dial().await.unwrap();
    let mut stream = 1;
    for (name, expected) in ORDERS {
        for (column, expected) in expected.iter().enumerate() {
            bring_to(&client, &root, column).await;
            let mut call = order(name);
            if *name == "CreateContainer" && (1..5).contains(&column) {
                let spec = suite::spec("hostile-order", &root, &["busybox", "true"], false).unwrap();
                call = self::call(
                    name,
                    &request!(CreateContainerRequest { container_id: "hostile-order".into(), OCI: Some(spec).into() }),
                );
            }
            let response = wire.call(stream, &Request { timeout_nano: 30_000_000_000, ..call }).await.unwrap();
            let code = wire::code(&response).filter(|code| *code != Code::OK);
            assert_eq!(code, *expected, "{name} in column {column}: {response}");
            stream += 2;
            let remove = request!(RemoveContainerRequest { container_id: "hostile-order".into() });
            let _ = client.agent.remove_container(limit(), &remove).await; // it may be gone
        }
    }
}
