//! A container's life: create, start, run, kill, pause, resume, delete.

use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nacre_jail::{Container, Error, Note, Plan, Status};
use oci_spec::runtime::Spec;

use super::args::{Create, Kill, Run};
use super::console::{self, Terminal};
use super::directory::{self, Entry, Lock, Root};
use super::signals::{self, Signals};
use super::{foreground, log};

/// SIGKILL.
pub const KILL: i32 = 9;

/// How the start gate of a new container is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// By `start`, some time, in another process.
    Later,
    /// By us.
    Now,
}

/// A container in the making. Unless it is kept, nothing is left of it.
struct Making<'a> {
    entry: &'a Entry,
    kept: bool,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.entry.remove(); // the error that brought us here is worth more
        }
    }
}

pub fn create(root: &Root, args: &Create) -> Result<()> {
    make(root, args, Start::Later, true)?.0.leave();
    Ok(())
}

/// Makes a container and remembers it.
fn make(root: &Root, args: &Create, start: Start, detach: bool) -> Result<(Container, Entry, Lock)> {
    let bundle = args.bundle.canonicalize().with_context(|| format!("open the bundle {}", args.bundle.display()))?;
    let (mut spec, bytes) = directory::read_spec(&bundle.join("config.json"))?;
    let process = spec.process().as_ref().context("process: is missing")?;
    let wanted = process.terminal().unwrap_or(false);
    let terminal = Terminal::of(wanted, detach, args.console_socket.as_deref())?;
    let descriptors = descriptors(args.preserve_fds, &mut spec)?;
    let mut plan = Plan::new(&args.id, &spec, &bundle)?.keep_descriptors(descriptors);
    plan.warnings().iter().for_each(|warning| log::warn(warning));
    if args.no_pivot {
        plan = plan.no_pivot();
    }
    let (entry, lock) = root.take(&args.id, &bundle, &bytes)?;
    plan = plan.journal(lock.journal()?);
    let mut making = Making { entry: &entry, kept: false };
    let io = terminal.io();
    let container = match start {
        Start::Later => Container::create(plan.gate(&entry.gate()), io)?,
        Start::Now => Container::run(plan, io)?,
    };
    let told = tell(args, &container, terminal).and_then(|()| lock.save(container.record()?));
    // The PID file comes last: who sees it may ask for the container.
    let told =
        told.and_then(|()| args.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, container.init().pid())));
    if let Err(error) = told {
        // Its hooks are told of its end, too. What can't be removed can be tried again.
        making.kept = matches!(container.delete(), Err(error) if !matches!(error, Error::Hook { .. }));
        return Err(error);
    }
    making.kept = true;
    drop(making);
    Ok((container, entry, lock))
}

/// Hands on what was asked for.
fn tell(args: &Create, container: &Container, terminal: Terminal) -> Result<()> {
    if let Terminal::Socket(socket) = terminal {
        let master = container.init().take_terminal().context("the process has no terminal")?;
        console::send(socket, "/dev/ptmx", master.as_fd())?;
    }
    if let Some(socket) = &args.pidfd_socket {
        console::send(socket, "pidfd", container.init().pidfd())?;
    }
    Ok(())
}

/// How many of the caller's descriptors go to the container: those asked for, and those of a service manager (sd_listen_fds(3)), whose
/// variables go along.
fn descriptors(asked: u32, spec: &mut Spec) -> Result<u32> {
    const MOST: u32 = 1024;
    let mut count = asked;
    if let Some(listening) = std::env::var("LISTEN_FDS").ok().and_then(|text| text.parse::<u32>().ok()) {
        count = count.saturating_add(listening);
        if let Some(process) = spec.process_mut().as_mut() {
            let mut env = process.env().clone().unwrap_or_default();
            env.extend([format!("LISTEN_FDS={listening}"), "LISTEN_PID=1".into()]);
            process.set_env(Some(env));
        }
    }
    if count > MOST {
        bail!("--preserve-fds {count}: more than {MOST}");
    }
    for number in 3..3 + count {
        if !Path::new(&format!("/proc/self/fd/{number}")).exists() {
            bail!("--preserve-fds {asked}: descriptor {number} is not open");
        }
    }
    Ok(count)
}

pub fn write_pid(path: &Path, pid: i32) -> Result<()> {
    directory::replace(path, pid.to_string().as_bytes())
}

