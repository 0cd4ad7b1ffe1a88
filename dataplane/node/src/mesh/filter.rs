//! What is allowed here, by the policy and by this node's owner: compiled, narrowed, and shown with what came of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use ringmesh_proto::{control::Reason, local};
use ringmesh_tunnel::{
    filter::{Denial, Filter},
    netmap::NetworkMap,
    time::UnixTime,
};
use tracing::info;

use super::{Mesh, status::millis};
use crate::{
    clock::{self, Moment},
    error::Failure,
    filter::{
        Denials, Names, Wish, parse_ports, parse_protocol, parse_scope, ports_text, scope_text,
        selectors_text,
    },
    plane::{Plane, WorkerReport},
};

impl Mesh {
    /// The filter of a map, as far as it is in force at `now`, and of what this node's owner denies.
    ///
    /// # Errors
    /// The program is at fault.
    pub(super) async fn compile(&self, map: &Arc<NetworkMap>, now: UnixTime) -> Result<Arc<Filter>, Failure> {
        let denials = self.denials().in_force(Moment::now());
        compile(Arc::clone(map), denials, now, self.held().filter).await
    }

    pub(super) fn denials(&self) -> MutexGuard<'_, Denials> {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Denies something on this node; returns once it is in force, for flows that there are as well.
    ///
    /// # Errors
    /// The request makes no sense, there are too many, or the disk or the data plane refuses.
    pub(crate) async fn add_denial(
        &self,
        request: &local::AddDenialRequest,
    ) -> Result<local::Denial, Failure> {
        let protocol = parse_protocol(&request.protocol)?;
        let wish = Wish {
            scope: parse_scope(&request.direction)?,
            peer: match request.peer.as_str() {
                "" => None,
                text => Some(self.find_peer(text)?.id),
            },
            protocol,
            ports: parse_ports(&request.ports, protocol)?,
            ttl: (request.ttl_seconds > 0).then(|| Duration::from_secs(request.ttl_seconds)),
        };
        let ttl = wish.ttl;
        let denial = self.denials().add(&self.state, wish, Moment::now())?;
        info!(event = "denial_added", id = denial.id, "this node's owner denies something");
        self.put_denials_in_force().await?;
        let held = self.held();
        Ok(denial_shown(&denial, ttl, Names(&held.map), 0))
    }

    /// Takes a denial back; returns once it is so.
    ///
    /// # Errors
    /// There is none of that number, or the disk or the data plane refuses.
    pub(crate) async fn remove_denial(&self, id: u32) -> Result<(), Failure> {
        self.denials().remove(&self.state, id, Moment::now())?;
        info!(event = "denial_removed", id, "this node's owner does not deny something any more");
        self.put_denials_in_force().await
    }

    async fn put_denials_in_force(&self) -> Result<(), Failure> {
        // Another one may be the next to end.
        self.installed.notify_one();
        self.install_again().await.map_err(|failure| {
            failure.context("it is written down, and in force as soon as the data plane takes it")
        })
    }

    /// What may pass here, and what did.
    pub(crate) async fn filter(&self) -> local::FilterResponse {
        let held = self.held();
        let running = self.plane();
        let report = match running.as_deref().and_then(Plane::packets) {
            Some(plane) => plane.report().await.ok(),
            None => None,
        };
        let now = clock::wall();
        let counted = report.as_ref().map(|report| &report.filter);
        let names = Names(&held.map);
        let in_force = held.map.in_force(now) && held.map.policy_in_force(now);
        let rules = held.map.numbered_rules(now).filter(|_| in_force).map(|(index, rule)| {
            let hits = counted.and_then(|counted| counted.rules.get(&index)).copied().unwrap_or_default();
            local::FilterRule {
                number: rule_number(index),
                source: selectors_text(&rule.sources, names),
                destination: selectors_text(&rule.destinations, names),
                protocol: rule.protocol.to_string(),
                ports: ports_text(&rule.ports),
                packets: hits.packets,
                flows: hits.flows,
            }
        });
        let denials = self.denials();
        let denials = denials.list(Moment::now()).map(|(denial, left)| {
            let packets = counted.and_then(|counted| counted.denials.get(&denial.id)).copied();
            denial_shown(denial, left, names, packets.unwrap_or_default())
        });
        let flows: BTreeMap<_, _> =
            counted.map(|counted| counted.flows.clone()).unwrap_or_default().into_iter().collect();
        local::FilterResponse {
            policy_serial: held.map.policy().filter(|_| in_force).map_or(0, |policy| policy.serial),
            rules: rules.collect(),
            denials: denials.collect(),
            flows: flows.values().sum(),
            peers: flows
                .iter()
                .filter(|(_, flows)| **flows > 0)
                .map(|(peer, flows)| local::PeerFlows {
                    name: names.of(*peer),
                    flows: *flows,
                    most: counted.map_or(0, |counted| counted.most_flows),
                })
                .collect(),
            drops: report.as_ref().map(filter_drops).unwrap_or_default(),
        }
    }
}

