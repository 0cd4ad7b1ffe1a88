//! The ground on which the demo plays: what stands between the machines, so that only one kind of path is left.
//!
//! Plainly asked, all machines share a switch. Otherwise each node has a network of its own behind a router, which translates
//! addresses if that is asked, and drops what would make another path than the one that shall be shown.

use std::net::{IpAddr, Ipv4Addr};

use ringmesh_lab::{Blocks, Host, Lab, Router, Switch};
use serde::Serialize;

use super::lab_failure;
use crate::failure::{Exit, Failure};

/// The path that packets are made to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Transport {
    /// UDP from node to node
    Direct,
    /// UDP by way of the coordinator's relay; between the nodes UDP is blocked
    Relay,
    /// A WebSocket to the coordinator's relay; all UDP is blocked
    Websocket,
    /// SSH from node to node; all UDP is blocked
    Ssh,
}

/// What each node's router does with addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Nat {
    /// Nothing: nodes have addresses that others reach
    #[default]
    None,
    /// One port for all destinations, as most home routers do
    Masquerade,
    /// Another port for each destination, as some company routers do
    Symmetric,
}

/// Where a node listens when packets shall go by SSH.
const SSH_PORT: u16 = 2222;

/// Every IPv4 address.
const EVERYWHERE: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Transport {
    /// What `meshctl status` calls it.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Websocket => "websocket",
            Self::Ssh => "ssh",
        }
    }

    /// What the nodes must be told to have it.
    pub(super) fn flags(self) -> Vec<String> {
        match self {
            Self::Ssh => vec!["--ssh-port".to_owned(), SSH_PORT.to_string()],
            Self::Direct | Self::Relay | Self::Websocket => Vec::new(),
        }
    }

    /// Whether packets pass through the coordinator, which also is the relay.
    pub(super) const fn needs_relay(self) -> bool {
        matches!(self, Self::Relay | Self::Websocket)
    }
}

impl Nat {
    /// The best path that it leaves, which is what a mesh behind it would take by itself.
    pub(super) const fn usual_path(self) -> Transport {
        match self {
            Self::None | Self::Masquerade => Transport::Direct,
            Self::Symmetric => Transport::Relay,
        }
    }
}

/// The ground that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terrain {
    pub(super) transport: Transport,
    pub(super) nat: Nat,
}

impl Terrain {
    /// Refuses what cannot be: a path that this NAT leaves to nobody.
    pub(super) fn check(self) -> Result<(), Failure> {
        let no_path = |why: &str, cure: &str| {
            let nat = clap::ValueEnum::to_possible_value(&self.nat);
            let nat = nat.as_ref().map_or("", clap::builder::PossibleValue::get_name);
            let label = self.transport.label();
            let error = format!("there is no {label} path between nodes with --nat {nat}");
            Err(Failure::new(Exit::Usage, error).cause(why).attempt(cure))
        };
        match (self.transport, self.nat) {
            (Transport::Direct, Nat::Symmetric) => no_path(
                "behind a symmetric NAT a node's port is another one for each peer, and no peer can know it",
                "--transport relay, or --nat masquerade",
            ),
            (Transport::Ssh, Nat::Masquerade | Nat::Symmetric) => no_path(
                "nobody outside can connect to the SSH endpoint of a node behind a NAT",
                "--nat none, or --transport websocket",
            ),
            (_, Nat::None)
            | (Transport::Direct, Nat::Masquerade)
            | (Transport::Relay | Transport::Websocket, Nat::Masquerade | Nat::Symmetric) => Ok(()),
        }
    }

    /// Whether all machines can share a switch.
    pub(super) fn is_plain(self) -> bool {
        self == Self { transport: Transport::Direct, nat: Nat::None }
    }

    /// In words, for the person who watches.
    pub(super) fn described(self) -> String {
        let nat = match self.nat {
            Nat::None => "a router before each node",
            Nat::Masquerade => "a masquerading router before each node",
            Nat::Symmetric => "a symmetric NAT before each node",
        };
        let blocked = match self.blocking() {
            Blocking::Nothing => "",
            Blocking::BetweenNodes => "; UDP between nodes is blocked",
            Blocking::All => "; all UDP is blocked",
        };
        format!("{nat}{blocked}")
    }

    fn blocking(self) -> Blocking {
        match (self.transport, self.nat) {
            // Symmetric on both sides leaves no direct path anyway, which is what is to be seen.
            (Transport::Direct, _) | (Transport::Relay, Nat::Symmetric) => Blocking::Nothing,
            (Transport::Relay, _) => Blocking::BetweenNodes,
            (Transport::Websocket | Transport::Ssh, _) => Blocking::All,
        }
    }
}

