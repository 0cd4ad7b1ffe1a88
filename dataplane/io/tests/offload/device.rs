//! TUN devices with offloads, and how an engine would use them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::namespace::{self, check};
use crate::offload::coalesce::{Coalescer, Place};
use crate::offload::look::Class;
use crate::offload::super_packet::{Head, SuperPacket, Unfit};

const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;
const ALL: libc::c_uint = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// One device, up, with an address of each version: 10.NUMBER.0.1 and fd00:NUMBER::1, with neighbours around them.
pub(crate) struct Device {
    file: File,
}

impl Device {
    /// Makes it. Without offloads the kernel cuts and sums by itself.
    pub(crate) fn new(number: u8, offloads: bool) -> Self {
        let name = format!("tun{number}");
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("TUN's driver");
        // SAFETY: integers and pointers, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF takes one ifreq, which lives through the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).expect("a device");
        let device = Self { file };
        device.set_offloads(offloads);
        namespace::hush_ipv6(&name).expect("silence");
        namespace::set_mtu(&name, 65_535).expect("the longest packets");
        namespace::add_ipv4(&name, Self::v4(number, 1)).expect("an address");
        namespace::interface_up(&name).expect("up");
        namespace::add_ipv6(&name, Self::v6(number, 1)).expect("an address");
        // The kernel takes its time to find that there is nobody to ask whether it is taken.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = UdpSocket::bind((Self::v6(number, 1), 0)) {
            assert!(Instant::now() < deadline, "the address is not there: {error}");
            thread::sleep(Duration::from_millis(1));
        }
        device
    }

    /// A neighbour's address.
    pub(crate) fn v4(number: u8, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, number, 0, host)
    }

    /// A neighbour's address.
    pub(crate) fn v6(number: u8, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, u16::from(number), 0, 0, 0, 0, 0, u16::from(host))
    }

    /// Offers the kernel to cut and sum in its place, or not.
    pub(crate) fn set_offloads(&self, offloads: bool) {
        let offers = libc::c_ulong::from(if offloads { ALL } else { 0 });
        // SAFETY: TUNSETOFFLOAD takes a number.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, offers) })
            .expect("a kernel of 6.2 or newer has all offloads");
    }

    /// Hands the kernel a packet, behind its offload header.
    pub(crate) fn write(&self, header: &[u8; 10], packet: &[u8]) -> io::Result<()> {
        let bytes = [&header[..], packet].concat();
        let len = (&self.file).write(&bytes)?;
        assert_eq!(len, bytes.len());
        Ok(())
    }

    /// Hands the kernel packets as the packet path does: merged. Answers how many packets each write had.
    pub(crate) fn write_merged(&self, packets: &[Vec<u8>]) -> io::Result<Vec<usize>> {
        let mut coalescer = Coalescer::new();
        coalescer.set_merging(Class::Udp, true);
        for (index, packet) in packets.iter().enumerate() {
            let place = Place { buffer: index as u16, start: 0, len: packet.len() as u16 };
            coalescer.push(place, packet).expect("room");
        }
        let mut sizes = Vec::new();
        for group in coalescer.finish().iter() {
            let mut bytes = group.header().to_vec();
            for piece in group.pieces() {
                let start = piece.start as usize;
                bytes.extend(&packets[usize::from(piece.buffer)][start..start + usize::from(piece.len)]);
            }
            let len = (&self.file).write(&bytes)?;
            assert_eq!(len, bytes.len());
            sizes.push(group.packets_len());
        }
        Ok(sizes)
    }

    /// What the kernel sends next of a test's traffic, if anything: its offload header, and the packet.
    pub(crate) fn try_read(&self) -> Option<([u8; 10], Vec<u8>)> {
        loop {
            let mut bytes = vec![0; 10 + 65_575];
            let len = (&self.file).read(&mut bytes).ok()?;
            bytes.truncate(len);
            let packet = bytes.split_off(10);
            // The kernel tells its routers which multicast it wants, whenever it likes.
            let is_own = packet[0] >> 4 == 6 && matches!(packet[6], 0 | 58);
            if !is_own {
                return Some((bytes.try_into().expect("an offload header"), packet));
            }
        }
    }

    /// What the kernel sends next, within [`PATIENCE`].
    pub(crate) fn read(&self) -> ([u8; 10], Vec<u8>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(read) = self.try_read() {
                return read;
            }
            assert!(Instant::now() < deadline, "the kernel sent nothing");
            let mut waiting = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, which lives through the call.
            check(unsafe { libc::poll(&raw mut waiting, 1, 100) }).expect("poll");
        }
    }

    /// Reads packets until there are `count`, and then there are no more.
    pub(crate) fn read_packets(&self, count: usize) -> Vec<Vec<u8>> {
        let packets = (0..count)
            .map(|_| {
                let (header, packet) = self.read();
                assert_eq!(header[..2], [0, 0], "complete without us");
                packet
            })
            .collect();
        assert!(self.try_read().is_none(), "one packet more than expected");
        packets
    }
}

/// All segments of a super-packet, whole.
pub(crate) fn cut(header: &[u8; 10], mut packet: Vec<u8>) -> Result<Vec<Vec<u8>>, Unfit> {
    let packet = SuperPacket::parse(header, &mut packet)?;
    let mut head = Head::new();
    Ok((0..packet.segments())
        .map(|index| {
            let (first, rest) = packet.segment(index, &mut head);
            [first, rest].concat()
        })
        .collect())
}

/// Lets the kernel pass on packets between devices.
pub(crate) fn forward_packets() {
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("a setting of the namespace's own");
    }
}
