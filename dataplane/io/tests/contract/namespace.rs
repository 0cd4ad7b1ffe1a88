//! A network namespace of its own for each test, and interfaces in it, by plain system calls.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Says to a test that was started again that it is in its namespace.
pub(crate) const INSIDE: &str = "RINGMESH_IO_TEST_INSIDE";

/// Runs a test in a network namespace of its own, with `lo` up.
///
/// `test` is its path as `module_path!` has it. Root moves its thread there. Anybody else starts the test again in a user namespace, which only a process of one
/// thread can enter. A machine that allows neither fails the test: a contract that was not checked is not kept.
pub(crate) fn enter(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        interface_up("lo").expect("lo comes up");
        return body();
    }
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        // SAFETY: no pointers are passed; the namespace goes away with the thread.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).expect("root may make a network namespace");
        interface_up("lo").expect("lo comes up");
        return body();
    }
    // Without the crate's name, as the test runner knows it.
    again_in_user_namespace(test.split_once("::").map_or(test, |(_, path)| path));
}

fn again_in_user_namespace(test: &str) {
    // SAFETY: takes nothing and cannot fail.
    let uid = unsafe { libc::getuid() };
    // SAFETY: takes nothing and cannot fail.
    let gid = unsafe { libc::getgid() };
    let maps = [
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ];
    let mut command = Command::new(std::env::current_exe().expect("this test has a file"));
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    let enter = move || {
        // SAFETY: no pointers are passed.
        check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) })?;
        maps.iter().try_for_each(|(path, content)| std::fs::write(path, content))
    };
    // SAFETY: runs in the only thread of the child between fork and exec, and touches nothing of the parent's.
    unsafe { command.pre_exec(enter) };
    let status = command.status().expect("a user namespace may be made: run as root where it may not");
    assert!(status.success(), "{test} failed in its namespace");
}

pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn control_socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn control(call: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = control_socket(libc::AF_INET)?;
    // SAFETY: all calls used here take one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), call, &raw mut *request) }).map(drop)
}

/// Brings an interface up.
pub(crate) fn interface_up(name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    control(libc::SIOCSIFFLAGS, &mut request)
}

/// Takes an interface down.
pub(crate) fn interface_down(name: &str) -> io::Result<()> {
    control(libc::SIOCSIFFLAGS, &mut request(name))
}

/// Sets an interface's MTU.
pub(crate) fn set_mtu(name: &str, mtu: i32) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = mtu;
    control(libc::SIOCSIFMTU, &mut request)
}

/// Gives an interface an IPv4 address with a /24 around it.
pub(crate) fn add_ipv4(name: &str, address: Ipv4Addr) -> io::Result<()> {
    for (call, value) in
        [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))]
    {
        let mut request = request(name);
        let mut data = [0; 14];
        for (to, from) in data[2..6].iter_mut().zip(value.octets()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_addr =
            libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data };
        control(call, &mut request)?;
    }
    Ok(())
}

/// Keeps the kernel from sending packets of its own on an interface that is not up yet: no link-local address, no
/// search for duplicates and routers, and multicast reports at once.
pub(crate) fn hush_ipv6(name: &str) -> io::Result<()> {
    let settings = [
        ("addr_gen_mode", "1"),
        ("accept_dad", "0"),
        ("dad_transmits", "0"),
        ("router_solicitations", "0"),
        ("mldv2_unsolicited_report_interval", "1"),
    ];
    settings.iter().try_for_each(|(name_of, value)| {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{name_of}"), value)
    })
}

/// Gives an interface an IPv6 address with a /64 around it.
pub(crate) fn add_ipv6(name: &str, address: Ipv6Addr) -> io::Result<()> {
    let request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: 64,
        ifr6_ifindex: interface_index(name)?.cast_signed(),
    };
    let socket = control_socket(libc::AF_INET6)?;
    // SAFETY: SIOCSIFADDR of an IPv6 socket takes one in6_ifreq, which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, &raw const request) }).map(drop)
}

