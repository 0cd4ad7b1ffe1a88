//! Real network namespaces: a switch and hosts on it, for tests, `meshctl demo` and benchmarks.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! ringmesh_lab::enter()?; // root, or a user namespace: needs no rights where the system allows those
//! let lab = ringmesh_lab::Lab::new()?;
//! let switch = lab.switch()?;
//! let (alice, bob) = (switch.host("alice")?, switch.host("bob")?);
//! let listener = bob.enter(|| std::net::TcpListener::bind("[::]:80"))??;
//! let status = alice.command("ping")?.args(["-c1", &bob.ipv4().to_string()]).status()?;
//! # Ok(()) }
//! ```
//!
//! A host is a network, a mount and a UTS namespace: it has its own interfaces, host name, `/run`, `/var/lib` and hosts file.
//! Namespaces have no names in the file system. They are held by descriptors and by the processes in them, so
//! the kernel takes them down, with every link in them, when the last of these is gone, however that happened.
//!
//! [`enter`] and [`in_sandbox`] put the program itself into a PID namespace, whose end ends everything started in it:
//! after `kill -9` no process, no namespace and no link is left. Without it a [`Lab`] needs root, and only the
//! processes started by [`Host::command`] (not their children) are sure to die with the thread that started them.
//!
//! [`Lab::router`] puts a router between two switches, which may translate addresses; [`Host::block`] makes any host drop
//! UDP, or TCP to a port (both by `nft`, Debian's package nftables). An [`Impair`] is a road between two addresses that
//! loses, delays and alters datagrams by a seed, and a [`Capture`] shows what passed an interface. [`debian`] boots a whole small
//! Debian on a host, with systemd.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "the kernel tells by getsockopt how many frames it dropped")]
mod capture;
pub mod debian;
mod error;
mod firewall;
mod hold;
mod host;
pub mod impair;
mod lab;
mod namespace;
mod netlink;
#[cfg(test)]
mod netns_tests;
#[allow(unsafe_code, reason = "starting a process inside new namespaces takes clone, exec and pre_exec")]
mod process;
mod residents;
mod router;
mod sandbox;
mod switch;

pub use capture::{Capture, Captured};
pub use error::{Denial, EnterError, LabError};
pub use firewall::Blocks;
pub use hold::HeldThread;
pub use host::{Host, Interface};
pub use impair::Impair;
pub use lab::Lab;
pub use router::Router;
pub use sandbox::{Privilege, enter, in_sandbox, outside_pid, privilege};
pub use switch::Switch;
