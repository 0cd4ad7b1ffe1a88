use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use super::*;

/// The first key of RFC 8032 §7.1.
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn bytes<const N: usize>(text: &str) -> [u8; N] {
    hex(text).try_into().unwrap()
}

fn secret() -> IdentitySecret {
    IdentitySecret::from_seed(bytes(SEED))
}

#[test]
fn identity_key_of_a_seed_is_that_of_rfc_8032() {
    assert_eq!(secret().public_key().as_bytes(), &bytes(PUBLIC));
    assert_eq!(secret().seed(), &bytes(SEED));
}

#[test]
fn fingerprint_is_what_ssh_keygen_prints() {
    let fingerprint = "SHA256:bbXpuKG6zhzdmnxq256TlqzFBzRl2f6OOg722cYNbU8";
    assert_eq!(secret().public_key().fingerprint(), fingerprint);
    assert_eq!(secret().public_key().to_string(), fingerprint);
}

#[test]
fn noise_key_is_the_same_from_either_half_of_the_identity() {
    // Made by another implementation: SHA-512, clamping, X25519 of pyca/cryptography.
    let noise = secret().noise_secret();
    let scalar = "307c83864f2833cb427a2ef1c00a013cfdff2768d980c0a3a520f006904de94f";
    let public = "d85e07ec22b0ad881537c2f44d662d1a143cf830c57aca4305d85c7a90f6b62e";
    assert_eq!(noise.expose(), &bytes(scalar));
    assert_eq!(noise.public_key().as_bytes(), &bytes(public));
    assert_eq!(secret().public_key().noise_key(), noise.public_key());
    // And libsodium's own test of the conversion.
    let other =
        IdentitySecret::from_seed(bytes("421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee"));
    let scalar = "8052030376d47112be7f73ed7a019293dd12ad910b654455798b4667d73de166";
    let public = "f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50";
    assert_eq!(other.noise_secret().expose(), &bytes(scalar));
    assert_eq!(other.public_key().noise_key().as_bytes(), &bytes(public));
    for _ in 0..16 {
        let any = IdentitySecret::generate();
        assert_eq!(any.public_key().noise_key(), any.noise_secret().public_key());
    }
}

#[test]
fn signature_covers_context_label_and_message() {
    // Made by another implementation over `ringmesh v1 node-record`, a zero byte and the message.
    let made = "b9e7be6ceefce35da1c240215738e90ae6aa1a2317b6afcef7a787de207c7ece\
                5cf4cdaa80396448d8805b59da1b4c596381c0954286def6ba6b338601901702";
    assert_eq!(secret().sign(Label::NodeRecord, b"a message").as_bytes(), &bytes(made));
}

#[test]
fn signature_fits_one_label_one_message_one_key() {
    let signature = secret().sign(Label::Member, b"a message");
    let key = secret().public_key();
    assert_eq!(key.verify(Label::Member, b"a message", &signature), Ok(()));
    for label in Label::ALL.into_iter().filter(|label| *label != Label::Member) {
        assert_eq!(key.verify(label, b"a message", &signature), Err(BadSignature), "{label:?}");
    }
    assert_eq!(key.verify(Label::Member, b"a massage", &signature), Err(BadSignature));
    assert_eq!(key.verify(Label::Member, b"", &signature), Err(BadSignature));
    let other = IdentitySecret::generate().public_key();
    assert_eq!(other.verify(Label::Member, b"a message", &signature), Err(BadSignature));
    for place in 0..64 {
        let mut bytes = *signature.as_bytes();
        bytes[place] ^= 1;
        let flipped = Signature::from_bytes(bytes);
        assert_eq!(key.verify(Label::Member, b"a message", &flipped), Err(BadSignature), "byte {place}");
    }
}

#[test]
fn labels_are_all_different_and_none_ends_early() {
    let texts: BTreeSet<_> = Label::ALL.iter().map(|label| label.as_str()).collect();
    assert_eq!(texts.len(), Label::ALL.len());
    assert!(texts.iter().all(|text| !text.is_empty() && !text.contains('\0')));
}

#[test]
fn signature_with_a_second_form_is_refused() {
    // `s` plus the group's order is as good to a lax verifier (RFC 8032 §5.1.7 forbids it).
    const ORDER: &str = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";
    let mut forged = *secret().sign(Label::Member, b"a message").as_bytes();
    let mut carry = 0_u16;
    for (byte, add) in forged[32..].iter_mut().zip(bytes::<32>(ORDER)) {
        carry += u16::from(*byte) + u16::from(add);
        *byte = carry as u8;
        carry >>= 8;
    }
    let key = secret().public_key();
    assert_eq!(key.verify(Label::Member, b"a message", &Signature::from_bytes(forged)), Err(BadSignature));
}

