//! The agent, as the host talks to it: one method for each call, each with its time limit.

mod pod;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nacre_protocol::address::Address;
use nacre_protocol::agent::{
    CloseStdinRequest, CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest,
    ReadStreamRequest, Routes, SignalProcessRequest, StartContainerRequest, Storage, TtyWinResizeRequest,
    WaitProcessRequest, WriteStreamRequest,
};
use nacre_protocol::agent_ttrpc::AgentServiceClient;
use nacre_protocol::nacre::{BootTimes, GetBootTimesRequest, PullStatus, SetRegistryAccessRequest, WatchPullRequest};
use nacre_protocol::nacre_ttrpc::GuestClient;
use nacre_protocol::types::{IPAddress, IPFamily, Interface, Route};
use nacre_protocol::{AGENT_PORT, connect, convert, oci};
use oci_spec::runtime;
use tokio::time::Instant;
use ttrpc::context::{Context, with_timeout};

use crate::vmm::USER_MAC;

/// How long a call may take that only makes system calls.
const SHORT: Duration = Duration::from_secs(30);

/// The most that is read of a stream at once.
const READ: u32 = 64 << 10;

/// The most that is copied at once: a message has at most 4 MiB.
const COPY: usize = 1 << 20;

/// QEMU's user network (qemu(1), "-netdev user"): the guest's address and length, and the gateway.
const ADDRESS: (&str, &str) = ("10.0.2.15", "24");
const GATEWAY: &str = "10.0.2.2";

/// The line of resolv.conf(5) for that name server.
pub const USER_NAME_SERVER: &str = "nameserver 10.0.2.3";

/// A connection to an agent.
#[derive(Clone)]
pub struct Guest {
    agent: AgentServiceClient,
    own: GuestClient,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").finish_non_exhaustive()
    }
}

/// A process of a container; the first one's `exec` is the container's own name.
#[derive(Debug, Clone)]
pub struct ProcessId {
    /// The container.
    pub container: String,
    /// The process in it.
    pub exec: String,
}

fn short() -> Context {
    within(SHORT)
}

fn within(limit: Duration) -> Context {
    with_timeout(i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX))
}

/// An agent's answer, its own words in front.
fn said<T>(result: ttrpc::Result<T>, act: &str) -> Result<T> {
    result.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => anyhow!("{act}: {}", status.message),
        other => anyhow!(other).context(format!("{act}: the guest does not answer")),
    })
}

impl Guest {
    /// Connects through a VM's vsock.
    ///
    /// # Errors
    /// No agent before `deadline`.
    pub async fn connect(vsock: &Path, deadline: Instant) -> Result<Guest> {
        let address = Address::Hybrid { path: vsock.into(), port: AGENT_PORT };
        let client = connect::connect(&address, deadline).await.context("reach the guest's agent")?;
        Ok(Guest { agent: AgentServiceClient::new(client.clone()), own: GuestClient::new(client) })
    }

    /// When the guest's stages were reached.
    ///
    /// # Errors
    /// A guest that does not answer.
    pub async fn boot_times(&self) -> Result<BootTimes> {
        said(self.own.get_boot_times(short(), &GetBootTimesRequest::new()).await, "ask the guest for its times")
    }

    /// Address, route and name server of the VM's user network, and the pod's name.
    ///
    /// # Errors
    /// What the guest could not set.
    pub async fn set_up_pod(&self, name: &str) -> Result<()> {
        self.set_user_network().await?;
        let request = CreateSandboxRequest {
            sandbox_id: name.into(),
            hostname: name.into(),
            dns: vec![USER_NAME_SERVER.into()],
            ..Default::default()
        };
        self.create_sandbox(&request).await
    }

    /// Address and route of the VM's user network.
    ///
    /// # Errors
    /// What the guest could not set.
    pub async fn set_user_network(&self) -> Result<()> {
        let address = IPAddress {
            family: IPFamily::v4.into(),
            address: ADDRESS.0.into(),
            mask: ADDRESS.1.into(),
            ..IPAddress::new()
        };
        let interface = Interface {
            device: "eth0".into(),
            name: "eth0".into(),
            IPAddresses: vec![address],
            mtu: 1500,
            hwAddr: USER_MAC.into(),
            ..Interface::new()
        };
        self.set_interface(interface).await?;
        let route = Route { gateway: GATEWAY.into(), device: "eth0".into(), ..Route::new() };
        self.set_routes(Routes { Routes: vec![route], ..Routes::new() }).await
    }

    /// How to reach a registry.
    ///
    /// # Errors
    /// Certificates or credentials that make no sense.
    pub async fn set_registry_access(&self, request: &SetRegistryAccessRequest) -> Result<()> {
        said(self.own.set_registry_access(short(), request).await, "set the access to the registry").map(drop)
    }

