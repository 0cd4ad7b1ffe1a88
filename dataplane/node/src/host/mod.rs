//! What the node asks of the machine it runs on, by netlink only: no `ip` program is called.
//!
//! Nearly all that is changed hangs on the TUN device: its addresses and the routes into it. The kernel takes them away with
//! the device, and the device goes when the daemon lets go of it, so that even `kill -9` leaves nothing behind. What the machine
//! is told of names may outlive it, and is noted before it is done ([`dns`]).

mod addresses;
mod collision;
pub(crate) mod dns;
mod interface;
mod netlink;

pub(crate) use self::addresses::{AddressWatch, Surroundings};
pub(crate) use self::interface::{Plan, await_predecessor, bring_up, preflight};
pub(crate) use self::netlink::Netlink;
