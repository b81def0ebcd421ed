//! An agent to test: as a process in namespaces of its own, or in a guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nacre_protocol::address::Address;
use nacre_protocol::agent_ttrpc::AgentServiceClient;
use nacre_protocol::connect;
use nacre_protocol::health_ttrpc::HealthClient;
use nacre_protocol::nacre_ttrpc::GuestClient;
use nacre_shim::accelerator::Accelerator;
use nacre_shim::layout::Layout;
use nacre_shim::size::Size;
use nacre_shim::vmm::{self, Disk, Nic, Vm, VmSpec};
use tokio::net::{UnixSocket, UnixStream};
use tokio::time::Instant;
use ttrpc::context::{Context, with_timeout};

use crate::wire::Wire;

/// The hardware address of the network device that tests may change.
pub const MAC: &str = "52:54:00:6e:61:63";

/// How long an agent may take to answer.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// How long a guest may take to come up. Firmware under emulation, on a machine that is busy, takes most of it.
const BOOTS_WITHIN: Duration = Duration::from_secs(150);

/// A connection to an agent, with all its services.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "ttRPC's clients have none")]
pub struct Client {
    /// Kata's service.
    pub agent: AgentServiceClient,
    /// Kata's health service.
    pub health: HealthClient,
    /// Our own.
    pub own: GuestClient,
}

/// The time limit of a call in a test.
pub fn limit() -> Context {
    with_timeout(60_000_000_000)
}

impl Client {
    /// Connects to the agent at `address`.
    ///
    /// # Errors
    /// An agent that does not come up.
    pub async fn connect(address: &Address) -> Result<Client> {
        let client = connect::connect(address, Instant::now() + UP_WITHIN).await?;
        Ok(Client {
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client.clone()),
            own: GuestClient::new(client),
        })
    }
}

/// What an agent is told at its start.
#[derive(Debug, Default)]
pub struct Start<'a> {
    /// Where it listens, if not at a socket of the test's own.
    pub address: Option<Address>,
    /// What it takes for the kernel's command line.
    pub command_line: Option<&'a str>,
}

/// An agent as a process. Dropping it ends it and what it runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    dir: tempfile::TempDir,
}

impl Process {
    /// Starts `program` in namespaces of its own, with a private `/run` and a network device.
    ///
    /// # Errors
    /// A program that is missing.
    pub fn start(program: &Path) -> Result<Process> {
        Process::start_as(program, &Start::default())
    }

    /// The same, told more.
    ///
    /// # Errors
    /// A program that is missing.
    pub fn start_as(program: &Path, start: &Start<'_>) -> Result<Process> {
        let dir = tempfile::tempdir().context("make the agent's directory")?;
        let own = Address::Unix(Process::socket(dir.path()));
        let address = start.address.as_ref().unwrap_or(&own);
        let command_line = dir.path().join("cmdline");
        if let Some(words) = start.command_line {
            fs::write(&command_line, words).context("write the kernel's command line")?;
        }
        let log = fs::File::create(dir.path().join("log")).context("make the agent's log")?;
        // The shell is process 1 of the namespace: an agent that was would take itself for a guest's.
        let script = format!(
            "mount -t tmpfs tmpfs /run && ip link set lo up && ip link add eth0 address {MAC} type veth peer name eth1 && \
             if [ -f \"$3\" ]; then mount --bind \"$3\" /proc/cmdline; fi && \
             \"$0\" --listen \"$1\" --passfd \"$2\" --store /run/nacre/images; exit $?"
        );
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--net",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
        ]);
        command.arg(script).arg(program).arg(address.to_string());
        command.arg(format!("unix://{}", Process::passfd(dir.path()).display())).arg(command_line);
        command.stdin(Stdio::null()).stdout(log.try_clone().context("copy a descriptor")?).stderr(log);
        let child = command.spawn().context("start the agent")?;
        Ok(Process { child, dir })
    }

    fn socket(dir: &Path) -> PathBuf {
        dir.join("agent.sock")
    }

    fn passfd(dir: &Path) -> PathBuf {
        dir.join("passfd.sock")
    }

    /// Connects a stream that requests can name as `port`.
    ///
    /// # Errors
    /// A port that is in use.
    pub async fn pass(&self, port: u32) -> Result<UnixStream> {
        let socket = UnixSocket::new_stream().context("make a socket")?;
        socket.bind(self.dir.path().join(port.to_string())).with_context(|| format!("bind to port {port}"))?;
        socket.connect(Process::passfd(self.dir.path())).await.context("connect a stream")
    }

    /// Connects.
    ///
    /// # Errors
    /// An agent that does not come up.
    pub async fn connect(&self) -> Result<Client> {
        Client::connect(&Address::Unix(Process::socket(self.dir.path()))).await
    }

    /// Connects without speaking ttRPC.
    ///
    /// # Errors
    /// An agent that does not come up.
    pub async fn dial(&self) -> Result<Wire> {
        let address = Address::Unix(Process::socket(self.dir.path()));
        match connect::stream(&address, Instant::now() + UP_WITHIN).await? {
            connect::Stream::Unix(stream) => Ok(Wire::new(stream)),
            connect::Stream::Vsock(_) => bail!("a vsock connection to a unix socket"),
        }
    }

    /// The agent itself, below the shell and `unshare` that started it.
    ///
    /// # Errors
    /// An agent that has ended.
    pub fn pid(&self) -> Result<u32> {
        let children = |pid: u32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let first = |pid: u32| children(pid).split_ascii_whitespace().next()?.parse().ok();
        first(self.child.id()).and_then(first).context("the agent is gone")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// What a guest runs on.
#[derive(Debug)]
pub struct Machine<'a> {
    /// What QEMU plays.
    pub kind: vmm::Machine,
    /// How many processors it has.
    pub cpus: u8,
    /// Its memory.
    pub memory: Size,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// More words on the kernel's command line.
    pub words: &'a [&'a str],
}

