//! The three places of a peer's sessions (whitepaper §6.3, W17).

use std::time::Instant;

use super::Session;

/// A peer's sessions: the one in use, the one before it for datagrams still under way, and one that we answered but whose
/// initiator has not yet shown that it has the keys.
#[derive(Debug)]
pub(crate) struct Sessions<C> {
    previous: Option<Box<Session<C>>>,
    current: Option<Box<Session<C>>>,
    next: Option<Box<Session<C>>>,
}

impl<C> Default for Sessions<C> {
    fn default() -> Self {
        Self { previous: None, current: None, next: None }
    }
}

/// Which of the three a session is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    Previous,
    Current,
    /// Answered, not confirmed: opens, but seals nothing.
    Next,
}

/// Sessions that ended: their indices are to be taken back.
pub(crate) type Ended<C> = [Option<Box<Session<C>>>; 3];

impl<C> Sessions<C> {
    /// The session in use, for sealing.
    pub(crate) fn current_mut(&mut self) -> Option<&mut Session<C>> {
        self.current.as_deref_mut()
    }

    /// The session in use.
    pub(crate) fn current(&self) -> Option<&Session<C>> {
        self.current.as_deref()
    }

    /// Whether an answered handshake waits for its first datagram.
    pub(crate) fn has_unconfirmed(&self) -> bool {
        self.next.is_some()
    }

    /// The session with this index of ours, for opening.
    pub(crate) fn find_mut(&mut self, index: u32) -> Option<(Position, &mut Session<C>)> {
        let places = [
            (Position::Current, &mut self.current),
            (Position::Next, &mut self.next),
            (Position::Previous, &mut self.previous),
        ];
        places.into_iter().find_map(|(position, session)| {
            let session = session.as_deref_mut()?;
            (session.local_index() == index).then_some((position, session))
        })
    }

    /// Takes a session into use whose handshake we began: its response was the peer's proof.
    ///
    /// What the peer may still seal with is kept to open it: a session that we answered just now, which it may have taken
    /// into use, or else the one in use until now. One that stayed unconfirmed is in use nowhere.
    pub(crate) fn initiated(&mut self, session: Session<C>, now: Instant) -> Ended<C> {
        let next = self.next.take();
        let current = self.current.replace(Box::new(session));
        let next_is_fresh = next.as_ref().is_some_and(|next| next.is_fresh(now));
        let (keep, end) = if next_is_fresh { (next, current) } else { (current, next) };
        [std::mem::replace(&mut self.previous, keep), end, None]
    }

    /// Keeps a session that we answered until its initiator confirms it.
    pub(crate) fn responded(&mut self, session: Session<C>) -> Ended<C> {
        [self.previous.take(), self.next.replace(Box::new(session)), None]
    }

    /// Takes the confirmed session into use.
    pub(crate) fn confirm(&mut self) -> Ended<C> {
        let next = self.next.take();
        let current = std::mem::replace(&mut self.current, next);
        [std::mem::replace(&mut self.previous, current), None, None]
    }

    /// What each of the three has sealed and opened.
    #[cfg(test)]
    pub(crate) fn progress(&self) -> Vec<String> {
        let all = [&self.previous, &self.current, &self.next];
        all.into_iter().flatten().map(|session| session.progress()).collect()
    }

    /// Ends all three.
    pub(crate) fn clear(&mut self) -> Ended<C> {
        [self.previous.take(), self.current.take(), self.next.take()]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringmesh_aead::{Kernel, Key};

    use super::*;
    use crate::handshake::TransportKeys;
    use crate::time::test_epoch;

    fn session_made(index: u32, now: Instant) -> Session<Key> {
        Session::new(index, 0, true, &TransportKeys::new([0; 32], [0; 32]), Kernel::Portable, now)
    }

    fn session(index: u32) -> Session<Key> {
        session_made(index, test_epoch())
    }

    fn initiated(sessions: &mut Sessions<Key>, index: u32) -> Ended<Key> {
        sessions.initiated(session(index), test_epoch())
    }

    fn held(sessions: &Sessions<Key>) -> [Option<u32>; 3] {
        [&sessions.previous, &sessions.current, &sessions.next]
            .map(|session| session.as_ref().map(|session| session.local_index()))
    }

    fn ended(ended: Ended<Key>) -> Vec<u32> {
        ended.into_iter().flatten().map(|session| session.local_index()).collect()
    }

    #[test]
    fn an_initiated_session_is_used_at_once() {
        let mut sessions = Sessions::default();
        assert!(ended(initiated(&mut sessions, 1)).is_empty());
        assert!(ended(initiated(&mut sessions, 2)).is_empty());
        assert_eq!(held(&sessions), [Some(1), Some(2), None]);
        assert_eq!(ended(initiated(&mut sessions, 3)), [1]);
        assert_eq!(held(&sessions), [Some(2), Some(3), None]);
    }

    #[test]
    fn a_responded_session_waits_for_confirmation() {
        let mut sessions = Sessions::default();
        initiated(&mut sessions, 1);
        initiated(&mut sessions, 2);
        assert_eq!(ended(sessions.responded(session(3))), [1]);
        assert_eq!(held(&sessions), [None, Some(2), Some(3)]);
        assert_eq!(ended(sessions.responded(session(4))), [3]);
        assert_eq!(held(&sessions), [None, Some(2), Some(4)]);
        assert!(ended(sessions.confirm()).is_empty());
        assert_eq!(held(&sessions), [Some(2), Some(4), None]);
    }

    #[test]
    fn a_session_answered_just_now_outlives_the_current_one_when_ours_wins() {
        let now = test_epoch();
        for (age, kept, gone) in [(Duration::from_millis(4999), 2, 1), (Duration::from_secs(5), 1, 2)] {
            let mut sessions = Sessions::default();
            sessions.initiated(session_made(1, now), now);
            sessions.responded(session_made(2, now));
            assert_eq!(ended(sessions.initiated(session_made(3, now), now + age)), [gone]);
            assert_eq!(held(&sessions), [Some(kept), Some(3), None]);
        }
    }

    #[test]
    fn each_session_is_found_by_its_index() {
        let mut sessions = Sessions::default();
        initiated(&mut sessions, 1);
        initiated(&mut sessions, 2);
        assert_eq!(sessions.find_mut(1).unwrap().0, Position::Previous);
        sessions.responded(session(3));
        assert_eq!(sessions.find_mut(2).unwrap().0, Position::Current);
        assert_eq!(sessions.find_mut(3).unwrap().0, Position::Next);
        assert!(sessions.find_mut(1).is_none());
        assert_eq!(ended(sessions.clear()), [2, 3]);
    }
}
