//! One connection: bytes between a unix socket of the host and a stream of the guest's, and who may send how many of them.
//!
//! Each side tells the other how much room it has and how much it has passed on, so that neither has to keep more than that. What is ready on the
//! host's socket is told by an edge-triggered epoll and remembered here until it is used up.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::event::epoll::EventFlags;
use rustix::io::{Errno, retry_on_intr};

use super::packet::{Head, NEITHER, NO_RECEIVE, NO_SEND, op};

/// What the guest may have on its way to one of the host's programs that does not read.
pub(super) const BUFFER: u32 = 256 << 10;

/// The guest hears of what was passed on at the latest when it is this much.
const TELL_AFTER: u32 = BUFFER / 4;

/// What becomes of a connection after a packet or an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It goes on.
    Stay,
    /// It has failed, or the guest broke the rules: the guest is told that it is gone.
    Reset,
    /// The guest has closed it: what it has sent is still passed on.
    Close,
    /// The guest knows it no more.
    Gone,
}

/// Who begins, and what is still to be said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host calls: the guest is to be asked.
    Calling,
    /// It was asked.
    Asked,
    /// The guest has called: it is to be answered.
    Called,
    Open,
}

/// What a connection wants to say to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Saying {
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) len: usize,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    phase: Phase,
    /// From the guest, and not yet taken by the host's program.
    pending: VecDeque<u8>,
    /// How much that program has taken of what came, and what the guest knows of it. They wrap.
    forwarded: u32,
    told: u32,
    /// How much the guest was sent, what it has passed on, and what it has room for.
    sent: u32,
    peer_forwarded: u32,
    peer_room: u32,
    wants_credit_told: bool,
    credit_requested: bool,
    readable: bool,
    writable: bool,
    /// The host's program sends no more; it is gone altogether.
    host_ended: bool,
    host_gone: bool,
    /// The guest sends no more; the host's program was told so.
    guest_ended: bool,
    end_passed: bool,
    /// The flags of [`op::SHUTDOWN`] that the guest was told, and those that it told.
    shutdown_told: u32,
    shutdown_heard: u32,
    /// Whether it waits for its turn to speak.
    pub(super) is_queued: bool,
}

impl Connection {
    /// One that a program of the host has asked for.
    pub(super) fn to_guest(stream: UnixStream) -> Connection {
        Connection::new(stream, Phase::Calling)
    }

    /// One that the guest has asked for, with `head`.
    pub(super) fn from_guest(stream: UnixStream, head: &Head) -> Connection {
        let mut connection = Connection::new(stream, Phase::Called);
        connection.hear_credit(head);
        connection
    }

    fn new(stream: UnixStream, phase: Phase) -> Connection {
        Connection {
            stream,
            phase,
            pending: VecDeque::new(),
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_forwarded: 0,
            peer_room: 0,
            wants_credit_told: false,
            credit_requested: false,
            // What has happened already, no edge tells.
            readable: true,
            writable: true,
            host_ended: false,
            host_gone: false,
            guest_ended: false,
            end_passed: false,
            shutdown_told: 0,
            shutdown_heard: 0,
            is_queued: false,
        }
    }

    /// How much was passed on, which each packet tells the guest.
    pub(super) fn forwarded(&self) -> u32 {
        self.forwarded
    }

    /// The socket, and what it has not taken yet.
    pub(super) fn into_rest(self) -> (UnixStream, VecDeque<u8>) {
        (self.stream, self.pending)
    }

    fn hear_credit(&mut self, head: &Head) {
        (self.peer_room, self.peer_forwarded) = (head.buf_alloc, head.fwd_cnt);
        // Asked once is enough: a guest tells by itself when it has room again.
        self.credit_requested &= self.credit() == 0;
    }

    /// How much the guest has room for.
    fn credit(&self) -> usize {
        let on_the_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_room.saturating_sub(on_the_way) as usize
    }

    /// Takes a packet of the guest's. `port` is the host's, of which a caller is told.
    pub(super) fn hear(&mut self, head: &Head, data: &[u8], port: u32) -> Then {
        self.hear_credit(head);
        match (head.op, self.phase) {
            (op::RST, _) => Then::Gone,
            (op::RESPONSE, Phase::Asked) => {
                self.phase = Phase::Open;
                // A new socket has room for a line.
                let answered = self.stream.write_all(format!("OK {port}\n").as_bytes());
                if answered.is_ok() { Then::Stay } else { Then::Reset }
            }
            (op::RW, Phase::Called | Phase::Open) if !self.guest_ended => self.forward(data),
            (op::CREDIT_UPDATE, _) => Then::Stay,
            (op::CREDIT_REQUEST, _) => {
                self.wants_credit_told = true;
                Then::Stay
            }
            (op::SHUTDOWN, Phase::Called | Phase::Open) => self.shut_down(head.flags),
            _ => Then::Reset,
        }
    }

