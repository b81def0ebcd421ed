//! A container: its cgroup, its first process, and those that joined it.

use std::os::fd::AsFd as _;

use oci_spec::runtime;
use rustix::thread::ThreadNameSpaceType;

use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::plan::{self, Plan};
use crate::process::Process;
use crate::stats::Stats;
use crate::{Io, plan::Confinement};

/// A container. Dropping it kills what runs in it and removes its cgroup.
#[derive(Debug)]
pub struct Container {
    init: Process,
    cgroup: Owned,
    namespaces: ThreadNameSpaceType,
    own_pid_namespace: bool,
    confinement: Confinement,
}

/// A cgroup that goes with its owner.
#[derive(Debug)]
struct Owned(Option<Cgroup>);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0.take() {
            let _ = cgroup.remove(); // `Container::delete` is the way to hear of it
        }
    }
}

impl Owned {
    fn get(&self) -> Result<&Cgroup, Error> {
        self.0.as_ref().ok_or(Error::State("deleted"))
    }
}

impl Container {
    /// Makes the container; its first process is set up completely and waits at its start gate. A program that is missing is
    /// reported here.
    ///
    /// # Errors
    /// The step that failed, and why. Nothing is left behind.
    pub fn create(plan: Plan, io: Io) -> Result<Container, Error> {
        let cgroup = Owned(Some(Cgroup::create(&plan.cgroup, plan.resources.as_ref())?));
        let namespaces = plan.joinable();
        let own_pid_namespace = plan.has_pid_namespace();
        let confinement = plan.confinement();
        let launch = plan.launch(cgroup.get()?, io)?;
        let init = Process::new(launch.spawn()?);
        Ok(Container { init, cgroup, namespaces, own_pid_namespace, confinement })
    }

    /// Opens the start gate. Returns once the program runs.
    ///
    /// # Errors
    /// [`Error::State`] on a second call, [`Error::Program`] when the program can't be executed after all.
    pub fn start(&self) -> Result<(), Error> {
        self.init.start()
    }

    /// The first process.
    pub fn init(&self) -> &Process {
        &self.init
    }

    /// Runs one more process in the container. Returns once its program runs.
    ///
    /// # Errors
    /// The step that failed, and why; [`Error::Ended`] when the container's first process has ended.
    pub fn exec(&self, process: &runtime::Process, io: Io) -> Result<Process, Error> {
        if self.init.is_waiting() {
            return Err(Error::State("not started"));
        }
        if self.init.try_wait()?.is_some() {
            return Err(Error::Ended);
        }
        let launch = plan::exec(
            process,
            plan::Target {
                pidfd: self.init.pidfd(),
                pid: self.init.pid(),
                namespaces: self.namespaces,
                own_pid_namespace: self.own_pid_namespace,
                confinement: &self.confinement,
            },
            self.cgroup.get()?,
            io,
        )?;
        let process = Process::new(launch.spawn()?);
        if let Err(error) = process.start() {
            let _ = crate::process::reap(process.pidfd().as_fd()); // it has said why it ends
            return Err(error);
        }
        Ok(process)
    }

    /// Sends `signal` to every process of the container.
    ///
    /// # Errors
    /// A number that is no signal.
    pub fn signal_all(&self, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            self.cgroup.get()?.kill();
            return Ok(());
        }
        for pid in self.pids()? {
            let Some(pid) = rustix::process::Pid::from_raw(pid) else { continue };
            let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { continue };
            match nacre_sys::pidfd::send_signal(pidfd.as_fd(), signal) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(Error::system(format!("send signal {signal}"), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Every process of the container, as the caller numbers them.
    ///
    /// # Errors
    /// [`Error::State`] once deleted.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        Ok(self.cgroup.get()?.pids())
    }

    /// Stops the processes where they are.
    ///
    /// # Errors
    /// A system without a freezer.
    pub fn pause(&self) -> Result<(), Error> {
        self.cgroup.get()?.freeze(true)
    }

    /// Lets paused processes go on.
    ///
    /// # Errors
    /// A system without a freezer.
    pub fn resume(&self) -> Result<(), Error> {
        self.cgroup.get()?.freeze(false)
    }

    /// Changes the limits that `resources` name and no other.
    ///
    /// # Errors
    /// A controller that the system does not have, or a value that the kernel refuses.
    pub fn update(&self, resources: &runtime::LinuxResources) -> Result<(), Error> {
        self.cgroup.get()?.update(resources)
    }

    /// What the container has used so far.
    ///
    /// # Errors
    /// A cgroup that can't be read.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.cgroup.get()?.stats()
    }

    /// Kills what still runs, reaps the first process, and removes the cgroup.
    ///
    /// # Errors
    /// A cgroup that can't be removed.
    pub fn delete(mut self) -> Result<(), Error> {
        let Some(cgroup) = self.cgroup.0.take() else { return Ok(()) };
        let _ = self.init.signal(libc::SIGKILL); // it may have ended; the cgroup kills the rest
        cgroup.kill();
        self.init.wait()?;
        cgroup.remove()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.cgroup.0.is_some() {
            let _ = self.init.signal(libc::SIGKILL); // as in delete
            let _ = self.init.wait();
        }
    }
}
