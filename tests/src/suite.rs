//! What every agent must do, whether it is a process here or the first one of a guest: one function for each behaviour.
//!
//! Containers are made from files that are copied in over the wire, so that no registry is needed and both kinds of agent take the same road.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nacre_protocol::agent::{
    CloseStdinRequest, CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    ExecProcessRequest, GetMetricsRequest, GetOOMEventRequest, GuestDetailsRequest, ListInterfacesRequest,
    ListRoutesRequest, MemAgentCompactConfig, MemAgentMemcgConfig, PauseContainerRequest, ReadStreamRequest,
    RemoveContainerRequest, RemoveStaleVirtiofsShareMountsRequest, ReseedRandomDevRequest, ResumeContainerRequest,
    Routes, SetPolicyRequest, SharedMount, SignalProcessRequest, StartContainerRequest, StatsContainerRequest, Storage,
    TtyWinResizeRequest, UpdateContainerRequest, UpdateEphemeralMountsRequest, UpdateInterfaceRequest,
    UpdateRoutesRequest, WaitProcessRequest, WriteStreamRequest,
};
use nacre_protocol::health::CheckRequest;
use nacre_protocol::oci;
use nacre_protocol::types::{IPAddress, IPFamily, Interface, Route};
use nacre_protocol::{convert, nacre};
use serde_json::json;
use ttrpc::context::with_timeout;
use ttrpc::{Code, Error};

use crate::agent::{Client, MAC, limit};

/// A behaviour.
pub type Case = for<'a> fn(&'a Client) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// Every behaviour, by name. The last one ends the pod.
pub const CASES: &[(&str, Case)] = &[
    ("health_and_version_answer", |c| Box::pin(health_and_version_answer(c))),
    ("details_name_what_the_agent_can_do", |c| Box::pin(details_name_what_the_agent_can_do(c))),
    ("boot_times_are_in_order", |c| Box::pin(boot_times_are_in_order(c))),
    ("what_is_not_offered_is_unimplemented", |c| Box::pin(what_is_not_offered_is_unimplemented(c))),
    ("a_container_lives_from_create_to_remove", |c| Box::pin(a_container_lives_from_create_to_remove(c))),
    ("output_before_the_end_is_read_after_it", |c| Box::pin(output_before_the_end_is_read_after_it(c))),
    ("input_reaches_the_program_and_ends", |c| Box::pin(input_reaches_the_program_and_ends(c))),
    ("more_programs_run_in_a_container", |c| Box::pin(more_programs_run_in_a_container(c))),
    ("signals_end_programs", |c| Box::pin(signals_end_programs(c))),
    ("a_paused_container_stands_still_until_it_is_resumed", |c| {
        Box::pin(a_paused_container_stands_still_until_it_is_resumed(c))
    }),
    ("a_paused_container_can_be_killed_and_removed", |c| Box::pin(a_paused_container_can_be_killed_and_removed(c))),
    ("every_kill_for_want_of_memory_is_told", |c| Box::pin(every_kill_for_want_of_memory_is_told(c))),
    ("limits_are_changed_and_lifted", |c| Box::pin(limits_are_changed_and_lifted(c))),
    ("an_ephemeral_storage_is_given_another_size", |c| Box::pin(an_ephemeral_storage_is_given_another_size(c))),
    ("a_container_has_what_another_has_mounted", |c| Box::pin(a_container_has_what_another_has_mounted(c))),
    ("a_terminal_has_the_size_it_is_given", |c| Box::pin(a_terminal_has_the_size_it_is_given(c))),
    ("usage_is_counted", |c| Box::pin(usage_is_counted(c))),
    ("bad_requests_name_what_is_wrong", |c| Box::pin(bad_requests_name_what_is_wrong(c))),
    ("a_missing_program_is_said_and_leaves_nothing", |c| Box::pin(a_missing_program_is_said_and_leaves_nothing(c))),
    ("copies_stay_in_their_directory", |c| Box::pin(copies_stay_in_their_directory(c))),
    ("addresses_and_routes_are_set_and_listed", |c| Box::pin(addresses_and_routes_are_set_and_listed(c))),
    ("metrics_are_prometheus_text", |c| Box::pin(metrics_are_prometheus_text(c))),
    ("entropy_is_taken", |c| Box::pin(entropy_is_taken(c))),
    ("a_policy_rules_what_may_be_run", |c| Box::pin(a_policy_rules_what_may_be_run(c))),
    ("a_pod_ends_with_its_containers", |c| Box::pin(a_pod_ends_with_its_containers(c))),
];

/// Kata's shared directory, where copies go.
const SHARED: &str = "/run/kata-containers/shared/containers";

/// A short way to say a request.
#[macro_export]
macro_rules! request {
    ($type:ident { $($field:ident : $value:expr),* $(,)? }) => { $type { $($field: $value,)* ..Default::default() } };
}

