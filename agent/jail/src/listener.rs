//! Handing a seccomp listener on: to the UNIX socket that the specification names, with the state of the process (config-linux.md,
//! "The Container Process State").

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::{ContainerProcessState, ContainerState, State};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg, socket_with,
};

use crate::error::Error;
use crate::plan::Listener;

/// Sends `fd` of the process `pid`.
pub(crate) fn hand_on(
    listener: &Listener,
    fd: BorrowedFd<'_>,
    container: &State,
    status: ContainerState,
    pid: i32,
) -> Result<(), Error> {
    let mut state = container.clone();
    state.set_status(status);
    let mut told = ContainerProcessState::default();
    told.set_version(container.version().clone())
        .set_fds(vec!["seccompFd".into()])
        .set_pid(pid)
        .set_metadata(listener.metadata.clone())
        .set_state(state);
    let told = serde_json::to_vec(&told)
        .map_err(|error| Error::system("write the state of a process", std::io::Error::from(error)))?;
    let act = || format!("hand the seccomp listener to {}", listener.path.display());
    send(listener, fd, &told).map_err(|error| Error::system(act(), error))
}

fn send(listener: &Listener, fd: BorrowedFd<'_>, told: &[u8]) -> Result<(), Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(&listener.path)?)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let mut sent = sendmsg(socket.as_fd(), &[IoSlice::new(told)], &mut ancillary, SendFlags::NOSIGNAL)?;
    while let Some(rest) = told.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += rustix::net::send(&socket, rest, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}
