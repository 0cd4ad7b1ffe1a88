//! What the kernel leaves to us when a TUN queue has offloads, as arithmetic on bytes: cutting a super-packet into the
//! packets it stands for, and making one of packets that follow each other.
//!
//! [`SuperPacket`] cuts what TUN gave; it finishes checksums and stamps headers, and leaves payload where it lies.
//! [`Coalescer`] is its inverse before writing to TUN: it verifies the checksums of packets of one flow and says how
//! they are gathered into one write. Neither makes a system call, allocates after construction, or copies payload.

mod checksum;
mod coalesce;
mod flows;
mod headers;
mod look;
mod super_packet;
pub(crate) mod virtio;

pub(crate) use coalesce::{CAPACITY, Coalescer, Full, Place};
pub(crate) use look::Class;
pub(crate) use super_packet::Shape;
pub use super_packet::{Head, SuperPacket};

#[cfg(test)]
mod tests;
