//! The head of a packet (virtio 1.2, section 5.10.6), by which the guest's kernel and the host's side of a vsock speak.

/// The bytes of a head.
pub(super) const HEAD: usize = 44;

/// VIRTIO_VSOCK_TYPE_STREAM: the only kind that there is here.
pub(super) const STREAM: u16 = 1;

/// What a packet is about (VIRTIO_VSOCK_OP_…).
pub(super) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: who sends it receives no more, sends no more.
pub(super) const NO_RECEIVE: u32 = 1;
pub(super) const NO_SEND: u32 = 2;
pub(super) const NEITHER: u32 = NO_RECEIVE | NO_SEND;

/// A packet's head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data that follow.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// How much the sender has room for, in bytes that were sent to it and that it has not passed on.
    pub(super) buf_alloc: u32,
    /// How much it has passed on so far; it wraps.
    pub(super) fwd_cnt: u32,
}

impl Head {
    pub(super) fn from_bytes(bytes: &[u8; HEAD]) -> Head {
        let mut rest = &bytes[..];
        Head {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        [
            &self.src_cid.to_le_bytes()[..],
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ]
        .concat()
    }
}

/// The next bytes; there are as many as all fields have.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, others) = rest.split_first_chunk().map_or(([0; N], &[][..]), |(first, others)| (*first, others));
    *rest = others;
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_laid_out_as_the_standard_says() {
        let bytes: [u8; HEAD] = std::array::from_fn(|at| at as u8);
        let head = Head::from_bytes(&bytes);
        assert_eq!((head.dst_cid, head.len), (0x0f0e_0d0c_0b0a_0908, 0x1b1a_1918));
        assert_eq!((head.kind, head.op, head.fwd_cnt), (0x1d1c, 0x1f1e, 0x2b2a_2928));
        assert_eq!(head.to_bytes(), bytes);
    }
}
