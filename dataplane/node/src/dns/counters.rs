//! What was answered and what was not, counted.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;

/// Response codes that are counted by themselves: their numbers and names (RFC 6895 §2.3).
const CODES: [(u16, &str); 8] = [
    (0, "NOERROR"),
    (1, "FORMERR"),
    (2, "SERVFAIL"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (16, "BADVERS"),
    (u16::MAX, "other"),
];

/// The name of a response code as `dig` writes it.
pub(super) fn code_name(code: ResponseCode) -> &'static str {
    let number = u16::from(code);
    CODES.iter().find(|(known, _)| *known == number).map_or("other", |(_, name)| name)
}

/// Who an answer is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum By {
    /// This node: the zone, a special name, or that it does not answer such a query.
    Node,
    /// A resolver that was in place.
    Upstream,
}

/// Why a query got no answer, or none from a resolver that was in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    /// It came from an address that is not this machine's.
    Stranger,
    /// It is too short to have a header.
    NoHeader,
    /// It is an answer: two servers must not talk to each other for ever.
    Response,
    /// The asker does not take answers: the socket was full, or its connection is gone.
    Untaken,
    /// A connection announced a longer message than a query may be.
    TooLong,
    /// There is nobody to ask for other names: `REFUSED`.
    NoUpstream,
    /// As many queries wait for resolvers as may: `SERVFAIL`.
    Busy,
    /// The same question waits for resolvers as often as it may, which is what a loop looks like: `SERVFAIL`.
    Repeated,
    /// No resolver answered in time: `SERVFAIL`.
    NoReply,
}

impl Refusal {
    const ALL: [Self; 9] = [
        Self::Stranger,
        Self::NoHeader,
        Self::Response,
        Self::Untaken,
        Self::TooLong,
        Self::NoUpstream,
        Self::Busy,
        Self::Repeated,
        Self::NoReply,
    ];

    /// Its name in metrics and in `meshctl dns status`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::NoHeader => "no-header",
            Self::Response => "response",
            Self::Untaken => "untaken",
            Self::TooLong => "too-long",
            Self::NoUpstream => "no-upstream",
            Self::Busy => "busy",
            Self::Repeated => "repeated",
            Self::NoReply => "no-reply",
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    own: [AtomicU64; CODES.len()],
    upstream: [AtomicU64; CODES.len()],
    refusals: [AtomicU64; Refusal::ALL.len()],
}

impl Counters {
    pub(super) fn answered(&self, by: By, code: ResponseCode) {
        let name = code_name(code);
        let counts = match by {
            By::Node => &self.own,
            By::Upstream => &self.upstream,
        };
        for (count, (_, known)) in counts.iter().zip(CODES) {
            if known == name {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn refused(&self, why: Refusal) {
        for (count, known) in self.refusals.iter().zip(Refusal::ALL) {
            if known == why {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn report(&self) -> Report {
        let names = || CODES.iter().map(|(_, name)| *name);
        let with = |by| names().map(move |name| (by, name));
        let answers = with(By::Node).zip(&self.own).chain(with(By::Upstream).zip(&self.upstream));
        let refusals = Refusal::ALL.into_iter().map(Refusal::name).zip(&self.refusals);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Report {
            answers: answers.map(|(what, count)| (what, read(count))).collect(),
            refusals: refusals.map(|(why, count)| (why, read(count))).collect(),
        }
    }
}

/// What was answered and what was not, since the start of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Answers by who gave them and their response code; every one is there, also with 0.
    pub(crate) answers: BTreeMap<(By, &'static str), u64>,
    /// Queries that got no answer, or none from a resolver, by reason; every one is there, also with 0.
    pub(crate) refusals: BTreeMap<&'static str, u64>,
}

impl Report {
    /// What is not 0, by response code in upper case and by reason in lower case, as the local API has it.
    pub(crate) fn totals(&self) -> BTreeMap<String, u64> {
        let mut totals = BTreeMap::new();
        let answers = self.answers.iter().map(|((_, code), count)| (*code, *count));
        for (what, count) in answers.chain(self.refusals.iter().map(|(why, count)| (*why, *count))) {
            if count > 0 {
                let total: &mut u64 = totals.entry(what.to_owned()).or_default();
                *total = total.saturating_add(count);
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_and_refusal_is_counted_under_its_name() {
        let counters = Counters::default();
        let codes =
            [ResponseCode::NoError, ResponseCode::FormErr, ResponseCode::ServFail, ResponseCode::NXDomain]
                .into_iter()
                .chain([
                    ResponseCode::NotImp,
                    ResponseCode::Refused,
                    ResponseCode::BADVERS,
                    ResponseCode::YXRRSet,
                ]);
        for code in codes.clone() {
            counters.answered(By::Node, code);
        }
        counters.answered(By::Upstream, ResponseCode::NXDomain);
        for why in Refusal::ALL {
            counters.refused(why);
        }
        let report = counters.report();
        assert!(report.refusals.values().all(|count| *count == 1), "{report:?}");
        assert_eq!(report.refusals.len(), Refusal::ALL.len());
        assert_eq!(report.answers[&(By::Upstream, "NXDOMAIN")], 1);
        assert_eq!(report.answers.values().sum::<u64>(), codes.count() as u64 + 1);
        let totals = report.totals();
        assert_eq!((totals["NXDOMAIN"], totals["other"], totals["stranger"]), (2, 1, 1));
        assert_eq!(Counters::default().report().totals(), BTreeMap::new());
    }
}
