//! The virtual machine: QEMU's, with a vsock of our own.
//!
//! QEMU dies with this process, however it ends. The guest's vsock is a unix socket in the pod's directory (hybrid vsock): the host
//! dials the guest through it, and the guest's own calls arrive at the same path with `_PORT` appended.

mod qmp;
mod spec;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nacre_manifest::command_line::READY_PORT;
use nacre_sys::lifeline::{die_with_parent, inherit};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout_at};

use crate::console::Console;
use crate::vsock::Vsock;

pub use qmp::Qmp;
pub use spec::{Backend, Disk, FIRMWARE, MAX_DISKS, Machine, Nic, PORTS, USER_MAC, VmSpec};

/// The window in which the TSC is measured; its error is then a few parts in 10^5.
const TSC_WINDOW: Duration = Duration::from_millis(10);

/// The QEMU program, as Debian names it.
pub const QEMU: &str = "qemu-system-x86_64";

/// Where the guest of the pod in `dir` arrives when it calls the host's `port`.
pub fn guest_calls(dir: &Path, port: u32) -> PathBuf {
    dir.join(format!("vm.vsock_{port}"))
}

/// A program of the VM's. Dropping it ends it, and returns when it is gone.
#[derive(Debug)]
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let Some(pid) = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) else { return };
        let _ = self.0.start_kill(); // it may have just ended
        // Its status stays for the runtime, which will not see it any more: this process ends.
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    }
}

/// A VM that is up: its agent answers. Dropping it ends it.
#[derive(Debug)]
pub struct Vm {
    qemu: Program,
    /// After QEMU, for it ends with it.
    _device: Vsock,
    vsock: PathBuf,
    monitor: PathBuf,
    console: Console,
}

impl Vm {
    /// Boots the VM and returns once the guest has called out that it is ready.
    ///
    /// # Errors
    /// A program that is missing or fails, or a guest that does not come up before `deadline`: with its last words.
    pub async fn boot(spec: &VmSpec, deadline: Instant) -> Result<Vm> {
        let vsock = spec.vsock();
        let ready = guest_calls(&spec.dir, READY_PORT);
        let listener = UnixListener::bind(&ready).with_context(|| format!("listen on {}", ready.display()))?;
        let device = Vsock::start(&spec.vhost_socket(), &vsock)?;
        let tsc_khz = nacre_sys::tsc::frequency_khz(TSC_WINDOW);
        let mut command = Command::new(QEMU);
        command.args(spec.arguments(tsc_khz)?).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        inherit(command.as_std_mut(), spec.descriptors());
        let mut qemu = spawn(command).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => anyhow!("{QEMU} is not installed: apt-get install qemu-system-x86"),
            _ => anyhow!(error).context(format!("start {QEMU}")),
        })?;
        let stdout = qemu.0.stdout.take().context("QEMU has no console")?;
        let stderr = qemu.0.stderr.take().context("QEMU has no standard error")?;
        let console = Console::follow(stdout, &spec.dir.join("console.log"))?;
        let complaints = Console::follow(stderr, &spec.dir.join("qemu.log"))?;
        let mut vm = Vm { qemu, _device: device, vsock, monitor: spec.monitor(), console };
        tokio::select! {
            called = timeout_at(deadline, listener.accept()) => match called {
                Ok(called) => drop(called.context("hear the guest's call")?),
                Err(_) => bail!("boot the VM: the guest did not come up in time.{}", vm.last_words()),
            },
            status = vm.qemu.0.wait() => {
                let status = status.context("wait for QEMU")?;
                // Both streams end with the process; what was written is read within moments.
                sleep(Duration::from_millis(50)).await;
                let complaints = complaints.last_lines();
                if complaints.contains("Cannot allocate memory") || complaints.contains("cannot set up guest memory") {
                    bail!("boot the VM: the host has not {} of memory for it: ask for less with --memory", spec.memory);
                }
                if !complaints.is_empty() {
                    bail!("boot the VM: QEMU says: {complaints}");
                }
                bail!("boot the VM: the guest stopped before it was up ({status}).{}", vm.last_words());
            }
        }
        Ok(vm)
    }

    fn last_words(&self) -> String {
        match self.console.last_lines() {
            lines if lines.is_empty() => " It wrote nothing: is the kernel one for this machine?".into(),
            lines => format!(" Its last words:\n{lines}"),
        }
    }

    /// The socket that leads to the guest's ports.
    pub fn vsock(&self) -> &Path {
        &self.vsock
    }

    /// The number of QEMU's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.qemu.0.id()
    }

    /// QEMU's own ear, where the machine has one.
    ///
    /// # Errors
    /// A machine without one: a microvm has nothing to plug in.
    pub async fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.monitor).await
    }

    /// What the guest wrote on its console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Returns when the VM has ended, with how.
    pub async fn ended(&mut self) -> String {
        match self.qemu.0.wait().await {
            Ok(status) => format!("the VM ended ({status}).{}", self.last_words()),
            Err(error) => format!("the VM is gone ({error})"),
        }
    }
}

/// On the thread that lives as long as the process: see [`die_with_parent`].
fn spawn(mut command: Command) -> std::io::Result<Program> {
    // A Ctrl-C at the terminal is for the container, not for the VM.
    command.process_group(0);
    die_with_parent(command.as_std_mut());
    command.spawn().map(Program)
}