#[test]
fn keys_of_low_order_or_in_a_second_form_are_no_identity() {
    // All eight points of small order, in their forms, and encodings of y at or beyond the field's prime.
    let refused = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    ];
    for key in refused {
        assert_eq!(IdentityKey::from_bytes(bytes(key)), Err(BadIdentityKey), "{key}");
    }
    // y = 3 + p is a second encoding of a proper point, whose first one is fine.
    assert!(
        IdentityKey::from_bytes(bytes("0300000000000000000000000000000000000000000000000000000000000000"))
            .is_ok()
    );
    assert!(
        IdentityKey::from_bytes(bytes("f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"))
            .is_err()
    );
    // y = 2 is no point at all.
    assert!(
        IdentityKey::from_bytes(bytes("0200000000000000000000000000000000000000000000000000000000000000"))
            .is_err()
    );
    assert!(IdentityKey::try_from([1; 31].as_slice()).is_err());
}

#[test]
fn public_key_text_is_wireguards() {
    let key =
        PublicKey::from_bytes(bytes("d85e07ec22b0ad881537c2f44d662d1a143cf830c57aca4305d85c7a90f6b62e"));
    let text = key.to_string();
    assert_eq!(text, "2F4H7CKwrYgVN8L0TWYtGhQ8+DDFespDBdhcepD2ti4=");
    assert_eq!(text.len(), 44);
    assert_eq!(text.parse(), Ok(key));
    for length in 0..44 {
        assert_eq!(text[..length].parse::<PublicKey>(), Err(BadPublicKey), "{length} characters");
    }
    for bad in [format!("{text}="), format!(" {text}"), text.replace('+', "-"), format!("{text}{text}")] {
        assert_eq!(bad.parse::<PublicKey>(), Err(BadPublicKey), "{bad}");
    }
    // The last character carries two bits that must be zero, else one key has four texts.
    assert_eq!(text.replace("4=", "5=").parse::<PublicKey>(), Err(BadPublicKey));
}

#[test]
fn two_secrets_agree_and_a_weak_key_agrees_with_nobody() {
    let (a, b) = (SecretKey::generate(), SecretKey::generate());
    assert_eq!(a.agree(&b.public_key()), b.agree(&a.public_key()));
    assert!(a.agree(&b.public_key()).is_some());
    let weak = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for key in weak {
        assert_eq!(a.agree(&PublicKey::from_bytes(bytes(key))), None, "{key}");
    }
}

#[test]
fn preshared_key_is_one_for_a_pair_an_epoch_and_a_network() {
    let (a, b) = (PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]));
    let network = NetworkId::from_bytes(core::array::from_fn(|i| i as u8));
    let secret = NetworkSecret::from_bytes([7; 32]);
    let psk = secret.derive_psk(network, 3, &a, &b);
    // Made by another implementation of RFC 5869.
    let made = "b89959852d8710896116af3344ad23031c7140930394c3e44e2c1961ed49627d";
    assert_eq!(psk.expose(), &bytes(made));
    assert_eq!(secret.derive_psk(network, 3, &b, &a), psk);
    assert_ne!(secret.derive_psk(network, 4, &a, &b), psk);
    assert_ne!(secret.derive_psk(NetworkId::from_bytes([9; 16]), 3, &a, &b), psk);
    assert_ne!(secret.derive_psk(network, 3, &a, &PublicKey::from_bytes([3; 32])), psk);
    assert_ne!(NetworkSecret::from_bytes([8; 32]).derive_psk(network, 3, &a, &b), psk);
}

#[test]
fn network_is_named_by_its_root_key() {
    let id = NetworkId::of_root(&secret().public_key());
    // SHA-256 over `ringmesh network` and the key, by another implementation.
    assert_eq!(id.to_string(), "0db900af32eaa95e223fd28da21ad156");
    assert_eq!(id.ula().to_string(), "fd0d:b900:af32::/48");
}

