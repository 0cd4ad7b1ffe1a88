//! Cutting and merging, against references that are written as plainly as the RFCs.

mod checksum;
mod gro;
mod merge;
pub(crate) mod packet;
mod segment;
mod traffic;
mod world;
