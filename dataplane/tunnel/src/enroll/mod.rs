//! The way into a network: tokens, what is signed, what is sealed.
