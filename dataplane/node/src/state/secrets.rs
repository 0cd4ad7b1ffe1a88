//! The network's secrets, kept as they came: sealed to this node's key, so that the file alone opens nothing.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ringmesh_tunnel::{
    Psk,
    enroll::seal::{Context, Purpose, SEALED_LENGTH, SealError, open_secret},
    key::{NetworkId, NetworkSecret, NodeId, PresharedKey, PublicKey, SecretKey, secrets_digest},
};
use serde::{Deserialize, Serialize};

use super::directory::{StateDir, StateFile};
use crate::error::Failure;

/// Epochs in force at a time: the current, the previous, and one in between two coordinators' words.
const MAX_EPOCHS: usize = 4;
/// More stock devices than any network has.
const MAX_PEERS: usize = 65_536;

/// The secrets in force, opened, and the sealed form in which they came.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    epochs: BTreeMap<u64, Kept<NetworkSecret>>,
    peers: BTreeMap<NodeId, Kept<PresharedKey>>,
}

/// An opened secret and its sealed form.
struct Kept<T> {
    opened: std::sync::Arc<T>,
    sealed: Vec<u8>,
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self { opened: std::sync::Arc::clone(&self.opened), sealed: self.sealed.clone() }
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets")
            .field("epochs", &self.epochs.keys().collect::<Vec<_>>())
            .field("peers", &self.peers.len())
            .finish()
    }
}

/// Why secrets are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretsError {
    /// One does not open.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// There are more than any network has.
    #[error("there are more secrets than any network has")]
    TooMany,
}

#[derive(Serialize, Deserialize)]
struct File {
    v: u32,
    epochs: Vec<(u64, String)>,
    peers: Vec<(String, String)>,
}

impl Secrets {
    /// Takes a network's epochs: if any is given, they replace those held.
    ///
    /// # Errors
    /// One does not open with `key`, or there are too many; `self` stays as it was.
    pub(crate) fn with_epochs(
        &self,
        network: NetworkId,
        key: &SecretKey,
        sealed: impl IntoIterator<Item = (u64, Vec<u8>)>,
    ) -> Result<Self, SecretsError> {
        let mut epochs = BTreeMap::new();
        for (epoch, sealed) in sealed {
            if epochs.len() >= MAX_EPOCHS {
                return Err(SecretsError::TooMany);
            }
            let context = Context { network, epoch, purpose: Purpose::Network };
            let opened = NetworkSecret::from_bytes(*open_secret(key, context, &sealed)?);
            epochs.insert(epoch, Kept { opened: opened.into(), sealed });
        }
        let epochs = if epochs.is_empty() { self.epochs.clone() } else { epochs };
        Ok(Self { epochs, peers: self.peers.clone() })
    }

    /// Takes pre-shared keys of single peers, beside or over those held.
    ///
    /// # Errors
    /// As [`with_epochs`](Self::with_epochs).
    pub(crate) fn with_peers(
        &self,
        network: NetworkId,
        key: &SecretKey,
        sealed: impl IntoIterator<Item = (NodeId, Vec<u8>)>,
    ) -> Result<Self, SecretsError> {
        let mut next = self.clone();
        for (peer, sealed) in sealed {
            if next.peers.len() >= MAX_PEERS {
                return Err(SecretsError::TooMany);
            }
            let context = Context { network, epoch: 0, purpose: Purpose::Peer(peer) };
            let opened = PresharedKey::from_bytes(*open_secret(key, context, &sealed)?);
            next.peers.insert(peer, Kept { opened: opened.into(), sealed });
        }
        Ok(next)
    }

    /// Whether every peer with a key of its own is one of `members`.
    pub(crate) fn has_only(&self, members: &BTreeSet<NodeId>) -> bool {
        self.peers.keys().all(|peer| members.contains(peer))
    }

    /// Forgets the keys of peers that are no longer members.
    pub(crate) fn retain_peers(&mut self, members: &BTreeSet<NodeId>) {
        self.peers.retain(|peer, _| members.contains(peer));
    }