/// Compiles on a thread of its own: a thousand rules over a thousand members take their time, and heartbeats go on meanwhile.
/// Gives `in_force` itself if the result is equal to it, as for most maps it is, so that the workers need not compare.
async fn compile(
    map: Arc<NetworkMap>,
    denials: Vec<Denial>,
    now: UnixTime,
    in_force: Arc<Filter>,
) -> Result<Arc<Filter>, Failure> {
    let compiled = tokio::task::spawn_blocking(move || {
        let compiled = Filter::compile(&map, &denials, now);
        if compiled == *in_force { in_force } else { Arc::new(compiled) }
    });
    compiled.await.map_err(|error| Failure::new(Reason::Host, format!("compiling the filter: {error}")))
}

/// What a rule is called: its place in the policy, from 1 on.
pub(super) fn rule_number(index: u64) -> u32 {
    u32::try_from(index.saturating_add(1)).unwrap_or(u32::MAX)
}

fn denial_shown(denial: &Denial, left: Option<Duration>, names: Names<'_>, packets: u64) -> local::Denial {
    let peers = denial.peers.iter().flatten().map(|peer| names.of(*peer));
    local::Denial {
        id: denial.id,
        direction: scope_text(denial.scope).to_owned(),
        peer: peers.collect::<Vec<_>>().join(", "),
        protocol: denial.protocol.to_string(),
        ports: ports_text(&denial.ports),
        expires_ms: left.map_or(0, |left| clock::wall().as_millis().saturating_add(millis(left))),
        packets,
    }
}

