//! What a relay node does besides being a peer: it gives out channels, and passes on what comes through them.

use std::collections::BTreeMap;

use ringmesh_tunnel::key::NodeId;
use ringmesh_tunnel::{BindAnswer, BindRefusal, Hop, Tunnel, relayed};

/// Channels that one relay of the virtual internet gives out.
const MAX_CHANNELS: usize = 4096;

/// A relay's channels: for each, who may send through it and to whom it leads.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    by_number: BTreeMap<u32, (NodeId, NodeId)>,
    by_pair: BTreeMap<(NodeId, NodeId), u32>,
    /// Who asked, and whether it was told that the other is there.
    told: BTreeMap<(NodeId, NodeId), bool>,
    last: u32,
    pub(crate) passed_on: u64,
}

impl Channels {
    /// Answers a client that asks for a channel to `target`.
    pub(crate) fn bind(&mut self, tunnel: &mut Tunnel, client: NodeId, target: NodeId, members: &[NodeId]) {
        let answer = if client == target || !members.contains(&target) {
            BindAnswer::Refused(BindRefusal::UnknownNode)
        } else if let Some(channel) = self.channel(client, target) {
            let present = tunnel.hop_to(target).is_some();
            self.told.insert((client, target), present);
            BindAnswer::Bound { channel, present }
        } else {
            BindAnswer::Refused(BindRefusal::Full)
        };
        tunnel.answer_bind(client, target, answer);
    }

    /// Tells everybody who asked for a node that came or went.
    pub(crate) fn tell_changes(&mut self, tunnel: &mut Tunnel) {
        let told: Vec<_> = self.told.iter().map(|(&pair, &present)| (pair, present)).collect();
        for ((client, target), before) in told {
            let present = tunnel.hop_to(target).is_some();
            if let Some(channel) = self.channel(client, target).filter(|_| present != before) {
                self.told.insert((client, target), present);
                tunnel.answer_bind(client, target, BindAnswer::Bound { channel, present });
            }
        }
    }

    /// Takes a relayed datagram; says where it goes on to, with the channel rewritten.
    pub(crate) fn pass_on(&mut self, tunnel: &Tunnel, datagram: &mut [u8], from: Hop) -> Option<Hop> {
        let number = relayed::parse(datagram)?;
        let (owner, target) = *self.by_number.get(&number)?;
        if tunnel.hop_to(owner) != Some(from) || !relayed::is_sealed(&datagram[relayed::HEADER_LEN..]) {
            return None;
        }
        let back = self.channel(target, owner)?;
        let hop = tunnel.hop_to(target)?;
        datagram[..relayed::HEADER_LEN].copy_from_slice(&relayed::emit(back));
        self.passed_on += 1;
        Some(hop)
    }

    fn channel(&mut self, client: NodeId, target: NodeId) -> Option<u32> {
        if let Some(&number) = self.by_pair.get(&(client, target)) {
            return Some(number);
        }
        if self.by_pair.len() >= MAX_CHANNELS {
            return None;
        }
        // Far apart, so that a number of another client is never hit by chance.
        self.last = self.last.wrapping_add(0x9e37_79b9);
        self.by_number.insert(self.last, (client, target));
        self.by_pair.insert((client, target), self.last);
        Some(self.last)
    }
}
