//! The coordinator's nonces: fresh for a minute, bound to the asker's nonce, and not remembered.
//!
//! A nonce is time (8 bytes) ‖ random (16) ‖ the first 16 bytes of an HMAC-SHA256 over both, the network and the client's
//! nonce, under a key of this process. So a flood of challenges costs no memory.

use std::time::Duration;

use aws_lc_rs::hmac;
use ringmesh_tunnel::{UnixTime, key::NetworkId};
use subtle::ConstantTimeEq as _;

/// Length of a nonce in bytes.
const LENGTH: usize = 40;
/// Length of what the HMAC covers of the nonce itself.
const BODY: usize = 24;
/// For how long a nonce may be signed.
pub(crate) const FRESH: Duration = Duration::from_secs(60);

/// Makes nonces and recognises them.
pub(crate) struct Nonces(hmac::Key);

impl Nonces {
    /// With a new key: nonces of another process are strange.
    pub(crate) fn new() -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()))
    }

    /// A nonce for the asker who sent `client_nonce`.
    pub(crate) fn make(&self, network: NetworkId, client_nonce: &[u8; 32], now: UnixTime) -> Vec<u8> {
        let mut nonce = Vec::with_capacity(LENGTH);
        nonce.extend(now.as_millis().to_be_bytes());
        nonce.extend(random::<16>());
        let tag = self.tag(&nonce, network, client_nonce);
        nonce.extend(tag);
        nonce
    }

    /// Whether `nonce` was made here, for that asker, within the last minute.
    pub(crate) fn is_fresh(
        &self,
        network: NetworkId,
        client_nonce: &[u8; 32],
        nonce: &[u8],
        now: UnixTime,
    ) -> bool {
        if nonce.len() != LENGTH {
            return false;
        }
        let Some((body, tag)) = nonce.split_at_checked(BODY) else { return false };
        if !bool::from(self.tag(body, network, client_nonce).ct_eq(tag)) {
            return false;
        }
        let Some(time) = body.first_chunk::<8>() else { return false };
        let made = UnixTime::from_millis(u64::from_be_bytes(*time));
        made <= now.saturating_add(FRESH) && now.saturating_since(made) <= FRESH
    }

    fn tag(&self, body: &[u8], network: NetworkId, client_nonce: &[u8; 32]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.0);
        // Fixed lengths: no two inputs have the same bytes.
        for part in [body, network.as_bytes(), client_nonce] {
            context.update(part);
        }
        let tag = context.sign();
        let mut short = [0; 16];
        for (to, from) in short.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        short
    }
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonces(..)")
    }
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("invariant: the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_for_a_minute_for_who_asked_and_nobody_else() {
        let (ours, others) = (Nonces::new(), Nonces::new());
        let (network, asker) = (NetworkId::from_bytes([1; 16]), [2; 32]);
        let start = UnixTime::from_secs(1_000_000);
        let nonce = ours.make(network, &asker, start);
        assert_eq!(nonce.len(), LENGTH);
        assert_ne!(nonce, ours.make(network, &asker, start));
        assert!(ours.is_fresh(network, &asker, &nonce, start));
        assert!(ours.is_fresh(network, &asker, &nonce, start.saturating_add(FRESH)));
        let late = start.saturating_add(FRESH + Duration::from_millis(1));
        assert!(!ours.is_fresh(network, &asker, &nonce, late));
        let before = start.saturating_sub(FRESH + Duration::from_millis(1));
        assert!(!ours.is_fresh(network, &asker, &nonce, before), "the clock was set back");
        assert!(!others.is_fresh(network, &asker, &nonce, start));
        assert!(!ours.is_fresh(network, &[3; 32], &nonce, start));
        assert!(!ours.is_fresh(NetworkId::from_bytes([9; 16]), &asker, &nonce, start));
        for i in 0..LENGTH {
            let mut bad = nonce.clone();
            bad[i] ^= 1;
            assert!(!ours.is_fresh(network, &asker, &bad, start));
            assert!(!ours.is_fresh(network, &asker, &nonce[..i], start));
        }
        assert!(!ours.is_fresh(network, &asker, &[nonce, vec![0]].concat(), start));
    }
}
