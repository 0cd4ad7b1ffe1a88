//! One port for several workers: a socket each, and a program in the kernel that gives a datagram to the worker it is for.
//!
//! The lowest six bits of a receiver index are the worker's number, in clear. A response (type 2) carries our index in bytes
//! 8..12, a cookie reply (3) and a data message (4) in bytes 4..8, little-endian, so one byte tells the worker; in a relayed
//! datagram (16) all is eight bytes later.
//!
//! | what arrives | goes to |
//! |---|---|
//! | a response, cookie reply or data message, relayed or not | the worker of its receiver index |
//! | an initiation, which comes before any index | by the first bytes of its ephemeral key: evenly over all workers, and a copy that went another way to the same one. Whoever floods chooses the bytes and so the worker; there they wait in a bounded queue beside the packet path |
//! | a number that no worker has, an unknown type, a datagram that ends before its index | worker 0, which drops and counts it |
//!
//! Nothing is lost to the program: it ends with a worker that exists, and where it reads past the end of a datagram, the kernel
//! ends it with 0. What is steered wrong is a stray for the worker that reads it.
//!
//! **Nobody shares the port uninvited.** `SO_REUSEPORT` alone would let a second daemon of the same user in, and each would get
//! half of what arrives. So the first socket of each family is bound *without* it: the kernel refuses that bind, in one step,
//! when anybody has the port, sharing or not. Only the owner of the port lets others in then, and those are ours; a
//! second daemon fails at its own first socket until our last is closed. A program of the same user that joins later, on
//! purpose, is never chosen: it has a number behind ours.
//!
//! The kernel numbers the sockets of a group in the order of binding, but when one is closed the last takes its number.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::{Family, SocketBuffers, Udp, UdpError, open_with};
use crate::sys;

/// The most workers that can share a port: as many as a receiver index can name.
pub const MAX_WORKERS: usize = 1 << WORKER_BITS;

/// Bits of a receiver index that name the worker.
const WORKER_BITS: u32 = 6;

/// The first four bytes of each message, as the program's big-endian loads see them.
const INITIATION: u32 = 0x0100_0000;
const RESPONSE: u32 = 0x0200_0000;
const COOKIE_REPLY: u32 = 0x0300_0000;
const DATA: u32 = 0x0400_0000;
/// The same of a header put in front by a relay.
const RELAYED: u32 = 0x1000_0000;
/// Bytes of that header.
const RELAYED_LEN: u32 = 8;

/// Has `first`'s port shared by as many sockets as there are workers, and steered. One worker needs neither.
pub(super) fn share(first: Udp, buffers: SocketBuffers, workers: usize) -> Result<Vec<Udp>, UdpError> {
    let group = join(first, buffers, workers)?;
    if let [first, _, ..] = group.as_slice() {
        steer(first, workers).map_err(|source| UdpError::NotShared { port: first.port, source })?;
    }
    Ok(group)
}

/// Binds the other workers' sockets beside `first`, which nobody could share so far.
fn join(first: Udp, buffers: SocketBuffers, workers: usize) -> Result<Vec<Udp>, UdpError> {
    let port = first.port;
    let not_shared = |source| UdpError::NotShared { port, source };
    if workers > 1 {
        for socket in Family::ALL.into_iter().filter_map(|family| first.socket(family)) {
            sys::set_reuse_port(socket).map_err(not_shared)?;
        }
    }
    let (has_v4, has_v6) = (first.has_ipv4(), first.has_ipv6());
    let mut group = vec![first];
    for _ in 1..workers {
        let v6 = has_v6.then(|| beside((Ipv6Addr::UNSPECIFIED, port).into(), buffers)).transpose();
        let v4 = has_v4.then(|| beside((Ipv4Addr::UNSPECIFIED, port).into(), buffers)).transpose();
        let (v4, v6) = (v4.map_err(not_shared)?, v6.map_err(not_shared)?);
        group.push(Udp::from_sockets(v4, v6).map_err(not_shared)?);
    }
    Ok(group)
}

/// A socket bound to where another one of ours is.
fn beside(at: SocketAddr, buffers: SocketBuffers) -> io::Result<UdpSocket> {
    open_with(at, buffers, sys::set_reuse_port)?
        .ok_or_else(|| io::Error::other("the address family went away"))
}

/// Gives the program to the groups of both families.
fn steer(any: &Udp, workers: usize) -> io::Result<()> {
    let program = program(workers as u32);
    Family::ALL
        .into_iter()
        .filter_map(|family| any.socket(family))
        .try_for_each(|socket| sys::attach_reuse_port_program(socket, &program))
}

/// Classic BPF that returns the number of the worker, below `workers`. The datagram's first byte has offset 0.
fn program(workers: u32) -> [libc::sock_filter; 19] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    /// Loads at X and a constant.
    const LOAD_AT_X: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
    const LOAD_BYTE_AT_X: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
    const SET_X: u32 = libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM;
    const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const SKIP: u32 = libc::BPF_JMP | libc::BPF_JA;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const RETURN_LOADED: u32 = libc::BPF_RET | libc::BPF_A;

    let plain = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    // Jumps over `yes` or `no` instructions.
    let jump = |code: u32, k, yes, no| libc::sock_filter { code: code as u16, jt: yes, jf: no, k };
    [
        // X is where the message begins.
        plain(SET_X, 0),
        plain(LOAD, 0),
        jump(IF_EQUAL, RELAYED, 0, 2),
        plain(SET_X, RELAYED_LEN),
        plain(LOAD_AT_X, 0),
        jump(IF_EQUAL, DATA, 3, 0),
        jump(IF_EQUAL, COOKIE_REPLY, 2, 0),
        jump(IF_EQUAL, RESPONSE, 3, 0),
        jump(IF_EQUAL, INITIATION, 6, 9),
        // The index's lowest byte.
        plain(LOAD_BYTE_AT_X, 4),
        plain(SKIP, 1),
        plain(LOAD_BYTE_AT_X, 8),
        plain(AND, MAX_WORKERS as u32 - 1),
        jump(IF_AT_LEAST, workers, 4, 0),
        plain(RETURN_LOADED, 0),
        // The ephemeral key's first bytes.
        plain(LOAD_AT_X, 8),
        plain(MODULO, workers),
        plain(RETURN_LOADED, 0),
        plain(RETURN, 0),
    ]
}

#[cfg(test)]
mod tests;
