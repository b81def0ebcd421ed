//! The fork, and the child between it and its program.
//!
//! Parent and child share a sequential-packet socket. The child says `Ready` (with its terminal's master, if it has one) and waits at
//! its start gate; the parent says go; then the socket either closes, because the program was executed, or brings the failure.

// UNSAFETY: what runs in the child must be async-signal-safe, which the compiler can't know.
#![expect(unsafe_code, reason = "clone3 runs the child's code")]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nacre_sys::clone::{Cloned, clone3};
use nacre_sys::exec::{StringArray, close_range, execve, reset_signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::thread::LinkNameSpaceType;

use crate::error::Error;
use crate::step::{Step, Walk};

/// How long the set-up of a process may take: steps are system calls, and only a sick file system makes one wait.
const SETUP_WITHIN: Duration = Duration::from_secs(60);

/// Everything a child needs.
#[derive(Debug)]
pub(crate) struct Launch {
    /// `CLONE_NEW…` flags.
    pub(crate) namespaces: u64,
    /// An existing PID namespace to be born in.
    pub(crate) pid_namespace: Option<OwnedFd>,
    /// A cgroup v2 directory to be born in.
    pub(crate) cgroup: Option<OwnedFd>,
    /// What to do before the start gate.
    pub(crate) steps: Vec<Step>,
    /// What to do behind it.
    pub(crate) last_steps: Vec<Step>,
    /// The places where the program may be.
    pub(crate) candidates: StringArray,
    pub(crate) argv: StringArray,
    pub(crate) envp: StringArray,
}

/// A child that waits at its start gate.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) cloned: Cloned,
    pub(crate) gate: Gate,
    pub(crate) master: Option<OwnedFd>,
}

/// The parent's end of the socket.
#[derive(Debug)]
pub(crate) struct Gate {
    socket: OwnedFd,
    launch: Box<Launch>,
}

const READY: u8 = 1;
const FAILED: u8 = 2;
/// A failure's step number for execve itself.
const EXECVE: u32 = u32::MAX;

