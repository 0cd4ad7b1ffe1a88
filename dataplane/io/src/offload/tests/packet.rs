//! Packets as they are described in the RFCs, written plainly: the reference for cutting and merging.

/// What an offload header of TUN looks like, from `linux/virtio_net.h`.
const NEEDS_CSUM: u8 = 1;

/// FIN, PSH, ACK, ECE and CWR, as RFC 9293 numbers them.
pub(crate) const FIN: u16 = 1 << 0;
pub(crate) const SYN: u16 = 1 << 1;
pub(crate) const RST: u16 = 1 << 2;
pub(crate) const PSH: u16 = 1 << 3;
pub(crate) const ACK: u16 = 1 << 4;
pub(crate) const URG: u16 = 1 << 5;
pub(crate) const ECE: u16 = 1 << 6;
pub(crate) const CWR: u16 = 1 << 7;
pub(crate) const AE: u16 = 1 << 8;

/// Everything that a packet says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) ip: Ip,
    /// Type of service, or traffic class: the lowest two bits are ECN.
    pub(crate) tos: u8,
    /// Time to live, or hop limit.
    pub(crate) ttl: u8,
    pub(crate) transport: Transport,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) payload: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ip {
    V4 {
        source: [u8; 4],
        destination: [u8; 4],
        id: u16,
        /// The word of flags and fragment offset.
        fragment: u16,
        /// A multiple of four bytes.
        options: Vec<u8>,
    },
    V6 {
        source: [u8; 16],
        destination: [u8; 16],
        label: u32,
        /// Kinds of extension headers, each with its content: a multiple of 8 bytes, less two.
        extensions: Vec<(u8, Vec<u8>)>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp {
        sequence: u32,
        acknowledgement: u32,
        /// With the reserved bits.
        flags: u16,
        window: u16,
        urgent: u16,
        /// A multiple of four bytes.
        options: Vec<u8>,
    },
    Udp,
}

/// `len` bytes that look random and differ with `seed`.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The one's complement sum of big-endian words, word by word as RFC 1071 has it.
pub(crate) fn reference_sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl Packet {
    pub(crate) fn tcp4(payload: Vec<u8>) -> Self {
        Self {
            ip: Ip::V4 {
                source: [10, 0, 0, 1],
                destination: [10, 0, 0, 2],
                id: 0xfffe,
                fragment: 0x4000,
                options: Vec::new(),
            },
            tos: 0,
            ttl: 64,
            transport: Transport::Tcp {
                sequence: 0xffff_ff00,
                acknowledgement: 77,
                flags: ACK,
                window: 512,
                urgent: 0,
                options: Vec::new(),
            },
            source_port: 40_000,
            destination_port: 443,
            payload,
        }
    }

    pub(crate) fn udp4(payload: Vec<u8>) -> Self {
        Self { transport: Transport::Udp, ..Self::tcp4(payload) }
    }

    pub(crate) fn tcp6(payload: Vec<u8>) -> Self {
        Self { ip: v6(), ..Self::tcp4(payload) }
    }

    pub(crate) fn udp6(payload: Vec<u8>) -> Self {
        Self { ip: v6(), ..Self::udp4(payload) }
    }

    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Tcp { .. })
    }

    pub(crate) fn is_v4(&self) -> bool {
        matches!(self.ip, Ip::V4 { .. })
    }

    /// IANA's number.
    pub(crate) fn protocol(&self) -> u8 {
        if self.is_tcp() { 6 } else { 17 }
    }

    /// Bytes in front of the transport header.
    pub(crate) fn ip_len(&self) -> usize {
        match &self.ip {
            Ip::V4 { options, .. } => 20 + options.len(),
            Ip::V6 { extensions, .. } => {
                40 + extensions.iter().map(|(_, content)| 2 + content.len()).sum::<usize>()
            }
        }
    }

    pub(crate) fn header_len(&self) -> usize {
        self.ip_len()
            + match &self.transport {
                Transport::Tcp { options, .. } => 20 + options.len(),
                Transport::Udp => 8,
            }
    }

    pub(crate) fn flags_mut(&mut self) -> &mut u16 {
        match &mut self.transport {
            Transport::Tcp { flags, .. } => flags,
            Transport::Udp => panic!("UDP has no flags"),
        }
    }

    pub(crate) fn sequence_mut(&mut self) -> &mut u32 {
        match &mut self.transport {
            Transport::Tcp { sequence, .. } => sequence,
            Transport::Udp => panic!("UDP has no sequence"),
        }
    }

    fn pseudo_sum(&self, len: usize) -> u16 {
        let mut pseudo = match &self.ip {
            Ip::V4 { source, destination, .. } => [&source[..], destination].concat(),
            Ip::V6 { source, destination, .. } => [&source[..], destination].concat(),
        };
        pseudo.extend((len as u32).to_be_bytes());
        pseudo.extend(u32::from(self.protocol()).to_be_bytes());
        reference_sum(&pseudo)
    }

    fn emit_ip(&self, payload: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        match &self.ip {
            Ip::V4 { source, destination, id, fragment, options } => {
                let header = 20 + options.len();
                bytes.extend([0x40 | (header / 4) as u8, self.tos]);
                bytes.extend(((header + payload) as u16).to_be_bytes());
                bytes.extend(id.to_be_bytes());
                bytes.extend(fragment.to_be_bytes());
                bytes.extend([self.ttl, self.protocol(), 0, 0]);
                bytes.extend(source);
                bytes.extend(destination);
                bytes.extend(options);
                let checksum = !reference_sum(&bytes);
                bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            Ip::V6 { source, destination, label, extensions } => {
                bytes.extend((6 << 28 | u32::from(self.tos) << 20 | label).to_be_bytes());
                bytes.extend(((self.ip_len() - 40 + payload) as u16).to_be_bytes());
                let kinds: Vec<u8> =
                    extensions.iter().map(|(kind, _)| *kind).chain([self.protocol()]).collect();
                bytes.extend([kinds[0], self.ttl]);
                bytes.extend(source);
                bytes.extend(destination);
                for ((_, content), next) in extensions.iter().zip(&kinds[1..]) {
                    assert_eq!((content.len() + 2) % 8, 0);
                    bytes.extend([*next, ((content.len() + 2) / 8 - 1) as u8]);
                    bytes.extend(content);
                }
            }
        }
        bytes
    }

    fn emit_transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        match &self.transport {
            Transport::Tcp { sequence, acknowledgement, flags, window, urgent, options } => {
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledgement.to_be_bytes());
                bytes.extend(((((20 + options.len()) / 4) << 12) as u16 | flags).to_be_bytes());
                bytes.extend(window.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(urgent.to_be_bytes());
                bytes.extend(options);
            }
            Transport::Udp => {
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend([0, 0]);
            }
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn checksum_at(&self) -> usize {
        if self.is_tcp() { 16 } else { 6 }
    }

    /// The packet's bytes, complete.
    pub(crate) fn emit(&self) -> Vec<u8> {
        let mut transport = self.emit_transport();
        let pseudo = self.pseudo_sum(transport.len());
        let sum = reference_sum(&[&pseudo.to_be_bytes()[..], &transport].concat());
        let checksum = match !sum {
            0 if !self.is_tcp() => 0xffff,
            checksum => checksum,
        };
        let at = self.checksum_at();
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        [self.emit_ip(transport.len()), transport].concat()
    }

    /// The packet's bytes with the checksum left to whoever sends it, and the offload header that says so.
    pub(crate) fn emit_unfinished(&self, gso_size: Option<u16>) -> ([u8; 10], Vec<u8>) {
        let mut transport = self.emit_transport();
        let pseudo = self.pseudo_sum(transport.len());
        let at = self.checksum_at();
        transport[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let gso_type = match (&gso_size, self.is_tcp(), self.is_v4()) {
            (None, ..) => 0,
            (_, true, true) => 1,
            (_, true, false) => 4,
            (_, false, _) => 5,
        };
        let mut header = [0; 10];
        header[0] = NEEDS_CSUM;
        header[1] = gso_type;
        // What is in one piece in the kernel: for our own packets the headers, for forwarded ones anything.
        header[2..4].copy_from_slice(&((transport.len() / 2) as u16).to_ne_bytes());
        header[4..6].copy_from_slice(&gso_size.unwrap_or(0).to_ne_bytes());
        header[6..8].copy_from_slice(&(self.ip_len() as u16).to_ne_bytes());
        header[8..10].copy_from_slice(&(at as u16).to_ne_bytes());
        (header, [self.emit_ip(transport.len()), transport].concat())
    }

    /// The packets that this stands for when its payload is cut every `size` bytes.
    pub(crate) fn cut(&self, size: usize) -> Vec<Self> {
        let chunks: Vec<&[u8]> = self.payload.chunks(size).collect();
        let cut = |(index, chunk): (usize, &&[u8])| {
            let mut packet = Self { payload: chunk.to_vec(), ..self.clone() };
            if let Ip::V4 { id, .. } = &mut packet.ip {
                *id = id.wrapping_add(index as u16);
            }
            if let Transport::Tcp { sequence, flags, .. } = &mut packet.transport {
                *sequence = sequence.wrapping_add((index * size) as u32);
                if index > 0 {
                    *flags &= !CWR;
                }
                if index + 1 < chunks.len() {
                    *flags &= !(FIN | PSH);
                }
            }
            packet
        };
        chunks.iter().enumerate().map(cut).collect()
    }
}

fn v6() -> Ip {
    let mut source = [0; 16];
    source[0] = 0xfd;
    source[15] = 1;
    let mut destination = source;
    destination[15] = 2;
    Ip::V6 { source, destination, label: 0x5_4321, extensions: Vec::new() }
}