/// Which UDP the routers drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocking {
    Nothing,
    BetweenNodes,
    All,
}

/// Switches and routers, as far as they are laid.
#[derive(Debug)]
pub(super) struct Ground {
    terrain: Terrain,
    outside: Switch,
    // The inside of each node, with its way out.
    insides: Vec<(Switch, Router)>,
}

impl Ground {
    /// The switch on which everybody meets.
    pub(super) fn new(lab: &Lab, terrain: Terrain) -> Result<Self, Failure> {
        let outside = lab.switch().map_err(lab_failure)?;
        Ok(Self { terrain, outside, insides: Vec::new() })
    }

    /// A machine that everybody can reach.
    pub(super) fn public(&self, name: &str) -> Result<Host, Failure> {
        self.outside.host(name).map_err(lab_failure)
    }

    /// A node's machine.
    pub(super) fn private(&mut self, lab: &Lab, name: &str) -> Result<Host, Failure> {
        if self.terrain.is_plain() {
            return self.public(name);
        }
        let inside = lab.switch().map_err(lab_failure)?;
        let host = inside.host(name).map_err(lab_failure)?;
        let router = lab.router(&format!("{name}-router"), &inside, &self.outside).map_err(lab_failure)?;
        match self.terrain.nat {
            Nat::None => router.serve(&host),
            // IPv6 would not be translated, but lost: such a network has none.
            Nat::Masquerade | Nat::Symmetric => host.interfaces().first().map_or(Ok(()), |interface| {
                let router = router.inside().ipv4().into();
                host.add_route(EVERYWHERE, interface.name(), Some(router))
            }),
        }
        .map_err(lab_failure)?;
        match self.terrain.nat {
            Nat::None => Ok(()),
            Nat::Masquerade => router.masquerade(),
            Nat::Symmetric => router.symmetric(),
        }
        .map_err(lab_failure)?;
        self.insides.push((inside, router));
        Ok(host)
    }

    /// Makes the insides known where they are reached, and drops what must not pass to and from `relay`'s other clients.
    pub(super) fn finish(&self, relay: &Host) -> Result<(), Failure> {
        if self.terrain.nat == Nat::None {
            self.announce(relay)?;
        }
        let blocks = match self.terrain.blocking() {
            Blocking::Nothing => return Ok(()),
            Blocking::BetweenNodes => Blocks::udp().but_for(relay.ipv4()).but_for(relay.ipv6()),
            Blocking::All => Blocks::udp(),
        };
        self.insides.iter().try_for_each(|(_, router)| router.host().block(&blocks)).map_err(lab_failure)
    }

    /// Tells the public machine and each router how every inside is reached.
    fn announce(&self, public: &Host) -> Result<(), Failure> {
        for (inside, router) in &self.insides {
            let others = self.insides.iter().map(|(_, other)| other.host());
            let others = others.filter(|other| other.name() != router.host().name());
            for host in others.chain([public]) {
                router.announce(inside, host).map_err(lab_failure)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn a_combination_either_has_a_path_or_a_reason_and_a_way_out() {
        let mut refused = Vec::new();
        for transport in Transport::value_variants() {
            for nat in Nat::value_variants() {
                let (transport, nat) = (*transport, *nat);
                let Err(failure) = (Terrain { transport, nat }).check() else { continue };
                assert_eq!(failure.exit(), Exit::Usage);
                let text = failure.to_string();
                assert!(text.contains("\ncause: ") && text.contains("\ntry: --"), "{text}");
                refused.push((transport, nat));
            }
        }
        assert_eq!(
            refused,
            [
                (Transport::Direct, Nat::Symmetric),
                (Transport::Ssh, Nat::Masquerade),
                (Transport::Ssh, Nat::Symmetric)
            ]
        );
    }

    #[test]
    fn the_usual_path_of_every_nat_is_one_that_it_leaves() {
        for nat in Nat::value_variants() {
            Terrain { transport: nat.usual_path(), nat: *nat }.check().unwrap();
        }
        assert_eq!(Nat::Masquerade.usual_path(), Transport::Direct);
        assert_eq!(Nat::Symmetric.usual_path(), Transport::Relay);
    }

    #[test]
    fn a_relayed_path_is_forced_by_a_block_or_by_the_nat_itself() {
        let blocking = |transport, nat| Terrain { transport, nat }.blocking();
        assert_eq!(blocking(Transport::Relay, Nat::Masquerade), Blocking::BetweenNodes);
        assert_eq!(blocking(Transport::Relay, Nat::Symmetric), Blocking::Nothing);
        assert_eq!(blocking(Transport::Websocket, Nat::None), Blocking::All);
    }
}
