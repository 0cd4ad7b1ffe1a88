//! Both kernels against another implementation, and against each other.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod random;
mod reference;
mod refused;
mod runs;
