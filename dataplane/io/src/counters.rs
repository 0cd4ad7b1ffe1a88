//! What a back end counts: plain words of one worker, copied out by whoever reports them.

/// Counts since the back end was opened. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// System calls made on the packet path.
    pub system_calls: u64,
    /// Turns taken.
    pub turns: u64,
    /// Turns in which the waker had fired.
    pub wakes: u64,
    /// Packets read from TUN and shown, each segment of a super-packet as one.
    pub packets_read: u64,
    /// Super-packets of two segments and more among what was read from TUN.
    pub super_packets_read: u64,
    /// Packets written to TUN, each of those merged for itself.
    pub packets_written: u64,
    /// Writes to TUN that were several packets merged.
    pub super_packets_written: u64,
    /// Packets from TUN that were longer than the MTU given, or were not what their offload header said; not shown.
    pub packets_unfit: u64,
    /// Packets that TUN refused: not an IP packet, or the interface is down.
    pub packets_refused: u64,
    /// Datagrams received and shown.
    pub datagrams_received: u64,
    /// Receives that brought several datagrams.
    pub trains_received: u64,
    /// Datagrams handed to the network.
    pub datagrams_sent: u64,
    /// Sends that were several datagrams.
    pub trains_sent: u64,
    /// Datagrams received that were longer than any of ours can be; not shown.
    pub datagrams_unfit: u64,
    /// Datagrams that the network refused: no route, too long for the device, no socket of that family.
    pub datagrams_refused: u64,
    /// Sends of several datagrams, and writes of several packets, that the kernel refused as such, and that were done
    /// again one by one.
    pub offloads_refused: u64,
    /// Times the network took nothing more for the moment, so that the outbox waited and TUN was not read.
    pub send_stalls: u64,
    /// Errors of receiving that were not about a datagram of ours: reported by ICMP, or the kernel's want of memory.
    pub receive_errors: u64,
    /// Receiving operations started again after the kernel ended them (io_uring: all buffers were in use).
    pub rearms: u64,
    /// io_uring: operations that the kernel took from the submission queue.
    pub submissions: u64,
    /// io_uring: times a turn found more completions than the completion queue has room for. None is lost, but each time costs.
    pub completions_overflowed: u64,
}