/// What a program did.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: Vec<u8>,
}

impl Ended {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Copies busybox into the guest, as the root of a container.
///
/// # Errors
/// A copy that was refused.
pub async fn root_file_system(client: &Client, id: &str) -> Result<String> {
    let root = format!("{SHARED}/{id}/rootfs");
    let busybox = std::fs::read("/bin/busybox").context("read /bin/busybox")?;
    let path = format!("{root}/bin/busybox");
    for (number, piece) in busybox.chunks(1 << 20).enumerate() {
        let request = request!(CopyFileRequest {
            path: path.clone(),
            file_size: busybox.len() as i64,
            file_mode: 0o100_755,
            dir_mode: 0o755,
            offset: (number as i64) << 20,
            data: piece.to_vec(),
        });
        client.agent.copy_file(limit(), &request).await.context("copy busybox")?;
    }
    Ok(root)
}

/// The same, as the agent takes it.
///
/// # Errors
/// None that can happen.
pub fn spec(id: &str, root: &str, args: &[&str], terminal: bool) -> Result<oci::Spec> {
    Ok(convert::spec_from_oci(&serde_json::from_value(spec_json(id, root, args, terminal))?)?)
}

/// The specification of a small container, as `config.json` has it.
pub fn spec_json(id: &str, root: &str, args: &[&str], terminal: bool) -> serde_json::Value {
    let capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
    let namespaces = ["mount", "pid", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": root },
        "process": {
            "args": args, "cwd": "/", "user": { "uid": 0, "gid": 0 }, "terminal": terminal, "noNewPrivileges": true,
            "env": ["PATH=/bin"],
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities, "inheritable": [], "ambient": [],
            },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": { "namespaces": namespaces, "cgroupsPath": format!("/nacre-test/{id}"), "maskedPaths": ["/proc/kcore"] },
    })
}

async fn create(client: &Client, id: &str, args: &[&str], terminal: bool) -> Result<()> {
    let root = root_file_system(client, id).await?;
    create_in(client, &root, id, args, terminal).await
}

/// Creates a container in the root file system `root`.
///
/// # Errors
/// A call that was refused.
pub async fn create_in(client: &Client, root: &str, id: &str, args: &[&str], terminal: bool) -> Result<()> {
    create_of(client, id, spec(id, root, args, terminal)?).await
}

/// Creates a container.
///
/// # Errors
/// A call that was refused.
pub async fn create_of(client: &Client, id: &str, spec: oci::Spec) -> Result<()> {
    Ok(try_create(client, id, spec).await?)
}

/// The same, with the agent's own word where it refuses.
///
/// # Errors
/// A call that was refused.
pub async fn try_create(client: &Client, id: &str, spec: oci::Spec) -> ttrpc::Result<()> {
    let request =
        request!(CreateContainerRequest { container_id: id.into(), exec_id: id.into(), OCI: Some(spec).into() });
    client.agent.create_container(limit(), &request).await.map(drop)
}

/// Limits of memory and nothing else.
fn memory(limit: i64) -> LinuxResources {
    let memory = request!(LinuxMemory { Limit: limit, Swap: limit });
    request!(LinuxResources { Memory: Some(memory).into() })
}

/// Starts a container.
///
/// # Errors
/// A call that was refused.
pub async fn start(client: &Client, id: &str) -> Result<()> {
    client.agent.start_container(limit(), &request!(StartContainerRequest { container_id: id.into() })).await?;
    Ok(())
}

/// Runs one more program in a container.
///
/// # Errors
/// A call that was refused.
pub async fn exec(client: &Client, id: &str, exec: &str, args: &[&str]) -> ttrpc::Result<()> {
    let process = request!(OciProcess {
        Args: args.iter().map(ToString::to_string).collect(),
        Env: vec!["PATH=/bin".into()],
        Cwd: "/".into(),
    });
    let request =
        request!(ExecProcessRequest { container_id: id.into(), exec_id: exec.into(), process: Some(process).into() });
    client.agent.exec_process(limit(), &request).await.map(drop)
}

use oci::{LinuxCPU, LinuxMemory, LinuxPids, LinuxResources, Mount, Process as OciProcess};

/// Awaits a program's end; its status.
///
/// # Errors
/// A call that was refused.
pub async fn wait(client: &Client, id: &str, exec: &str) -> Result<i32> {
    let request = request!(WaitProcessRequest { container_id: id.into(), exec_id: exec.into() });
    Ok(client.agent.wait_process(limit(), &request).await?.status)
}

/// Everything that is left of a program's standard output.
///
/// # Errors
/// A call that was refused.
pub async fn read_out(client: &Client, id: &str, exec: &str) -> Result<Vec<u8>> {
    let request = request!(ReadStreamRequest { container_id: id.into(), exec_id: exec.into(), len: 32 << 10 });
    let mut all = Vec::new();
    loop {
        match client.agent.read_stdout(limit(), &request).await {
            Ok(answer) if answer.data.is_empty() => return Ok(all),
            Ok(answer) => all.extend(answer.data),
            Err(error) => bail!("read standard output: {error}"),
        }
    }
}

