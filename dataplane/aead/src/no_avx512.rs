//! What stands for the AVX-512 kernel on other processors: nothing.

use std::convert::Infallible;

use crate::run::{Opening, Sealing};

/// Whether this CPU has what the kernel needs.
pub(crate) fn is_here() -> bool {
    false
}

/// There is no such key.
pub(crate) struct Avx512Key(Infallible);

impl Avx512Key {
    pub(crate) fn new(_key: &[u8; 32]) -> Option<Self> {
        None
    }

    pub(crate) fn seal(&self, _first_counter: u64, _run: &mut [Sealing<'_>]) -> usize {
        match self.0 {}
    }

    pub(crate) fn open(&self, _run: &mut [Opening<'_>]) -> usize {
        match self.0 {}
    }
}
