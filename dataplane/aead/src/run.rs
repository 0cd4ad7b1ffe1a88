//! Runs: packets of one session that are sealed or opened together.

use std::fmt;

use thiserror::Error;

/// Length of the tag behind a sealed text, in bytes (RFC 8439 §2.8).
pub const TAG_LEN: usize = 16;

/// The longest text that is sealed or opened, in bytes: more than any datagram holds.
pub const MAX_TEXT_LEN: usize = 1 << 16;

/// Length of a block of ChaCha20, in bytes (RFC 8439 §2.3). A [`Sealing::head`] ends with one.
pub(crate) const BLOCK_LEN: usize = 64;

/// One packet to seal. Its text is `head`, then `rest`, then zeros up to `out.len() - TAG_LEN`: what is cut from a super-packet has
/// a head of its own, and the rest of its payload is borrowed from where it was read.
pub struct Sealing<'a> {
    /// How the text begins. A multiple of 64 bytes, unless `rest` is empty.
    pub head: &'a [u8],
    /// How the text goes on.
    pub rest: &'a [u8],
    /// Where the sealed text and the tag behind it are written: every byte of it.
    pub out: &'a mut [u8],
}

impl Sealing<'_> {
    fn check(&self) -> Result<(), RunError> {
        let room = self.out.len().checked_sub(TAG_LEN).ok_or(RunError::NoRoom)?;
        let wanted = self.head.len().checked_add(self.rest.len()).ok_or(RunError::TooLong)?;
        if room > MAX_TEXT_LEN {
            return Err(RunError::TooLong);
        }
        if wanted > room {
            return Err(RunError::NoRoom);
        }
        if !self.rest.is_empty() && !self.head.len().is_multiple_of(BLOCK_LEN) {
            return Err(RunError::UnevenHead);
        }
        Ok(())
    }
}

/// Shows lengths only: the text is nobody's business.
impl fmt::Debug for Sealing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealing")
            .field("head", &self.head.len())
            .field("rest", &self.rest.len())
            .field("out", &self.out.len())
            .finish()
    }
}

/// One packet to open, in place.
pub struct Opening<'a> {
    /// The counter it was sealed with.
    pub counter: u64,
    /// The sealed text, then the tag. The text is here afterwards, before the tag, if it `opened`.
    pub bytes: &'a mut [u8],
    /// The answer. What did not open is left as it was or zeroed, and never a text.
    pub opened: bool,
}

/// Shows the length only: the text is nobody's business.
impl fmt::Debug for Opening<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening")
            .field("counter", &self.counter)
            .field("bytes", &self.bytes.len())
            .field("opened", &self.opened)
            .finish()
    }
}

/// Why a run cannot be sealed. It is the caller's mistake, and nothing was written.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RunError {
    /// A packet's text and tag are longer than the place they are to be written to.
    #[error("a packet and its tag do not fit into the buffer they are to be sealed into")]
    NoRoom,
    /// A text of more than [`MAX_TEXT_LEN`] bytes.
    #[error("a packet to be sealed is longer than {MAX_TEXT_LEN} bytes")]
    TooLong,
    /// A head that does not end with a block, and is not all of the text.
    #[error("the head of a packet to be sealed is no multiple of {BLOCK_LEN} bytes")]
    UnevenHead,
    /// The run's counters would begin again at zero.
    #[error("the counters of the run go beyond the last there is")]
    CountersExhausted,
}

/// Checks a run before anything of it is sealed.
pub(crate) fn check(first_counter: u64, run: &[Sealing<'_>]) -> Result<(), RunError> {
    let others = run.len().saturating_sub(1) as u64;
    first_counter.checked_add(others).ok_or(RunError::CountersExhausted)?;
    run.iter().try_for_each(Sealing::check)
}
