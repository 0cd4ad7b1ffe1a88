//! Which of the kernel's offloads a worker uses: what it is asked for, and what is in use.

use std::fmt::{self, Display};
use std::str::FromStr;

use thiserror::Error;

/// A set of offloads. Together they are worth a multiple in throughput; leaving one out is for measuring, and for a driver that
/// does it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// `tso`: TUN gives TCP super-packets (`TUN_F_TSO4`, `TUN_F_TSO6`).
    pub tso: bool,
    /// `uso`: TUN gives UDP super-packets (`TUN_F_USO4`, `TUN_F_USO6`, Linux 6.2).
    pub uso: bool,
    /// `tun-gro`: packets of one flow are merged into one write to TUN.
    pub tun_gro: bool,
    /// `udp-gso`: equal datagrams to one address leave in one send (`UDP_SEGMENT`).
    pub udp_gso: bool,
    /// `udp-gro`: datagrams of one sender arrive in one receive (`UDP_GRO`).
    pub udp_gro: bool,
}

impl Offloads {
    /// Every one.
    pub const ALL: Self = Self { tso: true, uso: true, tun_gro: true, udp_gso: true, udp_gro: true };

    /// None: a packet is a system call (or an operation) everywhere.
    pub const NONE: Self = Self { tso: false, uso: false, tun_gro: false, udp_gso: false, udp_gro: false };

    /// Each with its word.
    fn words(&mut self) -> [(&'static str, &mut bool); 5] {
        let Self { tso, uso, tun_gro, udp_gso, udp_gro } = self;
        [("tso", tso), ("uso", uso), ("tun-gro", tun_gro), ("udp-gso", udp_gso), ("udp-gro", udp_gro)]
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self::ALL
    }
}

impl Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("all");
        }
        let mut copy = *self;
        let on = copy.words().into_iter().filter(|(_, on)| **on);
        let words: Vec<_> = on.map(|(word, _)| word).collect();
        f.write_str(if words.is_empty() { "none".to_owned() } else { words.join(",") }.as_str())
    }
}

/// A word that names no offload.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is no offload: write all, none, or those to use out of tso, uso, tun-gro, udp-gso and udp-gro, with commas"
)]
pub struct UnknownOffload(String);

impl FromStr for Offloads {
    type Err = UnknownOffload;

    fn from_str(text: &str) -> Result<Self, UnknownOffload> {
        match text.trim() {
            "all" => return Ok(Self::ALL),
            "none" => return Ok(Self::NONE),
            _ => {}
        }
        let mut offloads = Self::NONE;
        for word in text.split(',').map(str::trim) {
            let known = offloads.words().into_iter().find(|(known, _)| *known == word);
            *known.ok_or_else(|| UnknownOffload(word.to_owned()))?.1 = true;
        }
        Ok(offloads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for bits in 0..32u8 {
            let mut offloads = Offloads::NONE;
            for (bit, (_, on)) in offloads.words().into_iter().enumerate() {
                *on = bits >> bit & 1 == 1;
            }
            assert_eq!(offloads.to_string().parse(), Ok(offloads));
        }
        assert_eq!(" tso , udp-gro".parse(), Ok(Offloads { tso: true, udp_gro: true, ..Offloads::NONE }));
    }

    #[test]
    fn an_unknown_word_is_told_with_those_that_are_known() {
        for bad in ["", "lro", "tso,", "all,tso", "tso uso"] {
            let error = bad.parse::<Offloads>().unwrap_err();
            assert!(error.to_string().contains("udp-gso"), "{bad:?}: {error}");
        }
    }
}
