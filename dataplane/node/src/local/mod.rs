//! The local API: what programs on this machine ask of the daemon, over a unix socket.
//!
//! Whoever may open the socket (its owner and its group) may look; only root and the daemon's own user may change anything. Which
//! methods change something, their descriptions say.

mod guard;
mod service;
mod socket;

pub(crate) use self::service::serve;
pub(crate) use self::socket::LocalSocket;
