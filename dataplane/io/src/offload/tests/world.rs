//! What an engine does with a coalescer, with vectors for buffers and for the device.

use crate::offload::coalesce::{Coalescer, Place};
use crate::offload::look::Class;
use crate::offload::super_packet::{Head, SuperPacket};

/// A coalescer that merges everything.
pub(super) struct World {
    pub(super) coalescer: Coalescer,
}

/// One write to TUN.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) class: Option<Class>,
    pub(super) packets: usize,
    /// With the offload header.
    pub(super) bytes: Vec<u8>,
    /// The same packets unmerged, by their numbers.
    pub(super) unmerged: Vec<usize>,
}

impl World {
    pub(super) fn new() -> Self {
        let mut coalescer = Coalescer::new();
        coalescer.set_merging(Class::Udp, true);
        Self { coalescer }
    }

    /// Pushes packets, each lying somewhere else, and gathers what is to be written.
    pub(super) fn write(&mut self, packets: &[Vec<u8>]) -> Vec<Write> {
        // Several packets lie in a buffer, as a train's do, with headers of other layers between.
        const BUFFERS: usize = 3;
        let mut buffers = vec![vec![0xee; 5]; BUFFERS];
        let mut places = Vec::new();
        for (index, packet) in packets.iter().enumerate() {
            let buffer = &mut buffers[index % BUFFERS];
            let place = Place {
                buffer: (index % BUFFERS) as u16,
                start: buffer.len() as u32,
                len: packet.len() as u16,
            };
            buffer.extend(packet);
            buffer.extend([0xee; 32]);
            places.push(place);
            self.coalescer.push(place, packet).expect("room");
        }
        let bytes = |place: Place| {
            let start = place.start as usize;
            buffers[usize::from(place.buffer)][start..start + usize::from(place.len)].to_vec()
        };
        let number =
            |place: Place| places.iter().position(|known| *known == place).expect("a place that was told");
        let groups = self.coalescer.finish();
        let writes: Vec<_> = groups
            .iter()
            .map(|group| {
                let mut gathered = group.header().to_vec();
                gathered.extend(group.pieces().flat_map(&bytes));
                Write {
                    class: group.class(),
                    packets: group.packets_len(),
                    bytes: gathered,
                    unmerged: group.packets().map(number).collect(),
                }
            })
            .collect();
        assert_eq!(groups.len(), writes.len());
        self.coalescer.clear();
        writes
    }
}

/// The packets that writes stand for, as the kernel would cut them.
pub(super) fn restored(writes: &[Write]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for write in writes {
        let (header, packet) = write.bytes.split_first_chunk::<10>().expect("an offload header");
        let mut packet = packet.to_vec();
        let packet = SuperPacket::parse(header, &mut packet).expect("what we merge can be cut");
        assert_eq!(packet.segments(), write.packets);
        let mut head = Head::new();
        for index in 0..packet.segments() {
            let (first, rest) = packet.segment(index, &mut head);
            packets.push([first, rest].concat());
        }
    }
    packets
}
