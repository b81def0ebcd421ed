//! Requests that the kernel acknowledges, and dumps.
//!
//! Messages are only believed when they come from the kernel: a container that may administer the network, which it shares with the agent,
//! can send to this socket too.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `struct nlmsghdr`.
const HEADER: usize = 16;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
/// Make the object if it is missing.
pub const CREATE: u16 = 0x400;
/// Replace the object if it exists.
pub const REPLACE: u16 = 0x100;
/// Fail if the object exists.
pub const EXCLUSIVE: u16 = 0x200;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// More than the kernel puts into one datagram of a dump.
const DATAGRAM: usize = 64 << 10;

/// No guest has more links, addresses or routes than fit into this; a dump that does not end has to.
const MAX_DUMP: usize = 8 << 20;

/// How often a dump is begun again because the dumped things changed meanwhile.
const MAX_DUMPS: usize = 16;

/// The kernel answers before send(2) returns; this only guards against its never doing so.
const PATIENCE: Duration = Duration::from_secs(5);

/// A message being written: a fixed header, then attributes.
#[derive(Debug, Clone)]
pub struct Message {
    kind: u16,
    body: Vec<u8>,
}

impl Message {
    /// A message of rtnetlink type `kind` that begins with the structure `fixed`.
    pub fn new(kind: u16, fixed: &[u8]) -> Message {
        let mut message = Message { kind, body: fixed.to_vec() };
        message.pad();
        message
    }

    /// Add an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.body.extend_from_slice(&length.to_ne_bytes());
        self.body.extend_from_slice(&kind.to_ne_bytes());
        self.body.extend_from_slice(value);
        self.pad();
        self
    }

    /// Add an attribute that is a number.
    pub fn number(self, kind: u16, value: u32) -> Message {
        self.attribute(kind, &value.to_ne_bytes())
    }

    fn pad(&mut self) {
        self.body.resize(self.body.len().next_multiple_of(4), 0);
    }

    /// What follows the header: attributes alone, where there was no structure.
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    fn encode(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        bytes.extend_from_slice(&((HEADER + self.body.len()) as u32).to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The attributes that follow a fixed header. What is malformed ends the list.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff; // the upper two bits are flags
    std::iter::from_fn(move || {
        let length: usize = read_u16(bytes, 0)?.into();
        let kind = read_u16(bytes, 2)? & KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The number at `offset`.
pub fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

/// The number at `offset`.
pub fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// One message of a datagram.
struct Received<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = read_u32(bytes, 0)? as usize;
        let received = Received {
            kind: read_u16(bytes, 4)?,
            flags: read_u16(bytes, 6)?,
            sequence: read_u32(bytes, 8)?,
            body: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// A socket of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket for requests and dumps.
    ///
    /// # Errors
    /// A system without netlink.
    pub fn open() -> io::Result<Socket> {
        let kind = SocketType::RAW;
        // NETLINK_ROUTE is protocol 0.
        let fd = net::socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, None)?;
        net::sockopt::set_socket_timeout(&fd, net::sockopt::Timeout::Recv, Some(PATIENCE))?;
        net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        Ok(Socket { fd, sequence: 0 })
    }

    /// Have the kernel do what `message` says.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn request(&mut self, message: &Message, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let length = self.receive(&mut buffer)?;
            for received in messages(buffer.get(..length).unwrap_or_default()) {
                if received.sequence == self.sequence && received.kind == NLMSG_ERROR {
                    return outcome(received.body);
                }
            }
        }
    }

    /// Everything that `message` asks for, each given to `parse`, which may pass it over.
    ///
    /// # Errors
    /// What the kernel says, or a dump without end.
    pub fn dump<T>(&mut self, message: &Message, parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        for _ in 0..MAX_DUMPS {
            if let Some(found) = self.dump_once(message, &parse)? {
                return Ok(found);
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// `None`: what was being dumped changed meanwhile.
    fn dump_once<T>(&mut self, message: &Message, parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<Vec<T>>> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut buffer = vec![0; DATAGRAM];
        let (mut found, mut total, mut interrupted) = (Vec::new(), 0, false);
        while total < MAX_DUMP {
            let length = self.receive(&mut buffer)?;
            total += length;
            for received in messages(buffer.get(..length).unwrap_or_default()) {
                if received.sequence != self.sequence {
                    continue;
                }
                interrupted |= received.flags & NLM_F_DUMP_INTR != 0;
                match received.kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(found)),
                    NLMSG_ERROR => outcome(received.body)?,
                    _ => found.extend(parse(received.body)),
                }
            }
        }
        Err(Errno::MSGSIZE.into())
    }

    fn send(&mut self, message: &Message, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.encode(flags, self.sequence);
        net::sendto(&self.fd, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// The next datagram from the kernel.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match net::recvfrom(self.fd.as_fd(), &mut *buffer, RecvFlags::empty()) {
                Ok((_, _, Some(sender))) if !is_kernel(&sender) => {}
                Ok((length, _, _)) => return Ok(length),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn is_kernel(sender: &net::SocketAddrAny) -> bool {
    SocketAddrNetlink::try_from(sender.clone()).is_ok_and(|address| address.pid() == 0)
}

/// What an NLMSG_ERROR says; 0 is the acknowledgement.
fn outcome(body: &[u8]) -> io::Result<()> {
    match read_u32(body, 0).map(|errno| errno as i32) {
        Some(0) => Ok(()),
        Some(negative) => Err(io::Error::from_raw_os_error(negative.wrapping_neg())),
        None => Err(Errno::BADMSG.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let message = Message::new(16, &[1, 2, 3]).attribute(3, b"eth0\0").number(4, 1500);
        let read: Vec<_> = attributes(&message.body[4..]).collect();
        assert_eq!(read, [(3, &b"eth0\0"[..]), (4, &1500u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn an_encoded_message_reads_back() {
        let bytes = Message::new(18, &[7; 16]).encode(0x301, 9);
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence, read[0].body), (18, 0x301, 9, &[7; 16][..]));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_readers_fail(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            assert!(attributes(&bytes).count() <= 50);
            assert!(messages(&bytes).count() <= 13);
            let _ = outcome(&bytes);
        }
    }
}
