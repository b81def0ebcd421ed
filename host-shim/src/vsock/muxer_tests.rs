use std::io::{Read as _, Write as _};

use proptest::prelude::*;

use super::super::packet::{NEITHER, NO_RECEIVE, NO_SEND};
use super::*;

/// The ports of the test's connections.
const HOST: u32 = 9;
const GUEST: u32 = 77;

/// A guest's kernel with one connection, and the host's sockets.
struct World {
    dir: tempfile::TempDir,
    muxer: Muxer,
    service: UnixListener,
    /// What the guest has room for, what it has passed on and sent; and what it was told of the host.
    room: u32,
    forwarded: u32,
    sent: u32,
    heard: Head,
    received: Vec<u8>,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm");
        let service = UnixListener::bind(dir.path().join(format!("vm_{HOST}"))).unwrap();
        let muxer = Muxer::new(&path, 3).unwrap();
        World { dir, muxer, service, room: 8192, forwarded: 0, sent: 0, heard: Head::default(), received: Vec::new() }
    }

    fn head(&self, op: u16) -> Head {
        let (src_cid, dst_cid, src_port, dst_port, kind) = (3, 2, GUEST, HOST, STREAM);
        let (buf_alloc, fwd_cnt) = (self.room, self.forwarded);
        Head { src_cid, dst_cid, src_port, dst_port, kind, op, buf_alloc, fwd_cnt, ..Head::default() }
    }

    fn hear(&mut self, op: u16) {
        let head = self.head(op);
        self.muxer.hear(&head, &[]);
    }

    /// What the guest hears until nothing is left to say.
    fn listen(&mut self) -> Vec<u16> {
        while self.muxer.poll() {}
        let (mut all, mut room) = (Vec::new(), [0; 3000]);
        while let Some(head) = self.muxer.say(&mut room) {
            let on_the_way = self.received.len() as u32 - self.forwarded;
            assert!(head.len <= self.room - on_the_way, "more than the guest has room for");
            self.received.extend(&room[..head.len as usize]);
            self.heard = head;
            all.push(head.op);
        }
        all
    }

    /// The guest calls; the host's end of it.
    fn call(&mut self) -> UnixStream {
        self.hear(op::REQUEST);
        assert_eq!(self.listen().first(), Some(&op::RESPONSE));
        let (stream, _) = self.service.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// The guest sends what of `bytes` it may.
    fn send(&mut self, bytes: &[u8]) -> usize {
        let credit = self.heard.buf_alloc - self.sent.wrapping_sub(self.heard.fwd_cnt);
        let bytes = &bytes[..bytes.len().min(credit as usize)];
        if !bytes.is_empty() {
            let head = Head { len: bytes.len() as u32, ..self.head(op::RW) };
            self.muxer.hear(&head, bytes);
            self.sent += bytes.len() as u32;
        }
        bytes.len()
    }
}

fn read_all(mut stream: &UnixStream, into: &mut Vec<u8>, most: usize) -> usize {
    let mut buffer = vec![0; most];
    let n = stream.read(&mut buffer).unwrap_or(0);
    into.extend(&buffer[..n]);
    n
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever each side does and however slowly, all bytes come, in their order, and nobody is sent more than there is room for.
    #[test]
    fn what_is_sent_arrives(steps in prop::collection::vec((0..4u8, 1..200_000usize), 1..60)) {
        let mut world = World::new();
        let stream = world.call();
        let to_host: Vec<u8> = (0..1_500_000u32).map(|n| (n % 251) as u8).collect();
        let to_guest: Vec<u8> = (0..300_000u32).map(|n| (n % 241) as u8).collect();
        let (mut from_guest, mut put, mut got) = (0, 0, Vec::new());
        // At last both do what is left, by turns.
        let rest = (0..).flat_map(|_| [(0, 65_536), (1, 65_536), (2, 65_536), (3, 8192)]).take(1000);
        for (what, size) in steps.into_iter().chain(rest) {
            match what {
                0 => from_guest += world.send(&to_host[from_guest..to_host.len().min(from_guest + size.min(65_536))]),
                1 => drop(read_all(&stream, &mut got, size)),
                2 => put += (&stream).write(&to_guest[put..to_guest.len().min(put + size)]).unwrap_or(0),
                _ => {
                    world.forwarded += (world.received.len() as u32 - world.forwarded).min(size as u32);
                    world.hear(op::CREDIT_UPDATE);
                }
            }
            let told = world.listen();
            prop_assert!(!told.contains(&op::RST) && !told.contains(&op::SHUTDOWN));
            prop_assert!(world.received.len() as u32 - world.forwarded <= world.room);
        }
        prop_assert!(got == to_host && world.received == to_guest, "{} {}", got.len(), world.received.len());
    }

    /// Nonsense of the guest's ends nothing but its own connections.
    #[test]
    fn a_guest_may_say_anything(packets in prop::collection::vec((any::<[u8; 44]>(), 0..9u16, any::<bool>(), 0..3000usize), 0..200)) {
        let mut world = World::new();
        for (bytes, op, is_known, length) in packets {
            let mut head = Head { op, kind: STREAM, src_cid: 3, dst_cid: 2, ..Head::from_bytes(&bytes) };
            if is_known {
                (head.src_port, head.dst_port) = (GUEST, HOST);
            }
            world.muxer.hear(&Head { len: length as u32, ..head }, &vec![0; length]);
            world.room = u32::MAX;
            world.listen();
            (world.received, world.forwarded) = (Vec::new(), 0);
        }
        prop_assert!(world.muxer.connections.len() <= CONNECTIONS && world.muxer.refusals.len() <= REFUSALS);
        // Another connection is as good as ever.
        let head = Head { src_port: 5000, dst_port: HOST, buf_alloc: 100, ..world.head(op::REQUEST) };
        world.muxer.hear(&head, &[]);
        prop_assert!(world.listen().contains(&op::RESPONSE));
    }
}

