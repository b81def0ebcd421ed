//! All connections of a guest, and the sockets of the host that they come from and go to (hybrid vsock).
//!
//! A program of the host connects to the VM's socket and says `CONNECT port`; it is answered `OK port` once the guest has accepted. When the guest
//! calls the host's port `N`, the socket beside the VM's that ends in `_N` is called.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with};

use nacre_protocol::address::CID_HOST;

use super::connection::{BUFFER, Connection, Then, pass};
use super::packet::{Head, STREAM, op};

/// The most connections; who asks for more is refused.
const CONNECTIONS: usize = 512;

/// The most refusals that wait for the guest to take them.
const REFUSALS: usize = 64;

/// The longest line of a caller: `CONNECT 4294967295\n`.
const LINE: usize = 32;

/// The first port that calls of the host seem to come from, above those that services have.
const FIRST_PORT: u32 = 1 << 30;

/// The most events that are noticed at once.
const EVENTS: usize = 64;

/// The token of the socket that takes calls.
const CALLS: u64 = u64::MAX;

/// Edges: what they tell is remembered, so that nothing has to be asked twice.
const WATCHED: EventFlags = EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

/// A connection's two ports. As an epoll's token it is one number; a guest's port of 0 stands for a socket that has no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    host: u32,
    guest: u32,
}

impl Key {
    fn token(self) -> EventData {
        EventData::new_u64(u64::from(self.host) << 32 | u64::from(self.guest))
    }

    fn of(token: u64) -> Key {
        Key { host: (token >> 32) as u32, guest: token as u32 }
    }
}

/// A socket without a connection.
#[derive(Debug)]
enum Loose {
    /// Of a program that has not said yet what it calls.
    Caller(UnixStream),
    /// Of a program that has not taken yet what the guest sent before it closed.
    Rest(UnixStream, VecDeque<u8>),
}

/// The guest's connections.
#[derive(Debug)]
pub(super) struct Muxer {
    guest: u64,
    path: PathBuf,
    calls: UnixListener,
    epoll: OwnedFd,
    connections: HashMap<Key, Connection>,
    loose: HashMap<u32, Loose>,
    /// Those that have something to say to the guest, in turn.
    queue: VecDeque<Key>,
    /// What the guest is told of connections that there are not.
    refusals: VecDeque<Head>,
    next_port: u32,
}

