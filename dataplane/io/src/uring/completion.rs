//! The name an operation carries through the kernel (`user_data`), so that its completion says what it was.

use crate::udp::Family;

/// An operation of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Multishot receive on the socket of a family.
    Receive(Family),
    /// Multishot read of TUN.
    Read,
    /// Read of the waker's eventfd.
    Wake,
    /// Wait for room in the socket of a family.
    Room(Family),
    /// A datagram of the outbox, by slot.
    Send(u16),
    /// A packet of the outbox, by slot.
    Write(u16),
    /// A packet in the buffer it was received in, by buffer.
    Deliver(u16),
}

const RECEIVE_V4: u32 = 0;
const RECEIVE_V6: u32 = 1;
const READ: u32 = 2;
const WAKE: u32 = 3;
const ROOM_V4: u32 = 4;
const ROOM_V6: u32 = 5;
const SEND: u32 = 6;
const WRITE: u32 = 7;
const DELIVER: u32 = 8;

impl Operation {
    /// The operation as a number: its kind above, its slot below.
    pub(super) fn emit(self) -> u64 {
        let (kind, slot) = match self {
            Self::Receive(Family::V4) => (RECEIVE_V4, 0),
            Self::Receive(Family::V6) => (RECEIVE_V6, 0),
            Self::Read => (READ, 0),
            Self::Wake => (WAKE, 0),
            Self::Room(Family::V4) => (ROOM_V4, 0),
            Self::Room(Family::V6) => (ROOM_V6, 0),
            Self::Send(slot) => (SEND, slot),
            Self::Write(slot) => (WRITE, slot),
            Self::Deliver(slot) => (DELIVER, slot),
        };
        u64::from(kind) << 32 | u64::from(slot)
    }

    /// The operation of a number; `None` for one that we never emit.
    pub(super) fn parse(number: u64) -> Option<Self> {
        let kind = (number >> 32) as u32;
        let slot = u16::try_from(number & u64::from(u32::MAX)).ok()?;
        Some(match kind {
            RECEIVE_V4 => Self::Receive(Family::V4),
            RECEIVE_V6 => Self::Receive(Family::V6),
            READ => Self::Read,
            WAKE => Self::Wake,
            ROOM_V4 => Self::Room(Family::V4),
            ROOM_V6 => Self::Room(Family::V6),
            SEND => Self::Send(slot),
            WRITE => Self::Write(slot),
            DELIVER => Self::Deliver(slot),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_parses() {
        let mut all = vec![Operation::Read, Operation::Wake];
        all.extend(Family::ALL.map(Operation::Receive));
        all.extend(Family::ALL.map(Operation::Room));
        for slot in [0, 1, 255, u16::MAX] {
            all.extend([Operation::Send(slot), Operation::Write(slot), Operation::Deliver(slot)]);
        }
        for operation in &all {
            assert_eq!(Operation::parse(operation.emit()), Some(*operation));
        }
        let numbers: std::collections::BTreeSet<_> = all.iter().map(|operation| operation.emit()).collect();
        assert_eq!(numbers.len(), all.len());
    }

    #[test]
    fn foreign_numbers_are_nothing_of_ours() {
        assert_eq!(Operation::parse(9 << 32), None);
        assert_eq!(Operation::parse(u64::MAX), None);
        assert_eq!(Operation::parse(1 << 16), None);
    }
}