pub fn start(root: &Root, id: &str) -> Result<()> {
    let entry = root.find(id)?;
    let _lock = entry.lock()?;
    let mut remembered = entry.load()?;
    // They are processes of the container, and made by us.
    if remembered.spec.hooks().as_ref().is_some_and(|hooks| hooks.start_container().is_some()) {
        nacre_sys::early::protect_now().context("start again from a read-only mount")?;
    }
    let container = entry.container(&mut remembered)?;
    let result = match container.status()? {
        Status::Created => container.start().map_err(Into::into),
        Status::Stopped => Err(anyhow::anyhow!("cannot start a container that has stopped")),
        _ => Err(anyhow::anyhow!("cannot start an already running container")),
    };
    container.leave();
    result
}

pub fn run(root: &Root, args: &Run) -> Result<u8> {
    let listening = if args.detach { None } else { Some(Signals::listen()?) };
    let (container, entry, lock) = make(root, &args.create, Start::Now, args.detach)?;
    let Some(signals) = listening else {
        container.leave();
        return Ok(0);
    };
    lock.release()?;
    let master = container.init().take_terminal();
    let code = foreground::wait(container.init(), master, signals);
    // Somebody else may have deleted it meanwhile, and another may have its name.
    if args.keep || !lock.take_again()? {
        container.leave();
    } else {
        delete_made(container, &entry)?;
    }
    code
}

/// What can't be removed is still known, so that it can be tried again.
fn delete_made(container: Container, entry: &Entry) -> Result<()> {
    warn_of_hooks(container.delete())?;
    entry.remove()
}

/// A container is gone whatever its last hooks did.
fn warn_of_hooks(deleted: Result<(), Error>) -> Result<()> {
    match deleted {
        Err(error @ Error::Hook { .. }) => {
            log::warn(&error.to_string());
            Ok(())
        }
        result => Ok(result?),
    }
}

pub fn kill(root: &Root, args: &Kill) -> Result<()> {
    let signal = signals::parse(&args.signal)?;
    let (container, ..) = root.find(&args.id)?.open()?;
    // What would survive its first process is killed with it.
    let kills_all = signal == KILL && !container.ends_with_its_first_process();
    let status = container.status()?;
    // On cgroup v1 a frozen process does not end; to kill all thaws them.
    let kills_all = kills_all || signal == KILL && status == Status::Paused;
    let result = match status {
        _ if args.all || kills_all => container.signal_all(signal).map_err(Into::into),
        Status::Stopped => Err(anyhow::anyhow!("container not running")),
        _ => container.init().signal(signal).map_err(Into::into),
    };
    container.leave();
    result
}

pub fn pause(root: &Root, id: &str) -> Result<()> {
    change(root, id, |container, status| match status {
        Status::Created | Status::Running => Ok(container.pause()?),
        status => bail!("cannot pause a container that is {status}"),
    })
}

pub fn resume(root: &Root, id: &str) -> Result<()> {
    change(root, id, |container, status| match status {
        Status::Paused => Ok(container.resume()?),
        status => bail!("cannot resume a container that is {status}, not paused"),
    })
}

/// Does something to a container that goes on living.
pub fn change(root: &Root, id: &str, act: impl FnOnce(&Container, Status) -> Result<()>) -> Result<()> {
    let entry = root.find(id)?;
    let _lock = entry.lock()?;
    let (container, ..) = entry.open()?;
    let result = container.status().map_err(Into::into).and_then(|status| act(&container, status));
    container.leave();
    result
}

pub fn delete(root: &Root, id: &str, force: bool) -> Result<()> {
    let entry = match root.find(id) {
        Err(_) if force && nacre_jail::check_id(id).is_ok() => return Ok(()),
        entry => entry?,
    };
    let _lock = match entry.lock() {
        Err(_) if force && root.find(id).is_err() => return Ok(()), // somebody else was faster
        lock => lock?,
    };
    let mut remembered = match entry.load_begun()? {
        Some(remembered) => remembered,
        None if force => return entry.remove(),
        None => bail!("container {id} was never made; --force removes its name"),
    };
    if remembered.record.is_none() || remembered.broken.is_some() {
        if !force {
            bail!("container {id} was never made whole, or by another version; --force removes what there is of it");
        }
        if remembered.broken.is_some() {
            remembered.notes.push(Note::Cgroup); // or there would be nothing to read
        }
        Container::remove_remains(id, &remembered.spec, &remembered.notes)?;
        return entry.remove();
    }
    let container = entry.container(&mut remembered)?;
    let status = container.status()?;
    if status != Status::Stopped && !force {
        container.leave();
        bail!("cannot delete container {id} that is not stopped: {status}");
    }
    delete_made(container, &entry)
}
