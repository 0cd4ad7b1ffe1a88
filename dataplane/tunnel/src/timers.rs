//! WireGuard's timers (whitepaper §6), as plain state: events in, what is due out.
//!
//! Nothing here sends. `Timers::due` says what a peer must do now, and its caller does it and reports back what was
//! sent; so every rule can be tested by a table of events and times.

use std::time::{Duration, Instant};

use crate::random::Random;

/// Age of a session at which its initiator, when sending, begins the next handshake.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Age of a session at which nothing is sealed or opened with it any more.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// How long an unanswered initiation waits for the next, jitter aside; also the least time between two.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long initiations go on unanswered before we give up.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// How long after data was received and nothing sent we send a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What is added to `REKEY_TIMEOUT` at random, so that two peers do not keep colliding: milliseconds, at most.
pub const REKEY_TIMEOUT_JITTER_MAX_MS: u32 = 333;
/// How long after the last new session all keys of a peer are erased.
pub const ERASE_AFTER: Duration = Duration::from_secs(REJECT_AFTER_TIME.as_secs() * 3);
/// Age of a session at which its initiator, when receiving, begins the next handshake.
pub const REKEY_ON_RECEIVE_AFTER: Duration =
    Duration::from_secs(REJECT_AFTER_TIME.as_secs() - KEEPALIVE_TIMEOUT.as_secs() - REKEY_TIMEOUT.as_secs());
/// Silence after data was sent that makes us begin a handshake.
const DEAD_PEER_TIMEOUT: Duration =
    Duration::from_secs(KEEPALIVE_TIMEOUT.as_secs() + REKEY_TIMEOUT.as_secs());
/// Initiations in one attempt.
pub const MAX_HANDSHAKE_TRIES: u32 = (REKEY_ATTEMPT_TIME.as_secs() / REKEY_TIMEOUT.as_secs()) as u32;

/// What a peer must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nobody answered: send the next initiation of this attempt.
    Retry,
    /// Nobody answered for 90 s: drop what is held and stop.
    GiveUp,
    /// Data was sent and nothing came back: begin a handshake.
    PeerSilent,
    /// Our response was never confirmed: begin a handshake ourselves.
    ResponseUnconfirmed,
    /// Send an empty packet.
    Keepalive,
    /// Erase all keys.
    Erase,
}

/// The timers of one peer.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Timers {
    // What packets touch comes first.
    /// The keepalive owed for data received.
    keepalive: Option<Instant>,
    /// When silence means that the peer is gone.
    silence: Option<Instant>,
    persistent: Option<Instant>,
    persistent_interval: Option<Duration>,
    /// The next initiation, while a handshake of ours is unanswered.
    retry: Option<Instant>,
    /// When an answered handshake counts as failed.
    unconfirmed: Option<Instant>,
    erase: Option<Instant>,
    /// What is added to the silence at random, the same for as long as a session is in use: that timer is set anew by nearly every
    /// packet that answers one, and a draw asks the system.
    silence_jitter: Option<Duration>,
    /// When the last initiation or response was sent.
    last_handshake_sent: Option<Instant>,
    /// Initiations sent in this attempt.
    tries: u32,
    /// Whether receiving has begun the next handshake of this session already.
    rekeyed_on_receive: bool,
}