/// What the filter dropped, by reason.
fn filter_drops(report: &WorkerReport) -> HashMap<String, u64> {
    let by_filter = report.drops.iter().filter(|(reason, _)| reason.is_of_filter());
    by_filter.map(|(reason, count)| (reason.as_str().to_owned(), *count)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ringmesh_tunnel::{
        filter::{Direction, Opening},
        key::{IdentitySecret, NetworkId, NodeId},
        netmap::{
            Certificate, Envelope, Head, Leaf, MapUpdate, Member, MemberKind, MerkleTree, Policy, Position,
            Protocol, ProvenRule, Role, Rule, Selector, digest,
        },
    };

    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_767_225_600);
    /// Groups and tags of the network; each member is in five of each.
    const WORDS: u16 = 50;

    fn id(number: u16) -> NodeId {
        let [high, low] = number.to_be_bytes();
        NodeId::from_bytes([0, 0, 0, 0, 0, 1, high, low])
    }

    fn member(network: NetworkId, number: u16) -> Member {
        let mut seed = [7; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        let identity = IdentitySecret::from_seed(seed).public_key();
        let words = |kind: char| (0..5).map(|at| format!("{kind}{}", (number + at * 7) % WORDS)).collect();
        let [high, low] = number.to_be_bytes();
        Member {
            network,
            id: id(number),
            name: format!("node{number}"),
            kind: MemberKind::Mesh,
            relay: false,
            noise_key: identity.noise_key(),
            identity_key: Some(identity),
            ipv4: Some([100, 64, high, low].into()),
            ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, number].into(),
            tags: words('t'),
            groups: words('g'),
            routes: Vec::new(),
            serial: 1,
            not_after: NOW.saturating_add(Duration::from_secs(3600)),
        }
    }

    /// A network of so many members under these rules, as its first member holds it.
    fn map(members: u16, rules: Vec<Rule>) -> NetworkMap {
        let root = IdentitySecret::from_seed([0xf0; 32]);
        let (policy_key, head_key) =
            (IdentitySecret::from_seed([0xf1; 32]), IdentitySecret::from_seed([0xf2; 32]));
        let network = NetworkId::of_root(&root.public_key());
        let not_after = NOW.saturating_add(Duration::from_secs(3600));
        let certify = |role, key: &IdentitySecret| {
            let certificate = Certificate { network, role, key: key.public_key(), serial: 1, not_after };
            Envelope::sign(&certificate, &root).unwrap()
        };
        let certificates = vec![certify(Role::Policy, &policy_key), certify(Role::Head, &head_key)];
        let members: Vec<_> =
            (1..=members).map(|number| Envelope::sign(&member(network, number), &root).unwrap()).collect();
        let leaves: Vec<_> = rules.into_iter().map(|rule| Leaf::Rule(rule).emit().unwrap()).collect();
        let tree = MerkleTree::new(&leaves);
        let policy = Policy { network, serial: 1, not_after, root: tree.root(), size: tree.size() };
        let policy = Envelope::sign(&policy, &policy_key).unwrap();
        let rules: Vec<_> = (0..)
            .zip(leaves)
            .map(|(index, leaf)| ProvenRule { leaf, index, siblings: tree.proof(index).unwrap() })
            .collect();
        let hashes = certificates.iter().chain(&members).chain([&policy]).map(Envelope::hash);
        let position = Position { durable: 1, replica: 1, ephemeral: 0 };
        let head = Head {
            network,
            position,
            digest: digest(hashes.chain(rules.iter().map(ProvenRule::hash))),
            time: NOW,
            not_after,
            epoch: 0,
            secrets: [0; 32],
        };
        let update = MapUpdate {
            full: true,
            position,
            certificates,
            members,
            removed: Vec::new(),
            policy: Some(policy),
            rules,
            node_records: Vec::new(),
            head: Envelope::sign(&head, &head_key).unwrap(),
        };
        NetworkMap::empty(network, root.public_key(), id(1)).verify(update, NOW).unwrap()
    }

    fn rule(sources: Selector, destinations: Selector, port: u16) -> Rule {
        Rule {
            sources: vec![sources],
            destinations: vec![destinations],
            protocol: Protocol::Tcp,
            ports: vec![port.into()],
        }
    }

    fn asks(from: u16, to: u16, port: u16) -> Opening {
        let address = |number: u16| {
            let [high, low] = number.to_be_bytes();
            [100, 64, high, low].into()
        };
        Opening { source: address(from), destination: address(to), protocol: 6, port: Some(port) }
    }

    #[test]
    fn a_policy_or_membership_that_ended_allows_nothing() {
        let map = map(2, vec![rule(Selector::All, Selector::All, 22)]);
        let judge = |now| Filter::compile(&map, &[], now).decide(id(2), Direction::Out, &asks(1, 2, 22));
        assert!(judge(NOW).is_allowed());
        let end = map.next_expiry(NOW).expect("everything ends");
        assert!(judge(UnixTime::from_millis(end.as_millis() - 1)).is_allowed());
        assert!(!judge(end).is_allowed());
    }

    /// How long a compile takes, and the longest that another task had to wait meanwhile.
    fn beside_heartbeats(map: &Arc<NetworkMap>, in_force: Arc<Filter>) -> (Arc<Filter>, Duration, Duration) {
        // One thread: whatever is done on it keeps the heartbeats waiting.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let compiling = tokio::spawn(compile(Arc::clone(map), Vec::new(), NOW, in_force));
            let (began, mut longest, mut beat) = (Instant::now(), Duration::ZERO, Instant::now());
            while !compiling.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                longest = longest.max(beat.elapsed());
                beat = Instant::now();
            }
            (compiling.await.unwrap().unwrap(), began.elapsed(), longest)
        })
    }

    /// By hand: it prints figures. `cargo nextest run --release` for those of a release build.
    #[test]
    #[ignore = "measures; by hand"]
    fn a_thousand_rules_over_a_thousand_members_compile_beside_heartbeats() {
        let by_words = (0..1000).map(|at| {
            let (from, to) =
                (Selector::Group(format!("g{}", at % WORDS)), Selector::Tag(format!("t{}", at / 20)));
            rule(from, to, 1000 + at)
        });
        let for_all = (0..1000).map(|at| rule(Selector::All, Selector::All, 1000 + at));
        for (name, rules) in
            [("groups and tags", by_words.collect::<Vec<_>>()), ("all to all", for_all.collect())]
        {
            let map = Arc::new(map(1000, rules));
            let (filter, took, longest) = beside_heartbeats(&map, Filter::deny_all().into());
            let (same, again, _) = beside_heartbeats(&map, Arc::clone(&filter));
            assert!(Arc::ptr_eq(&filter, &same), "an equal one is the one in force");
            println!(
                "{name}: compiled in {took:?}, with the longest pause {longest:?}; again, and compared, in {again:?}"
            );
            assert!(
                longest < Duration::from_millis(100) + took / 4,
                "heartbeats waited {longest:?} of {took:?}"
            );
        }
    }
}
