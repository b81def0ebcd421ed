//! A container's terminal: handed to whoever listens on the console socket, or shown on the caller's own.

use std::io::{IoSlice, IsTerminal as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nacre_jail::{Io, LineEnds};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg, socket_with,
};
use rustix::termios::{
    OptionalActions, OutputModes, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

/// Where a process's terminal goes.
#[derive(Debug)]
pub enum Terminal<'a> {
    /// It has none.
    None,
    /// To the listener on this socket.
    Socket(&'a Path),
    /// To the caller's terminal.
    Own,
}

impl<'a> Terminal<'a> {
    /// What the process is given. Lines that are shown on the caller's terminal are ended there, and what goes to a file needs no more.
    pub fn io(&self) -> Io {
        match self {
            Terminal::None => Io::Inherit,
            Terminal::Socket(_) => Io::Terminal { size: None, lines: LineEnds::Terminal },
            Terminal::Own => Io::Terminal { size: None, lines: LineEnds::Plain },
        }
    }

    /// Judges what was asked for.
    pub fn of(wanted: bool, detach: bool, socket: Option<&'a Path>) -> Result<Terminal<'a>> {
        match (wanted, detach, socket) {
            (true, _, Some(socket)) if detach || !std::io::stdin().is_terminal() => Ok(Terminal::Socket(socket)),
            (true, true, None) => bail!("cannot allocate tty if nacre-jail will detach without setting console socket"),
            (true, _, Some(socket)) => Ok(Terminal::Socket(socket)),
            (true, false, None) => Ok(Terminal::Own),
            (false, _, Some(_)) => bail!("cannot use console socket if the process has no terminal"),
            (false, _, None) => Ok(Terminal::None),
        }
    }
}

/// Sends `fd` to the listener on `socket`, under the name `name`.
pub fn send(socket: &Path, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
    let act = || format!("send {name} to {}", socket.display());
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).with_context(act)?;
    let address = SocketAddrUnix::new(socket).with_context(act)?;
    rustix::net::connect(&stream, &address).with_context(act)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&stream, &[IoSlice::new(name.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL).with_context(act)?;
    Ok(())
}

/// The caller's terminal in raw mode. Dropping it restores it.
#[derive(Debug)]
pub struct Raw(Option<Termios>);

impl Raw {
    /// Makes standard input raw, if it is a terminal.
    pub fn enter() -> Result<Raw> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Raw(None));
        }
        let before = tcgetattr(&stdin).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        // Its own line ends are the caller's terminal's affair: see `Terminal::io`.
        raw.output_modes |= OutputModes::OPOST;
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("set the terminal's mode")?;
        Ok(Raw(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, before); // a terminal that is gone needs no mode
        }
    }
}

/// Makes the container's terminal as large as the caller's.
pub fn resize(master: &OwnedFd) {
    let own: Result<Winsize, _> = tcgetwinsize(std::io::stdin());
    if let Ok(size) = own {
        let _ = tcsetwinsize(master.as_fd(), size); // a terminal that is gone needs no size
    }
}
