//! The ledger of packets: what was sent, and that it arrived at most once, whole, and where it belonged.

use std::time::Duration;

use crate::world::NodeIndex;

/// A packet that was sent.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Who sent it.
    pub from: NodeIndex,
    /// For whom it was.
    pub to: NodeIndex,
    /// When it was sent.
    pub sent: Duration,
    /// When it arrived, if it did.
    pub delivered: Option<Duration>,
    packet: Vec<u8>,
}

/// All packets sent so far, by number.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Vec<Entry>,
}

/// Where a packet's number lies: after the longest IP header without options.
const NUMBER_AT: usize = 40;

impl Ledger {
    /// Writes a packet from `from` to `to` with `payload` bytes beyond its header and number, and enters it.
    pub(crate) fn write(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        payload: &[u8],
        now: Duration,
    ) -> (u64, Vec<u8>) {
        let number = self.entries.len() as u64;
        let mut packet = vec![0; NUMBER_AT];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
        packet[8..24].copy_from_slice(&from.inner_address().octets());
        packet[24..40].copy_from_slice(&to.inner_address().octets());
        packet.extend_from_slice(&number.to_be_bytes());
        packet.extend_from_slice(payload);
        self.entries.push(Entry { from, to, sent: now, delivered: None, packet: packet.clone() });
        (number, packet)
    }

    /// Enters a delivery.
    ///
    /// # Panics
    ///
    /// If the packet was never sent, is changed, is at the wrong node, seems to come from another, or was delivered before:
    /// the tunnel broke its promise.
    pub(crate) fn deliver(&mut self, at: NodeIndex, from: Option<NodeIndex>, packet: &[u8], now: Duration) {
        let number = packet.get(NUMBER_AT..NUMBER_AT + 8).and_then(|number| number.try_into().ok());
        let number = number.map(u64::from_be_bytes);
        let entry = number.and_then(|number| self.entries.get_mut(number as usize));
        let Some(entry) = entry else { panic!("at {now:?}, {at:?} got a packet that nobody sent") };
        assert!(entry.packet == packet, "at {now:?}, packet {number:?} arrived changed");
        assert!(entry.to == at, "at {now:?}, packet {number:?} for {:?} arrived at {at:?}", entry.to);
        assert!(
            from == Some(entry.from),
            "at {now:?}, packet {number:?} of {:?} seemed {from:?}'s",
            entry.from
        );
        let before = entry.delivered.replace(now);
        assert!(before.is_none(), "at {now:?}, packet {number:?} arrived again, after {before:?}");
    }

    /// The packet with this number.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Entry> {
        self.entries.get(number as usize)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none was sent yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All packets, in the order they were sent.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The share of packets sent from `since` on that arrived, 0 to 1.
    #[must_use]
    pub fn delivery_rate(&self, since: Duration) -> f64 {
        let (mut sent, mut delivered) = (0u32, 0u32);
        for entry in self.iter().filter(|entry| entry.sent >= since) {
            sent += 1;
            delivered += u32::from(entry.delivered.is_some());
        }
        if sent == 0 { 0.0 } else { f64::from(delivered) / f64::from(sent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeIndex = NodeIndex::FIRST;
    const B: NodeIndex = NodeIndex::SECOND;

    fn written() -> (Ledger, Vec<u8>) {
        let mut ledger = Ledger::default();
        let (_, packet) = ledger.write(A, B, b"payload", Duration::ZERO);
        (ledger, packet)
    }

    #[test]
    fn delivery_is_entered() {
        let (mut ledger, packet) = written();
        ledger.deliver(B, Some(A), &packet, Duration::from_secs(1));
        assert_eq!(ledger.get(0).unwrap().delivered, Some(Duration::from_secs(1)));
        assert_eq!(ledger.delivery_rate(Duration::ZERO), 1.0);
    }

    #[test]
    #[should_panic(expected = "arrived again")]
    fn second_delivery_is_a_broken_promise() {
        let (mut ledger, packet) = written();
        ledger.deliver(B, Some(A), &packet, Duration::ZERO);
        ledger.deliver(B, Some(A), &packet, Duration::ZERO);
    }

    #[test]
    #[should_panic(expected = "arrived changed")]
    fn changed_packet_is_a_broken_promise() {
        let (mut ledger, mut packet) = written();
        *packet.last_mut().unwrap() ^= 1;
        ledger.deliver(B, Some(A), &packet, Duration::ZERO);
    }

    #[test]
    #[should_panic(expected = "arrived at")]
    fn packet_at_the_wrong_node_is_a_broken_promise() {
        let (mut ledger, packet) = written();
        ledger.deliver(A, Some(A), &packet, Duration::ZERO);
    }

    #[test]
    #[should_panic(expected = "seemed")]
    fn packet_of_the_wrong_sender_is_a_broken_promise() {
        let (mut ledger, packet) = written();
        ledger.deliver(B, Some(B), &packet, Duration::ZERO);
    }

    #[test]
    #[should_panic(expected = "nobody sent")]
    fn packet_of_nobody_is_a_broken_promise() {
        Ledger::default().deliver(B, Some(A), &[0; 60], Duration::ZERO);
    }
}
