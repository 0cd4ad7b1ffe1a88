//! Every byte of every message, against a second implementation written down straight from the whitepaper (§5.4), on
//! other libraries than the core's.

use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305};
use x25519_dalek::{PublicKey as Public, StaticSecret};

use super::*;
use crate::handshake::{Tai64n, UNDER_LOAD_FROM};

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    parts.iter().for_each(|part| Update::update(&mut hash, part));
    hash.finalize_fixed().into()
}

fn mac(key: &[u8], input: &[u8]) -> [u8; 16] {
    let mut mac = Blake2sMac::<blake2::digest::consts::U16>::new_from_slice(key).unwrap();
    Update::update(&mut mac, input);
    mac.finalize().into_bytes().into()
}

fn hmac(key: &[u8; 32], input: &[u8]) -> [u8; 32] {
    let (mut inner, mut outer) = ([0x36; 64], [0x5c; 64]);
    key.iter().enumerate().for_each(|(i, byte)| (inner[i], outer[i]) = (inner[i] ^ byte, outer[i] ^ byte));
    hash(&[&outer, &hash(&[&inner, input])])
}

fn kdf<const N: usize>(key: &[u8; 32], input: &[u8]) -> [[u8; 32]; N] {
    let secret = hmac(key, input);
    let mut outputs = [[0; 32]; N];
    let mut last = Vec::new();
    for (number, output) in outputs.iter_mut().enumerate() {
        last.push(number as u8 + 1);
        *output = hmac(&secret, &last);
        last = output.to_vec();
    }
    outputs
}

fn aead(key: &[u8; 32], counter: u64, plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let cipher = ChaCha20Poly1305::new(&(*key).into());
    cipher.encrypt(&nonce.into(), Payload { msg: plaintext, aad }).unwrap()
}

fn macs(message: &mut Vec<u8>, receiver: &Public, cookie: Option<[u8; 16]>) {
    let mac1 = mac(&hash(&[b"mac1----", receiver.as_bytes()]), message);
    message.extend(mac1);
    let mac2 = cookie.map_or([0; 16], |cookie| mac(&cookie, message));
    message.extend(mac2);
}

/// The chaining key and hash, as both sides have them.
struct State {
    chain: [u8; 32],
    hash: [u8; 32],
}

struct Keys {
    initiator: StaticSecret,
    responder: StaticSecret,
    initiator_ephemeral: StaticSecret,
    responder_ephemeral: StaticSecret,
    psk: [u8; 32],
}

fn dh(secret: &StaticSecret, public: &StaticSecret) -> [u8; 32] {
    secret.diffie_hellman(&Public::from(public)).to_bytes()
}

/// §5.4.2, line by line.
fn initiation(keys: &Keys, sender: &[u8], timestamp: Tai64n, cookie: Option<[u8; 16]>) -> (State, Vec<u8>) {
    let responder = Public::from(&keys.responder);
    let mut chain = hash(&[CONSTRUCTION]);
    let mut digest = hash(&[&hash(&[&chain, IDENTIFIER]), responder.as_bytes()]);
    let ephemeral = Public::from(&keys.initiator_ephemeral);
    [chain] = kdf(&chain, ephemeral.as_bytes());
    digest = hash(&[&digest, ephemeral.as_bytes()]);
    let [next, key] = kdf(&chain, &dh(&keys.initiator_ephemeral, &keys.responder));
    chain = next;
    let sealed_static = aead(&key, 0, Public::from(&keys.initiator).as_bytes(), &digest);
    digest = hash(&[&digest, &sealed_static]);
    let [next, key] = kdf(&chain, &dh(&keys.initiator, &keys.responder));
    chain = next;
    let sealed_timestamp = aead(&key, 0, timestamp.as_bytes(), &digest);
    digest = hash(&[&digest, &sealed_timestamp]);
    let mut message = vec![1, 0, 0, 0];
    message.extend_from_slice(sender);
    message.extend_from_slice(ephemeral.as_bytes());
    message.extend(sealed_static);
    message.extend(sealed_timestamp);
    macs(&mut message, &responder, cookie);
    (State { chain, hash: digest }, message)
}

/// §5.4.3 and §5.4.5; returns the initiator's sending and receiving keys too.
fn response(keys: &Keys, state: State, sender: &[u8], receiver: &[u8]) -> (Vec<u8>, [u8; 32], [u8; 32]) {
    let State { mut chain, hash: mut digest } = state;
    let ephemeral = Public::from(&keys.responder_ephemeral);
    [chain] = kdf(&chain, ephemeral.as_bytes());
    digest = hash(&[&digest, ephemeral.as_bytes()]);
    [chain] = kdf(&chain, &dh(&keys.responder_ephemeral, &keys.initiator_ephemeral));
    [chain] = kdf(&chain, &dh(&keys.responder_ephemeral, &keys.initiator));
    let [next, tau, key] = kdf(&chain, &keys.psk);
    chain = next;
    digest = hash(&[&digest, &tau]);
    let sealed_nothing = aead(&key, 0, &[], &digest);
    let mut message = vec![2, 0, 0, 0];
    message.extend_from_slice(sender);
    message.extend_from_slice(receiver);
    message.extend_from_slice(ephemeral.as_bytes());
    message.extend(sealed_nothing);
    macs(&mut message, &Public::from(&keys.initiator), None);
    let [sending, receiving] = kdf(&chain, &[]);
    (message, sending, receiving)
}

