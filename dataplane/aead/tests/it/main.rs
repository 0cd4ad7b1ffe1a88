//! Both kernels against another implementation, and against each other.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod constant_time;
mod guarded;
mod random;
mod reference;
mod refused;
mod runs;
