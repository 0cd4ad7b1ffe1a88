//! A map after any sequence of updates equals the full map of what the coordinator then holds.

use proptest::prelude::*;

use super::super::floor;
use super::*;

/// What may happen at the coordinator.
#[derive(Debug, Clone)]
enum Step {
    /// Node `node` is admitted, or its record renewed with this name.
    Admit { node: u8, name: u8 },
    /// Node `node` changes its identity key.
    Rekey { node: u8 },
    /// Node `node` is removed.
    Remove { node: u8 },
    /// Node `node` says where it is.
    Say { node: u8, port: u16 },
    /// A new policy of `size` leaves, of which the node is shown those in `shown`.
    Decide { size: u8, shown: u8 },
    /// The admission certificate is renewed.
    Certify,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (2_u8..7, any::<u8>()).prop_map(|(node, name)| Step::Admit { node, name }),
        (2_u8..7).prop_map(|node| Step::Rekey { node }),
        (2_u8..7).prop_map(|node| Step::Remove { node }),
        (2_u8..7, any::<u16>()).prop_map(|(node, port)| Step::Say { node, port }),
        (1_u8..6, any::<u8>()).prop_map(|(size, shown)| Step::Decide { size, shown }),
        Just(Step::Certify),
    ]
}

/// The coordinator's side: what it holds, and the counters behind it.
struct Coordinator {
    network: Network,
    content: Content,
    members: BTreeMap<u8, (Member, u8)>,
    records: BTreeMap<u8, Envelope>,
    policy: (Envelope, Vec<ProvenRule>),
    certificates: Vec<Envelope>,
    serial: u64,
    must_be_full: bool,
}

impl Coordinator {
    fn new() -> Self {
        let network = Network::new();
        let full = network.full();
        let content = Content::default().after(&full);
        let members = [1, 2, 3].map(|node| (node, (network.member(node), node)));
        let records = [2, 3].map(|node| (node, network.say(&network.node_record(node, 50), node)));
        Self {
            content,
            members: members.into(),
            records: records.into(),
            policy: (full.policy.unwrap(), full.rules),
            certificates: full.certificates,
            serial: 100,
            must_be_full: false,
            network,
        }
    }

    /// Takes a step and puts it into the delta that tells a node of it.
    fn take(&mut self, step: &Step, delta: &mut MapUpdate) {
        self.serial += 1;
        let serial = self.serial;
        match *step {
            Step::Admit { node, name } => {
                let secret = self.members.get(&node).map_or(node, |(_, secret)| *secret);
                self.admit(node, secret, Some(name), delta);
            }
            Step::Rekey { node } if self.members.contains_key(&node) => {
                let secret = self.members[&node].1 + 16;
                self.admit(node, secret % 240, None, delta);
                self.records.remove(&node);
                delta
                    .node_records
                    .retain(|envelope| NodeRecord::parse(&envelope.payload).unwrap().id != node_id(node));
            }
            Step::Remove { node } if self.members.remove(&node).is_some() => {
                self.records.remove(&node);
                delta
                    .members
                    .retain(|envelope| Member::parse(&envelope.payload).unwrap().id != node_id(node));
                delta
                    .node_records
                    .retain(|envelope| NodeRecord::parse(&envelope.payload).unwrap().id != node_id(node));
                delta.removed.push(node_id(node));
            }
            Step::Say { node, port } if self.members.contains_key(&node) => {
                let endpoints = vec![([192, 0, 2, node], port).into()];
                let record = NodeRecord { endpoints, ..self.network.node_record(node, serial) };
                let envelope = self.network.say(&record, self.members[&node].1);
                delta
                    .node_records
                    .retain(|envelope| NodeRecord::parse(&envelope.payload).unwrap().id != node_id(node));
                delta.node_records.push(envelope.clone());
                self.records.insert(node, envelope);
            }
            Step::Decide { size, shown } => {
                let shown: Vec<_> = (0..size).filter(|i| shown >> i & 1 == 1).map(u64::from).collect();
                let (tree, rules) = prove(&leaves()[..size.min(5).into()], &shown);
                let policy =
                    Envelope::sign(&self.network.policy_of(&tree, serial), &self.network.policy).unwrap();
                self.policy = (policy, rules);
                (delta.policy, delta.rules) = (Some(self.policy.0.clone()), self.policy.1.clone());
            }
            Step::Certify => {
                let certificate = Certificate { serial, ..self.network.certificate(Role::Admission) };
                self.certificates[0] = self.network.certify(&certificate);
                delta.certificates = vec![self.certificates[0].clone()];
            }
            Step::Rekey { .. } | Step::Remove { .. } | Step::Say { .. } => {}
        }
    }

