//! Cookies: under load, a stranger must show that it receives at the address it sends from before we do any
//! Diffie-Hellman for it (whitepaper §5.4.7, W13, W14).

use std::time::{Duration, Instant};

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::mac::{self, Stamp, Tag};
use crate::message::{self, COOKIE_REPLY_LEN, TAG_LEN};
use crate::path::Path;
use crate::random::{NoRandomness, Random};

/// How long the secret behind our cookies lives.
const SECRET_LIFETIME: Duration = Duration::from_secs(120);
/// How long a received cookie is used: shorter, so that it never arrives after its secret is gone.
pub(crate) const COOKIE_LIFETIME: Duration = Duration::from_secs(120 - 5);

/// Makes and checks our cookies.
#[derive(Default)]
pub(crate) struct CookieJar {
    secret: Option<(Zeroizing<[u8; 32]>, Instant)>,
}

impl CookieJar {
    /// The cookie of whoever receives at `path` now.
    fn cookie(&mut self, path: Path, random: &mut Random, now: Instant) -> Result<Tag, NoRandomness> {
        let fresh = |born: &Instant| now.saturating_duration_since(*born) < SECRET_LIFETIME;
        let secret = match self.secret.take() {
            Some((secret, born)) if fresh(&born) => self.secret.insert((secret, born)),
            _ => self.secret.insert((Zeroizing::new(random.bytes()?), now)),
        };
        let (binding, len) = path.cookie_binding();
        Ok(mac::keyed(secret.0.as_slice(), &[&binding[..len]]))
    }

    /// Whether `message` shows that its sender receives at `path`.
    pub(crate) fn verify<const N: usize>(
        &mut self,
        message: &[u8; N],
        path: Path,
        random: &mut Random,
        now: Instant,
    ) -> Result<bool, NoRandomness> {
        Ok(mac::verify_mac2(message, &self.cookie(path, random, now)?))
    }

    /// The reply that gives the sender of `message` its cookie; always shorter than `message`.
    pub(crate) fn reply<const N: usize>(
        &mut self,
        ours: &Stamp,
        message: &[u8; N],
        sender: u32,
        path: Path,
        random: &mut Random,
        now: Instant,
    ) -> Result<[u8; COOKIE_REPLY_LEN], NoRandomness> {
        let cookie = self.cookie(path, random, now)?;
        let nonce: [u8; 24] = random.bytes()?;
        let mut sealed = [0; 32];
        sealed[..16].copy_from_slice(&cookie);
        let (text, tag) = sealed.split_at_mut(16);
        let made = cipher(ours)
            .encrypt_inout_detached(&XNonce::from(nonce), &mac::mac1_of(message), text.into())
            .expect("invariant: 16 bytes are not too long");
        tag.copy_from_slice(&made);
        Ok(message::cookie_reply(sender, &nonce, &sealed))
    }
}

/// Opens a cookie reply to the message of ours that carried `mac1`; none if it is not one.
pub(crate) fn open_reply(theirs: &Stamp, mac1: &Tag, nonce: [u8; 24], sealed: [u8; 32]) -> Option<Tag> {
    let mut cookie: Tag = [0; 16];
    cookie.copy_from_slice(&sealed[..16]);
    let mut tag = [0; TAG_LEN];
    tag.copy_from_slice(&sealed[16..]);
    let (nonce, tag) = (XNonce::from(nonce), tag.into());
    cipher(theirs).decrypt_inout_detached(&nonce, mac1, cookie.as_mut_slice().into(), &tag).ok()?;
    Some(cookie)
}

fn cipher(receiver: &Stamp) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&Key::from(*receiver.cookie_key()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PublicKey;
    use crate::time::test_epoch;

    struct Setup {
        jar: CookieJar,
        random: Random,
        ours: Stamp,
        message: [u8; 148],
        mac1: Tag,
        path: Path,
    }

    fn setup() -> Setup {
        let ours = Stamp::of(&PublicKey::from_bytes([1; 32]));
        let mut message = [7; 148];
        let mac1 = ours.seal(&mut message, None);
        let path = Path::Udp("192.0.2.1:1000".parse().unwrap());
        Setup { jar: CookieJar::default(), random: Random::seeded(1), ours, message, mac1, path }
    }

    #[test]
    fn a_cookie_works_for_its_holder_until_the_secret_changes() {
        let Setup { mut jar, mut random, ours, mut message, mac1, path } = setup();
        let now = test_epoch();
        assert_eq!(jar.verify(&message, path, &mut random, now), Ok(false), "no cookie, no entry");
        let reply = jar.reply(&ours, &message, 5, path, &mut random, now).unwrap();
        let (receiver, nonce, sealed) = message::cookie_reply_fields(&reply);
        assert_eq!(receiver, 5);
        let cookie = open_reply(&ours, &mac1, nonce, sealed).unwrap();

        ours.seal(&mut message, Some(&cookie));
        assert_eq!(jar.verify(&message, path, &mut random, now), Ok(true));
        for other in ["192.0.2.1:1001", "192.0.2.2:1000", "[2001:db8::1]:1000"] {
            let other = Path::Udp(other.parse().unwrap());
            assert_eq!(jar.verify(&message, other, &mut random, now), Ok(false), "{other}");
        }
        let last = now + SECRET_LIFETIME - Duration::from_millis(1);
        assert_eq!(jar.verify(&message, path, &mut random, last), Ok(true));
        assert_eq!(jar.verify(&message, path, &mut random, now + SECRET_LIFETIME), Ok(false));
    }

    #[test]
    fn a_reply_opens_only_for_the_message_it_answers() {
        let Setup { mut jar, mut random, ours, message, mac1, path } = setup();
        let reply = jar.reply(&ours, &message, 5, path, &mut random, test_epoch()).unwrap();
        let (_, nonce, sealed) = message::cookie_reply_fields(&reply);
        assert!(open_reply(&ours, &mac1, nonce, sealed).is_some());
        assert!(open_reply(&ours, &[0; 16], nonce, sealed).is_none(), "another message's MAC");
        let other = Stamp::of(&PublicKey::from_bytes([2; 32]));
        assert!(open_reply(&other, &mac1, nonce, sealed).is_none(), "another responder's key");
        for bit in 0..256 {
            let mut forged = sealed;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(open_reply(&ours, &mac1, nonce, forged).is_none(), "bit {bit}");
        }
    }
}
