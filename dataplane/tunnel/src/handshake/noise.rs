//! Noise_IKpsk2 with WireGuard's names: the part of a handshake that takes Diffie-Hellman.
//!
//! Indices and MACs are not in the Noise transcript, so what is made here can be wrapped in a message elsewhere.

use std::fmt;
use std::hint::black_box;
use std::sync::{Arc, LazyLock};

use snow::params::NoiseParams;
use snow::{Builder, Error, HandshakeState};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::crypto::{Known, Resolver, Shared, StaticKey};
use super::timestamp::Tai64n;
use crate::drop_reason::DropReason;
use crate::key::{PresharedKey, PublicKey};
use crate::message::{INITIATION_NOISE_LEN, RESPONSE_NOISE_LEN};
use crate::random::{NoRandomness, Random};

const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// The preshared key is mixed in at the end of the second message, when both sides know who the other is.
const PSK_POSITION: usize = 2;

static PARAMS: LazyLock<NoiseParams> = LazyLock::new(|| {
    "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().expect("invariant: snow knows WireGuard's pattern")
});

/// The two keys of a session, as one side sees them. Erased when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct TransportKeys {
    sending: [u8; 32],
    receiving: [u8; 32],
}

impl TransportKeys {
    pub(crate) const fn new(sending: [u8; 32], receiving: [u8; 32]) -> Self {
        Self { sending, receiving }
    }

    pub(crate) const fn sending(&self) -> &[u8; 32] {
        &self.sending
    }

    pub(crate) const fn receiving(&self) -> &[u8; 32] {
        &self.receiving
    }
}

impl fmt::Debug for TransportKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransportKeys(..)")
    }
}

/// An unfinished handshake. Erased when dropped, which `snow` does not do by itself.
pub(super) struct Noise(Box<HandshakeState>);

impl Noise {
    fn build(
        key: &Arc<StaticKey>,
        known: Known,
        remote: Option<&PublicKey>,
        random: &mut Random,
    ) -> Result<Self, DropReason> {
        let ephemeral = Zeroizing::new(random.bytes()?);
        let resolver = Resolver::new(Arc::clone(key), known, ephemeral);
        let builder = Builder::with_resolver(PARAMS.clone(), Box::new(resolver));
        // The resolver holds the static key; snow only insists on being given one.
        let built = builder
            .local_private_key(&[0; 32])
            .and_then(|builder| builder.prologue(PROLOGUE))
            .and_then(|builder| match remote {
                Some(remote) => builder.remote_public_key(remote.as_bytes())?.build_initiator(),
                None => builder.build_responder(),
            });
        Ok(Self(Box::new(built.map_err(|error| reason(&error))?)))
    }

    /// Begins a handshake with `peer`; returns the Noise part of the initiation.
    pub(super) fn initiate(
        key: &Arc<StaticKey>,
        peer: &PublicKey,
        shared: &Shared,
        timestamp: Tai64n,
        random: &mut Random,
    ) -> Result<(Self, [u8; INITIATION_NOISE_LEN]), DropReason> {
        let known = Known::Peer(*peer, shared.clone());
        let mut noise = Self::build(key, known, Some(peer), random)?;
        let mut message = [0; INITIATION_NOISE_LEN];
        noise.0.write_message(timestamp.as_bytes(), &mut message).map_err(|error| reason(&error))?;
        Ok((noise, message))
    }

    /// Reads the response to our initiation; nothing changes if it is not one, so a forgery costs nobody the handshake
    /// (W18).
    pub(super) fn finish(
        &mut self,
        psk: &PresharedKey,
        response: &[u8; RESPONSE_NOISE_LEN],
    ) -> Result<TransportKeys, DropReason> {
        let read = self.0.set_psk(PSK_POSITION, psk.expose());
        read.and_then(|()| self.0.read_message(response, &mut [])).map_err(|error| reason(&error))?;
        let (mut sending, mut receiving) = self.0.dangerously_get_raw_split();
        let keys = TransportKeys::new(sending, receiving);
        sending.zeroize();
        receiving.zeroize();
        Ok(keys)
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        // snow keeps its chaining key in plain memory. A blank state in the same place overwrites it; the `black_box`
        // makes that visible, so that it is not optimised away.
        if let Some(blank) = blank() {
            *self.0 = blank;
            black_box(&mut *self.0);
        }
    }
}

impl fmt::Debug for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Noise(..)")
    }
}

fn blank() -> Option<HandshakeState> {
    static KEY: LazyLock<Option<Arc<StaticKey>>> =
        LazyLock::new(|| StaticKey::new(&crate::key::SecretKey::from_bytes([0; 32])).map(Arc::new));
    let resolver =
        Resolver::new(Arc::clone(KEY.as_ref()?), Known::Only(Arc::default()), Zeroizing::new([0; 32]));
    let builder = Builder::with_resolver(PARAMS.clone(), Box::new(resolver));
    builder.local_private_key(&[0; 32]).ok()?.build_responder().ok()
}

/// An initiation that was read: who sent it and when, before anything is said in return.
#[derive(Debug)]
pub(super) struct Read {
    noise: Noise,
    pub(super) initiator: PublicKey,
    pub(super) timestamp: Tai64n,
}

impl Read {
    /// Reads an initiation whose first MAC is right.
    pub(super) fn initiation(
        key: &Arc<StaticKey>,
        peers: &Arc<std::collections::BTreeMap<PublicKey, Shared>>,
        message: &[u8; INITIATION_NOISE_LEN],
        random: &mut Random,
    ) -> Result<Self, DropReason> {
        let mut noise = Noise::build(key, Known::Only(Arc::clone(peers)), None, random)?;
        let mut timestamp = [0; 12];
        let read = noise.0.read_message(message, &mut timestamp);
        let initiator = noise.0.get_remote_static().and_then(|key| PublicKey::try_from(key).ok());
        match (read, initiator) {
            (Ok(12), Some(initiator)) => {
                Ok(Self { noise, initiator, timestamp: Tai64n::from_bytes(timestamp) })
            }
            (Err(Error::Dh), Some(initiator)) if !peers.contains_key(&initiator) => {
                Err(DropReason::UnknownPeer)
            }
            (Err(error), _) => Err(reason(&error)),
            (Ok(_), _) => Err(DropReason::BadHandshake),
        }
    }

    /// Answers it; returns the Noise part of the response.
    pub(super) fn respond(
        mut self,
        psk: &PresharedKey,
    ) -> Result<([u8; RESPONSE_NOISE_LEN], TransportKeys), DropReason> {
        let state = &mut self.noise.0;
        let mut message = [0; RESPONSE_NOISE_LEN];
        let written = state.set_psk(PSK_POSITION, psk.expose());
        written.and_then(|()| state.write_message(&[], &mut message)).map_err(|error| reason(&error))?;
        let (mut receiving, mut sending) = state.dangerously_get_raw_split();
        let keys = TransportKeys::new(sending, receiving);
        sending.zeroize();
        receiving.zeroize();
        Ok((message, keys))
    }
}

impl From<NoRandomness> for DropReason {
    fn from(_: NoRandomness) -> Self {
        Self::NoRandomness
    }
}

fn reason(error: &Error) -> DropReason {
    if matches!(error, Error::Dh) { DropReason::LowOrderKey } else { DropReason::BadHandshake }
}
