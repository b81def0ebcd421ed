//! What a child and its parent say to each other, over a sequential-packet socket: one message a packet, with at most one descriptor.
//!
//! The child's half is async-signal-safe.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Where a child waits until its parent has done something for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// The parent writes the mappings of its user namespace.
    Mapped,
    /// The parent sets the clocks of its time namespace.
    Clocks,
    /// The parent finds what it mounts, in the child's own mount namespace, and hands it over.
    Sources,
    /// The parent sets its resource limits: root of a user namespace can't raise them.
    Limits,
    /// The parent takes back that its devices may be made.
    Devices,
    /// The parent runs the hooks that come before the root is entered.
    BeforeRoot,
    /// Whoever opened the start gate runs the hooks that come before the program.
    BeforeProgram,
}

/// What a child says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// It waits at its start gate. With its terminal's master, if it has one.
    Ready,
    /// It waits at this point.
    Sync(Point),
    /// With the listener of its seccomp filter.
    Listener,
    /// It was made by a go-between: with its pidfd.
    Born,
    /// The step of this number failed with this errno.
    Failed(u32, i32),
}

/// The answer: go on.
const GO: u8 = 1;

/// The most descriptors that come with an answer: Linux has fourteen controllers, and systemd a hierarchy of its own.
pub(crate) const MOST_HANDED_OVER: usize = 32;

/// The longest message.
const LONGEST: usize = 9;

impl Message {
    fn encode(self) -> ([u8; LONGEST], usize) {
        let mut bytes = [0; LONGEST];
        let (kind, length) = match self {
            Message::Ready => (1, 1),
            Message::Failed(step, errno) => {
                let [s0, s1, s2, s3] = step.to_ne_bytes();
                let [e0, e1, e2, e3] = errno.to_ne_bytes();
                bytes = [0, s0, s1, s2, s3, e0, e1, e2, e3];
                (2, LONGEST)
            }
            Message::Listener => (3, 1),
            Message::Born => (4, 1),
            Message::Sync(Point::Mapped) => (5, 1),
            Message::Sync(Point::Limits) => (6, 1),
            Message::Sync(Point::BeforeRoot) => (7, 1),
            Message::Sync(Point::BeforeProgram) => (8, 1),
            Message::Sync(Point::Clocks) => (9, 1),
            Message::Sync(Point::Devices) => (10, 1),
            Message::Sync(Point::Sources) => (11, 1),
        };
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        (bytes, length)
    }

    fn decode(bytes: &[u8]) -> Option<Message> {
        Some(match *bytes {
            [1] => Message::Ready,
            [2, s0, s1, s2, s3, e0, e1, e2, e3] => {
                Message::Failed(u32::from_ne_bytes([s0, s1, s2, s3]), i32::from_ne_bytes([e0, e1, e2, e3]))
            }
            [3] => Message::Listener,
            [4] => Message::Born,
            [5] => Message::Sync(Point::Mapped),
            [6] => Message::Sync(Point::Limits),
            [7] => Message::Sync(Point::BeforeRoot),
            [8] => Message::Sync(Point::BeforeProgram),
            [9] => Message::Sync(Point::Clocks),
            [10] => Message::Sync(Point::Devices),
            [11] => Message::Sync(Point::Sources),
            _ => return None,
        })
    }
}

/// What a parent hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A message, with its descriptor.
    Message(Message, Option<OwnedFd>),
    /// The other end is closed: the program runs, or the child is gone.
    Closed,
    /// Something that is no message.
    Noise,
    /// Nothing, for as long as was allowed.
    Silence,
}

pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Says `message`.
pub(crate) fn send(socket: BorrowedFd<'_>, message: Message, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.unwrap_or(socket)];
    if fd.is_some() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let (bytes, length) = message.encode();
    let bytes = bytes.get(..length).unwrap_or_default();
    retry(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)).map(drop)
}

/// Waits at `point` until the parent says go.
pub(crate) fn sync(socket: BorrowedFd<'_>, point: Point) -> Result<(), Errno> {
    send(socket, Message::Sync(point), None)?;
    if told_to_go(socket) { Ok(()) } else { Err(Errno::CANCELED) }
}

/// Waits until the parent hands descriptors over, and does `act` with each; there must be one.
pub(crate) fn for_each_handed_over(
    socket: BorrowedFd<'_>,
    mut act: impl FnMut(OwnedFd) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_HANDED_OVER))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received =
        retry(|| recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    if received.bytes != 1 {
        return Err(Errno::CANCELED);
    }
    let mut result = Err(Errno::BADF);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            result = fds.try_for_each(&mut act);
        }
    }
    result
}

/// Waits for the parent's go; false when it hangs up instead.
pub(crate) fn told_to_go(socket: BorrowedFd<'_>) -> bool {
    let mut byte = [0];
    retry(|| rustix::net::recv(socket, &mut byte[..], RecvFlags::empty())).is_ok_and(|(length, _)| length == 1)
}

/// Tells a child to go on.
pub(crate) fn go(socket: impl AsFd) -> Result<(), Errno> {
    hand_over(socket, &[])
}

/// Hands descriptors over to a child. Nothing else may have been said before: it would be taken for that.
pub(crate) fn hand_over(socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_HANDED_OVER))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    retry(|| sendmsg(&socket, &[IoSlice::new(&[GO])], &mut ancillary, SendFlags::NOSIGNAL)).map(drop)
}

/// Waits for a child's next message, at most `patience` long.
pub(crate) fn receive(socket: &OwnedFd, patience: Option<Duration>) -> Result<Heard, Errno> {
    if let Some(patience) = patience {
        let limit = rustix::time::Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
        let mut ready = [PollFd::new(socket, PollFlags::IN)];
        if retry(|| poll(&mut ready, Some(&limit)))? == 0 {
            return Ok(Heard::Silence);
        }
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; LONGEST + 1];
    let mut receive =
        || retry(|| recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC));
    // A child that ends without having read all that it was told resets the connection. That is said once, and before its last words.
    let received = match receive() {
        Err(Errno::CONNRESET) => receive(),
        received => received,
    };
    let length = match received {
        Ok(received) => received.bytes,
        Err(Errno::CONNRESET) => 0,
        Err(error) => return Err(error),
    };
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(match bytes.get(..length).unwrap_or_default() {
        [] => Heard::Closed,
        bytes => Message::decode(bytes).map_or(Heard::Noise, |message| Heard::Message(message, fd)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_heard_of_one_who_did_not_listen() {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let kind = rustix::net::SocketType::SEQPACKET;
        let (ours, theirs) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, kind, flags, None).unwrap();
        go(&ours).unwrap();
        send(theirs.as_fd(), Message::Failed(7, 1), None).unwrap();
        drop(theirs);
        assert!(matches!(receive(&ours, None), Ok(Heard::Message(Message::Failed(7, 1), None))));
        assert!(matches!(receive(&ours, None), Ok(Heard::Closed)));
    }

    #[test]
    fn every_message_comes_back_as_it_was() {
        let points = [
            Point::Mapped,
            Point::Clocks,
            Point::Devices,
            Point::Sources,
            Point::Limits,
            Point::BeforeRoot,
            Point::BeforeProgram,
        ];
        let others = [Message::Ready, Message::Listener, Message::Born, Message::Failed(7, -1)];
        for message in points.map(Message::Sync).into_iter().chain(others) {
            let (bytes, length) = message.encode();
            assert_eq!(Message::decode(&bytes[..length]), Some(message));
        }
        assert_eq!(Message::decode(&[12]), None);
        assert_eq!(Message::decode(&[1, 1]), None);
    }
}