    fn admit(&mut self, node: u8, secret: u8, name: Option<u8>, delta: &mut MapUpdate) {
        let key = node_secret(secret).public_key();
        let name = name.map_or_else(|| format!("node-{node}"), |name| format!("node-{node}-{name}"));
        let (identity_key, noise_key) = (Some(key), key.noise_key());
        let member =
            Member { name, serial: self.serial, identity_key, noise_key, ..self.network.member(node) };
        delta.members.retain(|envelope| Member::parse(&envelope.payload).unwrap().id != node_id(node));
        // Who leaves and returns before a reader hears of it left nothing that a delta could take back: what the node said
        // before would stay. Then the whole map it is.
        self.must_be_full |= delta.removed.contains(&node_id(node));
        delta.members.push(self.network.admit(&member));
        self.members.insert(node, (member, secret));
    }

    fn full(&self) -> MapUpdate {
        MapUpdate {
            full: true,
            certificates: self.certificates.clone(),
            members: self.members.values().map(|(member, _)| self.network.admit(member)).collect(),
            policy: Some(self.policy.0.clone()),
            rules: self.policy.1.clone(),
            node_records: self.records.values().cloned().collect(),
            ..self.network.delta()
        }
    }
}

/// All that a map shows, but for what it remembers of the past.
fn shown(map: &NetworkMap) -> NetworkMap {
    NetworkMap { floors: floor::Floors::new(), head: None, ..map.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn map_after_deltas_equals_the_full_map(
        steps in prop::collection::vec((step(), any::<bool>()), 1..16),
        restart in any::<prop::sample::Index>(),
    ) {
        let mut coordinator = Coordinator::new();
        let mut map = coordinator.network.map();
        let mut delta = coordinator.network.delta();
        let restart = restart.index(steps.len());
        let last = steps.len() - 1;
        for (i, (step, merge)) in steps.iter().enumerate() {
            coordinator.take(step, &mut delta);
            // A slow reader gets several steps as one merged delta.
            if *merge && i != last {
                continue;
            }
            let empty = coordinator.network.delta();
            let delta = std::mem::replace(&mut delta, empty);
            let mut update = if std::mem::take(&mut coordinator.must_be_full) { coordinator.full() } else { delta };
            update.position.durable = coordinator.serial;
            let update = coordinator.network.finish(&coordinator.content, update);
            coordinator.content = coordinator.content.after(&update);
            map = map.verify(update, NOW).unwrap();
            if i >= restart {
                let network = &coordinator.network;
                map = NetworkMap::parse(&map.emit(), network.id(), network.root_key(), node_id(ME), NOW).unwrap();
            }
        }
        let mut full = coordinator.full();
        full.position.durable = coordinator.serial;
        let full = coordinator.network.finish(&Content::default(), full);
        prop_assert_eq!(&coordinator.content, &Content::default().after(&full));
        let fresh = coordinator.network.empty_map().verify(full.clone(), NOW).unwrap();
        prop_assert_eq!(shown(&map), shown(&fresh));
        prop_assert_eq!(map.digest(), fresh.digest());
        let replaced = map.verify(full, NOW).unwrap();
        prop_assert_eq!(shown(&replaced), shown(&fresh));
    }
}
