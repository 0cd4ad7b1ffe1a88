//! Keys: one direction of one session.

use std::fmt;

use crate::avx512::Avx512Key;
use crate::choice::Kernel;
use crate::portable::LibraryKey;
use crate::run::{self, Opening, RunError, Sealing};

/// Seals and opens with the key of one direction of one session. The nonce is four zero bytes and the counter, little endian;
/// nothing is authenticated beside the text (WireGuard whitepaper §5.4.6).
///
/// [`Key`] is the real one. The other is in `bench`, where nothing is encrypted to see what encryption costs.
pub trait Cipher: Sized + Send + 'static {
    /// Takes a key into use. A kernel that this CPU does not have is replaced by the library.
    fn new(key: &[u8; 32], kernel: Kernel) -> Self;

    /// Seals the packets of `run` with the counters `first_counter`, `first_counter + 1` and so on: all of them or none.
    ///
    /// It is quickest for packets of equal length, of which the last may be shorter. The caller gives no counter twice.
    ///
    /// # Errors
    ///
    /// When a length or a counter is out of range; then nothing was written.
    fn seal_run(&self, first_counter: u64, run: &mut [Sealing<'_>]) -> Result<(), RunError>;

    /// Opens the packets of `run` in place, each by itself, and says of each whether it `opened`.
    ///
    /// It is quickest for packets of equal length, of which the last may be shorter.
    fn open_run(&self, run: &mut [Opening<'_>]);
}

/// A key of ChaCha20-Poly1305 (RFC 8439), wiped when it is dropped.
pub struct Key {
    library: LibraryKey,
    avx512: Option<Avx512Key>,
}

/// Says that it is one, and no more.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Cipher for Key {
    fn new(key: &[u8; 32], kernel: Kernel) -> Self {
        let avx512 = match kernel {
            Kernel::Portable => None,
            Kernel::Avx512 => Avx512Key::new(key),
        };
        Self { library: LibraryKey::new(key), avx512 }
    }

    fn seal_run(&self, first_counter: u64, run: &mut [Sealing<'_>]) -> Result<(), RunError> {
        run::check(first_counter, run)?;
        let (mut counter, mut run) = (first_counter, run);
        while !run.is_empty() {
            let sealed = match &self.avx512 {
                Some(kernel) => kernel.seal(counter, run),
                None => 0,
            };
            // What the kernel does not take is for the library.
            if sealed == 0 {
                self.library.seal(counter, &mut run[0]);
            }
            let sealed = sealed.max(1);
            run = &mut run[sealed..];
            // It may be the last there is, and then it is not used again.
            counter = counter.wrapping_add(sealed as u64);
        }
        Ok(())
    }

    fn open_run(&self, run: &mut [Opening<'_>]) {
        let mut run = run;
        while !run.is_empty() {
            let opened = match &self.avx512 {
                Some(kernel) => kernel.open(run),
                None => 0,
            };
            if opened == 0 {
                self.library.open(&mut run[0]);
            }
            run = &mut run[opened.max(1)..];
        }
    }
}