#[test]
fn one_stream_that_waits_does_not_hold_up_another() {
    let mut world = World::new();
    let stream = world.call();
    // A second one, whose guest has no room and whose host has something to say.
    let other = Head { src_port: GUEST + 1, buf_alloc: 0, ..world.head(op::REQUEST) };
    world.muxer.hear(&other, &[]);
    assert_eq!(world.listen(), [op::RESPONSE, op::CREDIT_REQUEST]);
    let (mut silent, _) = world.service.accept().unwrap();
    silent.write_all(b"unheard").unwrap();
    let mut got = Vec::new();
    for _ in 0..64 {
        assert_eq!(world.send(&[7; 65_536]), 65_536);
        while read_all(&stream, &mut got, 65_536) > 0 {
            world.listen();
        }
    }
    assert_eq!(got.len(), 64 << 16);
}

#[test]
fn a_guest_whose_reader_is_slow_is_asked_for_room_once() {
    let mut world = World::new();
    let mut stream = world.call();
    stream.write_all(&[1; 20_000]).unwrap();
    assert_eq!(world.listen().last(), Some(&op::CREDIT_REQUEST));
    for _ in 0..3 {
        world.hear(op::CREDIT_UPDATE); // it still has none
        assert_eq!(world.listen(), [0; 0]);
    }
    world.forwarded += 8192;
    world.hear(op::CREDIT_UPDATE);
    assert_eq!(world.listen().last(), Some(&op::CREDIT_REQUEST));
    assert_eq!(world.received.len(), 2 * 8192);
    // A packet without room for data says nothing of them.
    world.forwarded += 8192;
    world.hear(op::CREDIT_UPDATE);
    assert_eq!(world.muxer.say(&mut []), None);
}

#[test]
fn a_guest_that_only_writes_hears_that_nobody_reads() {
    let mut world = World::new();
    world.room = 0;
    let stream = world.call();
    world.listen();
    (&stream).write_all(b"unheard").unwrap();
    drop(stream);
    assert_eq!(world.listen(), [op::SHUTDOWN]);
    assert_eq!(world.heard.flags, NO_RECEIVE);
}

#[test]
fn a_guest_may_close_one_half_after_the_other() {
    let mut world = World::new();
    let _stream = world.call();
    for (flags, told) in [(NO_SEND, None), (NO_RECEIVE, Some(op::RST))] {
        let end = Head { flags, ..world.head(op::SHUTDOWN) };
        world.muxer.hear(&end, &[]);
        assert_eq!(world.listen().into_iter().find(|op| *op == op::RST), told);
    }
    assert!(world.muxer.connections.is_empty());
}