/// Removes a container.
///
/// # Errors
/// A call that was refused.
pub async fn remove(client: &Client, id: &str) -> Result<()> {
    client.agent.remove_container(limit(), &request!(RemoveContainerRequest { container_id: id.into() })).await?;
    Ok(())
}

/// Creates, starts, awaits and removes a container of `true`, in the root file system `root`.
///
/// # Errors
/// A call that was refused.
pub async fn life_of_true(client: &Client, id: &str, root: &str) -> Result<()> {
    create_in(client, root, id, &["busybox", "true"], false).await?;
    start(client, id).await?;
    ensure!(wait(client, id, id).await? == 0, "true is not true");
    remove(client, id).await
}

/// A container from its beginning to its end.
async fn run(client: &Client, id: &str, args: &[&str]) -> Result<Ended> {
    create(client, id, args, false).await?;
    start(client, id).await?;
    let code = wait(client, id, id).await?;
    let stdout = read_out(client, id, id).await?;
    remove(client, id).await?;
    Ok(Ended { code, stdout })
}

/// The code and text of a refusal.
///
/// # Errors
/// What was not refused.
pub fn refusal<T>(result: ttrpc::Result<T>) -> Result<(Code, String)> {
    match result {
        Ok(_) => bail!("it was not refused"),
        Err(Error::RpcStatus(status)) => Ok((status.code.enum_value_or_default(), status.message)),
        Err(error) => bail!("it was not answered: {error}"),
    }
}

async fn health_and_version_answer(client: &Client) -> Result<()> {
    let answer = client.health.check(limit(), &CheckRequest::new()).await?;
    ensure!(answer.status.value() == 1, "not serving: {answer}");
    let version = client.health.version(limit(), &CheckRequest::new()).await?;
    ensure!(!version.agent_version.is_empty() && !version.grpc_version.is_empty(), "no version: {version}");
    Ok(())
}

async fn details_name_what_the_agent_can_do(client: &Client) -> Result<()> {
    let details = client.agent.get_guest_details(limit(), &GuestDetailsRequest::new()).await?;
    let agent = details.agent_details.as_ref().context("no details of the agent")?;
    ensure!(agent.storage_handlers.iter().any(|handler| handler == "image_guest_pull"), "no pull: {agent}");
    ensure!(agent.supports_seccomp, "no seccomp: {agent}");
    Ok(())
}

async fn boot_times_are_in_order(client: &Client) -> Result<()> {
    let times = client.own.get_boot_times(limit(), &nacre::GetBootTimesRequest::new()).await?;
    ensure!(times.init_ns <= times.listening_ns && times.listening_ns <= times.ready_ns, "{times}");
    ensure!(!times.kernel_release.is_empty(), "no kernel: {times}");
    Ok(())
}

async fn what_is_not_offered_is_unimplemented(client: &Client) -> Result<()> {
    for (name, result) in [
        ("MemAgentMemcgSet", client.agent.mem_agent_memcg_set(limit(), &MemAgentMemcgConfig::new()).await.map(drop)),
        (
            "MemAgentCompactSet",
            client.agent.mem_agent_compact_set(limit(), &MemAgentCompactConfig::new()).await.map(drop),
        ),
    ] {
        let (code, text) = refusal(result).context(name)?;
        ensure!(code == Code::UNIMPLEMENTED && text.contains(name), "{name}: {code:?} {text}");
    }
    Ok(())
}

async fn a_container_lives_from_create_to_remove(client: &Client) -> Result<()> {
    let ended = run(client, "life", &["busybox", "sh", "-c", "echo $$; busybox id -u; exit 7"]).await?;
    ensure!(ended.code == 7 && ended.text() == "1\n0\n", "{ended:?}");
    // Its name is free again, and so is what it used.
    let ended = run(client, "life", &["busybox", "true"]).await?;
    ensure!(ended.code == 0, "{ended:?}");
    Ok(())
}

async fn output_before_the_end_is_read_after_it(client: &Client) -> Result<()> {
    // More than a pipe holds: somebody must have read it while nobody asked.
    let script = "busybox dd if=/dev/zero bs=1024 count=1024 2>/dev/null; echo end";
    create(client, "long", &["busybox", "sh", "-c", script], false).await?;
    start(client, "long").await?;
    let (code, output) = tokio::join!(wait(client, "long", "long"), read_out(client, "long", "long"));
    let output = output?;
    ensure!(code? == 0 && output.len() == (1 << 20) + 4 && output.ends_with(b"end\n"), "{} bytes", output.len());
    remove(client, "long").await?;
    let ended = run(client, "short", &["busybox", "echo", "last words"]).await?;
    ensure!(ended.text() == "last words\n", "{ended:?}");
    Ok(())
}

