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
    /// Wait for room in a socket.
    Room,
    /// A piece of the outbox, by message.
    Send(u16),
    /// A packet of the outbox.
    Write,
    /// Packets in the buffers they were received in, by which of the writes gathered.
    Deliver(u16),
}

const RECEIVE_V4: u32 = 0;
const RECEIVE_V6: u32 = 1;
const READ: u32 = 2;
const WAKE: u32 = 3;
const ROOM: u32 = 4;
const SEND: u32 = 5;
const WRITE: u32 = 6;
const DELIVER: u32 = 7;

impl Operation {
    /// The operation as a number: its kind above, its slot below.
    pub(super) fn emit(self) -> u64 {
        let (kind, slot) = match self {
            Self::Receive(Family::V4) => (RECEIVE_V4, 0),
            Self::Receive(Family::V6) => (RECEIVE_V6, 0),
            Self::Read => (READ, 0),
            Self::Wake => (WAKE, 0),
            Self::Room => (ROOM, 0),
            Self::Send(slot) => (SEND, slot),
            Self::Write => (WRITE, 0),
            Self::Deliver(slot) => (DELIVER, slot),
        };
        u64::from(kind) << 32 | u64::from(slot)
    }

    /// Whether it stays with the kernel until its (last) completion. The others are done when the kernel has taken them, and
    /// complete only if they failed.
    pub(super) fn is_lasting(self) -> bool {
        match self {
            Self::Receive(_) | Self::Read | Self::Wake | Self::Room => true,
            Self::Send(_) | Self::Write | Self::Deliver(_) => false,
        }
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
            ROOM => Self::Room,
            SEND => Self::Send(slot),
            WRITE => Self::Write,
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
        let mut all = vec![Operation::Read, Operation::Wake, Operation::Room, Operation::Write];
        all.extend(Family::ALL.map(Operation::Receive));
        for slot in [0, 1, 255, u16::MAX] {
            all.extend([Operation::Send(slot), Operation::Deliver(slot)]);
        }
        for operation in &all {
            assert_eq!(Operation::parse(operation.emit()), Some(*operation));
        }
        let numbers: std::collections::BTreeSet<_> = all.iter().map(|operation| operation.emit()).collect();
        assert_eq!(numbers.len(), all.len());
    }

    #[test]
    fn foreign_numbers_are_nothing_of_ours() {
        assert_eq!(Operation::parse(8 << 32), None);
        assert_eq!(Operation::parse(u64::MAX), None);
        assert_eq!(Operation::parse(1 << 16), None);
    }
}
