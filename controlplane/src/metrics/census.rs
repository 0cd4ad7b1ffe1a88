//! How many connections there are, by what they may do: for metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How often connections are counted to see whether a crowd has gone.
const LOOK: Duration = Duration::from_secs(5);
/// So many connections less are a crowd that has gone.
const CROWD: u64 = 64;
/// In so many looks after that the last of its requests end.
const ENDING: u32 = 4;

/// Counts the connections of one listener; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Census(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: [AtomicU64; Standing::ALL.len()],
    refused: AtomicU64,
}

/// What a connection is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its TLS handshake is not done.
    Handshaking,
    /// Nobody on it has proved anything.
    Unproven,
    /// Somebody on it has proved himself.
    Proven,
    /// It is about to end.
    Closing,
    /// It was handed to the relay.
    WebSocket,
}

impl Standing {
    const ALL: [Self; 5] = [Self::Handshaking, Self::Unproven, Self::Proven, Self::Closing, Self::WebSocket];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Handshaking => "handshaking",
            Self::Unproven => "unproven",
            Self::Proven => "proven",
            Self::Closing => "closing",
            Self::WebSocket => "websocket",
        }
    }
}

impl Census {
    /// Counts a connection as `standing` until the returned value is dropped.
    pub(crate) fn enter(&self, standing: Standing) -> Counted {
        self.0.open[standing as usize].fetch_add(1, Ordering::Relaxed);
        Counted { census: self.clone(), standing }
    }

    /// Counts a connection that was not taken.
    pub(crate) fn refuse(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Each standing with how many connections have it.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Standing::ALL
            .into_iter()
            .map(|standing| (standing.as_str(), self.0.open[standing as usize].load(Ordering::Relaxed)))
    }

    /// Calls `give_back` when a crowd of connections has gone, and until the last of its requests have ended; for ever. What they held is
    /// free then, but the allocator keeps it unless it is told otherwise.
    pub(crate) async fn after_crowds(&self, give_back: fn()) {
        let mut crowds = Crowds::default();
        loop {
            tokio::time::sleep(LOOK).await;
            if crowds.may_have_freed(self.rows().map(|(_, count)| count).sum())
                && let Err(error) = tokio::task::spawn_blocking(give_back).await
            {
                tracing::debug!(%error, "could not give memory back");
            }
        }
    }

    /// How many were refused because there were too many.
    pub(crate) fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }
}

/// What tells of a crowd that has gone.
#[derive(Debug, Default)]
struct Crowds {
    /// The most connections since a crowd went last.
    most: u64,
    /// Looks in which requests of it may still end.
    ending: u32,
}

impl Crowds {
    /// Whether much may have become free since the last look, by how many connections are open at this one.
    fn may_have_freed(&mut self, open: u64) -> bool {
        self.most = self.most.max(open);
        if self.most - open >= CROWD {
            (self.most, self.ending) = (open, ENDING);
        }
        let free = self.ending > 0;
        self.ending = self.ending.saturating_sub(1);
        free
    }
}

/// A connection that is counted.
#[derive(Debug)]
pub(crate) struct Counted {
    census: Census,
    standing: Standing,
}

impl Counted {
    /// Counts it as `standing` from now on.
    pub(crate) fn become_now(&mut self, standing: Standing) {
        *self = self.census.enter(standing);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.census.0.open[self.standing as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_one_standing_at_a_time_and_none_when_gone() {
        let census = Census::default();
        let of = |name| census.rows().find(|(standing, _)| *standing == name).map(|(_, count)| count);
        let mut one = census.enter(Standing::Handshaking);
        let _other = census.enter(Standing::Handshaking);
        assert_eq!(of("handshaking"), Some(2));
        one.become_now(Standing::Proven);
        assert_eq!((of("handshaking"), of("proven")), (Some(1), Some(1)));
        drop(one);
        assert_eq!((of("handshaking"), of("proven")), (Some(1), Some(0)));
    }

    #[test]
    fn memory_is_given_back_after_a_crowd_and_not_for_a_few() {
        let mut crowds = Crowds::default();
        let mut told = |looks: &[u64]| looks.iter().filter(|open| crowds.may_have_freed(**open)).count();
        assert_eq!(told(&[0, 0, 5, 2000, 2000, 1990, 1937]), 0, "they are there, but for a few");
        assert_eq!(told(&[1936, 1936, 1936, 1936, 1936, 1936]), 4, "as long as their requests may last");
        assert_eq!(told(&[1000, 0]), 2, "and more while they go on going");
        assert_eq!(told(&[0, 0, 0, 0, 0]), 3);
        assert_eq!(told(&[63, 0]), 0);
    }
}