async fn input_reaches_the_program_and_ends(client: &Client) -> Result<()> {
    create(client, "input", &["busybox", "cat"], false).await?;
    start(client, "input").await?;
    let data = vec![b'x'; 300_000];
    let write =
        request!(WriteStreamRequest { container_id: "input".into(), exec_id: "input".into(), data: data.clone() });
    let close = request!(CloseStdinRequest { container_id: "input".into(), exec_id: "input".into() });
    let (written, output) = tokio::join!(
        async {
            client.agent.write_stdin(limit(), &write).await?;
            client.agent.close_stdin(limit(), &close).await
        },
        read_out(client, "input", "input"),
    );
    written?;
    ensure!(output? == data, "not what was written");
    ensure!(wait(client, "input", "input").await? == 0, "cat failed");
    remove(client, "input").await
}

async fn more_programs_run_in_a_container(client: &Client) -> Result<()> {
    create(client, "host", &["busybox", "sleep", "1000"], false).await?;
    start(client, "host").await?;
    for i in 0..3 {
        let name = format!("exec{i}");
        exec(client, "host", &name, &["busybox", "sh", "-c", &format!("echo {i}; exit {i}")]).await?;
        ensure!(wait(client, "host", &name).await? == i, "another code");
        ensure!(read_out(client, "host", &name).await? == format!("{i}\n").into_bytes(), "another output");
    }
    let (_, text) = refusal(exec(client, "host", "none", &["nothing-here"]).await)?;
    ensure!(text.contains("nothing-here") && text.contains("No such file"), "{text}");
    remove(client, "host").await
}

async fn signals_end_programs(client: &Client) -> Result<()> {
    create(client, "signal", &["busybox", "sleep", "1000"], false).await?;
    start(client, "signal").await?;
    exec(client, "signal", "second", &["busybox", "sleep", "1000"]).await?;
    let send = async |exec: &str, signal| {
        let request =
            request!(SignalProcessRequest { container_id: "signal".into(), exec_id: exec.into(), signal: signal });
        client.agent.signal_process(limit(), &request).await
    };
    // Whoever waits already hears of it, and so does whoever asks later.
    let (early, sent) = tokio::join!(wait(client, "signal", "second"), send("second", 15));
    sent?;
    ensure!(early? == 143, "another code");
    ensure!(wait(client, "signal", "second").await? == 143, "another code the second time");
    send("signal", 9).await?;
    ensure!(wait(client, "signal", "signal").await? == 137, "another code");
    remove(client, "signal").await
}

async fn pause(client: &Client, id: &str) -> ttrpc::Result<()> {
    client.agent.pause_container(limit(), &request!(PauseContainerRequest { container_id: id.into() })).await.map(drop)
}

async fn resume(client: &Client, id: &str) -> ttrpc::Result<()> {
    let request = request!(ResumeContainerRequest { container_id: id.into() });
    client.agent.resume_container(limit(), &request).await.map(drop)
}

async fn a_paused_container_stands_still_until_it_is_resumed(client: &Client) -> Result<()> {
    create(client, "still", &["busybox", "sh", "-c", "read line; echo $line"], false).await?;
    let (code, text) = refusal(resume(client, "still").await)?;
    ensure!(code == Code::FAILED_PRECONDITION && text.contains("created, not paused"), "{code:?} {text}");
    // Before its start, too.
    pause(client, "still").await?;
    let (code, _) = refusal(
        client.agent.start_container(limit(), &request!(StartContainerRequest { container_id: "still".into() })).await,
    )?;
    ensure!(code == Code::FAILED_PRECONDITION, "{code:?}");
    resume(client, "still").await?;
    start(client, "still").await?;
    pause(client, "still").await?;
    let (code, text) = refusal(pause(client, "still").await)?;
    ensure!(code == Code::FAILED_PRECONDITION && text.contains("current status is: paused"), "{code:?} {text}");
    let (code, text) = refusal(exec(client, "still", "more", &["busybox", "true"]).await)?;
    ensure!(code == Code::FAILED_PRECONDITION && text.contains("paused"), "{code:?} {text}");
    // Whoever talks to it or to another does not wait for it.
    let write = request!(WriteStreamRequest {
        container_id: "still".into(),
        exec_id: "still".into(),
        data: b"hear\n".to_vec()
    });
    client.agent.write_stdin(limit(), &write).await?;
    let other = run(client, "moving", &["busybox", "true"]).await?;
    ensure!(other.code == 0, "{other:?}");
    resume(client, "still").await?;
    ensure!(wait(client, "still", "still").await? == 0, "it failed");
    ensure!(read_out(client, "still", "still").await? == b"hear\n", "another output");
    let (code, text) = refusal(pause(client, "still").await)?;
    ensure!(code == Code::FAILED_PRECONDITION && text.contains("current status is: stopped"), "{code:?} {text}");
    remove(client, "still").await
}