    /// The newest epoch, 0 if none is known.
    pub(crate) fn epoch(&self) -> u64 {
        self.epochs.last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// The digest by which a head names them.
    pub(crate) fn digest(&self, network: NetworkId) -> [u8; 32] {
        let epochs = self.epochs.iter().map(|(epoch, kept)| (*epoch, &*kept.opened));
        secrets_digest(network, epochs, self.peers.iter().map(|(peer, kept)| (*peer, &*kept.opened)))
    }

    /// The pre-shared keys with another node of ours: of the newest epoch and of the one before.
    pub(crate) fn epochs_psk(&self, network: NetworkId, own: &PublicKey, peer: &PublicKey) -> Option<Psk> {
        let mut newest =
            self.epochs.iter().rev().map(|(epoch, kept)| kept.opened.derive_psk(network, *epoch, own, peer));
        Some(Psk::Epochs { current: newest.next()?, previous: newest.next() })
    }

    /// The pre-shared key with a stock device.
    pub(crate) fn peer_psk(&self, peer: NodeId) -> Option<PresharedKey> {
        self.peers.get(&peer).map(|kept| PresharedKey::clone(&kept.opened))
    }

    /// Reads the secrets; one that cannot be used is set aside, and a coordinator will send it again.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn load(state: &StateDir, network: NetworkId, key: &SecretKey) -> Result<Self, Failure> {
        let Some(content) = state.read(StateFile::Secrets)? else { return Ok(Self::default()) };
        match Self::parse(&content, network, key) {
            Ok(secrets) => Ok(secrets),
            Err(why) => {
                state.set_aside(StateFile::Secrets, &why);
                Ok(Self::default())
            }
        }
    }

    fn parse(content: &[u8], network: NetworkId, key: &SecretKey) -> Result<Self, String> {
        let file: File = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if file.v != 1 {
            return Err(format!("its version is {}, this program knows 1", file.v));
        }
        let unseal = |text: &str| -> Result<Vec<u8>, String> {
            let sealed = BASE64.decode(text).map_err(|error| error.to_string())?;
            if sealed.len() == SEALED_LENGTH { Ok(sealed) } else { Err("a secret is cut short".to_owned()) }
        };
        let epochs = file.epochs.iter().map(|(epoch, sealed)| Ok((*epoch, unseal(sealed)?)));
        let epochs = epochs.collect::<Result<Vec<_>, String>>()?;
        let peers = file.peers.iter().map(|(peer, sealed)| {
            Ok((peer.parse().map_err(|error| format!("a peer's id: {error}"))?, unseal(sealed)?))
        });
        let peers = peers.collect::<Result<Vec<_>, String>>()?;
        Self::default()
            .with_epochs(network, key, epochs)
            .and_then(|secrets| secrets.with_peers(network, key, peers))
            .map_err(|error| error.to_string())
    }

