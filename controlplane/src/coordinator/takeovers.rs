//! Whether connections of one node take over from each other again and again: then two machines run with one identity.

use std::time::Duration;

use tokio::time::Instant;

/// How many in a [`WINDOW`] are no accident. A machine that changes networks, or whose road drops what is idle, takes over from itself
/// now and then; two machines do it every few seconds, since each comes back at once (5 s at most while its stream was lost of late).
const MANY: u32 = 3;
/// How long they count, and the shortest time between two lines of the log about one node.
const WINDOW: Duration = Duration::from_secs(300);

/// How often connections of a node took over of late.
#[derive(Debug, Clone, Default)]
pub(super) struct Takeovers {
    /// When the window began, and how many there were in it.
    window: Option<(Instant, u32)>,
}

impl Takeovers {
    /// Counts one. Answers how many there were within how long if that is to be told now.
    pub(super) fn note(&mut self, now: Instant) -> Option<(u32, Duration)> {
        let (began, count) = match self.window {
            Some((began, count)) if now.saturating_duration_since(began) < WINDOW => (began, count),
            Some(_) | None => (now, 0),
        };
        let count = count.saturating_add(1);
        self.window = Some((began, count));
        (count == MANY).then(|| (count, now.saturating_duration_since(began)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_within_a_window_are_told_once_in_it_and_few_never() {
        let (mut takeovers, start) = (Takeovers::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(takeovers.note(after(0)), None);
        assert_eq!(takeovers.note(after(5)), None);
        assert_eq!(takeovers.note(after(9)), Some((3, Duration::from_secs(9))));
        assert!((10..300).all(|second| takeovers.note(after(second)).is_none()));
        let told = (300..1200).filter(|second| takeovers.note(after(*second)).is_some()).count();
        assert_eq!(told, 3, "once in each window while it goes on");

        let mut seldom = Takeovers::default();
        assert!((0..100).all(|times| seldom.note(after(times * 150)).is_none()));
    }
}