async fn a_paused_container_can_be_killed_and_removed(client: &Client) -> Result<()> {
    for (id, exec) in [("frozen0", Some("")), ("frozen1", Some("frozen1")), ("frozen2", None)] {
        create(client, id, &["busybox", "sleep", "1000"], false).await?;
        start(client, id).await?;
        pause(client, id).await?;
        if let Some(exec) = exec {
            let kill = request!(SignalProcessRequest { container_id: id.into(), exec_id: exec.into(), signal: 9u32 });
            client.agent.signal_process(limit(), &kill).await?;
            ensure!(wait(client, id, id).await? == 137, "another code");
        }
        let begun = Instant::now();
        remove(client, id).await?;
        ensure!(begun.elapsed() < Duration::from_secs(5), "removed after {:?}", begun.elapsed());
    }
    Ok(())
}

/// Waits for it for so many milliseconds.
async fn oom_event(client: &Client, milliseconds: i64) -> ttrpc::Result<String> {
    let wait = with_timeout(milliseconds * 1_000_000);
    client.agent.get_oom_event(wait, &GetOOMEventRequest::new()).await.map(|event| event.container_id)
}

/// A container that `tail` fills with one endless line `times` times.
async fn run_out(client: &Client, id: &str, times: usize) -> Result<i32> {
    let script = "busybox tail /dev/zero; ".repeat(times) + "exit 0";
    let root = root_file_system(client, id).await?;
    let mut spec = spec(id, &root, &["busybox", "sh", "-c", &script], false)?;
    spec.Linux.mut_or_insert_default().Resources = Some(memory(16 << 20)).into();
    create_of(client, id, spec).await?;
    start(client, id).await?;
    let code = wait(client, id, id).await?;
    remove(client, id).await?;
    Ok(code)
}

async fn every_kill_for_want_of_memory_is_told(client: &Client) -> Result<()> {
    ensure!(oom_event(client, 1).await.is_err(), "out of memory from the start");
    let (first, second, code) =
        tokio::join!(oom_event(client, 60_000), oom_event(client, 60_000), run_out(client, "full", 2));
    ensure!(first? == "full" && second? == "full" && code? == 0, "another container or code");
    // Nobody asks, and then the container is gone.
    run_out(client, "unseen", 2).await?;
    for _ in 0..2 {
        ensure!(oom_event(client, 60_000).await? == "unseen", "another container");
    }
    ensure!(oom_event(client, 1).await.is_err(), "a kill was told twice");
    Ok(())
}

async fn update(client: &Client, id: &str, resources: Option<LinuxResources>) -> ttrpc::Result<()> {
    let request = request!(UpdateContainerRequest { container_id: id.into(), resources: resources.into() });
    client.agent.update_container(limit(), &request).await.map(drop)
}

/// The limits of memory and of processes.
async fn limits(client: &Client, id: &str) -> Result<(u64, u64)> {
    let request = request!(StatsContainerRequest { container_id: id.into() });
    let stats = client.agent.stats_container(limit(), &request).await?;
    let cgroup = stats.cgroup_stats.as_ref().context("no cgroup")?;
    Ok((cgroup.memory_stats.usage.limit, cgroup.pids_stats.limit))
}

async fn limits_are_changed_and_lifted(client: &Client) -> Result<()> {
    create(client, "limits", &["busybox", "sleep", "1000"], false).await?;
    start(client, "limits").await?;
    let pids = |limit| Some(request!(LinuxPids { Limit: limit })).into();
    let quota = |quota| Some(request!(LinuxCPU { Quota: quota, Period: 100_000u64 })).into();
    update(client, "limits", Some(LinuxResources { Pids: pids(9), CPU: quota(50_000), ..memory(64 << 20) })).await?;
    ensure!(limits(client, "limits").await? == (64 << 20, 9), "not what was set");
    update(client, "limits", None).await?;
    ensure!(limits(client, "limits").await? == (64 << 20, 9), "not what was there");
    // What is refused is named, and what came before it holds.
    let cpus = Some(request!(LinuxCPU { Cpus: "4000".into() })).into();
    let (_, text) = refusal(update(client, "limits", Some(LinuxResources { CPU: cpus, ..memory(32 << 20) })).await)?;
    ensure!(text.contains("update the container's resources") && text.contains("cpus"), "{text}");
    ensure!(limits(client, "limits").await? == (32 << 20, 9), "not what was set before");
    update(client, "limits", Some(LinuxResources { Pids: pids(-1), CPU: quota(-1), ..memory(-1) })).await?;
    let (memory_limit, pids_limit) = limits(client, "limits").await?;
    ensure!(memory_limit > 1 << 60 && pids_limit == 0, "still limited: {memory_limit} {pids_limit}");
    let (code, text) = refusal(update(client, "nobody", None).await)?;
    ensure!(code == Code::INVALID_ARGUMENT && text.contains("nobody"), "{code:?} {text}");
    remove(client, "limits").await
}

