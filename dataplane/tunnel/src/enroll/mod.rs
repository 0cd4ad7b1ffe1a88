//! The way into a network: the join token, what is signed on the way, and how secrets are sealed.
//!
//! A [`JoinToken`] pins the network's root key and carries a secret that is never sent: the node proves it by signing
//! a [`transcript`] of the connection. What the coordinator hands back in secret is [sealed](seal) to the node's noise key.

pub mod seal;
mod token;
pub mod transcript;

pub use token::{COORDINATORS_MAX, JoinToken, TokenError, TokenSecret};

#[cfg(test)]
mod tests;