impl Muxer {
    /// For the guest with this CID, whose socket is `path`.
    ///
    /// # Errors
    /// A socket that can't be made.
    pub(super) fn new(path: &Path, guest: u64) -> io::Result<Muxer> {
        let calls = UnixListener::bind(path)?;
        calls.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &calls, EventData::new_u64(CALLS), EventFlags::IN | EventFlags::ET)?;
        Ok(Muxer {
            guest,
            path: path.to_path_buf(),
            calls,
            epoll,
            connections: HashMap::new(),
            loose: HashMap::new(),
            queue: VecDeque::new(),
            refusals: VecDeque::new(),
            next_port: FIRST_PORT,
        })
    }

    /// Becomes readable when [`Muxer::poll`] has something to do.
    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Notices some of what has happened at the host's sockets. Whether that was anything.
    pub(super) fn poll(&mut self) -> bool {
        let mut events = Vec::with_capacity(EVENTS);
        // Interrupted or not: what is not noticed now is told again.
        let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&Timespec::default()));
        let happened = !events.is_empty();
        for event in events {
            match event.data.u64() {
                CALLS => self.accept(),
                token => self.happened(Key::of(token), event.flags),
            }
        }
        happened
    }

    fn happened(&mut self, key: Key, events: EventFlags) {
        if key.guest == 0 {
            return self.loose(key.host, events);
        }
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.notice(events);
            self.enqueue(key);
        }
    }

    /// Takes the calls that wait. Where there are too many, those that call are hung up on.
    fn accept(&mut self) {
        while let Ok((stream, _)) = self.calls.accept() {
            let port = self.free_port();
            let watched =
                || stream.set_nonblocking(true).is_ok() && self.watch(&stream, Key { host: port, guest: 0 }).is_ok();
            if !self.is_full() && watched() {
                self.loose.insert(port, Loose::Caller(stream));
            }
        }
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.loose.len() >= CONNECTIONS
    }

    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).filter(|port| *port < u32::MAX).unwrap_or(FIRST_PORT);
            // There are far fewer of them than ports.
            if !self.loose.contains_key(&port) && self.connections.keys().all(|key| key.host != port) {
                return port;
            }
        }
    }

    fn watch(&self, stream: &UnixStream, key: Key) -> Result<(), Errno> {
        epoll::add(&self.epoll, stream, key.token(), WATCHED)
    }

    fn rewatch(&self, stream: &UnixStream, key: Key) -> bool {
        epoll::modify(&self.epoll, stream, key.token(), WATCHED).is_ok()
    }

    /// Something has happened at a socket without a connection.
    fn loose(&mut self, port: u32, events: EventFlags) {
        match self.loose.remove(&port) {
            Some(Loose::Caller(stream)) => self.hear_caller(port, stream, events),
            Some(Loose::Rest(stream, rest)) => self.pass(port, stream, rest),
            None => {}
        }
    }

    /// One that makes no sense, or has gone before it said all, is hung up on.
    fn hear_caller(&mut self, port: u32, stream: UnixStream, events: EventFlags) {
        match called(&stream) {
            Ok(Some(guest)) => {
                let key = Key { host: port, guest };
                if guest != 0 && self.rewatch(&stream, key) {
                    self.connections.insert(key, Connection::to_guest(stream));
                    self.enqueue(key);
                }
            }
            Ok(None) if !events.contains(EventFlags::RDHUP) => drop(self.loose.insert(port, Loose::Caller(stream))),
            Ok(None) | Err(_) => {}
        }
    }

    /// Passes on what the program takes, and keeps the rest for later.
    fn pass(&mut self, port: u32, mut stream: UnixStream, mut rest: VecDeque<u8>) {
        if matches!(pass(&mut stream, &mut rest), Ok(false)) {
            self.loose.insert(port, Loose::Rest(stream, rest));
        }
    }

    /// Takes a packet from the guest.
    pub(super) fn hear(&mut self, head: &Head, data: &[u8]) {
        let key = Key { host: head.dst_port, guest: head.src_port };
        let is_ours = head.src_cid == self.guest && head.dst_cid == u64::from(CID_HOST) && head.kind == STREAM;
        if !is_ours || key.guest == 0 {
            return self.refuse(head);
        }
        match self.connections.get_mut(&key) {
            Some(connection) => {
                let then = connection.hear(head, data, key.host);
                self.then(then, key, head);
            }
            None if head.op == op::REQUEST => self.call(key, head),
            None => self.refuse(head),
        }
    }

    fn then(&mut self, then: Then, key: Key, head: &Head) {
        match then {
            Then::Stay => return self.enqueue(key),
            Then::Gone => {}
            Then::Reset => self.refuse(head),
            Then::Close => {
                self.refuse(head);
                return self.close(key);
            }
        }
        self.forget(key);
    }

    /// A guest that calls and hangs up without end must not fill the queue either.
    fn forget(&mut self, key: Key) -> Option<Connection> {
        self.queue.retain(|queued| *queued != key);
        self.connections.remove(&key)
    }

    /// The guest calls the host.
    fn call(&mut self, key: Key, head: &Head) {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", key.host));
        let called = if self.is_full() { Err(Errno::USERS) } else { dial(Path::new(&path)) };
        match called.ok().filter(|stream| self.watch(stream, key).is_ok()) {
            Some(stream) => {
                self.connections.insert(key, Connection::from_guest(stream, head));
                self.enqueue(key);
            }
            None => self.refuse(head),
        }
    }

    /// The guest has closed a connection: what it has sent is kept until it is taken.
    fn close(&mut self, key: Key) {
        let Some((stream, rest)) = self.forget(key).map(Connection::into_rest) else { return };
        let port = self.free_port();
        if self.rewatch(&stream, Key { host: port, guest: 0 }) {
            self.pass(port, stream, rest);
        }
    }

    /// Tells the guest that there is no such connection (any more). To a refusal of its own there is no answer.
    fn refuse(&mut self, head: &Head) {
        if head.op != op::RST && self.refusals.len() < REFUSALS {
            self.refusals.push_back(Head {
                src_cid: head.dst_cid,
                dst_cid: head.src_cid,
                src_port: head.dst_port,
                dst_port: head.src_port,
                kind: head.kind,
                op: op::RST,
                ..Head::default()
            });
        }
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !connection.is_queued
            && connection.has_something()
        {
            connection.is_queued = true;
            self.queue.push_back(key);
        }
    }

    /// Whether the guest should take what it is told before it is heard again.
    pub(super) fn is_behind(&self) -> bool {
        self.refusals.len() >= REFUSALS
    }

    /// Whether there may be something to say to the guest.
    pub(super) fn has_something(&self) -> bool {
        !self.refusals.is_empty() || !self.queue.is_empty()
    }

    /// The next packet for the guest, whose data is at the beginning of `room`.
    pub(super) fn say(&mut self, room: &mut [u8]) -> Option<Head> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        for _ in 0..self.queue.len() {
            let key = self.queue.pop_front()?;
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.is_queued = false;
            let said = connection.say(room);
            let forwarded = connection.forwarded();
            self.enqueue(key); // behind the others
            if let Some(said) = said {
                return Some(Head {
                    src_cid: CID_HOST.into(),
                    dst_cid: self.guest,
                    src_port: key.host,
                    dst_port: key.guest,
                    len: said.len as u32,
                    kind: STREAM,
                    op: said.op,
                    flags: said.flags,
                    buf_alloc: BUFFER,
                    fwd_cnt: forwarded,
                });
            }
        }
        None
    }
}

/// Connects without waiting: a service whose calls are too many at once is as good as none.
fn dial(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// The port that a caller asks for, when it has said so.
fn called(stream: &UnixStream) -> io::Result<Option<u32>> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let mut line = [0; LINE];
    let seen = match recv(stream, &mut line, RecvFlags::PEEK) {
        Ok((_, 0)) => return Err(wrong()),
        Ok((_, seen)) => line.get(..seen).unwrap_or_default(),
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if seen.len() < LINE { Ok(None) } else { Err(wrong()) };
    };
    let text = std::str::from_utf8(seen.get(..end).unwrap_or_default()).map_err(|_| wrong())?;
    let port = text.trim_end().strip_prefix("CONNECT ").and_then(|port| port.parse().ok()).ok_or_else(wrong)?;
    // What comes after it is the guest's.
    let mut taken = [0; LINE];
    recv(stream, taken.get_mut(..=end).unwrap_or_default(), RecvFlags::empty())?;
    Ok(Some(port))
}

#[cfg(test)]
#[path = "muxer_tests.rs"]
mod tests;
