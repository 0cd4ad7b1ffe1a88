//! The oracle: a Linux router with a device towards the node under test and one towards each of its peers, and nftables with
//! conntrack between them.
//!
//! A packet is written to one device; whatever comes of it is then read from the device it would leave by. A marker that
//! always passes follows each case the same way, so that nothing is waited for: what did not come before the marker does not
//! come. At the end all devices are read dry, and must be.

use std::{
    fmt::Write as _,
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd as _,
    process::Stdio,
    time::Duration,
};

use ringmesh_io::Tun;
use ringmesh_lab::{Host, Lab};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    packet,
    scene::{PEERS, Scene},
};

/// The header of virtio that every packet of a [`Tun`] has, empty without offloads.
const VIRTIO: [u8; 10] = [0; 10];
/// Longer than anything takes that is going to happen.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where markers come from. Nobody else has an address of this range (RFC 5737).
const MARKER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// What the router is set to, where Linux would do otherwise, and why that is fair.
const SETTINGS: [(&str, &str); 33] = [
    // It forwards, whatever the way back is: whose a source address may be, a chain below says.
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // What is refused by default on routers stays refused, wherever this runs.
    ("net/ipv4/conf/all/accept_source_route", "0"),
    ("net/ipv6/conf/all/accept_source_route", "0"),
    // It says nothing by itself.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    // We do not follow sequence numbers: a session's replay window keeps strangers out, and the host has its own TCP.
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ("net/netfilter/nf_conntrack_tcp_ignore_invalid_rst", "1"),
    // A plain ACK opens where a SYN would: a daemon's restart must not cut connections. This is Linux's default.
    ("net/netfilter/nf_conntrack_tcp_loose", "1"),
    // Transport checksums are the receiving host's business.
    ("net/netfilter/nf_conntrack_checksum", "0"),
    // Times as ours. Nothing expires in a round, which is over long before: expiry is tested where time is an argument.
    ("net/netfilter/nf_conntrack_udp_timeout", "30"),
    ("net/netfilter/nf_conntrack_udp_timeout_stream", "120"),
    ("net/netfilter/nf_conntrack_icmp_timeout", "30"),
    ("net/netfilter/nf_conntrack_icmpv6_timeout", "30"),
    ("net/netfilter/nf_conntrack_generic_timeout", "600"),
    ("net/netfilter/nf_conntrack_tcp_timeout_syn_sent", "240"),
    ("net/netfilter/nf_conntrack_tcp_timeout_syn_recv", "240"),
    ("net/netfilter/nf_conntrack_tcp_timeout_established", "7440"),
    ("net/netfilter/nf_conntrack_tcp_timeout_fin_wait", "240"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "240"),
    ("net/netfilter/nf_conntrack_tcp_timeout_last_ack", "240"),
    ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "240"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close", "240"),
    ("net/netfilter/nf_conntrack_tcp_timeout_unacknowledged", "240"),
    ("net/netfilter/nf_conntrack_tcp_timeout_max_retrans", "240"),
    // Room for the fragments of datagrams that never become whole.
    ("net/ipv4/ipfrag_time", "30"),
    ("net/ipv4/ipfrag_high_thresh", "268435456"),
    ("net/netfilter/nf_conntrack_frag6_timeout", "30"),
    ("net/netfilter/nf_conntrack_frag6_high_thresh", "268435456"),
    // How far apart in order fragments may come is not limited.
    ("net/ipv4/ipfrag_max_dist", "0"),
];

/// A router with the rules of a scene.
#[derive(Debug)]
pub struct Kernel {
    /// To the node under test, then to its peers.
    devices: Vec<File>,
    buffer: Vec<u8>,
    written: Vec<u8>,
    // What holds the devices goes last.
    _tuns: Vec<Tun>,
    _host: Host,
}

