//! One more process in a running container.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use nacre_jail::{Process, Status};

use super::args::Exec;
use super::console::{self, Terminal};
use super::directory::Root;
use super::signals::Signals;
use super::{foreground, lifecycle, log, process_spec};

pub fn exec(root: &Root, args: &Exec) -> Result<u8> {
    let (container, remembered) = root.find(&args.id)?.open()?;
    let process = match container.status()? {
        Status::Paused if !args.ignore_paused => {
            Err(anyhow::anyhow!("cannot exec in a paused container (use --ignore-paused to override)"))
        }
        Status::Stopped => Err(anyhow::anyhow!("cannot exec in a container that has stopped")),
        _ => process_spec::of(args, &remembered.spec),
    };
    let result = process.and_then(|process| {
        let wanted = process.terminal().unwrap_or(false);
        let terminal = Terminal::of(wanted, args.detach, args.console_socket.as_deref())?;
        if args.preserve_fds > 1024 {
            bail!("--preserve-fds {}: more than 1024", args.preserve_fds);
        }
        container.warnings(&process).iter().for_each(|warning| log::warn(warning));
        let listening = if args.detach { None } else { Some(Signals::listen()?) };
        let process = container.exec(&process, terminal.io(), args.preserve_fds)?;
        let code = tell(args, &process, terminal).and_then(|()| match listening {
            None => Ok(0),
            Some(signals) => foreground::wait(&process, process.take_terminal(), signals),
        });
        match code {
            Ok(_) => process.leave(),
            // Nobody would know of it.
            Err(_) => {
                let _ = process.signal(lifecycle::KILL);
                let _ = process.wait();
            }
        }
        code
    });
    container.leave();
    result
}

/// Tells whoever wants to know of the process.
fn tell(args: &Exec, process: &Process, terminal: Terminal) -> Result<()> {
    if let Terminal::Socket(socket) = terminal {
        let master = process.take_terminal().context("the process has no terminal")?;
        console::send(socket, "/dev/ptmx", master.as_fd())?;
    }
    if let Some(socket) = &args.pidfd_socket {
        console::send(socket, "pidfd", process.pidfd())?;
    }
    if let Some(path) = &args.pid_file {
        lifecycle::write_pid(path, process.pid())?;
    }
    Ok(())
}