impl Timers {
    /// The earliest moment at which something is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        let all = [self.retry, self.keepalive, self.silence, self.unconfirmed, self.persistent, self.erase];
        all.into_iter().flatten().min()
    }

    /// Takes out one thing that is due; ask until there is none.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Due> {
        if take_due(&mut self.retry, now) {
            if self.tries < MAX_HANDSHAKE_TRIES {
                return Some(Due::Retry);
            }
            self.tries = 0;
            self.keepalive = None;
            self.silence = None;
            self.unconfirmed = None;
            // Keys of an earlier session are erased even if no later one ever comes.
            self.erase.get_or_insert(now + ERASE_AFTER);
            return Some(Due::GiveUp);
        }
        if take_due(&mut self.unconfirmed, now) {
            return Some(Due::ResponseUnconfirmed);
        }
        if take_due(&mut self.silence, now) {
            self.silence_jitter = None;
            return Some(Due::PeerSilent);
        }
        if take_due(&mut self.keepalive, now) {
            return Some(Due::Keepalive);
        }
        if take_due(&mut self.persistent, now) {
            return Some(Due::Keepalive);
        }
        take_due(&mut self.erase, now).then_some(Due::Erase)
    }

    /// Data, or a notice that asks for an answer, was sent (W6).
    pub(crate) fn data_sent(&mut self, now: Instant, random: &mut Random) {
        if self.silence.is_none() {
            let jitter = *self.silence_jitter.get_or_insert_with(|| jitter(random));
            self.silence = Some(now + DEAD_PEER_TIMEOUT + jitter);
        }
    }

    /// Data was received: it deserves a sign of life, but a keepalive or notice does not (W5).
    pub(crate) fn data_received(&mut self, now: Instant) {
        self.keepalive.get_or_insert(now + KEEPALIVE_TIMEOUT);
    }

    /// Anything was sent that the peer can authenticate.
    pub(crate) fn authenticated_sent(&mut self, now: Instant) {
        self.keepalive = None;
        self.traversed(now);
    }

    /// Anything authentic was received.
    pub(crate) fn authenticated_received(&mut self, now: Instant) {
        self.silence = None;
        self.traversed(now);
    }

    /// A mapping of a NAT was refreshed (W7).
    fn traversed(&mut self, now: Instant) {
        self.persistent = self.persistent_interval.map(|interval| now + interval);
    }

    /// Whether an initiation may be sent now: at most one in 5 s (W4). If not, it is sent as soon as it may.
    pub(crate) fn may_initiate(&mut self, now: Instant, random: &mut Random) -> bool {
        let Some(next) = self.last_handshake_sent.map(|last| last + REKEY_TIMEOUT) else { return true };
        if now >= next {
            return true;
        }
        if self.retry.is_none() {
            self.retry = Some(next + jitter(random));
        }
        false
    }

    /// The attempt is of no use any more.
    pub(crate) fn abandon_attempt(&mut self) {
        self.retry = None;
        self.tries = 0;
    }

    /// A new attempt begins: its tries count from zero.
    pub(crate) fn restart_attempt(&mut self) {
        self.tries = 0;
    }

    /// An initiation is being sent.
    pub(crate) fn initiated(&mut self, now: Instant, random: &mut Random) {
        self.tries += 1;
        self.last_handshake_sent = Some(now);
        self.retry = Some(now + REKEY_TIMEOUT + jitter(random));
    }

    /// A response was sent. If `expect_confirmation`, its initiator must use the session within 5 s; a second response
    /// does not put that off, or two sides that disagree about the key would wait for each other forever.
    pub(crate) fn responded(&mut self, now: Instant, expect_confirmation: bool, random: &mut Random) {
        self.last_handshake_sent = Some(now);
        if expect_confirmation && self.unconfirmed.is_none() {
            self.unconfirmed = Some(now + REKEY_TIMEOUT + jitter(random));
        }
        self.session_made(now);
    }

    /// A session was made, though it may not be confirmed yet (W8).
    pub(crate) fn session_made(&mut self, now: Instant) {
        self.erase = Some(now + ERASE_AFTER);
    }

    /// Both sides are known to have the session.
    pub(crate) fn completed(&mut self) {
        self.retry = None;
        self.unconfirmed = None;
        self.silence_jitter = None;
        self.tries = 0;
        self.rekeyed_on_receive = false;
    }

    /// Whether receiving may begin the next handshake: once for each session (W1).
    pub(crate) fn rekey_on_receive(&mut self) -> bool {
        !std::mem::replace(&mut self.rekeyed_on_receive, true)
    }

    /// How long ago the last initiation or response was sent, if any was.
    pub(crate) fn since_handshake_sent(&self, now: Instant) -> Option<Duration> {
        self.last_handshake_sent.map(|last| now.saturating_duration_since(last))
    }

    /// Whether an initiation is waiting for its answer or its turn.
    pub(crate) fn retrying(&self) -> bool {
        self.retry.is_some()
    }

    /// Initiations sent in this attempt.
    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }

    /// Sets or ends the persistent keepalive; a new one is due at once.
    pub(crate) fn set_persistent(&mut self, interval: Option<Duration>, now: Instant) {
        if self.persistent_interval != interval {
            self.persistent_interval = interval;
            self.persistent = interval.map(|_| now);
        }
    }

    /// Everything stops but the persistent keepalive, as when all sessions are dropped.
    pub(crate) fn clear(&mut self) {
        let persistent = (self.persistent, self.persistent_interval);
        *self = Self::default();
        (self.persistent, self.persistent_interval) = persistent;
    }
}

fn take_due(timer: &mut Option<Instant>, now: Instant) -> bool {
    let due = timer.is_some_and(|deadline| deadline <= now);
    if due {
        *timer = None;
    }
    due
}

fn jitter(random: &mut Random) -> Duration {
    Duration::from_millis(random.up_to(REKEY_TIMEOUT_JITTER_MAX_MS).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::test_epoch;

    #[test]
    fn receiving_begins_one_handshake_for_each_session() {
        let mut timers = Timers::default();
        assert!(timers.rekey_on_receive());
        assert!(!timers.rekey_on_receive());
        timers.completed();
        assert!(timers.rekey_on_receive());
    }

    #[test]
    fn second_unconfirmed_response_does_not_put_off_what_the_first_asks_for() {
        let (start, mut random) = (test_epoch(), Random::seeded(1));
        let mut timers = Timers::default();
        timers.responded(start, true, &mut random);
        timers.responded(start + Duration::from_secs(4), true, &mut random);
        assert_eq!(timers.due(start + Duration::from_millis(5334)), Some(Due::ResponseUnconfirmed));
    }

    #[test]
    fn answered_packets_do_not_ask_for_random_bytes_again_until_there_is_another_session() {
        let (start, mut random) = (test_epoch(), Random::seeded(1));
        let mut timers = Timers::default();
        let mut silent_at = |timers: &mut Timers| {
            timers.authenticated_received(start);
            timers.data_sent(start, &mut random);
            timers.next().unwrap() - start
        };
        let first = silent_at(&mut timers);
        assert!((0..100).all(|_| silent_at(&mut timers) == first));
        let others = (0..100).map(|_| {
            timers.completed();
            silent_at(&mut timers)
        });
        assert!(others.filter(|&other| other != first).count() > 90, "each session has its own");
    }

    #[test]
    fn everything_due_comes_out_once() {
        let (start, mut random) = (test_epoch(), Random::seeded(1));
        let mut timers = Timers::default();
        timers.set_persistent(Some(Duration::from_secs(1)), start);
        timers.data_received(start);
        timers.data_sent(start, &mut random);
        timers.session_made(start);
        let end = start + ERASE_AFTER;
        let due: Vec<Due> = std::iter::from_fn(|| timers.due(end)).collect();
        assert_eq!(due, [Due::PeerSilent, Due::Keepalive, Due::Keepalive, Due::Erase]);
        assert_eq!(timers.next(), None);
    }
}