#[test]
fn names_read_what_they_write_and_nothing_else() {
    let id = NodeId::from_bytes([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
    assert_eq!(id.to_string(), "0123456789abcdef");
    assert_eq!("0123456789abcdef".parse(), Ok(id));
    assert_eq!("0123456789ABCDEF".parse(), Ok(id));
    for bad in [
        "",
        "0123456789abcde",
        "0123456789abcdeff",
        "0123456789abcdeg",
        "+123456789abcdef",
        "0123456789abcdé",
    ] {
        let error = bad.parse::<NodeId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "not a node id: it is 8 bytes, written as 16 hexadecimal digits",
            "{bad}"
        );
    }
    assert!(NodeId::try_from([0; 7].as_slice()).is_err());
    assert!(NetworkId::try_from([0; 17].as_slice()).is_err());
    assert!(TokenId::try_from([0; 8].as_slice()).is_ok());
}

#[test]
fn node_id_is_the_host_part_of_its_address() {
    let id = NodeId::from_bytes([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
    let address: Ipv6Addr = "fd0d:b900:af32:0:123:4567:89ab:cdef".parse().unwrap();
    assert_eq!(id.ipv6_in("fd0d:b900:af32::/48".parse().unwrap()), Some(address));
    assert_eq!(id.ipv6_in("fd0d:b900:af32::/64".parse().unwrap()), Some(address));
    assert_eq!(id.ipv6_in("fd0d:b900:af32::/65".parse().unwrap()), None);
    assert_eq!(id.ipv6_in("10.0.0.0/8".parse().unwrap()), None);
}

#[test]
fn no_secret_shows_in_debug() {
    let seed = [0xa5; 32];
    let shown = [
        format!("{:?}", IdentitySecret::from_seed(seed)),
        format!("{:?}", SecretKey::from_bytes(seed)),
        format!("{:?}", PresharedKey::from_bytes(seed)),
        format!("{:?}", NetworkSecret::from_bytes(seed)),
    ];
    assert_eq!(shown, ["IdentitySecret(..)", "SecretKey(..)", "PresharedKey(..)", "NetworkSecret(..)"]);
}

#[test]
fn generated_names_and_keys_do_not_repeat() {
    let nodes: BTreeSet<_> = (0..64).map(|_| NodeId::generate()).collect();
    let tokens: BTreeSet<_> = (0..64).map(|_| TokenId::generate()).collect();
    let keys: BTreeSet<_> = (0..64).map(|_| SecretKey::generate().public_key()).collect();
    assert_eq!((nodes.len(), tokens.len(), keys.len()), (64, 64, 64));
    assert_ne!(PresharedKey::generate(), PresharedKey::generate());
    assert_ne!(NetworkSecret::generate(), NetworkSecret::generate());
}

#[test]
fn digest_of_secrets_names_each_and_whose_it_is() {
    let (network, other) = (NetworkId::from_bytes([1; 16]), NetworkId::from_bytes([2; 16]));
    let secret = |byte| NetworkSecret::from_bytes([byte; 32]);
    let psk = |byte| PresharedKey::from_bytes([byte; 32]);
    let id = |byte| NodeId::from_bytes([byte; 8]);
    let (old, new, stock) = (secret(1), secret(2), psk(3));
    let digest = secrets_digest(network, [(1, &old), (2, &new)], [(id(7), &stock)]);
    assert_eq!(secrets_digest(network, [(2, &new), (1, &old)], [(id(7), &stock)]), digest, "in any order");
    let others = [
        secrets_digest(other, [(1, &old), (2, &new)], [(id(7), &stock)]),
        secrets_digest(network, [(1, &new), (2, &old)], [(id(7), &stock)]),
        secrets_digest(network, [(2, &new)], [(id(7), &stock)]),
        secrets_digest(network, [(1, &old), (2, &new), (3, &new)], [(id(7), &stock)]),
        secrets_digest(network, [(1, &old), (2, &secret(4))], [(id(7), &stock)]),
        secrets_digest(network, [(1, &old), (2, &new)], [(id(8), &stock)]),
        secrets_digest(network, [(1, &old), (2, &new)], [(id(7), &psk(4))]),
        secrets_digest(network, [(1, &old), (2, &new)], []),
        // A peer's key passed off as an epoch's secret.
        secrets_digest(network, [(1, &old), (2, &new), (u64::from_be_bytes([7; 8]), &secret(3))], []),
        secrets_digest(network, [], []),
    ];
    let distinct: BTreeSet<_> = others.iter().chain([&digest]).collect();
    assert_eq!(distinct.len(), others.len() + 1);
}