/// The number of an interface that exists.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: a terminated string that lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Removes an interface, as `ip link delete` does.
pub(crate) fn delete_interface(name: &str) -> io::Result<()> {
    const RTM_DELLINK: u16 = 17;
    let mut message = Vec::new();
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_DELLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(interface_index(name)?.to_ne_bytes());
    message.extend([0; 8]);
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE) })?;
    // SAFETY: just made, nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the message lives through the call, its length is given.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    assert_eq!(sent, 32);
    let mut answer = [0u8; 4096];
    // SAFETY: the answer lives through the call, its length is given.
    let len = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    assert!(len >= 20);
    let code = i32::from_ne_bytes(answer[16..20].try_into().expect("four bytes"));
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

/// Sends a TCP super-packet of `len` payload bytes in segments of `size` on an interface, as a packet socket may.
pub(crate) fn send_super_packet(name: &str, len: usize, size: u16) -> io::Result<()> {
    const PACKET_VNET_HDR: libc::c_int = 15;
    let sum = |bytes: &[u8]| {
        let words = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    };
    let total = (40 + len) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2]);
    let header_sum = !sum(&ip);
    ip[10..12].copy_from_slice(&header_sum.to_be_bytes());
    let mut tcp = [&[3, 232, 7, 208, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 4, 0, 0, 0, 0, 0][..]].concat();
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend((total - 20).to_be_bytes());
    tcp[16..18].copy_from_slice(&sum(&pseudo).to_be_bytes());
    // Needs a checksum, TCP over IPv4, 40 bytes of headers, the size, and where the checksum is.
    let mut packet = vec![1, 1];
    for field in [40, size, 20, 16] {
        packet.extend(field.to_ne_bytes());
    }
    packet.extend([ip, tcp, vec![0; len]].concat());

    let protocol = (libc::ETH_P_IP as u16).to_be();
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol)) })?;
    // SAFETY: just made, nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int, and lives through the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    // SAFETY: integers, for which zero is a value.
    let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
    to.sll_family = libc::AF_PACKET as libc::sa_family_t;
    to.sll_protocol = protocol;
    to.sll_ifindex = interface_index(name)?.cast_signed();
    let to_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: packet and address live through the call, and their lengths are given.
    let sent = unsafe {
        let to = (&raw const to).cast();
        libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, to, to_len)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A TAP interface: an Ethernet whose other stations are played by the test.
pub(crate) struct Ethernet {
    frames: File,
}

impl Ethernet {
    /// Makes the interface, with an address and up.
    pub(crate) fn new(name: &str, ours: Ipv4Addr) -> io::Result<Self> {
        let frames =
            File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF takes one ifreq, which lives through the call.
        check(unsafe { libc::ioctl(frames.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        interface_up(name)?;
        add_ipv4(name, ours)?;
        Ok(Self { frames })
    }

    /// The next frame sent by the machine, if any.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        let len = self.frames.read(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    /// Answers the question who has `station`, which must have been asked.
    pub(crate) fn introduce(&mut self, station: Ipv4Addr) -> io::Result<()> {
        const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 2];
        let asked = |frame: &[u8]| frame[12..14] == [8, 6] && frame[38..42] == station.octets();
        let question = std::iter::from_fn(|| self.receive()).find(|frame| asked(frame));
        let question = question.ok_or_else(|| io::Error::other("nobody asked for the station"))?;
        let mut answer = question.clone();
        answer[..6].copy_from_slice(&question[6..12]);
        answer[6..12].copy_from_slice(&HARDWARE);
        answer[21] = 2;
        answer[22..28].copy_from_slice(&HARDWARE);
        answer[28..32].copy_from_slice(&question[38..42]);
        answer[32..42].copy_from_slice(&question[22..32]);
        self.frames.write_all(&answer)
    }
}
