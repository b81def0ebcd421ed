//! The virtual machine: QEMU's microvm, with a vsock of our own.
//!
//! QEMU dies with this process, however it ends. The guest's vsock is a unix socket in the pod's directory (hybrid vsock): the host
//! dials the guest through it, and the guest's own calls arrive at the same path with `_PORT` appended.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nacre_sys::lifeline::die_with_parent;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout_at};

use crate::accelerator::Accelerator;
use crate::console::Console;
use crate::layout::Layout;
use crate::size::Size;
use crate::vsock::Vsock;

/// The host port that the guest calls when it is ready.
const READY_PORT: u32 = 1030;

/// The window in which the TSC is measured; its error is then a few parts in 10^5.
const TSC_WINDOW: Duration = Duration::from_millis(10);

/// The QEMU program, as Debian names it.
const QEMU: &str = "qemu-system-x86_64";

/// How many disks there may be: a microvm with ACPI has 24 places for virtio, of which the vsock, the network and the random numbers take three.
pub const MAX_DISKS: usize = 24 - 3;

/// A disk of the VM's: a file of the host.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// By which the guest knows it; at most 20 bytes are seen there.
    pub serial: String,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

impl Disk {
    /// Nothing on it outlives the VM, so the host need not write it through: `unsafe` is only said of a host that loses power. When
    /// the host fails, the guest is told: by default QEMU would stop it until somebody comes.
    fn arguments(&self) -> [String; 4] {
        let (serial, read_only) = (&self.serial, if self.read_only { "on" } else { "off" });
        let path = value(&self.path);
        [
            "-drive".into(),
            format!(
                "if=none,id=disk-{serial},format=raw,cache=unsafe,werror=report,rerror=report,readonly={read_only},file={path}"
            ),
            "-device".into(),
            format!("virtio-blk-device,drive=disk-{serial},serial={serial}"),
        ]
    }
}

/// A path as an option's value: a comma ends one there, and two are one.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// What a VM is to be.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Its files.
    pub layout: Layout,
    /// The pod's directory: sockets and console go there.
    pub dir: PathBuf,
    /// What makes its processor.
    pub accelerator: Accelerator,
    /// How many processors.
    pub cpus: u8,
    /// How much memory.
    pub memory: Size,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// More words for the kernel's command line.
    pub kernel_args: Vec<String>,
}

impl VmSpec {
    fn vhost_socket(&self) -> PathBuf {
        self.dir.join("vhost.sock")
    }

    fn vsock(&self) -> PathBuf {
        self.dir.join("vm.vsock")
    }

    /// The kernel's command line. Without a calibrating timer the kernel must be told the TSC's rate, and under emulation the test of
    /// the timer's interrupt fails now and then.
    fn command_line(&self, tsc_khz: Option<u64>) -> String {
        let mut words =
            vec!["console=ttyS0".to_string(), "quiet".into(), "panic=-1".into(), "reboot=t".into(), "pci=off".into()];
        if self.accelerator == Accelerator::Tcg {
            words.push("no_timer_check".into());
            words.extend(tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        }
        words.push(format!("nacre.ready_port={READY_PORT}"));
        words.extend(self.kernel_args.iter().cloned());
        words.join(" ")
    }

    /// QEMU's arguments.
    fn arguments(&self, tsc_khz: Option<u64>) -> Vec<String> {
        let mib = self.memory.as_mib();
        let path = |path: &Path| path.display().to_string();
        [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-machine",
            "microvm,acpi=on,rtc=on,pit=off,pic=off,memory-backend=memory",
            "-accel",
            self.accelerator.name(),
            "-cpu",
            if self.accelerator == Accelerator::Kvm { "host" } else { "max" },
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &format!("{mib}M"),
            "-object",
            &format!("memory-backend-memfd,id=memory,size={mib}M,share=on"),
            "-kernel",
            &path(&self.layout.kernel),
            "-initrd",
            &path(&self.layout.image),
            "-append",
            &self.command_line(tsc_khz),
            "-serial",
            "stdio",
            "-chardev",
            &format!("socket,id=vsock,path={}", value(&self.vhost_socket())),
            "-device",
            "vhost-user-vsock-device,chardev=vsock",
            "-netdev",
            "user,id=network",
            "-device",
            "virtio-net-device,netdev=network,mac=52:54:00:6e:61:63",
            "-device",
            "virtio-rng-device",
        ]
        .map(String::from)
        .into_iter()
        .chain(self.disks.iter().flat_map(Disk::arguments))
        .collect()
    }
}

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
        command.args(spec.arguments(tsc_khz)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut qemu = spawn(command).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => anyhow!("{QEMU} is not installed: apt-get install qemu-system-x86"),
            _ => anyhow!(error).context(format!("start {QEMU}")),
        })?;
        let stdout = qemu.0.stdout.take().context("QEMU has no console")?;
        let stderr = qemu.0.stderr.take().context("QEMU has no standard error")?;
        let console = Console::follow(stdout, &spec.dir.join("console.log"))?;
        let complaints = Console::follow(stderr, &spec.dir.join("qemu.log"))?;
        let mut vm = Vm { qemu, _device: device, vsock, console };
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
            lines if lines.is_empty() => " It wrote nothing: is the kernel one for a microvm?".into(),
            lines => format!(" Its last words:\n{lines}"),
        }
    }

    /// The socket that leads to the guest's ports.
    pub fn vsock(&self) -> &Path {
        &self.vsock
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

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(accelerator: Accelerator) -> VmSpec {
        VmSpec {
            layout: Layout { kernel: "/k".into(), image: "/i".into() },
            dir: "/run/nacre/a".into(),
            accelerator,
            cpus: 2,
            memory: Size::mib(512),
            disks: vec![Disk { path: "/a,b".into(), serial: "one".into(), read_only: true }],
            kernel_args: vec!["agent.log=debug".into()],
        }
    }

    #[test]
    fn an_emulated_guest_is_told_its_clock_and_a_real_one_is_not() {
        let line = spec(Accelerator::Tcg).command_line(Some(2_600_000));
        assert!(line.contains("no_timer_check tsc_early_khz=2600000"), "{line}");
        assert!(line.ends_with("nacre.ready_port=1030 agent.log=debug"), "{line}");
        assert!(!spec(Accelerator::Kvm).command_line(Some(1)).contains("tsc_early"));
    }

    #[test]
    fn the_machine_is_what_was_asked_for() {
        let arguments = spec(Accelerator::Kvm).arguments(None).join(" ");
        for expected in [
            "-accel kvm -cpu host -smp 2 -m 512M",
            "memory-backend-memfd,id=memory,size=512M,share=on",
            "-kernel /k -initrd /i",
            "socket,id=vsock,path=/run/nacre/a/vhost.sock",
            "if=none,id=disk-one,format=raw,cache=unsafe,werror=report,rerror=report,readonly=on,file=/a,,b",
            "-device virtio-blk-device,drive=disk-one,serial=one",
        ] {
            assert!(arguments.contains(expected), "{expected}: {arguments}");
        }
    }
}