async fn an_ephemeral_storage_is_given_another_size(client: &Client) -> Result<()> {
    let storage = |driver: &str, mount_point: &str, size: &str| {
        request!(Storage {
            driver: driver.into(),
            mount_point: mount_point.into(),
            fstype: "tmpfs".into(),
            options: vec![format!("size={size}")],
        })
    };
    let point = "/run/kata-containers/sandbox/ephemeral/resized";
    let root = root_file_system(client, "resized").await?;
    let mut spec = spec("resized", &root, &["busybox", "sleep", "1000"], false)?;
    let options = vec!["bind".into()];
    let destination = "/scratch".into();
    spec.Mounts.push(request!(Mount {
        destination: destination,
        source: point.into(),
        type_: "bind".into(),
        options: options
    }));
    let request = request!(CreateContainerRequest {
        container_id: "resized".into(),
        storages: vec![storage("ephemeral", point, "1M")],
        OCI: Some(spec).into(),
    });
    client.agent.create_container(limit(), &request).await?;
    start(client, "resized").await?;
    let size = async |name: &str| {
        exec(client, "resized", name, &["busybox", "df", "-k", "/scratch"]).await?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&read_out(client, "resized", name).await?).into_owned())
    };
    let resize = async |storages: Vec<Storage>| {
        let request = request!(UpdateEphemeralMountsRequest { storages: storages });
        client.agent.update_ephemeral_mounts(limit(), &request).await
    };
    let small = size("small").await?;
    ensure!(small.contains(" 1024 "), "{small}");
    resize(vec![storage("ephemeral", point, "2M")]).await?;
    let large = size("large").await?;
    ensure!(large.contains(" 2048 "), "{large}");
    // All or nothing, and nothing that is not such a storage.
    for bad in [storage("local", point, "3M"), storage("ephemeral", "/run", "3M"), storage("ephemeral", point, "3M,x")]
    {
        let (code, text) = refusal(resize(vec![bad.clone()]).await).context(format!("{bad}"))?;
        ensure!(code == Code::INVALID_ARGUMENT, "{bad}: {code:?} {text}");
    }
    let (code, _) = refusal(resize(vec![storage("ephemeral", point, "3M"), storage("blk", point, "3M")]).await)?;
    ensure!(code == Code::INVALID_ARGUMENT, "{code:?}");
    let same = size("same").await?;
    ensure!(same.contains(" 2048 "), "{same}");
    remove(client, "resized").await
}