fn data(key: &[u8; 32], receiver: &[u8], counter: u64, packet: &[u8]) -> Vec<u8> {
    let mut padded = packet.to_vec();
    padded.resize(packet.len().next_multiple_of(16), 0);
    let mut message = vec![4, 0, 0, 0];
    message.extend_from_slice(receiver);
    message.extend_from_slice(&counter.to_le_bytes());
    message.extend(aead(key, counter, &padded, &[]));
    message
}

/// A pair whose handshakers draw from these seeds, and the keys that they will come to use.
fn setup(seed: u64) -> (Pair, Keys) {
    let mut pair = Pair::new(seed);
    let draws = |seed| StaticSecret::from(Random::seeded(seed).bytes::<32>().unwrap());
    pair.near.handshaker = Handshaker::new(&secret(1), Random::seeded(seed + 1000));
    pair.far.handshaker = Handshaker::new(&secret(2), Random::seeded(seed + 2000));
    let psk = [seed as u8; 32];
    let with_psk = |config: &PeerConfig| {
        [PeerConfig { psk: Psk::Fixed(PresharedKey::from_bytes(psk)), ..config.clone() }]
    };
    pair.near.handshaker.apply(&with_psk(&pair.far.config));
    pair.far.handshaker.apply(&with_psk(&pair.near.config));
    let keys = Keys {
        initiator: StaticSecret::from([1; 32]),
        responder: StaticSecret::from([2; 32]),
        initiator_ephemeral: draws(seed + 1000),
        responder_ephemeral: draws(seed + 2000),
        psk,
    };
    (pair, keys)
}

#[test]
fn all_messages_of_a_handshake_equal_the_whitepapers() {
    for seed in 0..100 {
        let (mut pair, keys) = setup(seed);
        pair.now.wall = UnixTime::from_millis(1_700_000_000_000 + seed * 12_345_677);
        pair.send_near(b"hello");
        let ours = pair.wire.pop_front().unwrap();
        let (near_index, timestamp) = (ours.bytes[4..8].to_vec(), Tai64n::of(pair.now.wall));
        let (state, theirs) = initiation(&keys, &near_index, timestamp, None);
        assert_eq!(ours.bytes, theirs, "initiation, seed {seed}");

        pair.deliver(&ours);
        let ours = pair.wire.pop_front().unwrap();
        let far_index = ours.bytes[4..8].to_vec();
        let (theirs, sending, receiving) = response(&keys, state, &far_index, &near_index);
        assert_eq!(ours.bytes, theirs, "response, seed {seed}");

        pair.deliver(&ours);
        let ours = pair.wire.pop_front().unwrap();
        assert_eq!(
            ours.bytes,
            data(&sending, &far_index, 0, &Pair::near_packet(b"hello")),
            "data, seed {seed}"
        );
        pair.deliver(&ours);
        for counter in 0..3 {
            pair.send_far(b"answer");
            let ours = pair.wire.pop_front().unwrap();
            assert_eq!(ours.bytes, data(&receiving, &near_index, counter, &Pair::far_packet(b"answer")));
        }
    }
}

#[test]
fn cookie_reply_and_second_mac_equal_the_whitepapers() {
    for seed in 0..100 {
        let (mut pair, keys) = setup(seed);
        pair.far.load = UNDER_LOAD_FROM;
        pair.send_near(b"hello");
        let ours = pair.wire.pop_front().unwrap();
        pair.deliver(&ours);
        let reply = pair.wire.pop_front().unwrap();

        // What the responder drew: the secret behind its cookies, then the nonce.
        let mut drawn = Random::seeded(seed + 2000);
        let (secret, nonce): ([u8; 32], [u8; 24]) = (drawn.bytes().unwrap(), drawn.bytes().unwrap());
        let cookie = mac(&secret, &[192, 0, 2, 1, 1000u16.to_be_bytes()[0], 1000u16.to_be_bytes()[1]]);
        let key = hash(&[b"cookie--", Public::from(&keys.responder).as_bytes()]);
        let mac1 = &ours.bytes[116..132];
        let sealed = XChaCha20Poly1305::new(&key.into())
            .encrypt(&nonce.into(), Payload { msg: &cookie, aad: mac1 })
            .unwrap();
        let mut theirs = vec![3, 0, 0, 0];
        theirs.extend_from_slice(&ours.bytes[4..8]);
        theirs.extend(nonce);
        theirs.extend(sealed);
        assert_eq!(reply.bytes, theirs, "cookie reply, seed {seed}");

        pair.deliver(&reply);
        let mut drawn = Random::seeded(seed + 1000);
        let _first_ephemeral: [u8; 32] = drawn.bytes().unwrap();
        let keys = Keys { initiator_ephemeral: StaticSecret::from(drawn.bytes::<32>().unwrap()), ..keys };
        pair.pass(millis(5334), |_| {});
        let ours = pair.wire.pop_front().unwrap();
        let sent_at = pair.near_initiations()[1];
        let wall = pair.now.wall.saturating_sub(millis(5334)).saturating_add(sent_at);
        let (_, theirs) = initiation(&keys, &ours.bytes[4..8], Tai64n::of(wall), Some(cookie));
        assert_eq!(ours.bytes, theirs, "initiation with the cookie, seed {seed}");
    }
}
