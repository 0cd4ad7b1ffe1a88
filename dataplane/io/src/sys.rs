//! Safe wrappers of the system calls that the standard library does not have. Nothing is decided here.

use std::ffi::CStr;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::udp::SocketBuffers;

/// Turns a C result into ours.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A non-blocking eventfd with count 0.
pub(crate) fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
    // SAFETY: the kernel has just given us this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What to do when an interface of the name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunFlags {
    /// Refuse.
    New,
    /// Add a queue to it.
    Attach,
}

/// Makes an opened TUN file a queue of interface `name`; answers the interface's real name.
pub(crate) fn tun_set_interface(file: BorrowedFd<'_>, name: &str, flags: TunFlags) -> io::Result<String> {
    let mut request = interface_request();
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let exclusive = if flags == TunFlags::New { libc::IFF_TUN_EXCL } else { 0 };
    let mode = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | libc::IFF_VNET_HDR | exclusive;
    request.ifr_ifru.ifru_flags = (mode as u16).cast_signed();
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    interface_name(&request)
}

/// What a TUN queue's reader can finish itself (`linux/if_tun.h`): checksums, and super-packets of TCP and of UDP.
const TUN_F_CSUM: libc::c_uint = 1;
const TUN_F_TSO: libc::c_uint = 2 | 4 | 8;
const TUN_F_USO: libc::c_uint = 0x20 | 0x40;

/// Offers to finish checksums and to cut super-packets of TCP, and of UDP, that the interface gives.
pub(crate) fn tun_set_offloads(file: BorrowedFd<'_>, tso: bool, uso: bool) -> io::Result<()> {
    let mut flags = 0;
    if tso {
        flags |= TUN_F_CSUM | TUN_F_TSO;
    }
    if uso {
        flags |= TUN_F_CSUM | TUN_F_USO;
    }
    // SAFETY: TUNSETOFFLOAD takes the flags as a number, no pointer.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) }).map(drop)
}

/// Has datagrams of one sender and size arrive together (`UDP_GRO`), or no more.
pub(crate) fn set_gro(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, on.into())
}

/// Lets sockets of this user that say so as well have the same port (`SO_REUSEPORT`).
pub(crate) fn set_reuse_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
}

/// Has a program choose among the sockets that share this one's port: what it returns is the number of one, in the order of
/// binding (`SO_ATTACH_REUSEPORT_CBPF`).
pub(crate) fn attach_reuse_port_program(
    socket: BorrowedFd<'_>,
    program: &[libc::sock_filter],
) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let pointer = (&raw const program).cast();
    let len = size_of_val(&program) as libc::socklen_t;
    let name = libc::SO_ATTACH_REUSEPORT_CBPF;
    // SAFETY: the option's value is one sock_fprog of the size given, which tells where as many instructions as it says lie;
    // the kernel copies them, and writes to nothing.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, pointer, len) }).map(drop)
}

/// Whether [`set_reuse_port`] is in force.
#[cfg(test)]
pub(crate) fn reuses_port(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(option(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT)? != 0)
}

/// Has what is sent on this socket cut every `size` bytes.
#[cfg(test)]
pub(crate) fn set_segment_size(socket: BorrowedFd<'_>, size: u16) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, size.into())
}

/// Whether a TUN file is a queue of an interface that exists.
pub(crate) fn tun_is_attached(file: BorrowedFd<'_>) -> bool {
    let mut request = interface_request();
    // SAFETY: TUNGETIFF writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) }).is_ok()
}

fn interface_request() -> libc::ifreq {
    // SAFETY: an ifreq is integers and pointers, for which zero is a value.
    unsafe { mem::zeroed() }
}

fn interface_name(request: &libc::ifreq) -> io::Result<String> {
    let bytes: Vec<u8> = request.ifr_name.iter().map(|byte| byte.cast_unsigned()).collect();
    let name = CStr::from_bytes_until_nul(&bytes).map_err(io::Error::other)?;
    Ok(name.to_string_lossy().into_owned())
}

/// Datagrams leave unfragmented, and ICMP's word about the path's MTU is ignored.
pub(crate) fn set_mtu_probe(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let (level, name, value) = mtu_option(v6);
    set_option(socket, level, name, value)
}

