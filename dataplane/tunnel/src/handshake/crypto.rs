//! The primitives that Noise runs on, given to `snow` by name: X25519 and ChaCha20-Poly1305 of aws-lc, and BLAKE2s.
//!
//! Built for one handshake at a time: the first Diffie-Hellman object that `snow` asks for is the static key's, the
//! second the ephemeral's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use blake2::digest::{FixedOutput, Update};
use blake2::{Blake2s256, Digest};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types;
use zeroize::Zeroizing;

use crate::key::{PublicKey, SecretKey};

/// A Diffie-Hellman result.
pub(super) type Shared = Zeroizing<[u8; 32]>;

/// Our own static key, ready for use.
pub(super) struct StaticKey {
    private: PrivateKey,
    public: PublicKey,
}

impl StaticKey {
    /// None if the library refuses the key, which it does for no 32 bytes.
    pub(super) fn new(secret: &SecretKey) -> Option<Self> {
        let private = PrivateKey::from_private_key(&X25519, secret.expose()).ok()?;
        Some(Self { private, public: secret.public_key() })
    }

    pub(super) const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Our secret with a peer's; none if the peer's key has low order.
    pub(super) fn agree(&self, public: &PublicKey) -> Option<Shared> {
        diffie_hellman(&self.private, public.as_bytes()).ok()
    }
}

impl fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StaticKey({:?})", self.public)
    }
}

/// aws-lc refuses a result that is zero, as a public key of low order makes it.
fn diffie_hellman(private: &PrivateKey, public: &[u8]) -> Result<Shared, Error> {
    agree(private, UnparsedPublicKey::new(&X25519, public), Error::Dh, |secret| {
        let mut shared = Zeroizing::new([0; 32]);
        if secret.len() != shared.len() {
            return Err(Error::Dh);
        }
        shared.copy_from_slice(secret);
        Ok(shared)
    })
}

/// What static-static agreements are known, and thereby who may handshake at all.
#[derive(Clone)]
pub(super) enum Known {
    /// We begin a handshake with this peer.
    Peer(PublicKey, Shared),
    /// We answer: only these keys may be the initiator's, and a stranger costs one agreement instead of two.
    Only(Arc<BTreeMap<PublicKey, Shared>>),
}

/// Gives `snow` its primitives for one handshake.
pub(super) struct Resolver {
    key: Arc<StaticKey>,
    known: Known,
    ephemeral: Zeroizing<[u8; 32]>,
    asked: AtomicU8,
}

impl Resolver {
    /// `ephemeral` must be fresh random bytes.
    pub(super) fn new(key: Arc<StaticKey>, known: Known, ephemeral: Zeroizing<[u8; 32]>) -> Self {
        Self { key, known, ephemeral, asked: AtomicU8::new(0) }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn types::Random>> {
        Some(Box::new(Prepared(self.ephemeral.clone())))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn types::Dh>> {
        match (choice, self.asked.fetch_add(1, Ordering::Relaxed)) {
            (DHChoice::Curve25519, 0) => Some(Box::new(StaticDh {
                key: Arc::clone(&self.key),
                known: self.known.clone(),
                agreed: AtomicU8::new(0),
            })),
            (DHChoice::Curve25519, 1) => Some(Box::new(EphemeralDh { private: None, public: [0; 32] })),
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn types::Hash>> {
        matches!(choice, HashChoice::Blake2s).then(|| Box::new(Hash(Blake2s256::new())) as _)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn types::Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::new(Cipher(None)) as _)
    }
}

/// The bytes of the one ephemeral key that a handshake needs, drawn beforehand so that a failing system is noticed.
struct Prepared(Zeroizing<[u8; 32]>);

impl types::Random for Prepared {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        if dest.len() != self.0.len() {
            return Err(Error::Rng);
        }
        dest.copy_from_slice(self.0.as_slice());
        Ok(())
    }
}

struct StaticDh {
    key: Arc<StaticKey>,
    known: Known,
    agreed: AtomicU8,
}

impl types::Dh for StaticDh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    /// The key is in place already; what `snow` was given is a stand-in.
    fn set(&mut self, _: &[u8]) {}

    fn generate(&mut self, _: &mut dyn types::Random) -> Result<(), Error> {
        Err(Error::Rng)
    }

    fn pubkey(&self) -> &[u8] {
        self.key.public.as_bytes()
    }

    fn privkey(&self) -> &[u8] {
        &[]
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public = PublicKey::from_bytes(pubkey[..32].try_into().map_err(|_| Error::Dh)?);
        let shared = match &self.known {
            Known::Peer(peer, shared) if *peer == public => shared.clone(),
            Known::Peer(..) => diffie_hellman(&self.key.private, public.as_bytes())?,
            // Answering, the first agreement is with the ephemeral key and the second with the initiator's static one.
            Known::Only(_) if self.agreed.fetch_add(1, Ordering::Relaxed) == 0 => {
                diffie_hellman(&self.key.private, public.as_bytes())?
            }
            Known::Only(peers) => peers.get(&public).ok_or(Error::Dh)?.clone(),
        };
        out[..32].copy_from_slice(shared.as_slice());
        Ok(())
    }
}

struct EphemeralDh {
    private: Option<PrivateKey>,
    public: [u8; 32],
}

impl types::Dh for EphemeralDh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    /// Only `generate` makes a key here: an ephemeral key is never given.
    fn set(&mut self, _: &[u8]) {}

    fn generate(&mut self, rng: &mut dyn types::Random) -> Result<(), Error> {
        let mut secret = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(secret.as_mut_slice())?;
        let private = PrivateKey::from_private_key(&X25519, secret.as_slice()).map_err(|_| Error::Dh)?;
        let public = private.compute_public_key().map_err(|_| Error::Dh)?;
        self.public = public.as_ref().try_into().map_err(|_| Error::Dh)?;
        self.private = Some(private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &[]
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let private = self.private.as_ref().ok_or(Error::Dh)?;
        out[..32].copy_from_slice(diffie_hellman(private, &pubkey[..32])?.as_slice());
        Ok(())
    }
}

struct Cipher(Option<LessSafeKey>);

impl Cipher {
    fn nonce(counter: u64) -> Nonce {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&counter.to_le_bytes());
        Nonce::assume_unique_for_key(bytes)
    }
}

impl types::Cipher for Cipher {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new);
    }

    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let key = self.0.as_ref().expect("invariant: snow sets a key before it encrypts");
        let (text, rest) = out.split_at_mut(plaintext.len());
        key.seal_out_of_place_scatter(
            Self::nonce(nonce),
            Aad::from(authtext),
            plaintext,
            text,
            &[],
            &mut rest[..CHACHA20_POLY1305.tag_len()],
        )
        .expect("invariant: handshake payloads are short");
        plaintext.len() + CHACHA20_POLY1305.tag_len()
    }

    fn decrypt(
        &self,
        nonce: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let len = ciphertext.len().checked_sub(CHACHA20_POLY1305.tag_len()).ok_or(Error::Decrypt)?;
        let (text, tag) = ciphertext.split_at(len);
        let out = out.get_mut(..len).ok_or(Error::Decrypt)?;
        key.open_separate_gather(Self::nonce(nonce), Aad::from(authtext), text, tag, out)
            .map_err(|_| Error::Decrypt)?;
        Ok(len)
    }
}

struct Hash(Blake2s256);

impl types::Hash for Hash {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Blake2s256::new();
    }

    fn input(&mut self, data: &[u8]) {
        Update::update(&mut self.0, data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let hash = std::mem::replace(&mut self.0, Blake2s256::new());
        out[..32].copy_from_slice(&hash.finalize_fixed());
    }
}
