//! The same bytes through the kernel's segmenter and ours: written into one device, passed on by the kernel, read from
//! another. One that has no offloads shows how the kernel cuts; one that has them gives the super-packet as forwarded
//! packets look, with more in one piece than headers.

use crate::device::{Device, cut, forward_packets};
use crate::packet::{ACK, CWR, ECE, FIN, Ip, PSH, Packet, Transport, URG, noise};

const FROM: u8 = 1;
const TO: u8 = 2;

struct Road {
    from: Device,
    to: Device,
}

impl Road {
    fn new() -> Self {
        let from = Device::new(FROM, false);
        let to = Device::new(TO, false);
        forward_packets();
        Self { from, to }
    }

    /// A packet as it is on one side, and on the other.
    fn sides(packet: &Packet) -> (Packet, Packet) {
        let mut before = packet.clone();
        match &mut before.ip {
            Ip::V4 { source, destination, .. } => {
                *source = Device::v4(FROM, 9).octets();
                *destination = Device::v4(TO, 9).octets();
            }
            Ip::V6 { source, destination, .. } => {
                *source = Device::v6(FROM, 9).octets();
                *destination = Device::v6(TO, 9).octets();
            }
        }
        let mut after = before.clone();
        after.ttl -= 1;
        (before, after)
    }

    /// The kernel cuts as we do, and we cut what the kernel passed on as it does.
    fn check_cut(&self, packet: &Packet, size: u16) {
        let (before, after) = Self::sides(packet);
        let (mut header, bytes) = before.emit_unfinished(Some(size));
        if before.is_tcp() {
            // As the kernel says it of its own.
            let Transport::Tcp { flags, .. } = before.transport else { unreachable!() };
            header[1] |= if flags & CWR != 0 { 0x80 } else { 0 };
        }
        header[2..4].copy_from_slice(&(before.header_len() as u16).to_ne_bytes());
        let (after_header, after_bytes) = after.emit_unfinished(Some(size));
        let ours = cut(&after_header, after_bytes).expect("fit");

        self.to.set_offloads(false);
        self.from.write(&header, &bytes).expect("the kernel takes it");
        let kernels = self.to.read_packets(ours.len());
        for (index, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
            assert!(
                ours == kernels,
                "segment {index} of {size}: ours\n{ours:02x?}\nthe kernel's\n{kernels:02x?}"
            );
        }

        self.to.set_offloads(true);
        self.from.write(&header, &bytes).expect("the kernel takes it");
        let (passed_on, bytes) = self.to.read();
        assert_ne!(passed_on[1], 0, "in one piece");
        assert_eq!(cut(&passed_on, bytes), Ok(kernels));
        assert!(self.to.try_read().is_none());
    }

    /// The kernel takes what we merge, and it is what it was.
    fn check_merged(&self, packet: &Packet, size: usize, want: &[usize]) {
        let (before, after) = Self::sides(packet);
        let emit = |packet: &Packet| packet.cut(size).iter().map(Packet::emit).collect::<Vec<_>>();
        self.to.set_offloads(false);
        let sizes = self.from.write_merged(&emit(&before)).expect("the kernel takes what we merge");
        assert_eq!(sizes, want);
        let want = emit(&after);
        assert_eq!(self.to.read_packets(want.len()), want);
    }
}

fn families(payload: &[u8]) -> [Packet; 4] {
    [Packet::tcp4, Packet::tcp6, Packet::udp4, Packet::udp6].map(|new| new(payload.to_vec()))
}

fn the_kernel_cuts_every_count_of_segments_as_we_do() {
    let road = Road::new();
    for count in 2..=127usize {
        let size = 1 + count * 5 % 431;
        for tail in [1, size / 2 + 1, size] {
            for packet in families(&noise(count as u64, size * (count - 1) + tail)) {
                road.check_cut(&packet, size as u16);
            }
        }
    }
}

fn the_kernel_cuts_every_size_of_segment_as_we_do() {
    let road = Road::new();
    for size in (1..=130u16).chain([535, 536, 1_219, 1_220, 1_360, 1_399, 1_400, 8_860, 24_000]) {
        for packet in families(&noise(u64::from(size), 2 * usize::from(size) + usize::from(size.div_ceil(3))))
        {
            if packet.payload.len() > usize::from(size) {
                road.check_cut(&packet, size);
            }
        }
    }
}