    fn forward(&mut self, data: &[u8]) -> Then {
        if self.pending.len() + data.len() > BUFFER as usize {
            return Then::Reset;
        }
        self.pending.extend(data);
        self.flush();
        Then::Stay
    }

    fn shut_down(&mut self, flags: u32) -> Then {
        if flags & NO_RECEIVE != 0 {
            self.host_ended = true; // nobody would hear what it sends
            let _ = self.stream.shutdown(Shutdown::Read); // it may be gone
        }
        if flags & NO_SEND != 0 {
            self.guest_ended = true;
            self.flush();
        }
        self.shutdown_heard |= flags & NEITHER;
        if self.shutdown_heard == NEITHER { Then::Close } else { Then::Stay }
    }

    /// Something has happened at the host's socket.
    pub(super) fn notice(&mut self, events: EventFlags) {
        self.readable |= events.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.host_gone |= events.intersects(EventFlags::HUP | EventFlags::ERR);
        self.writable |= events.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
        self.flush();
    }

    /// Passes on what the host's program takes.
    fn flush(&mut self) {
        if self.writable {
            let before = self.pending.len();
            match pass(&mut self.stream, &mut self.pending) {
                Ok(writable) => self.writable = writable,
                Err(_) => self.host_gone = true,
            }
            if self.host_gone {
                self.pending.clear();
            }
            self.forwarded = self.forwarded.wrapping_add((before - self.pending.len()) as u32);
        }
        // Once: each time would be another edge.
        if self.guest_ended && !self.end_passed && self.pending.is_empty() {
            self.end_passed = true;
            let _ = self.stream.shutdown(Shutdown::Write); // it may be gone
        }
    }

    /// The flags of [`op::SHUTDOWN`] that the guest should know.
    fn shutdown_due(&self) -> u32 {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        flag(self.host_gone, NO_RECEIVE) | flag(self.host_ended, NO_SEND)
    }

    fn may_read(&self) -> bool {
        self.phase == Phase::Open && self.readable && !self.host_ended
    }

    fn must_tell_credit(&self) -> bool {
        self.wants_credit_told || self.forwarded.wrapping_sub(self.told) >= TELL_AFTER
    }

    /// Whether there is something to say to the guest, as far as is known without reading.
    pub(super) fn has_something(&self) -> bool {
        match self.phase {
            Phase::Calling | Phase::Called => true,
            Phase::Asked => false,
            Phase::Open => {
                self.must_tell_credit()
                    || self.shutdown_due() != self.shutdown_told
                    || (self.may_read() && (self.credit() > 0 || !self.credit_requested))
            }
        }
    }

    /// What to say to the guest next; of data, as much as `room` takes.
    pub(super) fn say(&mut self, room: &mut [u8]) -> Option<Saying> {
        let said = self.choose(room);
        if said.is_some() {
            (self.told, self.wants_credit_told) = (self.forwarded, false);
        }
        said
    }

    fn choose(&mut self, room: &mut [u8]) -> Option<Saying> {
        let plain = |op| Some(Saying { op, flags: 0, len: 0 });
        match self.phase {
            Phase::Calling => {
                self.phase = Phase::Asked;
                return plain(op::REQUEST);
            }
            Phase::Called => {
                self.phase = Phase::Open;
                return plain(op::RESPONSE);
            }
            Phase::Asked => return None,
            Phase::Open => {}
        }
        if self.may_read() {
            let credit = self.credit();
            if credit == 0 && !self.credit_requested {
                self.credit_requested = true;
                return plain(op::CREDIT_REQUEST);
            }
            let length = credit.min(room.len());
            if let Some(len) = self.read(room.get_mut(..length).unwrap_or_default()) {
                self.sent = self.sent.wrapping_add(len as u32);
                return Some(Saying { op: op::RW, flags: 0, len });
            }
        }
        let flags = self.shutdown_due();
        if flags != self.shutdown_told {
            self.shutdown_told = flags;
            return Some(Saying { op: op::SHUTDOWN, flags, len: 0 });
        }
        if self.must_tell_credit() { plain(op::CREDIT_UPDATE) } else { None }
    }

    /// What the host's program has sent, if it has.
    fn read(&mut self, room: &mut [u8]) -> Option<usize> {
        if room.is_empty() {
            return None;
        }
        match retry_on_intr(|| rustix::io::read(&self.stream, &mut *room)) {
            Ok(0) => self.host_ended = true,
            Ok(length) => return Some(length),
            Err(Errno::AGAIN) => self.readable = false,
            Err(_) => (self.host_ended, self.host_gone) = (true, true),
        }
        None
    }
}

/// Passes on what the host's program takes of `pending`. Whether it took all of it, and so may take more.
pub(super) fn pass(stream: &mut UnixStream, pending: &mut VecDeque<u8>) -> io::Result<bool> {
    while !pending.is_empty() {
        match stream.write(pending.as_slices().0) {
            Ok(taken) => drop(pending.drain(..taken)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