impl Default for Machine<'_> {
    fn default() -> Self {
        Machine { kind: vmm::Machine::Microvm, cpus: 1, memory: Size::mib(512), disks: Vec::new(), words: &[] }
    }
}

/// A guest. Dropping it ends it.
#[derive(Debug)]
pub struct Guest {
    vm: Vm,
    dir: tempfile::TempDir,
}

impl Guest {
    /// Boots the guest of `dist` under TCG and waits until it is ready.
    ///
    /// # Errors
    /// A guest that does not come up.
    pub async fn boot(dist: &Path) -> Result<Guest> {
        Guest::boot_as(dist, Machine::default()).await
    }

    /// The same, with more words on the kernel's command line.
    ///
    /// # Errors
    /// A guest that does not come up.
    pub async fn boot_with(dist: &Path, words: &[&str]) -> Result<Guest> {
        Guest::boot_as(dist, Machine { words, ..Machine::default() }).await
    }

    /// The same, on this machine.
    ///
    /// # Errors
    /// A guest that does not come up.
    pub async fn boot_as(dist: &Path, machine: Machine<'_>) -> Result<Guest> {
        let layout = Layout::of(dist.join("share/nacre/vmlinux"), dist.join("share/nacre/minimal.initrd"))?;
        Guest::boot_layout(layout, machine).await
    }

    /// The same, of another guest.
    ///
    /// # Errors
    /// A guest that does not come up.
    pub async fn boot_layout(layout: Layout, machine: Machine<'_>) -> Result<Guest> {
        let dir = tempfile::tempdir().context("make the guest's directory")?;
        let spec = VmSpec {
            layout,
            dir: dir.path().to_path_buf(),
            machine: machine.kind,
            accelerator: Accelerator::Tcg,
            cpus: machine.cpus,
            memory: machine.memory,
            nics: vec![Nic::user()],
            disks: machine.disks,
            kernel_args: machine.words.iter().map(ToString::to_string).collect(),
        };
        let vm = Vm::boot(&spec, Instant::now() + BOOTS_WITHIN).await?;
        Ok(Guest { vm, dir })
    }

    /// Connects.
    ///
    /// # Errors
    /// An agent that does not answer.
    pub async fn connect(&self) -> Result<Client> {
        Client::connect(&Address::Hybrid { path: self.vm.vsock().into(), port: nacre_protocol::AGENT_PORT }).await
    }

    /// Connects a stream to the guest's `port`, which requests can name by the port that is returned.
    ///
    /// # Errors
    /// A port that nobody listens on.
    pub async fn pass(&self, port: u32) -> Result<(UnixStream, u32)> {
        let (stream, own) = connect::call(self.vm.vsock(), port).await.with_context(|| format!("call port {port}"))?;
        Ok((stream, own.context("the vsock does not say by what port it calls")?))
    }

    /// The virtual machine.
    pub fn vm(&mut self) -> &mut Vm {
        &mut self.vm
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = fs::read_to_string(self.dir.path().join("console.log")).unwrap_or_default();
            eprintln!("the guest's console:\n{console}");
        }
    }
}
