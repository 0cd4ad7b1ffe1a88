//! Relays that lie. A relay is nobody's friend: what it cannot read it can still misdirect, repeat, change or keep.

use std::collections::{BTreeMap, VecDeque};

use ringmesh_tunnel::{Hop, PeerConfig, relayed};

use crate::rng::Rng;
use crate::world::NodeIndex;

/// What a relay does wrong with what it should pass on. Its own sessions with its clients are in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// What is for one node goes to another, on a channel of the other's.
    Crosses,
    /// Everything goes on; and something from earlier goes again with it, to its receiver and to somebody else.
    Repeats,
    /// One byte of everything is another.
    Alters,
    /// Nothing passes between these two.
    Withholds(NodeIndex, NodeIndex),
    /// Who asks for a channel to a node gets the number of one to another node.
    Misnumbers,
}

impl Lie {
    /// Whether two nodes can still talk through the relay.
    #[must_use]
    pub fn lets_talk(self, a: NodeIndex, b: NodeIndex) -> bool {
        match self {
            Self::Repeats => true,
            Self::Withholds(one, other) => (one, other) != (a, b) && (one, other) != (b, a),
            Self::Crosses | Self::Alters | Self::Misnumbers => false,
        }
    }
}

/// Datagrams that a liar keeps, to repeat them.
const MAX_KEPT: usize = 256;

/// A relay's lie and what it takes to tell it.
#[derive(Debug)]
pub(crate) struct Liar {
    lie: Option<Lie>,
    rng: Rng,
    /// A channel of each client's.
    channels: BTreeMap<Hop, u32>,
    kept: VecDeque<(Hop, Vec<u8>)>,
    told: u64,
}

impl Liar {
    pub(crate) const fn new(rng: Rng) -> Self {
        Self { lie: None, rng, channels: BTreeMap::new(), kept: VecDeque::new(), told: 0 }
    }

    pub(crate) const fn lie(&self) -> Option<Lie> {
        self.lie
    }

    pub(crate) fn set(&mut self, lie: Option<Lie>) {
        self.lie = lie;
        self.forget();
    }

    /// Its process begins anew.
    pub(crate) fn forget(&mut self) {
        self.channels.clear();
        self.kept.clear();
    }

    /// Datagrams that were not treated as they should.
    pub(crate) const fn told(&self) -> u64 {
        self.told
    }

    /// The members as it knows them: with this lie, each under another's name.
    pub(crate) fn members(&mut self, members: &[PeerConfig]) -> Vec<PeerConfig> {
        let mut named = members.to_vec();
        if self.lie == Some(Lie::Misnumbers) {
            for (member, next) in named.iter_mut().zip(members.iter().cycle().skip(1)) {
                member.id = next.id;
                self.told += 1;
            }
        }
        named
    }

    /// Sends on what an honest relay would send from `from` to `to`; `ends` are the two clients.
    pub(crate) fn pass_on(
        &mut self,
        ends: [Option<NodeIndex>; 2],
        (from, to): (Hop, Hop),
        mut datagram: Vec<u8>,
        sent: &mut Vec<(Hop, Vec<u8>)>,
    ) {
        match self.lie {
            None | Some(Lie::Misnumbers) => sent.push((to, datagram)),
            Some(Lie::Crosses) => {
                self.told += 1;
                self.learn(to, &datagram);
                sent.extend(self.cross(&[from, to], &datagram));
            }
            Some(Lie::Repeats) => {
                self.learn(to, &datagram);
                sent.push((to, datagram.clone()));
                if !self.kept.is_empty() {
                    self.told += 1;
                    let old = self.rng.below(self.kept.len() as u64) as usize;
                    let (to, datagram) = self.kept[old].clone();
                    sent.extend(self.cross(&[to], &datagram));
                    sent.push((to, datagram));
                }
                if self.kept.len() == MAX_KEPT {
                    self.kept.pop_front();
                }
                self.kept.push_back((to, datagram));
            }
            Some(Lie::Alters) => {
                self.told += 1;
                let inner = datagram.len() - relayed::HEADER_LEN;
                let at = relayed::HEADER_LEN + self.rng.below(inner as u64) as usize;
                datagram[at] ^= 1 << self.rng.below(8);
                sent.push((to, datagram));
            }
            Some(Lie::Withholds(a, b)) => {
                if ends == [Some(a), Some(b)] || ends == [Some(b), Some(a)] {
                    self.told += 1;
                } else {
                    sent.push((to, datagram));
                }
            }
        }
    }

    fn learn(&mut self, to: Hop, datagram: &[u8]) {
        if let Some(channel) = relayed::parse(datagram) {
            self.channels.insert(to, channel);
        }
    }

    /// The datagram as somebody else would get it, if there is anybody but these.
    fn cross(&mut self, but: &[Hop], datagram: &[u8]) -> Option<(Hop, Vec<u8>)> {
        let others: Vec<(Hop, u32)> = self
            .channels
            .iter()
            .filter(|(hop, _)| !but.contains(hop))
            .map(|(&hop, &channel)| (hop, channel))
            .collect();
        if others.is_empty() {
            return None;
        }
        let &(to, channel) = self.rng.pick(&others);
        Some((to, [&relayed::emit(channel), &datagram[relayed::HEADER_LEN..]].concat()))
    }
}
