//! The virtio side: packets in the guest's queues (virtio 1.2, section 5.10).

use std::fmt;
use std::io::{self, Read as _, Write as _};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VringMutex, VringT as _};
use virtio_queue::{DescriptorChain, QueueT as _};
use vm_memory::{GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::muxer::Muxer;
use super::packet::{HEAD, Head};

/// What the guest is sent, what it sends, and events, of which there are none.
const QUEUES: usize = 3;
const QUEUE_SIZE: usize = 1024; // as QEMU makes them

/// The largest piece of data in a packet: the guest's kernel sends no more.
const PIECE: usize = 64 << 10;

/// How often a queue is looked at that seems to have something and has not: what came meanwhile, no other event tells. A queue that makes no sense
/// is not looked at for ever.
const TRIES: usize = 2;

/// The host's sockets, among the events that the library tells: its own come before.
pub(super) const SOCKETS: u64 = QUEUES as u64 + 1;

/// Features (virtio 1.2, section 6; vhost-user's own).
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Vring = VringMutex<Memory>;
type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// The device, as the library drives it.
pub(super) struct Device {
    muxer: Muxer,
    guest: u64,
    memory: Memory,
    piece: Vec<u8>,
}

impl Device {
    pub(super) fn new(muxer: Muxer, guest: u64, memory: Memory) -> Device {
        Device { muxer, guest, memory, piece: vec![0; PIECE] }
    }

    /// Goes on until neither side has anything that the other takes.
    fn work(&mut self, to_guest: &Vring, from_guest: &Vring) -> Option<()> {
        let mut in_vain = 0;
        while in_vain < TRIES {
            self.muxer.poll();
            from_guest.disable_notification().ok()?;
            let heard = self.hear(from_guest)?;
            let said = self.say(to_guest)?;
            let has_more = from_guest.enable_notification().ok()?;
            let takes_more = to_guest.enable_notification().ok()? && self.muxer.has_something();
            if !(has_more || takes_more) {
                break;
            }
            in_vain = if heard || said { 0 } else { in_vain + 1 };
        }
        Some(())
    }

    /// Takes what the guest has sent. Whether that was anything.
    fn hear(&mut self, vring: &Vring) -> Option<bool> {
        let mut heard = false;
        while !self.muxer.is_behind() {
            let chain = vring.get_mut().get_queue_mut().pop_descriptor_chain(self.memory.memory());
            let Some(chain) = chain else { break };
            let index = chain.head_index();
            // What can't be read is dropped.
            if let Some(head) = self.read(chain) {
                let data = self.piece.get(..head.len as usize).unwrap_or_default();
                self.muxer.hear(&head, data);
            }
            vring.add_used(index, 0).ok()?;
            heard = true;
        }
        if heard { notify(vring) } else { Some(false) }
    }

    /// A packet's head; its data is then in `piece`.
    fn read(&mut self, chain: Chain) -> Option<Head> {
        let memory = self.memory.memory();
        let mut reader = chain.reader(&memory).ok()?;
        let mut bytes = [0; HEAD];
        reader.read_exact(&mut bytes).ok()?;
        let head = Head::from_bytes(&bytes);
        reader.read_exact(self.piece.get_mut(..head.len as usize)?).ok()?;
        Some(head)
    }

    /// Says what there is to say to the guest, while it has room for it. Whether that was anything.
    fn say(&mut self, vring: &Vring) -> Option<bool> {
        let mut said = false;
        while self.muxer.has_something() {
            let chain = vring.get_mut().get_queue_mut().pop_descriptor_chain(self.memory.memory());
            let Some(chain) = chain else { break };
            let index = chain.head_index();
            let Some(written) = self.write(chain) else {
                let mut vring = vring.get_mut();
                let queue = vring.get_queue_mut();
                queue.set_next_avail(queue.next_avail().wrapping_sub(1)); // it stays the guest's
                break;
            };
            vring.add_used(index, written).ok()?;
            said = true;
        }
        if said { notify(vring) } else { Some(false) }
    }

    /// Writes the next packet, if there is one. Where nothing fits behind a head, a buffer is given back empty.
    fn write(&mut self, chain: Chain) -> Option<u32> {
        let memory = self.memory.memory();
        let Ok(mut writer) = chain.writer(&memory) else { return Some(0) };
        let Some(room @ 1..) = writer.available_bytes().checked_sub(HEAD) else { return Some(0) };
        let piece = self.piece.get_mut(..room.min(PIECE)).unwrap_or_default();
        let head = self.muxer.say(piece)?;
        let data = piece.get(..head.len as usize).unwrap_or_default();
        let written = writer.write_all(&head.to_bytes()).and_then(|()| writer.write_all(data));
        Some(if written.is_ok() { writer.bytes_written() as u32 } else { 0 })
    }
}

fn notify(vring: &Vring) -> Option<bool> {
    if vring.needs_notification().ok()? {
        vring.signal_used_queue().ok()?;
    }
    Some(true)
}

impl VhostUserBackendMut for Device {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        VERSION_1 | EVENT_IDX | PROTOCOL_FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&mut self, _: bool) {} // the queues know

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.guest.to_le_bytes();
        let wanted = offset as usize..offset.saturating_add(size) as usize;
        config.get(wanted).unwrap_or_default().to_vec()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC).ok()
    }

    fn handle_event(&mut self, _: u16, _: EventSet, vrings: &[Vring], _: usize) -> io::Result<()> {
        if let [to_guest, from_guest, ..] = vrings {
            // A queue that is broken is the guest's loss; the library would end the thread for an error.
            let _ = self.work(to_guest, from_guest);
        }
        Ok(())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("muxer", &self.muxer).finish_non_exhaustive()
    }
}
