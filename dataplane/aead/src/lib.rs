//! ChaCha20-Poly1305 over runs of packets: how the packets of a session are sealed and opened.
//!
//! The packets of a turn come in runs of one session, so this is asked for a whole run at once ([`Cipher`]). Behind it are a
//! library, one packet after the other, and a kernel of our own that works on up to sixteen packets side by side where the CPU
//! has AVX-512 ([`Kernel`]). [`choose`] says which is used, after the kernel was tested against the library.
//!
//! The nonce is four zero bytes and the packet's counter, little endian, and nothing is authenticated beside the text: the shape
//! of WireGuard's data messages (whitepaper §5.4.6). Counters are the caller's: a pair of key and counter must never be used twice.
#![deny(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(not(target_arch = "x86_64"))]
#[path = "no_avx512.rs"]
mod avx512;
mod choice;
mod key;
#[cfg(test)]
mod plain;
mod portable;
mod run;
mod self_test;

pub use self::choice::{Choice, Chosen, Kernel, UnknownChoice, choose};
pub use self::key::{Cipher, Key};
pub use self::run::{MAX_TEXT_LEN, Opening, RunError, Sealing, TAG_LEN};