#[test]
fn a_call_to_nobody_is_refused_and_so_is_what_belongs_to_no_connection() {
    let mut world = World::new();
    let nobody = Head { dst_port: HOST + 1, ..world.head(op::REQUEST) };
    for head in [nobody, world.head(op::RW), Head { dst_cid: 9, ..world.head(op::REQUEST) }] {
        world.muxer.hear(&head, &[]);
        assert_eq!(world.listen(), [op::RST]);
        assert_eq!((world.heard.src_cid, world.heard.dst_port), (head.dst_cid, GUEST));
    }
    world.hear(op::RST);
    assert_eq!(world.listen(), [0; 0]);
}

#[test]
fn a_guest_that_calls_and_hangs_up_without_end_leaves_nothing() {
    let mut world = World::new();
    for _ in 0..1000 {
        world.hear(op::REQUEST);
        world.hear(op::RST);
        let _ = world.service.accept().unwrap();
    }
    assert!(!world.muxer.has_something() && world.muxer.connections.is_empty());
}

#[test]
fn who_sends_more_than_there_is_room_for_is_cut_off() {
    let mut world = World::new();
    let _stream = world.call();
    let head = Head { len: BUFFER + 1, ..world.head(op::RW) };
    world.muxer.hear(&head, &vec![0; BUFFER as usize + 1]);
    assert_eq!(world.listen(), [op::RST]);
    assert!(world.muxer.connections.is_empty());
}

#[test]
fn the_host_calls_by_a_line_and_reads_nothing_that_is_not_its_answer() {
    let mut world = World::new();
    let call = |line: &[u8]| {
        let mut stream = UnixStream::connect(world.dir.path().join("vm")).unwrap();
        stream.write_all(line).unwrap();
        stream
    };
    let mut stream = call(b"CONN");
    drop(call(b"CONN"));
    let mut wrong = [&b"CONNECT 5000000000\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[b'C'; 100]].map(call);
    assert_eq!(world.listen(), [0; 0]);
    assert_eq!(world.muxer.loose.len(), 1);
    for wrong in &mut wrong {
        assert!(!matches!(wrong.read(&mut [0]), Ok(1..)));
    }
    stream.write_all(b"ECT 77\nat once").unwrap();
    assert_eq!(world.listen(), [op::REQUEST]);
    let port = world.heard.src_port;
    let answer = Head { dst_port: port, ..world.head(op::RESPONSE) };
    world.muxer.hear(&answer, &[]);
    assert_eq!(world.listen(), [op::RW]);
    assert_eq!(world.received, b"at once");
    let mut line = vec![0; 64];
    let length = stream.read(&mut line).unwrap();
    assert_eq!(String::from_utf8_lossy(&line[..length]), format!("OK {port}\n"));

    // A guest where nobody listens.
    let mut refused = UnixStream::connect(world.dir.path().join("vm")).unwrap();
    refused.write_all(b"CONNECT 78\n").unwrap();
    assert_eq!(world.listen(), [op::REQUEST]);
    let head = Head { src_port: 78, dst_port: world.heard.src_port, ..world.head(op::RST) };
    world.muxer.hear(&head, &[]);
    assert_eq!(refused.read(&mut line).unwrap(), 0);
}

#[test]
fn either_side_may_end_its_half_and_the_other_goes_on() {
    let mut world = World::new();
    let mut stream = world.call();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(world.listen(), [op::SHUTDOWN]);
    assert_eq!(world.heard.flags, NO_SEND);
    world.send(b"last");
    let end = Head { flags: NO_SEND, ..world.head(op::SHUTDOWN) };
    world.muxer.hear(&end, &[]);
    let mut got = Vec::new();
    stream.set_nonblocking(false).unwrap();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last");
    drop(stream);
    assert_eq!(world.listen(), [op::SHUTDOWN]);
    assert_eq!(world.heard.flags, NEITHER);
    world.hear(op::RST);
    assert!(world.muxer.connections.is_empty());
}

#[test]
fn what_a_guest_sent_before_it_closed_is_still_taken() {
    let mut world = World::new();
    let stream = world.call();
    let mut sent = 0;
    while sent < 300_000 {
        sent += world.send(&[5; 50_000]);
        world.listen();
    }
    let end = Head { flags: NEITHER, ..world.head(op::SHUTDOWN) };
    world.muxer.hear(&end, &[]);
    assert_eq!(world.listen(), [op::RST]);
    assert!(world.muxer.connections.is_empty() && world.muxer.loose.len() == 1);
    let mut got = Vec::new();
    while read_all(&stream, &mut got, 65_536) > 0 {
        world.listen();
    }
    assert_eq!(got.len(), sent);
    assert!(world.muxer.loose.is_empty());
}
