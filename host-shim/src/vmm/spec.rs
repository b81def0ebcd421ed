//! What a VM is to be, and the arguments by which QEMU makes it.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use nacre_manifest::{CommandLine, Root, command_line};

use crate::accelerator::Accelerator;
use crate::layout::{Form, Layout};
use crate::size::Size;

/// How many disks there may be: a microvm with ACPI has 24 places for virtio, of which the vsock, the network, the random numbers and the root
/// take four.
pub const MAX_DISKS: usize = 24 - 4;

/// The hardware address of a device on the VMM's own network.
pub const USER_MAC: &str = "52:54:00:6e:61:63";

/// Firmware for a PC, as Debian's package ovmf has it.
pub const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";

/// How many places a [`Machine::Q35`] has for what is plugged in while it runs.
pub const PORTS: u8 = 8;

/// Where the first of these places is on its PCI bus.
const FIRST_PORT: u8 = 0x10;

/// The machine that QEMU plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Machine {
    /// Small and fast: no PCI, no firmware, nothing can be plugged in.
    #[default]
    Microvm,
    /// A whole PC, to which devices (`bus=port0` to `port7`), memory and processors can be added ([`super::Vm::qmp`]).
    Q35,
}

impl Machine {
    /// How its virtio devices are called.
    fn bus(self) -> &'static str {
        match self {
            Machine::Microvm => "device",
            Machine::Q35 => "pci",
        }
    }
}

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
    fn arguments(&self, machine: Machine) -> [String; 4] {
        let (serial, read_only) = (&self.serial, if self.read_only { "on" } else { "off" });
        let path = value(&self.path);
        [
            "-drive".into(),
            format!(
                "if=none,id=disk-{serial},format=raw,cache=unsafe,werror=report,rerror=report,readonly={read_only},file={path}"
            ),
            "-device".into(),
            format!("virtio-blk-{},drive=disk-{serial},serial={serial}", machine.bus()),
        ]
    }
}

/// A network device of the VM's.
#[derive(Debug, Clone)]
pub struct Nic {
    /// Its hardware address, as people write it.
    pub mac: String,
    /// Where its other end is.
    pub backend: Backend,
}

/// The other end of a network device.
#[derive(Debug, Clone)]
pub enum Backend {
    /// A network that the VMM plays (qemu(1), `-netdev user`).
    User,
    /// A tap of the host's.
    Tap(Arc<OwnedFd>),
}

impl Nic {
    /// The device that `nacre run` gives, on the VMM's own network.
    pub fn user() -> Nic {
        Nic { mac: USER_MAC.into(), backend: Backend::User }
    }

    fn arguments(&self, number: usize, machine: Machine) -> [String; 4] {
        let backend = match &self.backend {
            Backend::User => format!("user,id=network{number}"),
            Backend::Tap(tap) => format!("tap,id=network{number},fd={}", tap.as_raw_fd()),
        };
        let device = format!("virtio-net-{},netdev=network{number},mac={}", machine.bus(), self.mac);
        ["-netdev".into(), backend, "-device".into(), device]
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
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
    /// What QEMU plays.
    pub machine: Machine,
    /// What makes its processor.
    pub accelerator: Accelerator,
    /// How many processors.
    pub cpus: u8,
    /// How much memory.
    pub memory: Size,
    /// Its network devices.
    pub nics: Vec<Nic>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// More words for the kernel's command line.
    pub kernel_args: Vec<String>,
}

impl VmSpec {
    pub(super) fn vhost_socket(&self) -> PathBuf {
        self.dir.join("vhost.sock")
    }

