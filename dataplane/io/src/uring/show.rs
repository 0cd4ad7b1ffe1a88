//! What arrived, shown to the handler.

use std::mem;
use std::net::SocketAddr;

use super::{CONTROL_LEN, Memory, NAME_LEN, OUT_LEN, PREFIX, Received, UringIo};
use crate::address::RawAddress;
use crate::outbox::datagram_capacity;
use crate::train::Arrived;
use crate::udp::control;
use crate::{Handler, MAX_PACKETS, MAX_SEGMENTS, Now, SuperPacket, reads};

/// No sealed packet is shorter than this many bytes: an IP header, padding, and what surrounds it.
const LEAST_SEALED: usize = 64;

impl UringIo {
    /// Shows the handler what arrived, as far as there is room for what will come of it.
    pub(super) fn show(&mut self, handler: &mut impl Handler, now: Now) {
        if mem::take(&mut self.woken) {
            self.counters.wakes += 1;
            self.parts.waker.seen();
            handler.wake(&mut self.memory.outbox, now);
        }
        // The network first: acknowledgements it carries let TUN's senders go on.
        while self.memory.writes.room() >= MAX_SEGMENTS {
            let Some(received) = self.datagrams.pop_front() else { break };
            self.show_datagrams(received, handler, now);
        }
        while self.show_packets(handler, now) {}
    }

    fn show_datagrams(&mut self, received: Received, handler: &mut impl Handler, now: Now) {
        let Received { mut buffer, len } = received;
        let number = buffer.number();
        let Memory { datagrams, outbox, writes, delivering, .. } = &mut *self.memory;
        let (prefix, mut rest) = datagrams.bytes_mut(&mut buffer, 0..PREFIX + len).split_at_mut(PREFIX);
        let Some((from, size)) = describe(prefix) else {
            self.counters.datagrams_unfit += 1;
            datagrams.give_back(buffer);
            return;
        };
        let stride = size.map_or(len, usize::from).max(1);
        if stride > datagram_capacity(self.parts.mtu) {
            self.counters.datagrams_unfit += len.div_ceil(stride) as u64;
            datagrams.give_back(buffer);
            return;
        }
        self.counters.trains_received += u64::from(len > stride);
        let mut start = PREFIX;
        let mut keeps = false;
        loop {
            // More at once are of no kernel's making, so far.
            let (train, behind) = rest.split_at_mut(rest.len().min(stride.saturating_mul(MAX_SEGMENTS)));
            if writes.room() < MAX_SEGMENTS {
                self.counters.datagrams_unfit += (train.len() + behind.len()).div_ceil(stride) as u64;
                break;
            }
            self.counters.datagrams_received += train.len().div_ceil(stride).max(1) as u64;
            let arrived = Arrived { from, stride, buffer: number, start };
            keeps |= arrived.show(train, handler, outbox, writes, now);
            start += stride * MAX_SEGMENTS;
            if behind.is_empty() {
                break;
            }
            rest = behind;
        }
        if keeps {
            delivering.push(buffer);
        } else {
            datagrams.give_back(buffer);
        }
    }

    /// Shows what TUN gave; tells whether there may be more to show.
    fn show_packets(&mut self, handler: &mut impl Handler, now: Now) -> bool {
        let Memory { packets, outbox, .. } = &mut *self.memory;
        let mut taken = heapless::Vec::<Received, MAX_PACKETS>::new();
        let (mut room, mut trains) = (outbox.room(), outbox.train_room());
        while let Some(next) = self.packets.front_mut().filter(|_| !taken.is_full()) {
            // What needs more is found unfit by `accept` below.
            let wanted = reads::bound(packets.bytes_mut(&mut next.buffer, 0..next.len)).min(reads::MOST);
            let wanted_trains = 1 + wanted / (MAX_SEGMENTS * LEAST_SEALED);
            if wanted > room || wanted_trains > trains {
                break;
            }
            (room, trains) = (room - wanted, trains - wanted_trains);
            let Some(next) = self.packets.pop_front() else { break };
            // Cannot fail: it is not full.
            let _ = taken.push(next);
        }
        if taken.is_empty() {
            return false;
        }
        let mut shown = heapless::Vec::<SuperPacket<'_>, MAX_PACKETS>::new();
        for received in &mut taken {
            let bytes = packets.bytes_mut(&mut received.buffer, 0..received.len);
            if let Some(packet) = reads::accept(bytes, self.parts.mtu, &mut self.counters) {
                // Cannot fail: there are not more than were taken.
                let _ = shown.push(packet);
            }
        }
        if !shown.is_empty() {
            handler.packets(&shown, outbox, now);
        }
        drop(shown);
        for received in taken {
            packets.give_back(received.buffer);
        }
        true
    }
}

/// The sender in what the kernel wrote in front of a datagram, and the size of each if it merged several; `None` when the
/// datagram was cut, being longer than any of ours can be.
fn describe(prefix: &[u8]) -> Option<(SocketAddr, Option<u16>)> {
    let word = |at: usize| prefix.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
    let (name_len, control_len, flags) = (word(0)?, word(4)?, word(12)?);
    if flags & libc::MSG_TRUNC as u32 != 0 {
        return None;
    }
    let len = NAME_LEN.min(name_len as usize);
    let from = RawAddress::parse(prefix.get(OUT_LEN..OUT_LEN + len)?)?;
    let control = CONTROL_LEN.min(control_len as usize);
    let control = prefix.get(OUT_LEN + NAME_LEN..OUT_LEN + NAME_LEN + control)?;
    Some((from, control::gro_size(control)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(from: SocketAddr, control: &[u8]) -> [u8; PREFIX] {
        let raw = RawAddress::emit(&from);
        let mut prefix = [0; PREFIX];
        prefix[..4].copy_from_slice(&raw.len.to_ne_bytes());
        prefix[4..8].copy_from_slice(&(control.len() as u32).to_ne_bytes());
        prefix[OUT_LEN..OUT_LEN + raw.bytes.len()].copy_from_slice(&raw.bytes);
        prefix[OUT_LEN + NAME_LEN..][..control.len()].copy_from_slice(control);
        prefix
    }

    #[test]
    fn a_cut_datagram_has_no_sender() {
        let from: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let mut prefix = prefix(from, &[]);
        assert_eq!(describe(&prefix), Some((from, None)));
        prefix[12..16].copy_from_slice(&(libc::MSG_TRUNC as u32).to_ne_bytes());
        assert_eq!(describe(&prefix), None);
        prefix[12..16].fill(0);
        prefix[..8].fill(0xff);
        assert_eq!(describe(&prefix), Some((from, None)), "lengths beyond the fields are cut to them");
        assert_eq!(describe(&prefix[..11]), None);
    }

    #[test]
    fn the_size_of_merged_datagrams_is_in_the_control_message() {
        let from: SocketAddr = "[2001:db8::1]:7".parse().unwrap();
        let mut control = 20usize.to_ne_bytes().to_vec();
        control.extend(libc::SOL_UDP.to_ne_bytes());
        control.extend(libc::UDP_GRO.to_ne_bytes());
        control.extend(1440i32.to_ne_bytes());
        assert_eq!(describe(&prefix(from, &control)), Some((from, Some(1440))));
    }
}
