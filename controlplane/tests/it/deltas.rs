//! Random histories over real streams: whatever policies and members do, a node that follows by differences holds what a full map
//! would give it.

use std::collections::BTreeMap;

use ringmesh_controlplane::network::{NetworkState, map::Place};
use ringmesh_proto::admin;
use ringmesh_tunnel::{enroll::JoinToken, netmap::NetworkMap};

use crate::{
    client::{MapStream, TestNode},
    harness::Assembled,
    policy::apply,
};

/// Numbers that depend on a seed alone (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

/// A node with the stream it follows by, while it does.
struct Follower {
    node: TestNode,
    stream: Option<MapStream>,
    /// Full maps that it got.
    full: usize,
}

impl Follower {
    /// Reads until the map is what the coordinator would send as a whole.
    async fn catch_up(&mut self, coordinator: &Assembled) {
        let expected = whole(coordinator, &self.node);
        if self.stream.is_none() {
            self.stream = Some(self.node.sync().await.unwrap());
        }
        let stream = self.stream.as_mut().unwrap();
        // Verification refuses whatever does not fit the head, so equal digests are equal maps.
        while self.node.map.as_ref().map(NetworkMap::digest) != Some(expected.digest()) {
            if let Some(update) = self.node.step(stream).await.unwrap() {
                self.full += usize::from(update.full);
            }
        }
        let map = self.node.map.as_ref().unwrap();
        assert!(map.members().eq(expected.members()));
        assert!(map.numbered_rules(self.node.now()).eq(expected.numbered_rules(self.node.now())));
        assert!(map.names(self.node.now()).eq(expected.names(self.node.now())));
    }
}

fn whole(coordinator: &Assembled, node: &TestNode) -> NetworkMap {
    let full = coordinator.coordinator.with_registry(|registry| {
        let place = Place { replica: 1, durable: registry.revision() };
        let state: &NetworkState = registry.network(node.network).unwrap();
        state.full(node.id, place, coordinator.now()).unwrap()
    });
    let empty = NetworkMap::empty(node.network, node.root.unwrap(), node.id);
    empty.verify(full.update, coordinator.now()).unwrap()
}

/// A policy over the members that there are, of a few rules.
fn policy(random: &mut Random, members: &[&String]) -> String {
    let mut pick = |count: usize| -> Vec<String> {
        (0..count).map(|_| members[random.below(members.len())].clone()).collect()
    };
    let mut unique = |count| {
        let mut names = pick(count);
        names.sort();
        names.dedup();
        names
    };
    let (one, two) = (unique(2), unique(3));
    let mut text = format!("tags = [\"web\"]\n[groups]\none = {one:?}\ntwo = {two:?}\n");
    let sides = ["*", "group:one", "group:two", "tag:web", "100.64.0.0/30", "fd00::/8", "10.0.0.0/8"];
    for rule in 0..random.below(4) {
        let mut side = || match random.below(sides.len() + 3) {
            // Everybody, more seldom: else all see all.
            0 if random.below(3) > 0 => sides[1].to_owned(),
            i if i < sides.len() => sides[i].to_owned(),
            _ => members[random.below(members.len())].clone(),
        };
        let (from, to) = (side(), side());
        text += &format!(
            "[[allow]]\nfrom = [{from:?}]\nto = [{to:?}]\nprotocol = \"tcp\"\nports = [{}]\n",
            rule + 1
        );
    }
    if random.below(2) == 0 {
        text += "[names]\nwww = [\"10.0.0.1\"]\n";
    }
    text
}

async fn join(coordinator: &Assembled, token: &JoinToken, name: &str) -> Follower {
    let mut node = TestNode::new(name);
    node.set_time(coordinator.now());
    node.join(token).await.unwrap();
    Follower { node, stream: None, full: 0 }
}

async fn history(seed: u64) {
    let mut random = Random(seed);
    let mut coordinator = Assembled::start().await;
    let plain = coordinator.token().await;
    let tagged = admin::CreateTokenRequest { reusable: true, tags: vec!["web".into()], ..Default::default() };
    let tagged = coordinator.operator.token(tagged).await;
    let mut followers: BTreeMap<String, Follower> = BTreeMap::new();
    let mut joined = 0;
    for _ in 0..60 {
        match random.below(12) {
            0..=1 => {
                let name = format!("n{joined}");
                joined += 1;
                let token = if random.below(2) == 0 { &plain } else { &tagged };
                followers.insert(name.clone(), join(&coordinator, token, &name).await);
            }
            2 if followers.len() > 3 => {
                let name = followers.keys().nth(random.below(followers.len())).unwrap().clone();
                followers.remove(&name);
                coordinator.operator.remove(&name).await;
            }
            3 => {
                let request = admin::AddStockDeviceRequest {
                    name: format!("s{joined}"),
                    public_key: ringmesh_tunnel::key::IdentitySecret::generate()
                        .public_key()
                        .noise_key()
                        .to_string(),
                    ..Default::default()
                };
                joined += 1;
                coordinator.operator.nodes.add_stock_device(request).await.unwrap();
            }
            4..=7 if !followers.is_empty() => {
                let text = policy(&mut random, &followers.keys().collect::<Vec<_>>());
                apply(&mut coordinator.operator, &text)
                    .await
                    .unwrap_or_else(|error| panic!("{error}\n{text}"));
            }
            8 if !followers.is_empty() => {
                // A stream ends, and the node comes back when it is its turn. It has read what it was told, as a coordinator
                // remembers the last few heads.
                let number = random.below(followers.len());
                let follower = followers.values_mut().nth(number).unwrap();
                follower.catch_up(&coordinator).await;
                follower.stream = None;
                let name = follower.node.name.clone();
                while coordinator.operator.node(&name).await.online {
                    tokio::task::yield_now().await;
                }
            }
            _ if !followers.is_empty() => {
                let number = random.below(followers.len());
                followers.values_mut().nth(number).unwrap().catch_up(&coordinator).await;
            }
            _ => {}
        }
    }
    for (name, follower) in &mut followers {
        follower.catch_up(&coordinator).await;
        assert_eq!(follower.full, 1, "{name} needed the whole map again, seed {seed}");
    }
}

#[tokio::test]
async fn who_follows_policies_and_members_by_differences_holds_what_a_full_map_would_give() {
    for seed in 1..=6 {
        history(seed).await;
    }
}