    pub(super) fn monitor(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    pub(super) fn vsock(&self) -> PathBuf {
        self.dir.join("vm.vsock")
    }

    /// The kernel's command line. Without a calibrating timer the kernel must be told the TSC's rate, and under emulation the test of
    /// the timer's interrupt fails now and then.
    fn command_line(&self, root: Option<&Root>, tsc_khz: Option<u64>) -> Result<String> {
        let mut more = Vec::new();
        if self.accelerator == Accelerator::Tcg {
            more.push("no_timer_check".into());
            more.extend(tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        }
        more.extend(self.kernel_args.iter().cloned());
        let machine = match self.machine {
            Machine::Microvm => nacre_manifest::Machine::Microvm,
            Machine::Q35 => nacre_manifest::Machine::Pc,
        };
        let parameters = self.layout.manifest.as_ref().map_or(&[][..], |manifest| &manifest.parameters);
        Ok(command_line(&CommandLine { machine, parameters, root, more: &more })?)
    }

    /// What boots.
    fn boot_arguments(&self, tsc_khz: Option<u64>) -> Result<Vec<String>> {
        let (kernel, image) = (path(&self.layout.kernel), path(&self.layout.image));
        let arguments = match self.layout.form()? {
            Form::Initrd => {
                vec![
                    "-kernel".into(),
                    kernel,
                    "-append".into(),
                    self.command_line(None, tsc_khz)?,
                    "-initrd".into(),
                    image,
                ]
            }
            Form::Disk(root) => {
                vec!["-kernel".into(), kernel, "-append".into(), self.command_line(Some(root), tsc_khz)?]
            }
            Form::Firmware => {
                ensure!(self.machine == Machine::Q35, "{image}: firmware takes a whole PC to run on");
                ensure!(self.kernel_args.is_empty(), "{image}: its kernel can't be told more than it says");
                vec!["-bios".into(), FIRMWARE.into(), "-kernel".into(), image]
            }
        };
        let disk = self.layout.root_disk()?.map(|path| Disk { path, serial: "root".into(), read_only: true });
        Ok(arguments.into_iter().chain(disk.iter().flat_map(|disk| disk.arguments(self.machine))).collect())
    }

    /// QEMU's arguments.
    pub(super) fn arguments(&self, tsc_khz: Option<u64>) -> Result<Vec<String>> {
        let (mib, bus) = (self.memory.as_mib(), self.machine.bus());
        let common = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-display",
            "none",
            "-accel",
            self.accelerator.name(),
            "-cpu",
            if self.accelerator == Accelerator::Kvm { "host" } else { "max" },
            "-object",
            &format!("memory-backend-memfd,id=memory,size={mib}M,share=on"),
            "-serial",
            "stdio",
            "-chardev",
            &format!("socket,id=vsock,path={}", value(&self.vhost_socket())),
            "-device",
            &format!("vhost-user-vsock-{bus},chardev=vsock"),
            "-device",
            &format!("virtio-rng-{bus}"),
        ]
        .map(String::from);
        let nics = self.nics.iter().enumerate().flat_map(|(number, nic)| nic.arguments(number, self.machine));
        let disks = self.disks.iter().flat_map(|disk| disk.arguments(self.machine));
        let boot = self.boot_arguments(tsc_khz)?;
        Ok(common.into_iter().chain(boot).chain(self.machine_arguments()).chain(nics).chain(disks).collect())
    }

    /// What of ours QEMU is given beside its arguments.
    pub(super) fn descriptors(&self) -> Vec<Arc<OwnedFd>> {
        let tap = |nic: &Nic| match &nic.backend {
            Backend::Tap(tap) => Some(tap.clone()),
            Backend::User => None,
        };
        self.nics.iter().filter_map(tap).collect()
    }

    /// The machine, with room for as much again as it has, where it can grow.
    fn machine_arguments(&self) -> Vec<String> {
        let (cpus, mib) = (self.cpus, self.memory.as_mib());
        let mut arguments: Vec<String> = match self.machine {
            Machine::Microvm => vec![
                "-machine".into(),
                "microvm,acpi=on,rtc=on,pit=off,pic=off,memory-backend=memory".into(),
                "-smp".into(),
                cpus.to_string(),
                "-m".into(),
                format!("{mib}M"),
            ],
            Machine::Q35 => vec![
                "-machine".into(),
                "q35,nvdimm=on,memory-backend=memory".into(),
                "-smp".into(),
                format!("{cpus},maxcpus={}", u16::from(cpus) * 2),
                "-m".into(),
                format!("{mib}M,slots=4,maxmem={}M", mib * 2),
                "-qmp".into(),
                format!("unix:{},server=on,wait=off", value(&self.monitor())),
            ],
        };
        if self.machine == Machine::Q35 {
            arguments.extend((0..PORTS).flat_map(port));
        }
        arguments
    }
}

/// A place for a device that is plugged in.
fn port(number: u8) -> [String; 2] {
    let place = FIRST_PORT + number;
    ["-device".into(), format!("pcie-root-port,id=port{number},chassis={number},addr={place:#x}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(accelerator: Accelerator) -> VmSpec {
        VmSpec {
            layout: Layout { kernel: "/k".into(), image: "/i".into(), manifest: None },
            dir: "/run/nacre/a".into(),
            machine: Machine::Microvm,
            accelerator,
            cpus: 2,
            memory: Size::mib(512),
            nics: vec![Nic::user()],
            disks: vec![Disk { path: "/a,b".into(), serial: "one".into(), read_only: true }],
            kernel_args: vec!["agent.log=debug".into()],
        }
    }

    #[test]
    fn an_emulated_guest_is_told_its_clock_and_a_real_one_is_not() {
        let line = spec(Accelerator::Tcg).command_line(None, Some(2_600_000)).unwrap();
        assert!(line.ends_with("nacre.ready_port=1030 no_timer_check tsc_early_khz=2600000 agent.log=debug"), "{line}");
        assert!(!spec(Accelerator::Kvm).command_line(None, Some(1)).unwrap().contains("tsc_early"));
    }

    #[test]
    fn the_machine_is_what_was_asked_for() {
        let arguments = spec(Accelerator::Kvm).arguments(None).unwrap().join(" ");
        for expected in [
            "-accel kvm -cpu host",
            "-machine microvm,acpi=on,rtc=on,pit=off,pic=off,memory-backend=memory -smp 2 -m 512M",
            "memory-backend-memfd,id=memory,size=512M,share=on",
            "-kernel /k",
            "-initrd /i",
            "socket,id=vsock,path=/run/nacre/a/vhost.sock",
            "if=none,id=disk-one,format=raw,cache=unsafe,werror=report,rerror=report,readonly=on,file=/a,,b",
            "-device virtio-blk-device,drive=disk-one,serial=one",
        ] {
            assert!(arguments.contains(expected), "{expected}: {arguments}");
        }
    }

    #[test]
    fn a_pc_has_pci_and_room_to_grow() {
        let spec = VmSpec { machine: Machine::Q35, ..spec(Accelerator::Tcg) };
        assert!(!spec.command_line(None, None).unwrap().contains("pci=off"));
        let arguments = spec.arguments(None).unwrap().join(" ");
        for expected in [
            "-machine q35,nvdimm=on,memory-backend=memory -smp 2,maxcpus=4 -m 512M,slots=4,maxmem=1024M",
            "-qmp unix:/run/nacre/a/qmp.sock,server=on,wait=off",
            "pcie-root-port,id=port7,chassis=7,addr=0x17",
            "-device virtio-blk-pci,drive=disk-one,serial=one",
        ] {
            assert!(arguments.contains(expected), "{expected}: {arguments}");
        }
    }
}