fn the_kernel_stamps_flags_options_and_identifications_as_we_do() {
    let road = Road::new();
    for flags in [0, FIN, PSH, FIN | PSH, CWR, CWR | ECE | PSH, ECE, URG, 0x200 | PSH, 0x100 | CWR] {
        for new in [Packet::tcp4, Packet::tcp6] {
            for tos in [0, 1, 2, 3, 0xb8] {
                let mut packet = new(noise(u64::from(flags), 1_000));
                packet.tos = tos;
                let Transport::Tcp { flags: its, options, urgent, .. } = &mut packet.transport else {
                    unreachable!()
                };
                (*its, *urgent) = (ACK | flags, 5);
                *options = [&[1, 1, 8, 10][..], &noise(u64::from(tos), 8)].concat();
                road.check_cut(&packet, 300);
            }
        }
    }
    for fragment in [0, 0x4000] {
        for id in [0, 1, 0xfff0, 0xffff] {
            for mut packet in [Packet::tcp4(noise(1, 5_000)), Packet::udp4(noise(1, 5_000))] {
                let Ip::V4 { id: its, fragment: word, .. } = &mut packet.ip else { unreachable!() };
                (*its, *word) = (id, fragment);
                road.check_cut(&packet, 100);
            }
        }
    }
    for options in 0..=10 {
        let mut packet = Packet::tcp4(noise(1, 700));
        let Ip::V4 { options: ip, .. } = &mut packet.ip else { unreachable!() };
        *ip = vec![1; options * 4];
        let Transport::Tcp { options: tcp, .. } = &mut packet.transport else { unreachable!() };
        *tcp = vec![1; (10 - options) * 4];
        road.check_cut(&packet, 300);
        let mut packet = Packet::udp4(noise(1, 700));
        let Ip::V4 { options: ip, .. } = &mut packet.ip else { unreachable!() };
        *ip = vec![1; options * 4];
        road.check_cut(&packet, 300);
    }
    // Destination options that are padding.
    for units in 1..=6 {
        let mut padding = vec![0; units * 8 - 2];
        padding[..2].copy_from_slice(&[1, (units * 8 - 4) as u8]);
        for mut packet in [Packet::tcp6(noise(1, 700)), Packet::udp6(noise(1, 700))] {
            let Ip::V6 { extensions, .. } = &mut packet.ip else { unreachable!() };
            *extensions = vec![(60, padding.clone())];
            road.check_cut(&packet, 300);
        }
    }
}

fn the_kernel_finishes_a_checksum_as_we_do() {
    let road = Road::new();
    for len in (1..=130).chain([1_399, 1_400]) {
        for packet in families(&noise(len as u64, len)) {
            let (before, after) = Road::sides(&packet);
            let (header, bytes) = before.emit_unfinished(None);
            road.to.set_offloads(false);
            road.from.write(&header, &bytes).expect("the kernel takes it");
            let kernels = road.to.read_packets(1);
            let (header, bytes) = after.emit_unfinished(None);
            assert_eq!(cut(&header, bytes), Ok(kernels));
        }
    }
}

fn the_kernel_takes_every_count_of_packets_merged() {
    let road = Road::new();
    for packets in 1..=127usize {
        let size = 1 + packets * 7 % 509;
        for tail in [1, size / 2 + 1, size] {
            for packet in families(&noise(packets as u64, size * (packets - 1) + tail)) {
                let want = match packets {
                    65.. if packet.is_tcp() => vec![64, packets - 64],
                    _ => vec![packets],
                };
                road.check_merged(&packet, size, &want);
            }
        }
    }
}

fn the_kernel_takes_every_length_of_tail_merged() {
    let road = Road::new();
    for tail in 1..=1_380 {
        for packet in families(&noise(tail as u64, 1_380 + tail)) {
            road.check_merged(&packet, 1_380, &[2]);
        }
    }
    // As long as a packet can be.
    for packet in families(&noise(5, 65_535)) {
        for cut in 0..3 {
            let mut packet = packet.clone();
            packet.payload.truncate(65_535 - packet.header_len() - cut);
            let count = packet.payload.len().div_ceil(1_380);
            road.check_merged(&packet, 1_380, &[count]);
        }
    }
}

in_namespaces! {
    the_kernel_cuts_every_count_of_segments_as_we_do,
    the_kernel_cuts_every_size_of_segment_as_we_do,
    the_kernel_stamps_flags_options_and_identifications_as_we_do,
    the_kernel_finishes_a_checksum_as_we_do,
    the_kernel_takes_every_count_of_packets_merged,
    the_kernel_takes_every_length_of_tail_merged,
}
