//! How a life begins: how many nodes, where, behind what, in which weather.

use std::time::Duration;

use crate::agenda::Agenda;
use crate::nat::{Dependence, NatKind, Ports};
use crate::network::{Place, Realm};
use crate::rng::Rng;
use crate::weather::Weather;
use crate::world::World;

use super::watch::Watch;
use super::{Life, Options};

impl Life {
    pub(super) fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed ^ 0x006c_6966_6500);
        let mut world = World::new(seed);
        world.network.weather = weather(&mut rng);
        let mut history = vec![(Duration::ZERO, format!("the weather is {:?}", world.network.weather))];
        let mut nodes = Vec::new();
        for _ in 0..3 + rng.below(4) {
            let (place, what) = place(&mut world, &mut rng);
            let node = world.add_node(place);
            history.push((Duration::ZERO, format!("node {}: {what}, {place:?}", node.number())));
            if rng.chance(0.1) {
                world.network.block_udp(node, true);
                history.push((Duration::ZERO, format!("node {}: UDP is blocked", node.number())));
            }
            nodes.push(node);
        }
        let relays: Vec<_> = (0..*rng.pick(&[0, 1, 1, 2])).map(|_| world.add_relay()).collect();
        history.push((Duration::ZERO, format!("{} relays", relays.len())));
        for _ in 0..rng.below(3) {
            let (from, to) = (*rng.pick(&nodes), *rng.pick(&nodes));
            if from != to {
                world.add_ssh(from, to);
                history.push((Duration::ZERO, format!("SSH from {} to {}", from.number(), to.number())));
            }
        }
        for node in world.indices().into_iter().filter(|&node| options.fault.befalls(node)) {
            world.set_fault(node, options.fault);
        }
        world.introduce_all();
        let end = rng.duration(&(Duration::from_secs(60)..=Duration::from_secs(180)));
        let next_misfortune = rng.duration(&(Duration::from_secs(1)..=Duration::from_secs(40)));
        let watch = Watch::new(&world);
        Self {
            world,
            rng,
            nodes,
            relays,
            end,
            recoveries: Agenda::default(),
            next_misfortune,
            quiet_until: Duration::ZERO,
            talks: Vec::new(),
            next_talks: Duration::ZERO,
            watch,
            history,
        }
    }
}

/// Mostly nothing is lost: then every packet that should arrive must.
fn weather(rng: &mut Rng) -> Weather {
    let least = 2 + rng.below(30);
    let jitter = *rng.pick(&[0, 5, 40]);
    let loss = if rng.chance(0.7) { 0.0 } else { 0.002 + 0.02 * (rng.below(100) as f64 / 100.0) };
    let duplication = if rng.chance(0.3) { 0.05 } else { 0.0 };
    Weather { loss, duplication, ..Weather::delayed(least, least + jitter) }
}

/// A place to live: public, at home, with a carrier, beside somebody else; and in words.
pub(super) fn place(world: &mut World, rng: &mut Rng) -> (Place, String) {
    let v6 = rng.chance(0.25);
    let (realm, what) = match rng.below(10) {
        0..=1 => (Realm::INTERNET, "public".to_owned()),
        2 if rng.chance(0.5) => {
            let place = world.network.fresh_place(Realm::INTERNET, false, true);
            return (place, "public, IPv6 alone".to_owned());
        }
        2..=4 => beside_somebody(world, rng),
        5 => {
            let (carrier, home) = (nat(rng, false), nat(rng, false));
            let what = format!("behind {} behind {}", name(home), name(carrier));
            let outer = world.network.add_router(Realm::INTERNET, carrier, firewall(rng));
            (world.network.add_router(outer, home, None), what)
        }
        _ => {
            let kind = nat(rng, true);
            (world.network.add_router(Realm::INTERNET, kind, firewall(rng)), format!("behind {}", name(kind)))
        }
    };
    (world.network.fresh_place(realm, true, v6), what)
}

fn beside_somebody(world: &World, rng: &mut Rng) -> (Realm, String) {
    let nodes = world.indices();
    let realm = match nodes.is_empty() {
        true => Realm::INTERNET,
        false => world.network.place(*rng.pick(&nodes)).realm,
    };
    // Behind a one-to-one NAT there is one host.
    let single = world.network.nat_kind(realm).is_some_and(|kind| kind.ports == Ports::OneToOne);
    let realm = if single { Realm::INTERNET } else { realm };
    (realm, format!("beside others in {realm:?}"))
}

fn nat(rng: &mut Rng, one_to_one: bool) -> NatKind {
    let kind = match rng.below(if one_to_one { 6 } else { 5 }) {
        0 => NatKind::full_cone(),
        1 => NatKind::address_restricted(),
        2 | 3 => NatKind::port_restricted(),
        4 => NatKind::symmetric(),
        _ => return NatKind::one_to_one(),
    };
    NatKind {
        timeout: Duration::from_secs(*rng.pick(&[30, 60, 120])),
        hairpinning: rng.chance(0.3),
        ports: if rng.chance(0.3) { Ports::Preserved } else { Ports::Random },
        ..kind
    }
}

fn firewall(rng: &mut Rng) -> Option<Dependence> {
    *rng.pick(&[None, Some(Dependence::EndpointIndependent), Some(Dependence::AddressAndPort)])
}

fn name(kind: NatKind) -> String {
    format!("{kind:?}")
}
