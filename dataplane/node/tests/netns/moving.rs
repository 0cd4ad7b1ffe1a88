//! How packets are moved: what was asked for is what is done, and what is shown.

use ringmesh_aead::{Cipher, Kernel, Opening, RunError, Sealing, TAG_LEN};
use ringmesh_io::Choice;
use ringmesh_lab::in_sandbox;
use ringmesh_node::config::{Crypto, Offloads};
use ringmesh_proto::local;

use crate::{
    support::{block_on, daemon::Place},
    world::{Machine, Member, World, transfer},
};

async fn plane_of(member: &mut Member) -> local::DataPlane {
    member.node.status().await.data_plane.unwrap()
}

#[test]
fn what_is_in_use_is_what_was_asked_for_and_the_other_end_need_not_have_it() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut place = Place::new();
            place.config.io = Choice::Poll;
            place.config.crypto = Crypto::Portable;
            place.config.offloads = Offloads { tso: true, udp_gro: true, ..Offloads::NONE };
            place.config.tun_queue = 321;
            place.config.spin_us = 50;
            let mut alice = world.member(Machine::new(&world.switch, "alice"), place, "alice").await;
            let mut bob = world.node("bob", Choice::Uring).await;
            let mut place = Place::new();
            place.config.offloads = Offloads::NONE;
            let mut carol = world.member(Machine::new(&world.switch, "carol"), place, "carol").await;

            let plane = plane_of(&mut alice).await;
            assert_eq!((plane.crypto.as_str(), plane.offloads.as_str()), ("portable", "tso,udp-gro"));
            assert!(plane.crypto_reason.contains("configuration"), "{plane:?}");
            let plane = plane_of(&mut bob).await;
            let best = ringmesh_aead::choose(Crypto::Auto);
            assert_eq!((plane.crypto, plane.crypto_reason), (best.kernel.to_string(), best.reason));
            assert_eq!(plane.offloads, "all");
            assert_eq!(plane_of(&mut carol).await.offloads, "none");
            for (member, queue) in [(&alice, "qlen 321"), (&bob, "qlen 1000")] {
                let device = member.machine.sh("ip -o link show mesh0");
                assert!(device.contains(queue), "{device}");
            }

            for member in [&mut alice, &mut bob, &mut carol] {
                member.until_peers(2).await;
            }
            for (from, to) in [("bob", "alice"), ("carol", "alice"), ("bob", "carol")] {
                let sender = if from == "bob" { &mut bob } else { &mut carol };
                sender.echo(to).await;
            }
            transfer(&mut alice.machine, &mut bob.machine, bob.ipv4, 20_000_000).await;
            transfer(&mut bob.machine, &mut alice.machine, alice.ipv6, 20_000_000).await;
            transfer(&mut carol.machine, &mut bob.machine, bob.ipv6, 5_000_000).await;
            transfer(&mut bob.machine, &mut carol.machine, carol.ipv4, 5_000_000).await;
        });
    });
}

/// Hides every byte behind the same one, the tag's as well.
struct Toy;

const VEIL: u8 = 0x5a;

impl Cipher for Toy {
    fn new(_: &[u8; 32], _: Kernel) -> Self {
        Self
    }

    fn seal_run(&self, _: u64, run: &mut [Sealing<'_>]) -> Result<(), RunError> {
        for packet in run {
            packet.out.fill(VEIL);
            for (out, text) in packet.out.iter_mut().zip(packet.head.iter().chain(packet.rest)) {
                *out ^= text;
            }
        }
        Ok(())
    }

    fn open_run(&self, run: &mut [Opening<'_>]) {
        for packet in run {
            packet.bytes.iter_mut().for_each(|byte| *byte ^= VEIL);
            packet.opened = packet.bytes.ends_with(&[0; TAG_LEN]);
        }
    }
}

#[test]
fn a_program_may_bring_a_cipher_and_whoever_has_another_one_opens_nothing() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut toys = Vec::new();
            for name in ["alice", "bob"] {
                let machine = Machine::new(&world.switch, name);
                toys.push(world.member_with_cipher::<Toy>(machine, Place::new(), name).await);
            }
            let [alice, bob] = toys.as_mut_slice() else { unreachable!() };
            let mut carol = world.node("carol", Choice::Auto).await;
            for member in [&mut *alice, &mut *bob, &mut carol] {
                member.until_peers(2).await;
            }
            alice.echo("bob").await;
            transfer(&mut alice.machine, &mut bob.machine, bob.ipv4, 5_000_000).await;

            // The handshake is not the cipher's; what follows is.
            let answers = carol.node.ping("bob", 2, 500).await.unwrap();
            assert!(answers.iter().all(|answer| !answer.error.is_empty()), "{answers:?}");
            let drops = plane_of(bob).await.drops;
            assert!(drops.get("bad_seal").is_some_and(|&times| times > 0), "{drops:?}");
        });
    });
}