    /// Writes the secrets, sealed as they came.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn save(&self, state: &StateDir) -> Result<(), Failure> {
        let file = File {
            v: 1,
            epochs: self.epochs.iter().map(|(epoch, kept)| (*epoch, BASE64.encode(&kept.sealed))).collect(),
            peers: self
                .peers
                .iter()
                .map(|(peer, kept)| (peer.to_string(), BASE64.encode(&kept.sealed)))
                .collect(),
        };
        let text =
            serde_json::to_string_pretty(&file).expect("invariant: strings and numbers are always JSON");
        state.write(StateFile::Secrets, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_tunnel::enroll::seal::seal_secret;

    use super::*;

    const NETWORK: NetworkId = NetworkId::from_bytes([5; 16]);

    fn sealed_epoch(key: &SecretKey, epoch: u64, secret: u8) -> (u64, Vec<u8>) {
        let context = Context { network: NETWORK, epoch, purpose: Purpose::Network };
        (epoch, seal_secret(&key.public_key(), context, &[secret; 32]).unwrap())
    }

    fn two_epochs(key: &SecretKey) -> Secrets {
        let sealed = [sealed_epoch(key, 4, 40), sealed_epoch(key, 3, 30)];
        Secrets::default().with_epochs(NETWORK, key, sealed).unwrap()
    }

    #[test]
    fn current_and_previous_epoch_give_their_keys() {
        let key = SecretKey::generate();
        let peer = SecretKey::generate().public_key();
        let secrets = two_epochs(&key);
        assert_eq!(secrets.epoch(), 4);
        let Some(Psk::Epochs { current, previous }) = secrets.epochs_psk(NETWORK, &key.public_key(), &peer)
        else {
            panic!("two epochs")
        };
        let of = |secret: u8, epoch| {
            NetworkSecret::from_bytes([secret; 32]).derive_psk(NETWORK, epoch, &key.public_key(), &peer)
        };
        assert_eq!(current.expose(), of(40, 4).expose());
        assert_eq!(previous.unwrap().expose(), of(30, 3).expose());
        assert!(Secrets::default().epochs_psk(NETWORK, &key.public_key(), &peer).is_none());
    }

    #[test]
    fn no_epochs_given_leaves_those_held_and_some_replace_them() {
        let key = SecretKey::generate();
        let secrets = two_epochs(&key).with_epochs(NETWORK, &key, []).unwrap();
        assert_eq!(secrets.epoch(), 4);
        let next = secrets.with_epochs(NETWORK, &key, [sealed_epoch(&key, 5, 50)]).unwrap();
        assert_eq!(next.epochs.keys().copied().collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn secrets_for_somebody_else_or_too_many_are_refused() {
        let (key, other) = (SecretKey::generate(), SecretKey::generate());
        let secrets = Secrets::default();
        secrets.with_epochs(NETWORK, &key, [sealed_epoch(&other, 1, 1)]).unwrap_err();
        let (_, moved) = sealed_epoch(&key, 1, 1);
        secrets.with_epochs(NETWORK, &key, [(2, moved)]).unwrap_err();
        let many = (1..=5).map(|epoch| sealed_epoch(&key, epoch, 1));
        assert_eq!(secrets.with_epochs(NETWORK, &key, many).unwrap_err(), SecretsError::TooMany);
    }

    #[test]
    fn secrets_survive_the_disk_sealed() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let key = SecretKey::generate();
        let stock = NodeId::from_bytes([8; 8]);
        let context = Context { network: NETWORK, epoch: 0, purpose: Purpose::Peer(stock) };
        let sealed = seal_secret(&key.public_key(), context, &[99; 32]).unwrap();
        let secrets = two_epochs(&key).with_peers(NETWORK, &key, [(stock, sealed)]).unwrap();
        secrets.save(&state).unwrap();

        let content = state.read(StateFile::Secrets).unwrap().unwrap();
        let text = String::from_utf8(content.to_vec()).unwrap();
        for secret in [[40; 32], [99; 32]] {
            assert!(
                !text.contains(&BASE64.encode(secret)) && !content.windows(32).any(|part| part == secret)
            );
        }
        let loaded = Secrets::load(&state, NETWORK, &key).unwrap();
        assert_eq!(loaded.epoch(), 4);
        assert_eq!(loaded.peer_psk(stock).unwrap().expose(), &[99; 32]);
        assert!(loaded.peer_psk(NodeId::from_bytes([1; 8])).is_none());
    }

    #[test]
    fn a_corrupt_file_is_set_aside() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let key = SecretKey::generate();
        two_epochs(&key).save(&state).unwrap();
        let mut content = state.read(StateFile::Secrets).unwrap().unwrap().to_vec();
        let middle = content.iter().position(|byte| *byte == b'=').unwrap() - 9;
        content[middle] = if content[middle] == b'A' { b'B' } else { b'A' };
        state.write(StateFile::Secrets, &content).unwrap();
        assert_eq!(Secrets::load(&state, NETWORK, &key).unwrap().epoch(), 0);
        assert!(state.read(StateFile::Secrets).unwrap().is_none());
        let mut kept = std::fs::read_dir(root.path()).unwrap().flatten();
        assert!(kept.any(|entry| entry.file_name().to_string_lossy().starts_with("secrets.corrupt-")));
    }
}
