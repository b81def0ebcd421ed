//! Traffic control (tc(8)) as far as two interfaces are joined by it: whatever comes in on one goes out on the other.

use std::io;

use rustix::io::Errno;

use crate::socket::{self, Message, Socket, read_u32};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// Where what comes in is queued, and the queue's own handle.
const INGRESS: u32 = 0xffff_fff1;
const HANDLE: u32 = 0xffff_0000;

const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
/// `struct tc_u32_sel` with one key that fits everything: flags (this filter decides), shift, number of keys, then zeros.
const ANYTHING: [u8; 32] = {
    let mut selector = [0; 32];
    selector[0] = 1;
    selector[2] = 1;
    selector
};

const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;

/// One filter, of the first priority, for all protocols (`ETH_P_ALL`, in the network's order).
const PRIORITY_AND_PROTOCOL: u32 = (1 << 16) | 0x0003_u16.to_be() as u32;

/// `struct tcmsg`.
fn message(kind: u16, link: u32, handle: u32, parent: u32, info: u32) -> Message {
    let mut fixed = vec![0; 4];
    for number in [link, handle, parent, info] {
        fixed.extend_from_slice(&number.to_ne_bytes());
    }
    Message::new(kind, &fixed)
}

/// Queues what comes in on `link`, so that it can be filtered.
///
/// # Errors
/// What the kernel says; EEXIST where it is queued already.
pub fn add_ingress(socket: &mut Socket, link: u32) -> io::Result<()> {
    let message = message(RTM_NEWQDISC, link, HANDLE, INGRESS, 0).attribute(TCA_KIND, b"ingress\0");
    socket.request(&message, socket::CREATE | socket::EXCLUSIVE)
}

/// Lets go of what [`add_ingress`] made, and of its filters. What is not there is no error.
///
/// # Errors
/// What the kernel says.
pub fn remove_ingress(socket: &mut Socket, link: u32) -> io::Result<()> {
    let message = message(RTM_DELQDISC, link, HANDLE, INGRESS, 0).attribute(TCA_KIND, b"ingress\0");
    match socket.request(&message, 0) {
        Err(error)
            if [Errno::INVAL, Errno::NOENT].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// The links whose ingress is queued.
///
/// # Errors
/// What the kernel says.
pub fn ingresses(socket: &mut Socket) -> io::Result<Vec<u32>> {
    let parse = |body: &[u8]| (read_u32(body, 12)? == INGRESS).then(|| read_u32(body, 4)).flatten();
    socket.dump(&message(RTM_GETQDISC, 0, 0, 0, 0), parse)
}

/// Sends what comes in on `link` out on `to`.
///
/// # Errors
/// What the kernel says.
pub fn redirect(socket: &mut Socket, link: u32, to: u32) -> io::Result<()> {
    // struct tc_mirred: index, capabilities, action, references, bindings, what to do, and with which link.
    let parameters: Vec<u8> =
        [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to].into_iter().flat_map(u32::to_ne_bytes).collect();
    let options = nested(&[(TCA_MIRRED_PARMS, &parameters)]);
    let action = nested(&[(TCA_ACT_KIND, b"mirred\0"), (TCA_ACT_OPTIONS, &options)]);
    let actions = nested(&[(1, &action)]);
    let filter = nested(&[(TCA_U32_SEL, &ANYTHING), (TCA_U32_ACT, &actions)]);
    let message = message(RTM_NEWTFILTER, link, 0, HANDLE, PRIORITY_AND_PROTOCOL)
        .attribute(TCA_KIND, b"u32\0")
        .attribute(TCA_OPTIONS, &filter);
    socket.request(&message, socket::CREATE | socket::EXCLUSIVE)
}

/// Attributes, to be the value of another.
fn nested(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let all = attributes.iter().fold(Message::new(0, &[]), |message, (kind, value)| message.attribute(*kind, value));
    all.into_body()
}
