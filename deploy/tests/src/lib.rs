//! What the tests of `deploy/` share. The tests themselves are in `tests/`, one file for each thing that is shipped.

#![forbid(unsafe_code)]

pub mod executable;
pub mod first_boot;
pub mod readme;
pub mod tarball;