async fn a_container_has_what_another_has_mounted(client: &Client) -> Result<()> {
    let root = root_file_system(client, "sidecar").await?;
    let script = "b() { busybox \"$@\"; }; b mkdir /a /shared && b mount -t tmpfs t /a && echo seen > /a/file && b sleep 0.2 && \
                  b mount --bind /a /shared && b sleep 1000";
    let mut source = spec_json("sidecar", &root, &["busybox", "sh", "-c", script], false);
    source["annotations"] = json!({ "io.kubernetes.cri.container-name": "side" });
    for set in ["bounding", "effective", "permitted"] {
        source["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
    }
    create_of(client, "sidecar", convert::spec_from_oci(&serde_json::from_value(source)?)?).await?;
    start(client, "sidecar").await?;
    let root = root_file_system(client, "sees").await?;
    let spec = spec("sees", &root, &["busybox", "cat", "/deep/seen/file"], false)?;
    let create = async |source: &str, path: &str| {
        let mount = request!(SharedMount {
            name: "m".into(),
            src_ctr: source.into(),
            src_path: path.into(),
            dst_ctr: "sees".into(),
            dst_path: "/deep/seen".into(),
        });
        let request = request!(CreateContainerRequest {
            container_id: "sees".into(),
            shared_mounts: vec![mount],
            OCI: Some(spec.clone()).into(),
        });
        client.agent.create_container(limit(), &request).await
    };
    for (source, path) in [("nobody", "/shared"), ("side", "shared"), ("side", "/a/../shared")] {
        let (code, text) = refusal(create(source, path).await)?;
        ensure!(code == Code::INVALID_ARGUMENT && text.contains("shared mount \"m\""), "{code:?} {text}");
    }
    // It is waited for, as the source mounts it a moment after its start.
    create("side", "/shared").await?;
    start(client, "sees").await?;
    let (code, seen) = (wait(client, "sees", "sees").await?, read_out(client, "sees", "sees").await?);
    ensure!(code == 0 && seen == b"seen\n", "{code} {}", String::from_utf8_lossy(&seen));
    remove(client, "sees").await?;
    remove(client, "sidecar").await?;
    client.agent.remove_stale_virtiofs_share_mounts(limit(), &RemoveStaleVirtiofsShareMountsRequest::new()).await?;
    Ok(())
}

async fn a_terminal_has_the_size_it_is_given(client: &Client) -> Result<()> {
    let script = "busybox tty; read line; busybox stty size";
    create(client, "tty", &["busybox", "sh", "-c", script], true).await?;
    start(client, "tty").await?;
    let resize =
        request!(TtyWinResizeRequest { container_id: "tty".into(), exec_id: "tty".into(), row: 30, column: 100 });
    client.agent.tty_win_resize(limit(), &resize).await?;
    let write =
        request!(WriteStreamRequest { container_id: "tty".into(), exec_id: "tty".into(), data: b"go\n".to_vec() });
    client.agent.write_stdin(limit(), &write).await?;
    let output = read_out(client, "tty", "tty").await?;
    let text = String::from_utf8_lossy(&output);
    ensure!(text.contains("/dev/pts/0\r\n") && text.contains("30 100\r\n"), "{text:?}");
    ensure!(wait(client, "tty", "tty").await? == 0, "the shell failed");
    remove(client, "tty").await
}

async fn usage_is_counted(client: &Client) -> Result<()> {
    create(client, "usage", &["busybox", "sleep", "1000"], false).await?;
    start(client, "usage").await?;
    let request = request!(StatsContainerRequest { container_id: "usage".into() });
    let stats = client.agent.stats_container(limit(), &request).await?;
    let cgroup = stats.cgroup_stats.as_ref().context("no cgroup")?;
    let memory = cgroup.memory_stats.usage.usage;
    ensure!(memory > 0, "no memory: {stats}");
    ensure!(cgroup.pids_stats.current == 1, "not one process: {stats}");
    remove(client, "usage").await
}

async fn bad_requests_name_what_is_wrong(client: &Client) -> Result<()> {
    let unknown = request!(StartContainerRequest { container_id: "nobody".into() });
    let (_, text) = refusal(client.agent.start_container(limit(), &unknown).await)?;
    ensure!(text.contains("nobody"), "{text}");
    for id in ["", "../up", "a/b", "a b", &"x".repeat(300)] {
        let request = request!(CreateContainerRequest {
            container_id: id.into(),
            OCI: Some(spec("x", "/nowhere", &["true"], false)?).into(),
        });
        let (code, text) = refusal(client.agent.create_container(limit(), &request).await).context(id.to_string())?;
        ensure!(code == Code::INVALID_ARGUMENT, "{id:?}: {code:?} {text}");
    }
    let empty = request!(CreateContainerRequest { container_id: "empty".into() });
    let (code, _) = refusal(client.agent.create_container(limit(), &empty).await)?;
    ensure!(code == Code::INVALID_ARGUMENT, "{code:?}");
    create(client, "twice", &["busybox", "true"], false).await?;
    let again = request!(CreateContainerRequest {
        container_id: "twice".into(),
        OCI: Some(spec("twice", "/nowhere", &["true"], false)?).into(),
    });
    let (_, text) = refusal(client.agent.create_container(limit(), &again).await)?;
    ensure!(text.contains("twice"), "{text}");
    remove(client, "twice").await
}

async fn a_missing_program_is_said_and_leaves_nothing(client: &Client) -> Result<()> {
    for _ in 0..2 {
        let error = create(client, "missing", &["nothing-here"], false).await.err().context("it was made")?;
        let text = format!("{error:#}");
        ensure!(text.contains("nothing-here") && text.contains("No such file"), "{text}");
    }
    Ok(())
}

async fn copies_stay_in_their_directory(client: &Client) -> Result<()> {
    for path in ["/etc/passwd", &format!("{SHARED}/../../x"), &format!("{SHARED}/a/../../b"), "relative"] {
        let request = request!(CopyFileRequest {
            path: path.to_string(),
            file_size: 1,
            file_mode: 0o100_644,
            dir_mode: 0o755,
            data: b"x".to_vec(),
        });
        let (code, text) = refusal(client.agent.copy_file(limit(), &request).await).context(path.to_string())?;
        ensure!(code == Code::INVALID_ARGUMENT, "{path}: {code:?} {text}");
    }
    Ok(())
}

async fn addresses_and_routes_are_set_and_listed(client: &Client) -> Result<()> {
    let address = request!(IPAddress { family: IPFamily::v4.into(), address: "10.0.2.15".into(), mask: "24".into() });
    let interface = request!(Interface {
        device: "eth0".into(),
        name: "eth0".into(),
        IPAddresses: vec![address],
        mtu: 1400,
        hwAddr: MAC.into(),
    });
    let request = request!(UpdateInterfaceRequest { interface: Some(interface).into() });
    client.agent.update_interface(limit(), &request).await?;
    let listed = client.agent.list_interfaces(limit(), &ListInterfacesRequest::new()).await?;
    let eth0 = listed.Interfaces.iter().find(|interface| interface.name == "eth0").context("no eth0")?;
    ensure!(eth0.mtu == 1400 && eth0.hwAddr == MAC, "{eth0}");
    ensure!(eth0.IPAddresses.iter().any(|a| a.address == "10.0.2.15" && a.mask == "24"), "{eth0}");

    let route = request!(Route { gateway: "10.0.2.2".into(), device: "eth0".into() });
    let routes = request!(Routes { Routes: vec![route] });
    let request = request!(UpdateRoutesRequest { routes: Some(routes).into() });
    client.agent.update_routes(limit(), &request).await?;
    let listed = client.agent.list_routes(limit(), &ListRoutesRequest::new()).await?;
    ensure!(listed.Routes.iter().any(|route| route.gateway == "10.0.2.2"), "{listed}");

    let nobody = request!(Interface { name: "eth9".into(), hwAddr: "02:00:00:00:00:99".into() });
    let request = request!(UpdateInterfaceRequest { interface: Some(nobody).into() });
    let (_, text) = refusal(client.agent.update_interface(limit(), &request).await)?;
    ensure!(text.contains("02:00:00:00:00:99"), "{text}");
    Ok(())
}

async fn metrics_are_prometheus_text(client: &Client) -> Result<()> {
    let metrics = client.agent.get_metrics(limit(), &GetMetricsRequest::new()).await?.metrics;
    let samples = metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut count = 0;
    for line in samples {
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
        ensure!(!name.is_empty() && value.parse::<f64>().is_ok(), "no sample: {line}");
        count += 1;
    }
    ensure!(count > 10, "only {count} samples");
    // The scrape itself is counted when it has been answered.
    let metrics = client.agent.get_metrics(limit(), &GetMetricsRequest::new()).await?.metrics;
    ensure!(metrics.contains(r#"nacre_rpc_seconds_count{rpc="GetMetrics"}"#), "calls are not counted");
    Ok(())
}

async fn entropy_is_taken(client: &Client) -> Result<()> {
    let request = request!(ReseedRandomDevRequest { data: vec![7; 512] });
    client.agent.reseed_random_dev(limit(), &request).await?;
    Ok(())
}

async fn a_policy_rules_what_may_be_run(client: &Client) -> Result<()> {
    let set = async |policy: &str| {
        client.agent.set_policy(limit(), &request!(SetPolicyRequest { policy: policy.into() })).await.map(drop)
    };
    let (code, _) = refusal(set("package agent_policy\nx := {").await)?;
    ensure!(code == Code::INVALID_ARGUMENT, "a policy that is none: {code:?}");
    let always = ["CopyFile", "StartContainer", "WaitProcess", "ReadStream", "RemoveContainer", "SetPolicy"];
    let always: String = always.iter().map(|name| format!("default {name}Request := true\n")).collect();
    let rule = r#"CreateContainerRequest if input.OCI.Process.Args == ["busybox", "true"]"#;
    set(&format!("package agent_policy\nimport rego.v1\n{always}{rule}\n")).await?;
    ensure!(run(client, "ruled", &["busybox", "true"]).await?.code == 0, "what may be run was not");
    let secret = "hunter2";
    let root = root_file_system(client, "ruled").await?;
    let request = request!(CreateContainerRequest {
        container_id: "ruled".into(),
        OCI: Some(spec("ruled", &root, &["busybox", "echo", secret], false)?).into(),
    });
    let (code, text) = refusal(client.agent.create_container(limit(), &request).await)?;
    ensure!(code == Code::PERMISSION_DENIED, "{code:?} {text}");
    ensure!(text.contains("CreateContainerRequest is blocked by policy") && !text.contains(secret), "{text}");
    let (code, text) = refusal(exec(client, "ruled", "e", &["busybox", "true"]).await)?;
    ensure!(code == Code::PERMISSION_DENIED && text.contains("no such rule"), "{code:?} {text}");
    // Those that follow may do as they like.
    Ok(set("package agent_policy\ndefault AllowRequestsFailingPolicy := true").await?)
}

async fn a_pod_ends_with_its_containers(client: &Client) -> Result<()> {
    let request = request!(CreateSandboxRequest { sandbox_id: "pod".into(), hostname: "pod".into() });
    client.agent.create_sandbox(limit(), &request).await?;
    create(client, "pod1", &["busybox", "sleep", "1000"], false).await?;
    start(client, "pod1").await?;
    let destroy = DestroySandboxRequest::new();
    let (event, destroyed) = tokio::join!(oom_event(client, 60_000), client.agent.destroy_sandbox(limit(), &destroy));
    destroyed?;
    let (_, text) = refusal(event)?;
    ensure!(text.contains("destroyed"), "{text}");
    Ok(())
}