impl Launch {
    /// Forks. Returns once the child waits at its gate, or with the reason why it does not.
    pub(crate) fn spawn(self) -> Result<Waiting, Error> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|error| Error::system("make a socket pair", error))?;
        let cloned = self.fork(&theirs)?;
        drop(theirs);
        let gate = Gate { socket: ours, launch: Box::new(self) };
        match gate.receive(Some(SETUP_WITHIN)) {
            Ok(Message::Ready(master)) => Ok(Waiting { cloned, gate, master }),
            other => {
                let _ = nacre_sys::pidfd::send_signal(cloned.pidfd.as_fd(), libc::SIGKILL); // it may have exited by itself
                let _ = crate::process::reap(cloned.pidfd.as_fd());
                Err(match other {
                    Err(error) => error,
                    Ok(Message::Failed(error)) => error,
                    Ok(Message::Closed | Message::Ready(_)) => Error::Setup("it ended before it said why"),
                })
            }
        }
    }

    /// A child is born in another PID namespace when its parent's thread says so beforehand; the thread says so for its own again after.
    fn fork(&self, theirs: &OwnedFd) -> Result<Cloned, Error> {
        let enter = |fd: BorrowedFd<'_>| {
            rustix::thread::move_into_link_name_space(fd, Some(LinkNameSpaceType::ProcessID))
                .map_err(|error| Error::system("choose the PID namespace of a child", error))
        };
        let own = match &self.pid_namespace {
            Some(target) => {
                let own = std::fs::File::open("/proc/thread-self/ns/pid")
                    .map_err(|error| Error::system("open /proc/thread-self/ns/pid", error))?;
                enter(target.as_fd())?;
                Some(own)
            }
            None => None,
        };
        let mut keep: Vec<u32> = self.steps.iter().chain(&self.last_steps).flat_map(Step::descriptors).collect();
        keep.push(theirs.as_raw_fd() as u32);
        keep.sort_unstable();
        // SAFETY: `child` makes system calls only: its steps hold ready-made C strings, its state is on the stack, and
        // descriptors that it drops are closed by a system call.
        let cloned = unsafe {
            clone3(self.namespaces, self.cgroup.as_ref().map(AsFd::as_fd), || self.child(theirs.as_fd(), &keep))
        };
        if let Some(own) = own {
            enter(own.as_fd())?;
        }
        cloned.map_err(|error| Error::system("clone3", error))
    }

    /// The child. Returns its exit code, should it come to that.
    fn child(&self, socket: BorrowedFd<'_>, keep: &[u32]) -> i32 {
        // While it waits at its gate, a child must hold no end of another container's pipe, nor the parent's of its own socket.
        let mut first = 3;
        for fd in keep.iter().copied().filter(|fd| *fd >= 3).chain([u32::MAX]) {
            if first < fd {
                // SAFETY: this copy of the descriptor table is the child's own, and what it still uses is in `keep`.
                let _ = unsafe { close_range(first, fd - 1) }; // a kernel without the call would only keep more open
            }
            first = fd.saturating_add(1);
        }
        reset_signals();
        let mut walk = Walk { root: None, master: None, slave: None, candidates: &self.candidates, program: 0 };
        rustix::process::umask(rustix::fs::Mode::empty());
        for (i, step) in (0u32..).zip(&self.steps) {
            if let Err(error) = step.run(&mut walk) {
                return fail(socket, i, error);
            }
        }
        if ready(socket, walk.master.as_ref()).is_err() || !opened(socket) {
            return 1;
        }
        for (i, step) in (self.steps.len() as u32..).zip(&self.last_steps) {
            if let Err(error) = step.run(&mut walk) {
                return fail(socket, i, error);
            }
        }
        let Some(program) = self.candidates.strings().get(walk.program) else {
            return fail(socket, EXECVE, Errno::NOENT);
        };
        let error = execve(program, &self.argv, &self.envp);
        fail(socket, EXECVE, Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn error(&self, step: u32, errno: i32) -> Error {
        let source = std::io::Error::from_raw_os_error(errno);
        let step = self.steps.iter().chain(&self.last_steps).nth(step as usize);
        match step {
            None | Some(Step::FindProgram) => {
                let program = self.argv.strings().first().map(|arg| arg.to_string_lossy().into_owned());
                Error::Program { program: program.unwrap_or_default(), source }
            }
            Some(step) => Error::Step { step: step.to_string(), source },
        }
    }
}

enum Message {
    Ready(Option<OwnedFd>),
    Failed(Error),
    Closed,
}

impl Gate {
    /// Lets the child go, and returns once its program runs.
    pub(crate) fn open(self) -> Result<(), Error> {
        rustix::net::send(&self.socket, &[READY], SendFlags::NOSIGNAL).map_err(|_| Error::Ended)?;
        match self.receive(None)? {
            Message::Closed => Ok(()),
            Message::Failed(error) => Err(error),
            Message::Ready(_) => Err(Error::Setup("it spoke out of turn")),
        }
    }

    fn receive(&self, within: Option<Duration>) -> Result<Message, Error> {
        let limit = within.map(|within| rustix::time::Timespec { tv_sec: within.as_secs() as i64, tv_nsec: 0 });
        let fail = |error: Errno| Error::system("hear from the process", error);
        if retry(|| poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], limit.as_ref())).map_err(fail)? == 0 {
            return Err(Error::Setup("it took too long"));
        }
        let mut bytes = [0; 9];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = retry(|| {
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        let length = match message {
            Ok(message) => message.bytes,
            Err(Errno::CONNRESET) => 0,
            Err(error) => return Err(fail(error)),
        };
        let master = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        match (length, bytes) {
            (0, _) => Ok(Message::Closed),
            (1, [READY, ..]) => Ok(Message::Ready(master)),
            (9, [FAILED, s0, s1, s2, s3, e0, e1, e2, e3]) => Ok(Message::Failed(
                self.launch.error(u32::from_ne_bytes([s0, s1, s2, s3]), i32::from_ne_bytes([e0, e1, e2, e3])),
            )),
            _ => Err(Error::Setup("it said something else than expected")),
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn ready(socket: BorrowedFd<'_>, master: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [master.map_or(socket, AsFd::as_fd)];
    if master.is_some() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(socket, &[IoSlice::new(&[READY])], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

fn opened(socket: BorrowedFd<'_>) -> bool {
    let mut byte = [0];
    retry(|| rustix::net::recv(socket, &mut byte[..], RecvFlags::empty())).is_ok_and(|(length, _)| length == 1)
}

fn fail(socket: BorrowedFd<'_>, step: u32, error: Errno) -> i32 {
    let [s0, s1, s2, s3] = step.to_ne_bytes();
    let [e0, e1, e2, e3] = error.raw_os_error().to_ne_bytes();
    let message = [FAILED, s0, s1, s2, s3, e0, e1, e2, e3];
    let _ = rustix::net::send(socket, &message, SendFlags::NOSIGNAL); // a parent that is gone needs no reason
    1
}