    /// Has the guest pull `image` and make the container `id` of it.
    ///
    /// # Errors
    /// Why there is no image, or no container.
    pub async fn create(&self, id: &str, image: &str, spec: &runtime::Spec, limit: Duration) -> Result<()> {
        let storage = Storage {
            driver: "image_guest_pull".into(),
            source: image.into(),
            fstype: "overlay".into(),
            mount_point: format!("/run/kata-containers/{id}/rootfs"),
            ..Storage::new()
        };
        let request = CreateContainerRequest {
            container_id: id.into(),
            exec_id: id.into(),
            storages: vec![storage],
            OCI: Some(convert::spec_from_oci(spec)?).into(),
            ..Default::default()
        };
        self.create_container(&request, limit).await
    }

    /// The state of a pull, as soon as it is newer than `seen`.
    ///
    /// # Errors
    /// A guest that does not answer.
    pub async fn watch_pull(&self, id: &str, seen: u64, limit: Duration) -> Result<PullStatus> {
        let request = WatchPullRequest { container_id: id.into(), seen_revision: seen, ..Default::default() };
        said(self.own.watch_pull(within(limit), &request).await, "watch the pull")
    }

    /// Starts a container.
    ///
    /// # Errors
    /// Why its program does not run.
    pub async fn start(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        said(self.agent.start_container(short(), &request).await, "start the container").map(drop)
    }

    /// Runs one more process in a container.
    ///
    /// # Errors
    /// Why its program does not run.
    pub async fn exec(&self, id: &ProcessId, process: &oci::Process) -> Result<()> {
        let request = ExecProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            process: Some(process.clone()).into(),
            ..Default::default()
        };
        said(self.agent.exec_process(short(), &request).await, "start the program").map(drop)
    }

    /// Waits for the end of a process, however long it runs.
    ///
    /// # Errors
    /// A process that does not exist, or a guest that is gone.
    pub async fn wait(&self, id: &ProcessId) -> Result<i32> {
        let request =
            WaitProcessRequest { container_id: id.container.clone(), exec_id: id.exec.clone(), ..Default::default() };
        Ok(said(self.agent.wait_process(Context::default(), &request).await, "wait for the program")?.status)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// A process that has ended.
    pub async fn signal(&self, id: &ProcessId, signal: i32) -> Result<()> {
        let request = SignalProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            signal: signal.unsigned_abs(),
            ..Default::default()
        };
        said(self.agent.signal_process(short(), &request).await, "signal the program").map(drop)
    }

    /// What a process wrote, as soon as there is some; empty at its end.
    ///
    /// # Errors
    /// A guest that is gone.
    pub async fn read(&self, id: &ProcessId, stderr: bool) -> Result<Vec<u8>> {
        let request = ReadStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            len: READ,
            ..Default::default()
        };
        let answer = if stderr {
            self.agent.read_stderr(Context::default(), &request).await
        } else {
            self.agent.read_stdout(Context::default(), &request).await
        };
        Ok(said(answer, "read the program's output")?.data)
    }

    /// Writes to a process's standard input, however long it takes to read.
    ///
    /// # Errors
    /// A process that has closed it.
    pub async fn write(&self, id: &ProcessId, data: Vec<u8>) -> Result<()> {
        let request = WriteStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            data,
            ..Default::default()
        };
        said(self.agent.write_stdin(Context::default(), &request).await, "write to the program").map(drop)
    }

    /// Closes a process's standard input.
    ///
    /// # Errors
    /// A process that has ended.
    pub async fn close_stdin(&self, id: &ProcessId) -> Result<()> {
        let request =
            CloseStdinRequest { container_id: id.container.clone(), exec_id: id.exec.clone(), ..Default::default() };
        said(self.agent.close_stdin(short(), &request).await, "close the program's input").map(drop)
    }

    /// Tells a process its terminal's new size.
    ///
    /// # Errors
    /// A process without a terminal.
    pub async fn resize(&self, id: &ProcessId, (columns, rows): (u16, u16)) -> Result<()> {
        let request = TtyWinResizeRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            row: rows.into(),
            column: columns.into(),
            ..Default::default()
        };
        said(self.agent.tty_win_resize(short(), &request).await, "resize the terminal").map(drop)
    }

    /// Copies bytes to a path of the guest's shared directory: a file, a directory or a link by its `mode`.
    ///
    /// # Errors
    /// What the guest could not write.
    pub async fn copy(&self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        let mut at = 0;
        loop {
            let end = data.len().min(at + COPY);
            let request = CopyFileRequest {
                path: path.into(),
                file_size: data.len() as i64,
                file_mode: mode,
                dir_mode: 0o755,
                offset: at as i64,
                data: data[at..end].to_vec(),
                ..Default::default()
            };
            said(self.agent.copy_file(short(), &request).await, "copy into the guest")?;
            at = end;
            if at >= data.len() {
                return Ok(());
            }
        }
    }
}
