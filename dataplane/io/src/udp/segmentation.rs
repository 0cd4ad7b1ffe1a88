//! How many datagrams one send may carry (`UDP_SEGMENT`), by what the kernel refused before.
//!
//! It may know the option and yet refuse it for one route: a device without checksum offload, a transform, a limit that
//! is lower on older kernels. What was refused is sent again in smaller parts; nothing is lost.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The most segments of one send since Linux 6.9: `UDP_MAX_SEGMENTS` is 128, and the UDP header counts as a part of one.
const MOST: usize = 127;

/// The same before Linux 6.9.
const MOST_BEFORE: usize = 63;

/// How many addresses are remembered as taking no trains; the oldest makes room.
const REMEMBERED: usize = 16;

/// After this an address is tried again: routes and devices change.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// What this socket's kernel takes.
#[derive(Debug)]
pub(crate) struct Segmentation {
    most: usize,
    /// Since when it is less than [`MOST`].
    lowered: Option<Instant>,
    refused: heapless::Deque<(IpAddr, Instant), REMEMBERED>,
}

impl Segmentation {
    /// Trains are sent as trains, or (`false`) as single datagrams.
    pub(crate) fn new(offered: bool) -> Self {
        Self { most: if offered { MOST } else { 1 }, lowered: None, refused: heapless::Deque::new() }
    }

    /// The most datagrams that a send to `to` may carry.
    pub(crate) fn most(&self, to: &SocketAddr) -> usize {
        if !self.refused.is_empty() && self.refused.iter().any(|(refused, _)| *refused == to.ip()) {
            return 1;
        }
        self.most
    }

    /// The kernel refused a send of so many datagrams as such.
    pub(crate) fn refuse(&mut self, to: &SocketAddr, datagrams: usize, now: Instant) {
        if datagrams > MOST_BEFORE && self.most > MOST_BEFORE {
            self.most = MOST_BEFORE;
            self.lowered = Some(now);
            return;
        }
        if self.refused.iter().any(|(refused, _)| *refused == to.ip()) {
            return;
        }
        if self.refused.is_full() {
            self.refused.pop_front();
        }
        // Cannot fail: there is room.
        let _ = self.refused.push_back((to.ip(), now));
    }

    /// Whether something was refused and is remembered.
    pub(crate) fn remembers(&self) -> bool {
        self.lowered.is_some() || !self.refused.is_empty()
    }

    /// Forgets refusals of long ago.
    pub(crate) fn forget_old(&mut self, now: Instant) {
        if self.lowered.is_some_and(|since| now.saturating_duration_since(since) >= TRIED_AGAIN_AFTER) {
            self.lowered = None;
            self.most = MOST;
        }
        while self
            .refused
            .front()
            .is_some_and(|(_, since)| now.saturating_duration_since(*since) >= TRIED_AGAIN_AFTER)
        {
            self.refused.pop_front();
        }
    }
}

/// Whether an error of a send with several datagrams may be about their being several.
pub(crate) fn is_about_segments(code: i32) -> bool {
    matches!(code, libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 7))
    }

    #[test]
    fn a_refusal_lowers_the_limit_first_and_then_concerns_one_address() {
        let now = Instant::now();
        let mut segmentation = Segmentation::new(true);
        assert_eq!(segmentation.most(&to(1)), 127);
        segmentation.refuse(&to(1), 100, now);
        assert_eq!((segmentation.most(&to(1)), segmentation.most(&to(2))), (63, 63));
        segmentation.refuse(&to(1), 63, now);
        assert_eq!((segmentation.most(&to(1)), segmentation.most(&to(2))), (1, 63));
        assert_eq!(
            segmentation.most(&SocketAddr::from(([192, 0, 2, 1], 8))),
            1,
            "a port has no route of its own"
        );
    }

    #[test]
    fn a_refusal_is_forgotten_after_a_while_and_never_more_than_a_few_are_kept() {
        let now = Instant::now();
        let mut segmentation = Segmentation::new(true);
        for last in 0..20 {
            segmentation.refuse(&to(last), 2, now + Duration::from_secs(u64::from(last)));
            segmentation.refuse(&to(last), 2, now + Duration::from_secs(u64::from(last)));
        }
        assert_eq!((segmentation.most(&to(3)), segmentation.most(&to(4))), (127, 1));
        segmentation.forget_old(now + TRIED_AGAIN_AFTER + Duration::from_secs(4));
        assert_eq!((segmentation.most(&to(4)), segmentation.most(&to(5))), (127, 1));
        segmentation.forget_old(now + TRIED_AGAIN_AFTER + Duration::from_secs(20));
        assert!(!segmentation.remembers());
    }

    #[test]
    fn a_lowered_limit_is_tried_again_after_a_while() {
        let now = Instant::now();
        let mut segmentation = Segmentation::new(true);
        segmentation.refuse(&to(1), 100, now);
        segmentation.forget_old(now + TRIED_AGAIN_AFTER - Duration::from_secs(1));
        assert_eq!((segmentation.most(&to(1)), segmentation.remembers()), (63, true));
        segmentation.forget_old(now + TRIED_AGAIN_AFTER);
        assert_eq!((segmentation.most(&to(1)), segmentation.remembers()), (127, false));
    }

    #[test]
    fn without_the_offload_datagrams_go_one_by_one() {
        assert_eq!(Segmentation::new(false).most(&to(1)), 1);
    }
}