/// Whether [`set_mtu_probe`] is in force.
#[cfg(test)]
pub(crate) fn mtu_probe(socket: BorrowedFd<'_>, v6: bool) -> io::Result<bool> {
    let (level, name, value) = mtu_option(v6);
    Ok(option(socket, level, name)? == value)
}

fn mtu_option(v6: bool) -> (libc::c_int, libc::c_int, libc::c_int) {
    if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    }
}

/// Asks for socket buffers beyond the system's limit where that is permitted, else up to the limit.
pub(crate) fn set_buffers(socket: BorrowedFd<'_>, buffers: SocketBuffers) -> io::Result<()> {
    for (bytes, force, plain) in [
        (buffers.receive, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (buffers.send, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        if set_option(socket, libc::SOL_SOCKET, force, value).is_err() {
            set_option(socket, libc::SOL_SOCKET, plain, value)?;
        }
    }
    Ok(())
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let pointer = (&raw const value).cast();
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option's value is an int of the size given, and lives through the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, len) }).map(drop)
}

#[cfg(test)]
fn option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    let pointer = (&raw mut value).cast();
    // SAFETY: value and length live through the call, and the length is that of the value.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut len) })?;
    Ok(value)
}

/// Waits until one of `set` has something to say, or `timeout` has passed. Answers how many have.
pub(crate) fn poll(set: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos().cast_signed()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let len = set.len() as libc::nfds_t;
    // SAFETY: the set is a slice of its length, the timeout null or a value that lives through the call, and a null
    // signal mask means no change.
    let ready = check(unsafe { libc::ppoll(set.as_mut_ptr(), len, timeout, std::ptr::null()) })?;
    Ok(usize::try_from(ready).unwrap_or(0))
}

/// Sends `count` messages without waiting; answers how many the kernel took.
///
/// # Safety
///
/// `first` must be the first of as many headers, each pointing to a name and vectors of the lengths it tells, to memory
/// that nobody writes to during the call.
pub(crate) unsafe fn send_messages(
    socket: BorrowedFd<'_>,
    first: *mut libc::mmsghdr,
    count: usize,
) -> io::Result<usize> {
    // SAFETY: the caller's promise is the one asked for.
    let sent = check(unsafe { libc::sendmmsg(socket.as_raw_fd(), first, count as u32, libc::MSG_DONTWAIT) })?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

/// Writes what `count` vectors point to, in one call.
///
/// # Safety
///
/// `vectors` must be the first of as many, each pointing to memory of its length that nobody writes to during the call.
pub(crate) unsafe fn write_vectors(
    file: BorrowedFd<'_>,
    vectors: *const libc::iovec,
    count: usize,
) -> io::Result<usize> {
    // SAFETY: the caller's promise is the one asked for.
    let written = unsafe { libc::writev(file.as_raw_fd(), vectors, count as libc::c_int) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// A set of processors.
pub(crate) struct CpuSet(libc::cpu_set_t);

impl CpuSet {
    pub(crate) fn new() -> Self {
        // SAFETY: a cpu_set_t is an array of words, for which zero is a value and means the empty set.
        Self(unsafe { MaybeUninit::zeroed().assume_init() })
    }

    /// Adds a processor; false when its number is beyond what a set can hold.
    pub(crate) fn insert(&mut self, cpu: usize) -> bool {
        if cpu >= libc::CPU_SETSIZE as usize {
            return false;
        }
        // SAFETY: the processor is within the set, checked above.
        unsafe { libc::CPU_SET(cpu, &mut self.0) };
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        // SAFETY: every processor asked for is within the set.
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &self.0) })
    }
}

/// Binds the calling thread to a set of processors.
pub(crate) fn set_affinity(set: &CpuSet) -> io::Result<()> {
    // SAFETY: the set is of the size given and lives through the call; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set.0), &raw const set.0) }).map(drop)
}

/// The processors of the calling thread.
pub(crate) fn affinity() -> io::Result<CpuSet> {
    let mut set = CpuSet::new();
    // SAFETY: the set is of the size given and lives through the call; 0 is the calling thread.
    check(unsafe { libc::sched_getaffinity(0, size_of_val(&set.0), &raw mut set.0) })?;
    Ok(set)
}