impl Kernel {
    pub fn new(lab: &Lab, name: &str, scene: &Scene) -> Self {
        let host = lab.host(name).unwrap();
        for (setting, value) in SETTINGS {
            host.sysctl(setting, value).unwrap();
        }
        let names = ["near".to_owned()].into_iter().chain((0..PEERS).map(|place| format!("peer{place}")));
        let tuns: Vec<Tun> = names.map(|name| host.enter(|| Tun::create(&name)).unwrap().unwrap()).collect();
        // Before anything is up: the kernel greets the neighbours of a new interface.
        load(&host, &ruleset(scene, &tuns));
        for (place, tun) in tuns.iter().enumerate() {
            host.link_up(tun.name()).unwrap();
            host.add_route((marker(place), 32), tun.name(), None).unwrap();
        }
        for (range, place) in scene.ranges() {
            host.add_route((range.address(), range.len()), tuns[place].name(), None).unwrap();
        }
        let files = tuns.iter().map(|tun| File::from(tun.as_fd().try_clone_to_owned().unwrap()));
        let mut kernel = Self {
            devices: files.collect(),
            buffer: vec![0; 1 << 16],
            written: Vec::new(),
            _tuns: tuns,
            _host: host,
        };
        // Addresses and routes settle in the background: until markers pass everywhere, nothing else is asked.
        for to in 0..=PEERS {
            let from = if to == 0 { 1 } else { 0 };
            assert_eq!(kernel.judge(from, to, &[]), Vec::<Vec<u8>>::new());
        }
        kernel
    }

    /// Writes packets to a device, in a row, and answers all that came out of another because of them.
    pub fn judge(&mut self, from: usize, to: usize, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        for packet in packets {
            self.write(from, packet);
        }
        let mark = packet::udp(MARKER.into(), marker(to), (9, 9), b"marker");
        let mark = packet::packet(MARKER.into(), marker(to), packet::UDP, 0, &mark);
        // A device cannot be left by what came in by it, so markers come from another.
        self.write(if from == to { (to + 1) % (PEERS + 1) } else { from }, &mark);
        let mut out = Vec::new();
        loop {
            let Some(packet) = self.read(to) else {
                self.wait(to);
                continue;
            };
            if packet.len() >= 20 && packet[12..16] == MARKER.octets() {
                return out;
            }
            out.push(packet);
        }
    }

    /// Everything that came out and that nobody has looked at.
    pub fn rest(&mut self) -> Vec<Vec<u8>> {
        (0..=PEERS).flat_map(|device| std::iter::from_fn(|| self.read(device)).collect::<Vec<_>>()).collect()
    }

    fn write(&mut self, device: usize, packet: &[u8]) {
        self.written.clear();
        self.written.extend(VIRTIO);
        self.written.extend(packet);
        match self.devices[device].write(&self.written) {
            Ok(length) => assert_eq!(length, self.written.len()),
            // The device takes no packet that is of neither version of IP.
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}: {packet:02x?}"),
        }
    }

    fn read(&mut self, device: usize) -> Option<Vec<u8>> {
        match self.devices[device].read(&mut self.buffer) {
            Ok(length) => Some(self.buffer[VIRTIO.len()..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("cannot read from the device {device}: {error}"),
        }
    }

    fn wait(&self, device: usize) {
        let mut fds = [PollFd::new(&self.devices[device], PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "the marker to device {device} did not pass");
    }
}

/// Where markers go that are to leave by a device.
fn marker(device: usize) -> IpAddr {
    [192, 0, 2, 100 + device as u8].into()
}

/// The question to nftables: who may send from where, what is known, and what the rules let be opened.
fn ruleset(scene: &Scene, tuns: &[Tun]) -> String {
    let mut sources = String::new();
    // As allowed ips do it: the longest match is the only one that may send.
    for (range, place) in scene.ranges() {
        let family = if range.is_ipv4() { "ip" } else { "ip6" };
        let device = tuns[place].name();
        let _ = writeln!(sources, "{family} saddr {range} iifname {device} accept");
        let _ = writeln!(sources, "{family} saddr {range} drop");
    }
    format!(
        "table inet oracle {{
            chain sources {{
                type filter hook prerouting priority raw; policy drop;
                ip saddr {MARKER} notrack accept
                {sources}
            }}
            chain forward {{
                type filter hook forward priority filter; policy drop;
                ip saddr {MARKER} accept
                ct state invalid drop
                ct state established,related accept
                ct state new jump rules
            }}
            chain rules {{
                {}
            }}
            # The router is nobody: nothing is for it, and it says nothing.
            chain input {{ type filter hook input priority filter; policy drop; }}
            chain output {{ type filter hook output priority raw; policy drop; }}
        }}",
        scene.nft_rules()
    )
}

fn load(host: &Host, script: &str) {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut nft = host.command("nft").unwrap();
    nft.args(["-f", "-"]).env("PATH", path).stdin(Stdio::piped());
    let mut nft = nft.spawn().expect("nft, of Debian's package nftables, is installed");
    nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft refuses:\n{script}");
}
